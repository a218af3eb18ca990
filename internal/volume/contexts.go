package volume

import (
	"fmt"
	"slices"
	"strings"
	"syscall"

	"github.com/fsximg/fsx/pkg/crypt"
	"github.com/fsximg/fsx/pkg/layout"
)

// Metadata contexts of a volume or a snapshot, beyond what is allocated.
const (
	// ContextDepth tells how many volumes away the one is that has a block: 1 is
	// the volume itself, 2 the one it was cloned from; 0 is a hole.
	ContextDepth = "qemu:allocation-depth"
	// ContextKey tells the number of the data key that a block is under, in the
	// volume's bag; 0 if it is under none, UnknownKey if the bag lacks it.
	ContextKey = "x-fsx:key"
	// ContextDirty, with a snapshot's name behind it, tells by bit 0 what was
	// written or zeroed since.
	ContextDirty = "x-fsx:dirty:"

	UnknownKey = 1<<32 - 1
)

// Contexts lists the metadata contexts that there are now.
func (v *Volume) Contexts() []string { return v.contexts(now) }

// StatusIn is Status in a metadata context, with the context's own flags.
func (v *Volume) StatusIn(context string, off, n int64, fn func(length int64, flags uint32) bool) error {
	return v.statusIn(now, v.Size(), context, off, n, fn)
}

// Contexts is as of a volume.
func (s *Snapshot) Contexts() []string { return s.v.contexts(s.info.Number) }

// StatusIn is as of a volume.
func (s *Snapshot) StatusIn(context string, off, n int64, fn func(length int64, flags uint32) bool) error {
	return s.v.statusIn(s.info.Number, s.info.Size, context, off, n, fn)
}

func (v *Volume) contexts(state layout.Seq) []string {
	l := []string{ContextDepth, ContextKey}
	snaps, err := v.history()
	if err != nil {
		return l
	}
	for _, s := range snaps {
		if s.Number != state {
			l = append(l, ContextDirty+s.Name)
		}
	}
	return l
}

func (v *Volume) statusIn(state layout.Seq, size int64, context string, off, n int64, fn func(length int64, flags uint32) bool) error {
	var a aspect
	switch since, dirty := strings.CutPrefix(context, ContextDirty); {
	case dirty:
		var err error
		if a, err = v.dirty(state, size, since); err != nil {
			return err
		}
	case context == ContextDepth:
		a = v.depth(state)
	case context == ContextKey:
		a = v.keys(state)
	default:
		return fmt.Errorf("no metadata context %q: %w", context, syscall.EINVAL)
	}
	return v.statusAs(a, size, off, n, fn)
}

func (v *Volume) depth(state layout.Seq) aspect {
	s := v.store
	s.mu.RLock()
	depths := s.lineageLocked().Depths(v.id)
	s.mu.RUnlock()
	a := v.allocation(state)
	a.known = func(layers []*frozenOverlay, b layout.BlockNo) (uint32, bool) {
		kind, ok := v.memoryKindLocked(state, layers, b)
		if kind == layout.Hole {
			return 0, ok
		}
		return 1, ok
	}
	a.tree = v.eachBlock(func(kind layout.Kind, ref *layout.BlockRef) (uint32, error) {
		switch {
		case kind == layout.Hole:
			return 0, nil
		case kind == layout.Zero:
			return 1, nil
		}
		return depths[ref.Owner], nil
	})
	return a
}

func (v *Volume) keys(state layout.Seq) aspect {
	numbers := map[layout.KeyID]uint32{}
	writing := uint32(0)
	for _, k := range v.bag.Keys() {
		numbers[layout.KeyID(k.ID)] = uint32(k.Number)
		if k.Writable {
			writing = uint32(k.Number)
		}
	}
	number := func(kid layout.KeyID) uint32 {
		if n, ok := numbers[kid]; ok {
			return n
		}
		if k, ok := v.bag.Number(crypt.ID(kid)); ok { // a key that came meanwhile
			return uint32(k)
		}
		return UnknownKey
	}
	a := aspect{state: state}
	a.known = func(layers []*frozenOverlay, b layout.BlockNo) (uint32, bool) {
		if state == now {
			if kind, ok := v.bufferedLocked(b); ok {
				if kind != layout.Data {
					return 0, true
				}
				return writing, true
			}
		}
		e, ok := v.findLocked(state, layers, b)
		if !ok || e.kind != layout.Data {
			return 0, ok
		}
		flags := uint32(UnknownKey)
		v.layersLocked(func(o *overlay) bool {
			rec, found := o.extents[e.extent]
			if found {
				flags = number(rec.KID)
			}
			return !found
		})
		return flags, true
	}
	var last extentName
	var flags uint32
	a.tree = v.eachBlock(func(kind layout.Kind, ref *layout.BlockRef) (uint32, error) {
		if kind != layout.Data {
			return 0, nil
		}
		if name := (extentName{ref.Owner, ref.Extent}); name != last {
			rec, err := v.extentRecord(ref.Owner, ref.Extent)
			if err != nil {
				return 0, err
			}
			last, flags = name, number(rec.KID)
		}
		return flags, nil
	})
	return a
}

// eachBlock is an aspect's tree that asks for the flags of each block.
func (v *Volume) eachBlock(flagsOf func(layout.Kind, *layout.BlockRef) (uint32, error)) func(layout.Root, layout.BlockNo, layout.BlockNo, func(layout.BlockNo, uint32) bool) error {
	return func(root layout.Root, from, to layout.BlockNo, add func(layout.BlockNo, uint32) bool) error {
		var failed error
		err := v.store.tree.Walk(root, from, to, func(start layout.BlockNo, n uint64, kind layout.Kind, ref *layout.BlockRef) bool {
			flags, err := flagsOf(kind, ref)
			if err != nil {
				failed = err
				return false
			}
			return add(start+layout.BlockNo(n), flags)
		})
		if err == nil {
			err = failed
		}
		return err
	}
}

// dirty tells what was written or zeroed since a snapshot: what overlays have
// that are newer, and otherwise where the maps differ.
func (v *Volume) dirty(state layout.Seq, size int64, since string) (a aspect, err error) {
	w, info, err := v.findSnapshot(since)
	if err != nil {
		return a, err
	}
	var older []*frozenOverlay
	var then layout.Root
	a.state = state
	a.begin = func() (err error) {
		if w != v {
			w.mu.RLock()
			defer w.mu.RUnlock()
		}
		older, then, err = w.stateLocked(info.Number)
		if err == nil && w != v && len(older) > 0 {
			err = fmt.Errorf("%w: snapshot %s of before a rollback is not in the index", ErrDamaged, since)
		}
		return err
	}
	if small := min(size, info.Size); size != info.Size && small%blockSize != 0 {
		// What is behind the end of the smaller one may be anything.
		a.cuts = []layout.BlockNo{layout.BlockNo(small / blockSize)}
	}
	a.known = func(layers []*frozenOverlay, b layout.BlockNo) (uint32, bool) {
		if slices.Contains(a.cuts, b) {
			return 1, true
		}
		if state == now {
			if _, ok := v.bufferedLocked(b); ok {
				return 1, true
			}
			if _, ok := v.overlay.find(b); ok {
				return 1, true
			}
		}
		for _, o := range append(layers[:len(layers):len(layers)], older...) {
			if slices.Contains(older, o) == slices.Contains(layers, o) {
				continue // both have it
			}
			if _, ok := o.find(b); ok {
				return 1, true
			}
		}
		return 0, false
	}
	a.tree = func(root layout.Root, from, to layout.BlockNo, add func(layout.BlockNo, uint32) bool) error {
		return v.store.tree.Diff(backgroundContext, then, root, from, to, func(start layout.BlockNo, n uint64, differs bool) bool {
			flags := uint32(0)
			if differs {
				flags = 1
			}
			return add(start+layout.BlockNo(n), flags)
		})
	}
	return a, nil
}
