package volume

import (
	"fmt"
	"math"
	"slices"
	"sync"

	"github.com/fsximg/fsx/pkg/crypt"
	"github.com/fsximg/fsx/pkg/layout"
)

// baseLevels is how many clones without a chain may start one from another, so that
// the last can still read what all of them share with the first.
const baseLevels = 4

// baseNames are the names of a volume's bags of lent data keys. The first is of
// those that it was not given when it was cloned without a chain; the next ones of
// those that had not been given to its parent, and so on.
// They hold for the volume under one volume key: somebody else's head for the same
// volume finds nothing.
func baseNames(volume layout.UUID, vk layout.KeyID) (names [baseLevels]crypt.UUID) {
	u := crypt.UUID(volume)
	for i := range names {
		u = crypt.LoanName(u, crypt.ID(vk))
		names[i] = u
	}
	return names
}

// loan is a bag of data keys that a clone without a chain reads with: those of what
// it starts from, sealed for this volume under the volume key of its parent. So
// whoever has that key has agreed that this volume, and no other, reads with them as
// long as it is open, and the clone's own key alone opens nothing of its base.
type loan struct {
	level int
	bag   *crypt.Bag
	vk    crypt.ID   // that it is sealed under
	name  crypt.UUID // of the bag in the keyring that it was opened from
}

// baseKeys are the loans that are open.
type baseKeys struct {
	mu     sync.Mutex // it comes before Volume.mu
	loans  []loan
	tried  uint64 // Store.keysAdded when they were looked for
	closed bool   // the volume is: nothing is opened again
}

// baseKey finds a data key among those that are lent to the volume.
func (v *Volume) baseKey(kid crypt.ID) (*crypt.DataKey, bool) {
	v.base.mu.Lock()
	defer v.base.mu.Unlock()
	v.openLoansLocked()
	for _, l := range v.base.loans {
		if k, ok := l.bag.Get(kid); ok {
			return k, true
		}
	}
	return nil, false
}

// openLoansLocked opens the loans whose volume keys are there, if it has not since a
// key was added: those of the volume, or of what it was before a rollback. That
// must be under the same volume key, or a volume could claim to be another's
// successor.
func (v *Volume) openLoansLocked() {
	s := v.store
	added := s.keysAdded.Load()
	if v.base.closed || v.base.tried == added {
		return
	}
	v.base.tried = added
	own, ring := v.headNow().VolumeKey, s.Keyring()
	s.mu.RLock()
	history := s.lineageLocked().History(v.id)
	s.mu.RUnlock()
	for _, part := range history {
		s.mu.RLock()
		names := baseNames(s.heads[part.Volume].UUID, s.heads[part.Volume].VolumeKey)
		s.mu.RUnlock()
		for level, name := range names {
			v.openLoanLocked(ring, part.Volume, own, level, name)
		}
	}
}

func (v *Volume) openLoanLocked(ring *crypt.Keyring, of layout.VolumeID, own layout.KeyID, level int, name crypt.UUID) {
	id, found := ring.BagVolumeKey(name)
	vk := v.store.keyOf(layout.KeyID(id))
	have := slices.ContainsFunc(v.base.loans, func(l loan) bool { return l.level == level })
	if !found || vk == nil || have {
		return
	}
	if of != v.id {
		if w, err := v.store.volumeByID(of); err != nil || w.headNow().VolumeKey != own {
			return
		}
	}
	bag, err := ring.OpenBag(name, vk)
	if err != nil {
		v.log.Error("data keys of what a clone starts from", "volume", v.Name(), "err", err)
		return
	}
	v.base.loans = append(v.base.loans, loan{level: level, bag: bag, vk: id, name: name})
}

// dropLoans forgets the lent keys, those that one volume key opened or all, and every
// cipher that was made of them.
func (v *Volume) dropLoans(drop func(loan) bool) {
	v.base.mu.Lock()
	defer v.base.mu.Unlock()
	n := len(v.base.loans)
	v.base.loans = slices.DeleteFunc(v.base.loans, func(l loan) bool {
		if !drop(l) {
			return false
		}
		l.bag.Wipe()
		return true
	})
	if n != len(v.base.loans) {
		v.base.tried = 0
		v.cache.forget()
	}
}

// closeLoans forgets the lent keys, for good.
func (v *Volume) closeLoans() {
	v.base.mu.Lock()
	v.base.closed = true
	v.base.mu.Unlock()
	v.dropLoans(func(loan) bool { return true })
}

// moveBases has all volumes know that loans which one volume key opened are under
// another now. The data keys are the same: whoever reads with them goes on.
func (s *Store) moveBases(old, vk crypt.ID) {
	ring := s.Keyring()
	for _, v := range s.opened() {
		v.base.mu.Lock()
		for i := range v.base.loans {
			l := &v.base.loans[i]
			if id, found := ring.BagVolumeKey(l.name); found && l.vk == old && id == vk {
				l.vk = vk
			}
		}
		v.base.mu.Unlock()
	}
}

// dropBases has all volumes forget the data keys that a volume key opened for them
// as that of their base.
func (s *Store) dropBases(vk crypt.ID) {
	for _, v := range s.opened() {
		v.dropLoans(func(l loan) bool { return l.vk == vk })
	}
}

// removeBase removes the loans of a volume that starts from nothing any more. The
// caller holds ops.
func (s *Store) removeBase(v *Volume) error {
	names := baseNames(v.uuid, v.headNow().VolumeKey)
	if !slices.ContainsFunc(names[:], func(u crypt.UUID) bool { _, found := s.Keyring().BagVolumeKey(u); return found }) {
		return nil
	}
	// No head names them, so that a keyring with them and one without fit alike.
	err := s.changeKeys(func(ring *crypt.Keyring) error {
		for _, u := range names {
			ring.RemoveBag(u)
		}
		return nil
	}, func(*crypt.Keyring) error { return nil }, func() {})
	if err == nil {
		v.dropLoans(func(loan) bool { return true })
	}
	return err
}

// lent copies the loans that are open, for a clone of the volume; the caller wipes
// the bags.
func (v *Volume) lent() (l []loan, err error) {
	v.base.mu.Lock()
	defer v.base.mu.Unlock()
	v.openLoansLocked()
	for _, o := range v.base.loans {
		bag, err := o.bag.Clone(math.MaxUint32)
		if err != nil {
			return l, err
		}
		l = append(l, loan{level: o.level, bag: bag, vk: o.vk})
	}
	return l, nil
}

// takeKeys gives a clone of w those of its data keys that a snapshot may need: in
// its bag, or without a chain as a loan. What is lent to w is lent to the clone.
func (n *newVolume) takeKeys(w *Volume, limit uint32, noChain bool) (err error) {
	if n.loans, err = w.lent(); err != nil {
		return err
	}
	if !noChain {
		n.bag, err = w.bag.Clone(limit)
		return err
	}
	for i := range n.loans {
		n.loans[i].level++
	}
	bag, err := w.bag.Clone(limit)
	if err != nil {
		return err
	}
	n.loans = append(n.loans, loan{bag: bag, vk: n.vk.ID()})
	n.bag = crypt.NewBag()
	return nil
}

// setLoans puts a new volume's loans into a keyring.
func (n *newVolume) setLoans(ring *crypt.Keyring, s *Store, u layout.UUID) error {
	names := baseNames(u, layout.KeyID(n.vk.ID()))
	for _, l := range n.loans {
		vk := s.keyOf(layout.KeyID(l.vk))
		if vk == nil || l.level >= baseLevels {
			continue // what is shared over more of them is not read
		}
		if err := ring.SetBag(names[l.level], vk, l.bag); err != nil {
			return err
		}
	}
	return nil
}

func (n *newVolume) wipe() {
	if n.bag != nil {
		n.bag.Wipe()
	}
	for _, l := range n.loans {
		l.bag.Wipe()
	}
}

// resealLoans seals the loans that are under one volume key under another, which
// takes its place.
func resealLoans(ring *crypt.Keyring, old, vk *crypt.VolumeKey, borrowers []layout.Head) error {
	for _, h := range borrowers {
		for _, name := range baseNames(h.UUID, h.VolumeKey) {
			if id, found := ring.BagVolumeKey(name); !found || id != old.ID() {
				continue
			}
			bag, err := ring.OpenBag(name, old)
			if err == nil {
				err = ring.SetBag(name, vk, bag)
				bag.Wipe()
			}
			if err != nil {
				return fmt.Errorf("data keys that are lent to a clone: %w", err)
			}
		}
	}
	return nil
}

// renameLoans has what is lent to a volume be lent to it under another volume key.
// Whoever lent it has agreed to that volume, and must be here: else the error is
// ErrKeyMissing. key finds an open volume key; moved takes the names by the old ones.
func renameLoans(ring *crypt.Keyring, h *layout.Head, to layout.KeyID, key func(crypt.ID) *crypt.VolumeKey, moved map[crypt.UUID]crypt.UUID) error {
	from, names := baseNames(h.UUID, h.VolumeKey), baseNames(h.UUID, to)
	for i, name := range from {
		id, found := ring.BagVolumeKey(name)
		if !found {
			continue
		}
		vk := key(id)
		if vk == nil {
			return fmt.Errorf("volume key %s, which lends it what it shares with its base: %w", id, ErrKeyMissing)
		}
		bag, err := ring.OpenBag(name, vk)
		if err == nil {
			err = ring.SetBag(names[i], vk, bag)
			bag.Wipe()
		}
		if err != nil {
			return fmt.Errorf("data keys that are lent to a clone: %w", err)
		}
		ring.RemoveBag(name)
		moved[name] = names[i]
	}
	return nil
}

// renamedLoans has an open volume know its loans by their new names.
func (v *Volume) renamedLoans(moved map[crypt.UUID]crypt.UUID) {
	v.base.mu.Lock()
	defer v.base.mu.Unlock()
	for i := range v.base.loans {
		if to, ok := moved[v.base.loans[i].name]; ok {
			v.base.loans[i].name = to
		}
	}
}

// strayBags are the bags of a keyring that belong to none of the volumes.
func strayBags(ring *crypt.Keyring, heads map[layout.VolumeID]layout.Head) (l []crypt.UUID) {
	bags := ring.Bags()
	known := make(map[crypt.UUID]bool, len(bags))
	for _, h := range heads {
		known[crypt.UUID(h.UUID)] = true
	}
	for _, b := range bags {
		if !known[b.Volume] {
			l = append(l, b.Volume)
		}
	}
	if len(l) == 0 {
		return nil
	}
	for _, h := range heads {
		for _, name := range baseNames(h.UUID, h.VolumeKey) {
			known[name] = true
		}
	}
	return slices.DeleteFunc(l, func(u crypt.UUID) bool { return known[u] })
}
