package volume

import (
	"context"
	"errors"
	"fmt"

	"github.com/fsximg/fsx/pkg/layout"
)

// DiffRun is a range, in bytes, that may read differently.
type DiffRun struct {
	Start, Length int64
	Zero          bool // it reads as zeros in the newer state
}

// Diff calls fn with the ranges, in order, that were written or zeroed between a
// snapshot of a volume and another one, or with an empty to, the volume now;
// until fn returns false. It costs in proportion to what changed.
func (s *Store) Diff(ctx context.Context, volume, from, to string, fn func(DiffRun) bool) error {
	if !s.calls.enter() {
		return ErrClosed
	}
	defer s.calls.leave()
	v, err := s.Volume(volume)
	if err != nil {
		return err
	}
	a, _, err := v.rootOf(ctx, from)
	if err != nil {
		return err
	}
	if to == "" {
		v.upkeep.Lock() // nothing may replace the tree while it is walked
		defer v.upkeep.Unlock()
		if !v.ro {
			if err := v.checkpointLocked(ctx, false); err != nil {
				return err
			}
		}
		v.mu.RLock()
		root, size := v.root, v.Size()
		v.mu.RUnlock()
		return v.unlessGone(s.diffRuns(ctx, a, root, size, fn), from)
	}
	b, size, err := v.rootOf(ctx, to)
	if err != nil {
		return err
	}
	return v.unlessGone(s.diffRuns(ctx, a, b, size, fn), from, to)
}

// unlessGone explains a failure to walk snapshots' maps, if one was deleted
// meanwhile: then its nodes go, which is no damage.
func (v *Volume) unlessGone(err error, snapshots ...string) error {
	if err == nil {
		return nil
	}
	for _, name := range snapshots {
		if _, _, gone := v.findSnapshot(name); errors.Is(gone, ErrNoSnapshot) {
			return gone
		}
	}
	return err
}

// rootOf is a snapshot's root and size.
func (v *Volume) rootOf(ctx context.Context, snapshot string) (root layout.Root, size int64, err error) {
	w, info, err := v.findSnapshot(snapshot)
	if err != nil {
		return root, 0, err
	}
	w.upkeep.Lock()
	defer w.upkeep.Unlock()
	if w.ro {
		w.mu.RLock()
		defer w.mu.RUnlock()
		layers, root, err := w.stateLocked(info.Number)
		if len(layers) > 0 {
			err = fmt.Errorf("snapshot %s needs replay: open the store for writing once", snapshot)
		}
		return root, info.Size, err
	}
	snap, err := w.checkpointedLocked(ctx, info.Number)
	return snap.Root, int64(snap.Size), err
}

func (s *Store) diffRuns(ctx context.Context, a, b layout.Root, size int64, fn func(DiffRun) bool) error {
	var inner error
	err := s.tree.Diff(ctx, a, b, 0, layout.BlockNo(blocksOf(uint64(size))), func(start layout.BlockNo, n uint64, differs bool) bool {
		if !differs {
			return true
		}
		more := true
		inner = s.tree.Runs(b, start, start+layout.BlockNo(n), func(start layout.BlockNo, n uint64, kind layout.Kind) bool {
			off := int64(start) * blockSize
			more = fn(DiffRun{off, min(int64(n)*blockSize, size-off), kind != layout.Data})
			return more
		})
		return more && inner == nil
	})
	if err == nil {
		err = inner
	}
	return mapDamage(err)
}
