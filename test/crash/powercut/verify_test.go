package powercut_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/fsximg/fsx/internal/volume"
)

// verdict is what the verification of an image found besides errors.
type verdict struct {
	leaked uint64 // blocks that were accounted as live and not needed
	none   bool   // there was no store yet
	left   *state // what is in the volume now
}

// verify opens the store that a cut has left in dir, and checks that it keeps
// the promise, that check finds nothing wrong, and that it goes on to work. The
// seed chooses what is done to it.
func verify(dir string, p promise, seed uint64) (r verdict, err error) {
	path := filepath.Join(dir, storeName)
	if seed%8 == 0 && !p.none {
		if _, err := verifyReadOnly(path, p); err != nil {
			return r, fmt.Errorf("read-only: %w", err)
		}
	}
	s, v, err := openStore(path, options())
	if p.none && isUnfinished(err) {
		return verdict{none: true}, nil
	}
	if err != nil {
		return r, err
	}
	found, err := verifyContent(v, p)
	if err == nil {
		r.leaked, err = verifyStructure(s)
	}
	if err != nil {
		return r, errors.Join(err, s.Close())
	}
	r.left, err = verifyGoingOn(dir, s, v, found, seed)
	return r, err
}

// isUnfinished says that a store was never there: its creation was cut off,
// perhaps in the middle of its superblock.
func isUnfinished(err error) bool {
	return errors.Is(err, volume.ErrNotStore) || errors.Is(err, fs.ErrNotExist) ||
		errors.Is(err, volume.ErrDamaged) && strings.Contains(err.Error(), "superblock")
}

func verifyReadOnly(path string, p promise) (*state, error) {
	o := options()
	o.ReadOnly = true
	s, v, err := openStore(path, o)
	if err != nil {
		return nil, err
	}
	found, err := verifyContent(v, p)
	return found, errors.Join(err, s.Close())
}

func verifyContent(v *volume.Volume, p promise) (*state, error) {
	if v.Size() != p.m.now.size {
		return nil, fmt.Errorf("the volume has %d bytes, want %d", v.Size(), p.m.now.size)
	}
	found, err := observe(v)
	if err == nil {
		err = verifySnapshots(v, p)
	}
	if err != nil {
		return nil, err
	}
	return found, p.m.compare(found, p.floor, p.ceil, func(b int64) []byte {
		buf := make([]byte, found.blockLen(b), blockSize+16)
		if err := v.ReadAt(buf, b*blockSize, false); err != nil {
			return fmt.Appendf(buf[:0], "%024v", err)
		}
		return buf
	})
}

// verifySnapshots checks that there are the snapshots that there must be, and
// none that there must not be, and that each has what the volume had when it was
// made.
func verifySnapshots(v *volume.Volume, p promise) error {
	for op, l := range p.m.snaps {
		name := p.m.script.snapName(op)
		s, err := v.Snapshot(name)
		switch {
		case errors.Is(err, volume.ErrNoSnapshot):
			if int(op) < p.floor && l.deleted >= p.ceil {
				return fmt.Errorf("snapshot of operation %d is missing (durable before operation %d)", op, p.floor)
			}
			continue
		case err != nil:
			return err
		case int(op) >= p.ceil || l.deleted < p.floor:
			return fmt.Errorf("snapshot of operation %d, deleted by %d, is there (durable before %d, none from %d on)", op, l.deleted, p.floor, p.ceil)
		}
		found, err := observe(s)
		if err == nil {
			err = p.m.compare(found, int(op), int(op), nil)
		}
		if err != nil {
			return fmt.Errorf("snapshot of operation %d: %w", op, err)
		}
	}
	return nil
}

// verifyStructure runs check. What leaks, a compaction must give back.
func verifyStructure(s *volume.Store) (leaked uint64, err error) {
	if leaked, err = check(s); err != nil || leaked == 0 {
		return leaked, err
	}
	if _, err := s.Compact(context.Background()); err != nil {
		return leaked, fmt.Errorf("compact: %w", err)
	}
	left, err := check(s)
	if err == nil && left != 0 {
		err = fmt.Errorf("%d blocks leaked, %d after a compaction", leaked, left)
	}
	return leaked, err
}

func check(s *volume.Store) (leaked uint64, err error) {
	r, err := s.Check(context.Background(), volume.CheckOptions{MaxProblems: 5})
	if err != nil {
		return 0, fmt.Errorf("check: %w", err)
	}
	if !r.Clean() {
		return 0, fmt.Errorf("check finds %d problems: %v", len(r.Problems)+r.More, r.Problems)
	}
	for _, v := range r.Volumes {
		if v.Verified != v.Blocks || !v.Authentic {
			return 0, fmt.Errorf("check verified %d of %d blocks", v.Verified, v.Blocks)
		}
		leaked += v.Leaked
	}
	return leaked, nil
}

// verifyGoingOn writes, closes and reads again.
func verifyGoingOn(dir string, s *volume.Store, v *volume.Volume, found *state, seed uint64) (*state, error) {
	left, err := goOn(dir, s, v, found, seed)
	if err != nil {
		return nil, fmt.Errorf("going on: %w", err)
	}
	return left, nil
}

func goOn(dir string, s *volume.Store, v *volume.Volume, found *state, seed uint64) (*state, error) {
	const ops = 24
	sc := newScript(seed, found.size)
	sc.calm = true
	r := &runner{script: sc, path: dir, s: s, v: v, acked: func(int, bool) error { return nil }}
	if err := r.run(ops); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	if err := r.close(); err != nil {
		return nil, err
	}
	if err := r.open(); err != nil {
		return nil, err
	}
	p := promise{m: modelOf(found, sc.again(), ops), floor: ops, ceil: ops}
	left, err := verifyContent(r.v, p)
	if err == nil {
		var leaked uint64
		if leaked, err = check(r.s); err == nil && leaked != 0 {
			err = fmt.Errorf("%d blocks leaked", leaked)
		}
	}
	return left, errors.Join(err, r.s.Close())
}
