package volume

import (
	"fmt"
	"math"
	"sync"

	"github.com/fsximg/fsx/pkg/crypt"
	"github.com/fsximg/fsx/pkg/layout"
)

// baseKeys are the data keys of what a clone without a chain starts from. They are
// in a second bag of the clone's, sealed under the volume key of its parent: so
// whoever has that key has agreed that this volume reads with them as long as it is
// open, and the clone's own key alone opens nothing of its base.
type baseKeys struct {
	mu  sync.Mutex
	bag *crypt.Bag // nil if it is not open
	vk  crypt.ID   // that opened it
}

// baseKey finds a data key in the volume's second bag, if it has one and the volume
// key of its base is open.
func (v *Volume) baseKey(kid crypt.ID) (*crypt.DataKey, bool) {
	v.base.mu.Lock()
	defer v.base.mu.Unlock()
	if v.base.bag == nil {
		v.openBaseLocked()
	}
	if v.base.bag == nil {
		return nil, false
	}
	return v.base.bag.Get(kid)
}

// openBaseLocked looks for a second bag: of the volume, or of what it was before a
// rollback. That must be under the same volume key, or a volume could claim to
// be another's successor.
func (v *Volume) openBaseLocked() {
	s := v.store
	own, ring := v.headNow().VolumeKey, s.Keyring()
	s.mu.RLock()
	history := s.lineageLocked().History(v.id)
	s.mu.RUnlock()
	for _, part := range history {
		s.mu.RLock()
		uuid := crypt.UUID(s.heads[part.Volume].UUID).Base()
		id, found := ring.BagVolumeKey(uuid)
		vk := s.keys[id]
		s.mu.RUnlock()
		if !found || vk == nil {
			continue
		}
		if part.Volume != v.id {
			if w, err := s.volumeByID(part.Volume); err != nil || w.headNow().VolumeKey != own {
				continue
			}
		}
		bag, err := ring.OpenBag(uuid, vk)
		if err != nil {
			v.log.Error("data keys of what a clone starts from", "volume", v.Name(), "err", err)
			continue
		}
		v.base.bag, v.base.vk = bag, id
		return
	}
}

// dropBase forgets the second bag's keys, and every cipher that was made of them.
func (v *Volume) dropBase() {
	v.base.mu.Lock()
	defer v.base.mu.Unlock()
	if v.base.bag != nil {
		v.base.bag.Wipe()
		v.base.bag = nil
		v.cache.forget()
	}
}

// dropBases has all volumes forget the data keys that a volume key opened for them
// as that of their base.
func (s *Store) dropBases(vk crypt.ID) {
	for _, v := range s.opened() {
		v.base.mu.Lock()
		theirs := v.base.bag != nil && v.base.vk == vk
		v.base.mu.Unlock()
		if theirs {
			v.dropBase()
		}
	}
}

// removeBase removes the second bag of a volume that starts from nothing any more.
// The caller holds ops.
func (s *Store) removeBase(v *Volume) error {
	uuid := crypt.UUID(v.uuid).Base()
	if _, found := s.Keyring().BagVolumeKey(uuid); !found {
		return nil
	}
	// No head names it, so that a keyring with it and one without fit alike.
	err := s.changeKeys(func(ring *crypt.Keyring) error { ring.RemoveBag(uuid); return nil }, func(*crypt.Keyring) error { return nil }, func() {})
	if err == nil {
		v.dropBase()
	}
	return err
}

// baseCopy copies the volume's second bag, if it is open, for a clone of the
// volume; vk is the volume key that it is under. The caller wipes the bag.
func (v *Volume) baseCopy() (b *crypt.Bag, vk *crypt.VolumeKey, err error) {
	v.base.mu.Lock()
	defer v.base.mu.Unlock()
	if v.base.bag == nil {
		v.openBaseLocked()
	}
	if v.base.bag == nil {
		return nil, nil, nil
	}
	if vk = v.store.keyOf(layout.KeyID(v.base.vk)); vk == nil {
		return nil, nil, nil
	}
	b, err = v.base.bag.Clone(math.MaxUint32)
	return b, vk, err
}

// resealBases seals the second bags that are under one volume key under another,
// which takes its place.
func resealBases(ring *crypt.Keyring, old, vk *crypt.VolumeKey, heads []layout.UUID) error {
	for _, u := range heads {
		uuid := crypt.UUID(u).Base()
		if id, found := ring.BagVolumeKey(uuid); !found || id != old.ID() {
			continue
		}
		bag, err := ring.OpenBag(uuid, old)
		if err == nil {
			err = ring.SetBag(uuid, vk, bag)
			bag.Wipe()
		}
		if err != nil {
			return fmt.Errorf("data keys that a clone has of its base: %w", err)
		}
	}
	return nil
}

// strayBags are the bags of a keyring that belong to none of the volumes.
func strayBags(ring *crypt.Keyring, heads map[layout.VolumeID]layout.Head) (l []crypt.UUID) {
	known := map[crypt.UUID]bool{}
	for _, h := range heads {
		known[crypt.UUID(h.UUID)], known[crypt.UUID(h.UUID).Base()] = true, true
	}
	for _, b := range ring.Bags() {
		if !known[b.Volume] {
			l = append(l, b.Volume)
		}
	}
	return l
}
