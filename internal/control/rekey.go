package control

import (
	"context"
	"errors"
	"sync"

	"github.com/fsximg/fsx/internal/cliutil"
	"github.com/fsximg/fsx/internal/volume"
)

// Rekey implements Operations.
func (l *Local) Rekey(ctx context.Context, r RekeyRequest) (Rekeyed, error) {
	mode, err := modeOf(r.Cipher)
	if err != nil {
		return Rekeyed{}, err
	}
	if len(r.Secrets) == 0 {
		return Rekeyed{}, cliutil.UsageErrorf("rekey: no secret for the new volume key")
	}
	secrets, wipe, err := secretsOf(r.Secrets)
	if err != nil {
		return Rekeyed{}, err
	}
	defer wipe()
	res, err := l.st.Rekey(ctx, r.Volume, volume.RekeyOptions{Secrets: secrets, Mode: mode})
	if err != nil {
		return Rekeyed{}, err
	}
	shared := res.Shared
	if shared == nil {
		shared = []string{}
	}
	return Rekeyed{OldKey: res.Old.String(), NewKey: res.New.String(), Removed: DescribeSlots(res.Removed), Shared: shared}, nil
}

// Reencrypt implements Operations.
func (l *Local) Reencrypt(ctx context.Context, r ReencryptRequest, progress func(done, total int64)) (Reencrypted, error) {
	switch {
	case r.Stop && !l.jobs.stop(r.Volume):
		return Reencrypted{}, cliutil.Errorf(cliutil.ErrNotFound, "volume %s: nothing is reencrypted in the background", r.Volume)
	case r.Stop:
		return describeReencrypted(volume.Reencrypted{}, true), nil
	case r.Background && l.claim == nil:
		return Reencrypted{}, cliutil.WithHint(cliutil.UsageErrorf("--background needs a server, and this store is not served"), "fsxnbd serve %s, or leave --background out", l.st.Path())
	case r.Background:
		if _, err := l.st.Volume(r.Volume); err != nil {
			return Reencrypted{}, err
		}
		return describeReencrypted(volume.Reencrypted{}, true), l.jobs.start(r.Volume, func(ctx context.Context, progress func(done, total int64)) error {
			_, err := l.st.Reencrypt(ctx, r.Volume, volume.ReencryptOptions{Rate: r.Rate, Progress: progress})
			return err
		})
	case l.jobs.running(r.Volume):
		return Reencrypted{}, cliutil.WithHint(cliutil.Errorf(cliutil.ErrInUse, "volume %s is reencrypted in the background", r.Volume), "fsximg reencrypt --stop ends that")
	}
	res, err := l.st.Reencrypt(ctx, r.Volume, volume.ReencryptOptions{Rate: r.Rate, Progress: progress})
	return describeReencrypted(res, false), err
}

func describeReencrypted(r volume.Reencrypted, background bool) Reencrypted {
	d := Reencrypted{Bytes: r.Bytes, Removed: []DataKey{}, Held: []HeldKey{}, Unreadable: r.Unreadable, Background: background}
	for _, k := range r.Removed {
		d.Removed = append(d.Removed, describeDataKey(k))
	}
	for _, k := range r.Held {
		d.Held = append(d.Held, HeldKey{describeDataKey(k.KeyInfo), k.Snapshots})
	}
	return d
}

// jobs are what goes on in the background: one for a volume. Its zero value is
// ready.
type jobs struct {
	mu    sync.Mutex
	of    map[string]*job
	ended bool
	wait  sync.WaitGroup
}

type job struct {
	cancel      context.CancelFunc
	done, total int64
	running     bool
	err         error
}

// start begins a job for a volume, unless one runs.
func (j *jobs) start(volume string, run func(ctx context.Context, progress func(done, total int64)) error) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if old := j.of[volume]; old != nil && old.running {
		return cliutil.Errorf(cliutil.ErrInUse, "volume %s is reencrypted in the background already", volume)
	}
	if j.ended {
		return errEnds
	}
	if j.of == nil {
		j.of = map[string]*job{}
	}
	ctx, cancel := context.WithCancel(context.Background())
	n := &job{cancel: cancel, running: true}
	j.of[volume] = n
	j.wait.Go(func() {
		err := run(ctx, func(done, total int64) {
			j.mu.Lock()
			defer j.mu.Unlock()
			n.done, n.total = done, total
		})
		cancel()
		j.mu.Lock()
		defer j.mu.Unlock()
		n.running = false
		if !errors.Is(err, context.Canceled) {
			n.err = err
		}
	})
	return nil
}

// running says whether a volume has a job.
func (j *jobs) running(volume string) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	n := j.of[volume]
	return n != nil && n.running
}

// progress is how far a volume's job is, and why it failed if it did; ok is false
// if there is none or it has done its work.
func (j *jobs) progress(volume string) (done, total int64, err error, ok bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	n := j.of[volume]
	if n == nil || !n.running && n.err == nil {
		return 0, 0, nil, false
	}
	return n.done, n.total, n.err, true
}

// stop ends a volume's job, without waiting for it.
func (j *jobs) stop(volume string) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	n := j.of[volume]
	if n == nil || !n.running {
		return false
	}
	n.cancel()
	return true
}

// end stops all, waits for them, and takes none any more.
func (j *jobs) end() {
	j.mu.Lock()
	j.ended = true
	for _, n := range j.of {
		n.cancel()
	}
	j.mu.Unlock()
	j.wait.Wait()
}
