package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/fsximg/fsx/pkg/layout"
	"github.com/fsximg/fsx/pkg/layout/maptree"
)

// ErrSharedBySnapshots says that a clone's snapshots need what it shares, so
// that copying it would not part it from its parent.
var ErrSharedBySnapshots = errors.New("its snapshots share blocks with the parent")

// flattenChunk is the number of blocks that are copied at a time.
const flattenChunk = 64

// Flatten copies what a clone shares with the volume it starts from into itself,
// and parts it from there. It may be used meanwhile. Interrupted, it goes on
// where it was. progress, which may be nil, is told the bytes that were copied
// and those that are shared.
func (s *Store) Flatten(ctx context.Context, volume string, progress func(done, total int64)) error {
	if !s.calls.enter() {
		return ErrClosed
	}
	defer s.calls.leave()
	v, err := s.volumeToChange(volume)
	if err != nil {
		return err
	}
	v.flattening.Lock()
	defer v.flattening.Unlock()
	// What was deleted, and is in the way, goes first.
	if err := errors.Join(v.Checkpoint(ctx), v.sweep(ctx, true), v.Checkpoint(ctx)); err != nil {
		return err
	}
	done, total := int64(0), int64(0)
	for pass := 0; ; pass++ {
		if err := s.mayFlatten(v); err != nil {
			return err
		}
		if v.headNow().Parent == 0 {
			return nil
		}
		if pass == 0 && progress != nil {
			if err := v.eachForeign(ctx, func(_ layout.BlockNo, n int) error {
				total += int64(n) * blockSize
				return nil
			}); err != nil {
				return err
			}
		}
		shared := false
		err := v.eachForeign(ctx, func(first layout.BlockNo, n int) error {
			shared = true
			if err := v.adopt(first, n); err != nil {
				return err
			}
			done += int64(n) * blockSize
			if progress != nil {
				progress(min(done, total), total)
			}
			return nil
		})
		if err == nil {
			err = v.Checkpoint(ctx)
		}
		if err != nil {
			return fmt.Errorf("flatten volume %s: %w", volume, err)
		}
		if shared {
			continue // look again: some may have been in the way of a write
		}
		err = s.part(ctx, v)
		if !errors.Is(err, errMoved) {
			return err
		}
	}
}

// mayFlatten says whether no snapshot needs what a clone shares.
func (s *Store) mayFlatten(v *Volume) error {
	l, err := v.history()
	if err != nil {
		return err
	}
	v.mu.RLock()
	hidden := len(v.snaps)
	v.mu.RUnlock()
	if v.headNow().Parent != 0 && (len(l) > 0 || hidden > 0) {
		return fmt.Errorf("volume %s: %w", v.Name(), ErrSharedBySnapshots)
	}
	return nil
}

// eachForeign calls fn with runs of blocks, of at most flattenChunk, that belong
// to other volumes.
func (v *Volume) eachForeign(ctx context.Context, fn func(first layout.BlockNo, n int) error) error {
	return v.eachPicked(ctx, func(ref *layout.BlockRef) (bool, error) { return ref.Owner != v.id, nil }, fn)
}

// eachPicked calls fn with runs of blocks, of at most flattenChunk, that pick
// chooses by where the map has them. After an error of pick it stops.
func (v *Volume) eachPicked(ctx context.Context, pick func(*layout.BlockRef) (bool, error), fn func(first layout.BlockNo, n int) error) error {
	const most = 1024
	type run struct {
		first layout.BlockNo
		n     int
	}
	var runs []run
	for from, end := layout.BlockNo(0), layout.BlockNo(v.blocks()); from < end; {
		runs = runs[:0]
		v.mu.RLock()
		root, gen := v.root, v.gen
		v.mu.RUnlock()
		next := end
		var pickErr error
		err := v.store.tree.Walk(root, from, end, func(start layout.BlockNo, n uint64, kind layout.Kind, ref *layout.BlockRef) bool {
			if kind != layout.Data {
				return true
			}
			picked, err := pick(ref)
			if err != nil {
				pickErr = err
				return false
			}
			if !picked {
				return true
			}
			if last := len(runs) - 1; last >= 0 && runs[last].n < flattenChunk && runs[last].first+layout.BlockNo(runs[last].n) == start {
				runs[last].n++
				return true
			}
			if len(runs) == most {
				next = start
				return false
			}
			runs = append(runs, run{start, 1})
			return true
		})
		if err == nil {
			err = pickErr
		}
		if err != nil {
			v.mu.RLock()
			moved, closed := v.gen != gen, v.closed
			v.mu.RUnlock()
			if closed {
				return ErrClosed // what it shares may be gone
			}
			if moved && ctx.Err() == nil {
				continue
			}
			return mapDamage(err)
		}
		for _, r := range runs {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := fn(r.first, r.n); err != nil {
				return err
			}
		}
		from = next
	}
	return nil
}

// adopt writes blocks as they are, except for those that are written meanwhile.
func (v *Volume) adopt(first layout.BlockNo, n int) error {
	if !v.calls.enter() {
		return ErrClosed
	}
	defer v.calls.leave()
	var stripes [flattenChunk]uint32
	v.mu.RLock()
	epoch := v.epoch
	for i := range n {
		stripes[i] = v.versions[(uint64(first)+uint64(i))%versionStripes]
	}
	v.mu.RUnlock()
	buf := make([]byte, n*blockSize, n*blockSize+slack)
	defer clear(buf)
	if err := v.readBlocks(now, buf, first, false); err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := errors.Join(v.admitLocked(n, trimReserve, false), v.insideLocked(first+layout.BlockNo(n))); err != nil {
		return err
	}
	for i := range n {
		b := first + layout.BlockNo(i)
		version := &v.versions[uint64(b)%versionStripes]
		if v.epoch != epoch || *version != stripes[i] {
			continue
		}
		copy(v.active.put(b), buf[i*blockSize:])
		*version++
	}
	v.tookLocked()
	return nil
}

// partApart parts volumes from what they start from, if they have overwritten all
// that they shared with it: after a rollback, what the volume was would stay for
// nothing.
func (s *Store) partApart(ctx context.Context) error {
	for _, v := range s.opened() {
		if v.ro || v.headNow().Parent == 0 || s.fate(v.id) != 0 || s.mayFlatten(v) != nil {
			continue
		}
		err := v.Checkpoint(ctx)
		if err == nil {
			err = v.eachForeign(ctx, func(layout.BlockNo, int) error { return errStop })
		}
		if err == nil {
			err = s.part(ctx, v)
		}
		if err != nil && !errors.Is(err, errStop) && !errors.Is(err, errMoved) && !errors.Is(err, ErrClosed) && !errors.Is(err, ErrSharedBySnapshots) {
			return err
		}
	}
	return nil
}

// part makes a volume that shares nothing any more one without a parent.
func (s *Store) part(ctx context.Context, v *Volume) error {
	s.ops.Lock()
	defer s.ops.Unlock()
	parent, err := v.forgetParent(ctx)
	if err != nil {
		return err
	}
	if err := s.removeBase(v); err != nil {
		return err
	}
	if err := s.dropUseless(ctx); err != nil {
		return err
	}
	s.mu.RLock()
	_, found := s.heads[parent]
	s.mu.RUnlock()
	if found {
		s.sweepParent(parent)
	}
	return nil
}

func (v *Volume) forgetParent(ctx context.Context) (parent layout.VolumeID, err error) {
	v.upkeep.Lock()
	defer v.upkeep.Unlock()
	if err := v.checkpointLocked(ctx, false); err != nil {
		return 0, err
	}
	if err := v.store.mayFlatten(v); err != nil {
		return 0, err
	}
	shared := false
	if err := v.eachForeign(ctx, func(layout.BlockNo, int) error { shared = true; return errStop }); err != nil && !errors.Is(err, errStop) {
		return 0, err
	}
	if shared {
		return 0, errMoved
	}
	parent = v.headNow().Parent
	root, obsolete, err := v.adoptNodes(ctx)
	if err != nil {
		return 0, err
	}
	err = v.setHead(func(h *layout.Head) {
		h.Root = root
		h.Parent, h.ParentSnapshot, h.ParentHash, h.Continues = 0, 0, layout.Hash{}, false
	}, nil)
	if err != nil {
		return 0, err
	}
	v.mu.Lock()
	v.root = root
	v.gen++
	v.mu.Unlock()
	return parent, v.store.deleteKeys(obsolete)
}

// adoptNodes gives the volume a map of its own nodes alone. The caller holds
// upkeep.
func (v *Volume) adoptNodes(ctx context.Context) (root layout.Root, obsolete [][]byte, err error) {
	head := v.headNow()
	batch := v.store.db.NewBatch()
	defer batch.Cancel()
	root, _, err = v.store.tree.Adopt(ctx, maptree.UpdateOptions{
		Volume: v.id, Epoch: head.MapEpoch, Kept: head.NewestSnapshot, Root: head.Root,
		Obsolete: func(key []byte) error {
			obsolete = append(obsolete, bytes.Clone(key))
			return nil
		},
	}, batch)
	if err != nil {
		return root, nil, err
	}
	return root, obsolete, batch.Flush()
}
