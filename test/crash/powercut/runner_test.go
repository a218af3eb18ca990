package powercut_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"github.com/fsximg/fsx/internal/volume"
	"github.com/fsximg/fsx/pkg/crypt"
)

// storeName is the store's name in a recorded directory.
const storeName = "s.fsx"

func secrets() ([]crypt.Secret, error) {
	s, err := crypt.NewKeyFile(bytes.Repeat([]byte{0xa5, 1, 2, 0xff}, 8))
	return []crypt.Secret{s}, err
}

func options() volume.Options {
	o := volume.Options{Program: "powercut", Memory: 4 << 20}
	if os.Getenv("FSX_TEST_LOG") != "" {
		o.Log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return o
}

func createStore(path string, size int64) error {
	keys, err := secrets()
	if err != nil {
		return err
	}
	s, err := volume.Create(path, volume.CreateOptions{Options: options(), Size: size, Secrets: keys})
	if err != nil {
		return err
	}
	return s.Close()
}

// openStore opens, unlocks and recovers.
func openStore(path string, o volume.Options) (*volume.Store, *volume.Volume, error) {
	s, err := volume.Open(path, o)
	if err != nil {
		return nil, nil, fmt.Errorf("open: %w", err)
	}
	keys, err := secrets()
	if err == nil {
		err = s.Unlock(keys)
	}
	var v *volume.Volume
	if err == nil {
		v, err = s.Volume("main")
	}
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("open: %w", err), s.Close())
	}
	return s, v, nil
}

// reader is a volume or a snapshot.
type reader interface {
	Size() int64
	ReadAt(p []byte, off int64, nowait bool) error
}

// observe reads all of a volume.
func observe(v reader) (*state, error) {
	s := emptyState(v.Size())
	const chunk = 256 * blockSize
	buf := make([]byte, chunk, chunk+16)
	for off := int64(0); off < s.size; off += chunk {
		p := buf[:min(chunk, s.size-off)]
		if err := v.ReadAt(p, off, false); err != nil {
			return nil, fmt.Errorf("read %d+%d: %w", off, len(p), err)
		}
		for at := int64(0); at < int64(len(p)); at += blockSize {
			b := (off + at) / blockSize
			s.sums[b] = sumOf(p[at : at+s.blockLen(b)])
		}
		if end := off + int64(len(p)); end > s.looseStart() {
			from := max(off, s.looseStart())
			copy(s.loose[from-s.looseStart():], p[from-off:])
		}
	}
	return s, nil
}

// runner does a script's operations to a store.
type runner struct {
	*script
	path string
	s    *volume.Store
	v    *volume.Volume
	// acked is told that all operations before the k-th are durable; alone says
	// that none is under way.
	acked func(k int, alone bool) error
	// done is told of every operation that has returned.
	done func(index int)

	later sync.WaitGroup
	busy  chan struct{} // held by a checkpoint that runs aside
	mu    sync.Mutex
	err   error // of what ran aside
}

// run does n more operations.
func (r *runner) run(n int) error {
	if r.busy == nil {
		r.busy = make(chan struct{}, 1)
	}
	for range n {
		o := r.operation()
		if err := r.do(o); err != nil {
			return fmt.Errorf("operation %d (%d at %d+%d): %w", o.index, o.action, o.off, o.n, err)
		}
		if r.done != nil {
			r.done(o.index)
		}
		if err := r.aside(); err != nil {
			return err
		}
	}
	r.later.Wait()
	return r.aside()
}

func (r *runner) aside() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

func (r *runner) goLater(f func() error) {
	r.later.Add(1)
	go func() {
		defer r.later.Done()
		if err := f(); err != nil {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.err = errors.Join(r.err, err)
		}
	}()
}

func (r *runner) do(o operation) error {
	ctx := context.Background()
	switch o.action {
	case writeBlocks, writeBytes, writeZeros:
		return r.v.WriteAt(r.data(o), o.off, false)
	case zero:
		return r.v.ZeroAt(o.off, o.n, o.index%2 == 0)
	case trim:
		return r.v.TrimAt(o.off, o.n)
	case flush:
		if err := r.v.Flush(); err != nil {
			return err
		}
		return r.acked(o.index, true)
	case flushLater:
		v := r.v
		r.goLater(func() error {
			if err := v.Flush(); err != nil {
				return fmt.Errorf("flush %d: %w", o.index, err)
			}
			return r.acked(o.index, false)
		})
	case checkpoint:
		return r.v.Checkpoint(ctx)
	case checkpointLater:
		select {
		case r.busy <- struct{}{}:
			v := r.v
			r.goLater(func() error {
				defer func() { <-r.busy }()
				return v.Checkpoint(ctx)
			})
		default:
		}
	case compact:
		_, err := r.s.Compact(ctx)
		return err
	case reopen:
		return r.reopen(o.index)
	case snapshot:
		if err := r.v.CreateSnapshot(ctx, r.snapName(int64(o.index))); err != nil {
			return err
		}
		return r.acked(o.index+1, true)
	case unsnapshot:
		if err := r.v.DeleteSnapshot(ctx, r.snapName(o.off)); err != nil {
			return err
		}
		return r.acked(o.index+1, true)
	}
	return nil
}

func (r *runner) reopen(k int) error {
	r.later.Wait()
	if err := r.s.Close(); err != nil {
		return err
	}
	if err := r.acked(k, true); err != nil {
		return err
	}
	return r.open()
}

func (r *runner) open() (err error) {
	r.s, r.v, err = openStore(filepath.Join(r.path, storeName), options())
	return err
}

// close ends a run; all operations are durable then.
func (r *runner) close() error {
	r.later.Wait()
	if err := errors.Join(r.aside(), r.s.Close()); err != nil {
		return err
	}
	return r.acked(r.next, true)
}
