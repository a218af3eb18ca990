package volume

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/fsximg/fsx/pkg/crypt"
	"github.com/fsximg/fsx/pkg/layout"
)

// ReencryptOptions say how a volume is encrypted anew.
type ReencryptOptions struct {
	// Rate bounds what is rewritten, in bytes per second; 0 does not.
	Rate int64
	// Progress is told the bytes that were rewritten, and of how many; it may be
	// nil.
	Progress func(done, total int64)
}

// Reencrypted says what an encrypting anew did.
type Reencrypted struct {
	Bytes   int64           // rewritten
	Removed []crypt.KeyInfo // data keys that nothing needs any more
	Held    []HeldKey       // older data keys that stay
	// Unreadable are bytes that were left alone, because their data key is not in
	// the volume's bag.
	Unreadable int64
}

// HeldKey is a data key that something still needs.
type HeldKey struct {
	crypt.KeyInfo
	Snapshots []string // that have blocks under it, oldest first; a deleted one by its number
}

// Reencrypt rewrites what the volume's present state has under older data keys
// than the one it writes under, what it shares with its parent too. Snapshots and
// parents stay as they are. Data keys that neither the volume nor one of its own
// snapshots needs go. A clone that has nothing in common with its parent any more
// is parted from it. It may be used meanwhile. Interrupted, it goes on where it was.
func (s *Store) Reencrypt(ctx context.Context, volume string, o ReencryptOptions) (r Reencrypted, err error) {
	if !s.calls.enter() {
		return r, ErrClosed
	}
	defer s.calls.leave()
	if s.opt.ReadOnly {
		return r, ErrReadOnly
	}
	v, err := s.volumeToChange(volume)
	if err != nil {
		return r, err
	}
	v.flattening.Lock()
	defer v.flattening.Unlock()
	e := &reencryption{v: v, opt: o, r: &r, began: time.Now()}
	if err := e.rewrite(ctx); err != nil {
		return r, fmt.Errorf("reencrypt volume %s: %w", volume, err)
	}
	if err := e.dropKeys(ctx); err != nil {
		return r, fmt.Errorf("reencrypt volume %s: old data keys: %w", volume, err)
	}
	if v.headNow().Parent == 0 || s.mayFlatten(v) != nil {
		return r, nil
	}
	// It may share something still, or again since a rollback: then it stays.
	if err := s.part(ctx, v); err != nil && !errors.Is(err, errMoved) && !errors.Is(err, ErrSharedBySnapshots) {
		return r, fmt.Errorf("reencrypt volume %s: part from its parent: %w", volume, err)
	}
	return r, nil
}

// reencryption goes through a volume until nothing is found under an older key.
type reencryption struct {
	v     *Volume
	opt   ReencryptOptions
	r     *Reencrypted
	began time.Time
	total int64

	// Of the last pass:
	target crypt.KeyInfo // that was written under when it began
	used   map[crypt.ID]bool
}

func (e *reencryption) rewrite(ctx context.Context) error {
	v := e.v
	if err := e.look(ctx); err != nil {
		return err
	}
	err := e.eachOld(ctx, func(_ layout.BlockNo, n int) error {
		e.total += int64(n) * blockSize
		return nil
	})
	if err != nil {
		return err
	}
	for {
		found := false
		err := e.eachOld(ctx, func(first layout.BlockNo, n int) error {
			found = true
			return e.rewriteRun(ctx, first, n)
		})
		if err != nil || !found {
			return err
		}
		// Look again: some may have been in the way of a write.
		if err := errors.Join(v.Checkpoint(ctx), e.look(ctx)); err != nil {
			return err
		}
	}
}

// look begins a pass. The key that is written under is looked up before the
// checkpoint, so that nothing older comes into the map later.
func (e *reencryption) look(ctx context.Context) error {
	keys := e.v.bag.Keys()
	for _, k := range keys {
		if k.Writable {
			e.target = k
		}
	}
	return e.v.Checkpoint(ctx)
}

// eachOld calls fn with what is under older keys, and notes which keys are used.
func (e *reencryption) eachOld(ctx context.Context, fn func(first layout.BlockNo, n int) error) error {
	v := e.v
	e.used, e.r.Unreadable = map[crypt.ID]bool{}, 0
	kids := kidFinder{v: v}
	return v.eachPicked(ctx, func(ref *layout.BlockRef) (bool, error) {
		kid, err := kids.of(ref)
		if err != nil {
			return false, err
		}
		e.used[kid] = true
		number, known := v.bag.Number(kid)
		if !known {
			number = 0
			if _, known = v.baseKey(kid); !known {
				e.r.Unreadable += blockSize
			}
		}
		return known && number < e.target.Number, nil
	}, fn)
}

func (e *reencryption) rewriteRun(ctx context.Context, first layout.BlockNo, n int) error {
	if err := e.v.adopt(first, n); err != nil {
		return err
	}
	e.r.Bytes += int64(n) * blockSize
	if e.opt.Progress != nil {
		e.opt.Progress(min(e.r.Bytes, e.total), e.total)
	}
	if e.opt.Rate <= 0 {
		return nil
	}
	due := time.Duration(float64(e.r.Bytes) / float64(e.opt.Rate) * float64(time.Second))
	wait := time.NewTimer(time.Until(e.began.Add(due)))
	defer wait.Stop()
	select {
	case <-wait.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// kidFinder finds the data key of blocks. It remembers a bounded number of extents.
type kidFinder struct {
	v     *Volume
	known map[extentName]crypt.ID
}

const maxKnownExtents = 16 << 10

func (f *kidFinder) of(ref *layout.BlockRef) (crypt.ID, error) {
	name := extentName{ref.Owner, ref.Extent}
	if kid, ok := f.known[name]; ok {
		return kid, nil
	}
	rec, err := f.v.extentRecord(ref.Owner, ref.Extent)
	if err != nil {
		return crypt.ID{}, err
	}
	if f.known == nil || len(f.known) >= maxKnownExtents {
		f.known = map[extentName]crypt.ID{}
	}
	f.known[name] = crypt.ID(rec.KID)
	return crypt.ID(rec.KID), nil
}

// dropKeys takes the keys out of the bag that nothing needs. After the last pass
// the volume's present state has none of them, nor has its log behind the head,
// and what is written later is under the target or a newer one.
func (e *reencryption) dropKeys(ctx context.Context) error {
	var old []crypt.KeyInfo
	for _, k := range e.v.bag.Keys() {
		if k.Number < e.target.Number && !e.used[k.ID] {
			old = append(old, k)
		}
	}
	if len(old) == 0 {
		return nil
	}
	held, err := e.v.heldKeys(ctx, old)
	if err != nil {
		return err
	}
	for _, k := range old {
		if by := held[k.ID]; len(by) > 0 {
			e.r.Held = append(e.r.Held, HeldKey{k, by})
		} else {
			e.r.Removed = append(e.r.Removed, k)
		}
	}
	if len(e.r.Removed) == 0 {
		return nil
	}
	return e.v.store.removeKeys(e.v, e.r.Removed)
}

// removeKeys takes data keys out of a volume's bag.
func (s *Store) removeKeys(v *Volume, keys []crypt.KeyInfo) error {
	s.ops.Lock()
	defer s.ops.Unlock()
	v.upkeep.Lock()
	defer v.upkeep.Unlock()
	bag, err := v.countedBag()
	if err != nil {
		return err
	}
	defer bag.Wipe()
	for _, k := range keys {
		bag.Remove(k.ID)
	}
	vk := s.keyOf(v.headNow().VolumeKey)
	if vk == nil {
		return ErrKeyMissing
	}
	err = s.changeKeys(func(ring *crypt.Keyring) error { return ring.SetBag(crypt.UUID(v.uuid), vk, bag) }, func(ring *crypt.Keyring) error {
		digest, _ := ring.BagDigest(crypt.UUID(v.uuid))
		return v.setHead(func(h *layout.Head) { h.BagDigest, h.Sealed = digest, 0 }, nil)
	}, func() {})
	if err != nil {
		return err
	}
	if err := v.bag.Adopt(bag); err != nil {
		return err
	}
	for _, k := range keys {
		v.bag.Remove(k.ID)
	}
	return nil
}

// heldKeys says which of a volume's own snapshots have blocks under which of some
// data keys. Of each only what differs from the next newer one is looked at.
func (v *Volume) heldKeys(ctx context.Context, keys []crypt.KeyInfo) (map[crypt.ID][]string, error) {
	v.upkeep.Lock() // no snapshot goes meanwhile
	defer v.upkeep.Unlock()
	if err := v.catchUpLocked(ctx, 0); err != nil {
		return nil, err
	}
	v.mu.RLock()
	snaps, next, size := v.snaps, v.root, v.blocks()
	v.mu.RUnlock()
	held, kids := map[crypt.ID][]string{}, kidFinder{v: v}
	for i := len(snaps) - 1; i >= 0; i-- {
		s := &snaps[i]
		found := map[crypt.ID]bool{}
		size = max(size, blocksOf(s.Size))
		if err := v.differingKeys(ctx, s.Root, next, layout.BlockNo(size), &kids, found); err != nil {
			return nil, err
		}
		for _, k := range keys {
			if found[k.ID] {
				held[k.ID] = append([]string{snapshotLabel(s)}, held[k.ID]...)
			}
		}
		next = s.Root
	}
	return held, nil
}

func snapshotLabel(s *layout.Snapshot) string {
	if s.Hidden {
		return fmt.Sprintf("%d (deleted; a clone starts from it)", s.Seq)
	}
	return s.Name
}

// differingKeys finds the data keys of blocks that a tree has and next has not.
func (v *Volume) differingKeys(ctx context.Context, root, next layout.Root, end layout.BlockNo, kids *kidFinder, found map[crypt.ID]bool) error {
	tree := v.store.tree
	var inner error
	err := tree.Diff(ctx, root, next, 0, end, func(start layout.BlockNo, n uint64, differs bool) bool {
		if !differs {
			return true
		}
		err := tree.Walk(root, start, start+layout.BlockNo(n), func(_ layout.BlockNo, _ uint64, kind layout.Kind, ref *layout.BlockRef) bool {
			if kind != layout.Data {
				return true
			}
			kid, err := kids.of(ref)
			inner = err
			found[kid] = true
			return err == nil
		})
		inner = errors.Join(inner, err)
		return inner == nil
	})
	return mapDamage(errors.Join(err, inner))
}
