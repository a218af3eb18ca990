package volume

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/fsximg/fsx/pkg/crypt"
	"github.com/fsximg/fsx/pkg/layout"
	"github.com/fsximg/fsx/pkg/layout/metadb"
	"github.com/fsximg/fsx/pkg/layout/store"
)

// Keyring is the store's keyring as it is now, for reading.
func (s *Store) Keyring() *crypt.Keyring {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.keyring
}

// Unlock opens every volume key that one of the secrets opens. One that was removed
// is present again. ErrWrongKey says that none did.
func (s *Store) Unlock(secrets []crypt.Secret) error {
	_, err := s.AddKeys(secrets)
	return err
}

// AddKeys is Unlock; it returns the volume keys that the secrets open, those too that
// were there.
func (s *Store) AddKeys(secrets []crypt.Secret) (opened []crypt.ID, err error) {
	if !s.calls.enter() {
		return nil, ErrClosed
	}
	defer s.calls.leave()
	keys, err := s.Keyring().Unlock(secrets...)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s.dir.Path, err)
	}
	s.mu.RLock()
	open := slices.AppendSeq(slices.Clone(keys), maps.Values(s.keys))
	s.mu.RUnlock()
	if err := s.opt.Trust.expected(open); err != nil {
		for _, k := range keys {
			k.Wipe()
		}
		return nil, fmt.Errorf("%s: %w", s.dir.Path, err)
	}
	s.sawKeys(keys...)
	s.ops.Lock() // after a removal that is under way
	defer s.ops.Unlock()
	s.opening.Lock() // so that nobody is using a key that is replaced
	defer s.opening.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range keys {
		opened = append(opened, k.ID())
		old := s.keys[k.ID()]
		if old != nil && (old.Proven() || !k.Proven()) {
			k.Wipe()
			continue
		}
		if old != nil {
			old.Wipe()
		}
		s.keys[k.ID()] = k
		s.keysAdded.Add(1)
	}
	return opened, nil
}

// storedRing is an area of the keyring file, decoded.
type storedRing struct {
	store.KeyringArea
	ring *crypt.Keyring
}

// readKeyring returns the areas of the keyring file that are whole, the newest
// first: at least one. torn says that the other is none.
func (s *Store) readKeyring() (rings []storedRing, torn bool, err error) {
	areas, err := s.dir.ReadKeyring()
	if err != nil {
		return nil, false, mapCorrupt(err)
	}
	for _, a := range areas {
		ring, parseErr := crypt.ParseKeyring(a.Body, crypt.UUID(s.dir.Super.UUID))
		if parseErr != nil {
			err = errors.Join(err, parseErr)
			continue
		}
		rings = append(rings, storedRing{a, ring})
	}
	if len(rings) == 0 {
		return nil, false, fmt.Errorf("%s: keyring: %w: %w", s.dir.Path, ErrDamaged, err)
	}
	return rings, len(areas) == 1, nil
}

// settleKeyring chooses between two areas that differ, which a change of keys
// that was interrupted leaves: the one that the heads name. A store that may be
// written then gets both areas alike.
func (s *Store) settleKeyring(rings []storedRing, torn bool) error {
	newest := rings[0]
	s.keyring, s.ringGen = newest.ring, newest.Generation
	if len(rings) == 1 {
		if torn && !s.opt.ReadOnly && s.fits(newest.ring, newest.ring) {
			s.healKeyring(newest)
		}
		return nil
	}
	if bytes.Equal(newest.Body, rings[1].Body) {
		return nil
	}
	body, gen := newest.Body, newest.Generation+1
	if !s.fits(newest.ring, rings[1].ring) {
		if !s.fits(rings[1].ring, newest.ring) {
			return nil // damage, which opening the volumes will find
		}
		s.log.Info("undone: a change of the keys that was interrupted")
		// In place of the change: were this write torn, the right one must be left.
		s.keyring, body, gen = rings[1].ring, rings[1].Body, newest.Generation
	}
	if s.opt.ReadOnly {
		return nil
	}
	s.ringGen = gen
	return s.dir.ShredKeyring(body, gen)
}

// healKeyring writes the area that is not whole. A change that was interrupted
// there may have left parts of slots that were to be destroyed.
func (s *Store) healKeyring(whole storedRing) {
	if err := s.dir.ShredKeyring(whole.Body, whole.Generation+1); err != nil {
		s.log.Warn("only one area of the keyring is whole", "err", err)
		return
	}
	s.ringGen = whole.Generation + 1
}

// fits says whether a keyring is the one that all heads name, with nothing
// beside what they name. A head that names neither this keyring nor the other is
// damaged, and decides nothing.
func (s *Store) fits(ring, other *crypt.Keyring) bool {
	here, there := slotted(ring), slotted(other)
	for _, h := range s.heads {
		if !named(&h, ring, here) && (ring == other || named(&h, other, there)) {
			return false
		}
	}
	return len(strayBags(ring, s.heads)) == 0
}

// slotted are the volume keys that have a slot in a keyring. What a head says of
// the slots of another means nothing: shredding them needs no key, so that no head
// could be told (shred.go), and without a slot nobody opens it anyway but who has
// the key in memory.
func slotted(ring *crypt.Keyring) map[crypt.ID]bool {
	m := map[crypt.ID]bool{}
	for _, slot := range ring.Slots() {
		m[slot.VolumeKey] = true
	}
	return m
}

// named says whether a head names the bag and the slots that a keyring has;
// slotted is of that keyring.
func named(h *layout.Head, ring *crypt.Keyring, slotted map[crypt.ID]bool) bool {
	bag, ok := ring.BagDigest(crypt.UUID(h.UUID))
	return ok && layout.Hash(bag) == h.BagDigest &&
		(!slotted[crypt.ID(h.VolumeKey)] || layout.Hash(ring.SlotsDigest(crypt.ID(h.VolumeKey))) == h.SlotsDigest)
}

// changeKeys changes the keyring, together with what commit makes durable in one
// transaction of the index: heads that name the changed keyring. Between the
// two, and after a crash there, the areas differ, and the heads tell which one
// counts. take, under mu, takes over what is durable then. The caller holds ops.
func (s *Store) changeKeys(change func(*crypt.Keyring) error, commit func(*crypt.Keyring) error, take func()) error {
	if s.undecided != nil {
		return s.undecided
	}
	old := s.Keyring().Encode()
	next, err := crypt.ParseKeyring(old, crypt.UUID(s.dir.Super.UUID))
	if err != nil {
		return err
	}
	if err := change(next); err != nil {
		return err
	}
	body := next.Encode()
	err = s.dir.WriteKeyring(body, s.ringGen+1)
	if err == nil {
		err = commit(next)
	}
	if errors.Is(err, metadb.ErrFailed) {
		// It may be durable all the same: the heads will tell. Until they have, both
		// areas are needed as they are.
		s.undecided = err
		return err
	}
	if err != nil {
		// The area that was overwritten gets what still counts. Until it has, it is
		// the one that the next change overwrites.
		restored := s.dir.WriteKeyring(old, s.ringGen+1)
		if restored == nil {
			s.ringGen++
		}
		return errors.Join(err, restored)
	}
	s.ringGen++
	s.mu.Lock()
	s.keyring = next
	take()
	s.mu.Unlock()
	if err := s.dir.WriteKeyring(body, s.ringGen+1); err != nil {
		s.log.Warn("the keyring has its last change in one area only", "err", err)
		return nil // it is durable; the next change, or whoever opens the store, writes there
	}
	s.ringGen++
	return nil
}
