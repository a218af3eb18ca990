package control

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/fsximg/fsx/internal/cliutil"
	"github.com/fsximg/fsx/internal/volume"
	"github.com/fsximg/fsx/pkg/crypt"
)

// Local carries operations out on a store that this process has open, with the
// keys that it has. It is safe for concurrent use.
type Local struct {
	st    *volume.Store
	claim Claim // nil: the store is not served
	jobs  jobs
}

var _ Operations = (*Local)(nil)

// NewLocal makes operations on a store. claim keeps the clients of a server away;
// nil is for a store that is not served.
func NewLocal(st *volume.Store, claim Claim) *Local {
	return &Local{st: st, claim: claim}
}

// take keeps clients away from devices until release is called.
func (l *Local) take(devices ...Device) (release func(), err error) {
	if l.claim == nil {
		return func() {}, nil
	}
	return l.claim(devices...)
}

// EndJobs stops what goes on in the background, and waits for it.
func (l *Local) EndJobs() { l.jobs.end() }

// Close closes the store.
func (l *Local) Close() error {
	l.EndJobs()
	if err := l.st.Close(); err != nil {
		return fmt.Errorf("close store: %w", err)
	}
	return nil
}

// Info implements Operations.
func (l *Local) Info(context.Context) (Info, error) {
	info, err := l.st.Info()
	if err != nil {
		return Info{}, err
	}
	all := slices.Concat(info.Volumes, info.Hidden)
	volumes := describeVolumes(info.Volumes, all, info.Slots)
	for i := range volumes {
		if done, total, err, ok := l.jobs.progress(volumes[i].Name); ok {
			volumes[i].Reencrypting = &Reencrypting{Done: done, Total: total}
			if err != nil {
				volumes[i].Reencrypting.Error = err.Error()
			}
		}
	}
	return Info{
		UUID: info.UUID.String(), FormatVersion: info.Version, Created: info.Created.UTC(), Allocated: info.Allocated,
		NeedsReplay: needsReplay(info.Volumes), Slots: DescribeSlots(info.Slots), Volumes: volumes, Hidden: describeVolumes(info.Hidden, all, info.Slots),
	}, nil
}

// Map implements Operations.
func (l *Local) Map(ctx context.Context, name, snapshot string, fn func(Run) error) error {
	var failed error
	err := l.st.Map(name, snapshot, func(r volume.Run) bool {
		if failed = ctx.Err(); failed == nil {
			failed = fn(describeRun(r))
		}
		return failed == nil
	})
	return errors.Join(err, failed)
}

// Diff implements Operations.
func (l *Local) Diff(ctx context.Context, name, from, to string, fn func(DiffRun) error) error {
	var failed error
	err := l.st.Diff(ctx, name, from, to, func(r volume.DiffRun) bool {
		failed = fn(describeDiffRun(r))
		return failed == nil
	})
	return errors.Join(err, failed)
}

// Check implements Operations.
func (l *Local) Check(ctx context.Context, progress func(done, total int64)) (Report, error) {
	r := Report{Volumes: []CheckedVolume{}, Problems: []Problem{}}
	l.openAll(func(name string, err error) {
		// One that its key is missing for is checked without; another is a problem,
		// and the others go on.
		if !errors.Is(err, volume.ErrKeyMissing) && !errors.Is(err, volume.ErrUntrusted) {
			r.Problems = append(r.Problems, Problem{Volume: name, Text: err.Error()})
		}
	})
	volumes, err := l.st.Volumes()
	if err != nil {
		return r, err
	}
	r.NeedsReplay = needsReplay(volumes)
	rep, err := l.st.Check(ctx, volume.CheckOptions{Progress: progress})
	if err != nil {
		return r, err
	}
	r.add(rep)
	return r, nil
}

// openAll opens every volume, and tells of those that cannot be.
func (l *Local) openAll(failed func(name string, err error)) {
	for _, name := range l.st.Names() {
		v, err := l.st.Volume(name)
		if err == nil {
			err = v.Distrusted()
		}
		if err != nil {
			failed(name, err)
		}
	}
}

// Compact implements Operations.
func (l *Local) Compact(ctx context.Context) (Compaction, error) {
	c := Compaction{Locked: []string{}}
	var errs error
	l.openAll(func(name string, err error) {
		if errors.Is(err, volume.ErrKeyMissing) || errors.Is(err, volume.ErrUntrusted) {
			c.Locked = append(c.Locked, name)
			return
		}
		errs = errors.Join(errs, err)
	})
	if errs != nil {
		return c, errs
	}
	rep, err := l.st.Compact(ctx)
	c.Before, c.After = rep.Before, rep.After
	return c, err
}

// CreateSnapshot implements Operations.
func (l *Local) CreateSnapshot(ctx context.Context, name, snapshot string) (Snapshot, error) {
	v, err := l.st.Volume(name)
	if err != nil {
		return Snapshot{}, err
	}
	if err := v.CreateSnapshot(ctx, snapshot); err != nil {
		return Snapshot{}, err
	}
	s, err := v.Snapshot(snapshot)
	if err != nil {
		return Snapshot{}, err
	}
	return describeSnapshot(s.Info()), nil
}

// DeleteSnapshot implements Operations.
func (l *Local) DeleteSnapshot(ctx context.Context, name, snapshot string) (Snapshot, error) {
	v, err := l.st.Volume(name)
	if err != nil {
		return Snapshot{}, err
	}
	s, err := v.Snapshot(snapshot)
	if err != nil {
		return Snapshot{}, err
	}
	release, err := l.take(Device{name, snapshot})
	if err != nil {
		return Snapshot{}, err
	}
	defer release()
	return describeSnapshot(s.Info()), v.DeleteSnapshot(ctx, snapshot)
}

// Rollback implements Operations. The volume is another afterwards, so that neither
// it nor a snapshot of it may have clients.
func (l *Local) Rollback(ctx context.Context, name, snapshot string, force bool) (deleted []string, err error) {
	release, err := l.take(Device{Volume: name}, Device{name, AllSnapshots})
	if err != nil {
		return nil, err
	}
	defer release()
	return l.st.Rollback(ctx, name, snapshot, force)
}

// Clone implements Operations.
func (l *Local) Clone(ctx context.Context, c CloneRequest) error {
	mode, err := modeOf(c.Cipher)
	if err != nil {
		return err
	}
	if c.Ephemeral && l.claim == nil {
		return cliutil.WithHint(cliutil.UsageErrorf("an ephemeral key lives in a server's memory, and this store is not served"), "fsxnbd serve %s", l.st.Path())
	}
	secrets, wipe, err := secretsOf(c.Secrets)
	if err != nil {
		return err
	}
	defer wipe()
	return l.st.Clone(ctx, c.Volume, c.Snapshot, c.Name, volume.CloneOptions{Secrets: secrets, NoChain: c.NoChain, Ephemeral: c.Ephemeral, Mode: mode})
}

// CreateVolume implements Operations.
func (l *Local) CreateVolume(ctx context.Context, v VolumeRequest) error {
	mode, err := modeOf(v.Cipher)
	if err != nil {
		return err
	}
	secrets, wipe, err := secretsOf(v.Secrets)
	if err != nil {
		return err
	}
	defer wipe()
	return l.st.CreateVolume(ctx, v.Name, v.Size, volume.VolumeOptions{Secrets: secrets, Like: v.Like, Mode: mode})
}

// modeOf is the cipher of a request; 0 if it names none.
func modeOf(cipher string) (crypt.Mode, error) {
	if cipher == "" {
		return 0, nil
	}
	return crypt.ParseMode(cipher)
}

func secretsOf(l []cliutil.SlotSecret) (out []crypt.Secret, wipe func(), err error) {
	wipe = func() { cliutil.WipeSecrets(out) }
	for i := range l {
		s, err := l[i].Secret()
		if err != nil {
			wipe()
			return nil, nil, err
		}
		out = append(out, s)
	}
	return out, wipe, nil
}

// DeleteVolume implements Operations. Neither the volume nor a snapshot of it may
// have clients.
func (l *Local) DeleteVolume(ctx context.Context, name string) error {
	release, err := l.take(Device{Volume: name}, Device{name, AllSnapshots})
	if err != nil {
		return err
	}
	defer release()
	return l.st.DeleteVolume(ctx, name)
}

// RenameVolume implements Operations. Clients would not find the volume again
// when they reconnect, so there may be none.
func (l *Local) RenameVolume(ctx context.Context, name, to string) error {
	release, err := l.take(Device{Volume: name}, Device{name, AllSnapshots})
	if err != nil {
		return err
	}
	defer release()
	return l.st.RenameVolume(ctx, name, to)
}

// Resize implements Operations. A volume that clients use does not shrink.
func (l *Local) Resize(ctx context.Context, name string, size int64, shrink bool) error {
	if shrink {
		release, err := l.take(Device{Volume: name})
		if err != nil {
			return err
		}
		defer release()
	}
	return l.st.Resize(ctx, name, size, shrink)
}

// Copy implements Operations.
func (l *Local) Copy(ctx context.Context, dst string, progress func(done, total int64)) error {
	if !filepath.IsAbs(dst) {
		return cliutil.UsageErrorf("copy to %s: the path is not absolute", dst)
	}
	if err := cliutil.NotInStore(dst); err != nil {
		return err
	}
	return l.st.CopyLive(ctx, dst, progress)
}

// Flatten implements Operations.
func (l *Local) Flatten(ctx context.Context, name string, progress func(done, total int64)) error {
	return l.st.Flatten(ctx, name, progress)
}
