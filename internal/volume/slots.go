package volume

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/fsximg/fsx/pkg/crypt"
	"github.com/fsximg/fsx/pkg/layout"
	"github.com/fsximg/fsx/pkg/layout/metadb"
)

var (
	// ErrNoSlot says that the keyring has no slot of that number, or none of that
	// volume key.
	ErrNoSlot = crypt.ErrNoSlot
	// ErrLastSlot says that a volume key's only slot is not removed without force.
	ErrLastSlot = errors.New("it is the only slot of its volume key")
)

// AddSlot makes a slot that opens an unlocked volume key with one more secret, and
// returns its number. For a passphrase that is one Argon2 run. Errors:
// ErrKeyMissing, crypt.ErrFull.
func (s *Store) AddSlot(_ context.Context, id crypt.ID, secret crypt.Secret) (number int, err error) {
	err = s.withSlots(func() error {
		return s.changeSlots(id, func(ring *crypt.Keyring, vk *crypt.VolumeKey) (err error) {
			number, err = ring.AddSlot(vk, secret)
			return err
		})
	})
	return number, err
}

// ChangeSlot has a slot open with another secret, of any type, instead of the one
// that opened it until now. Errors: ErrNoSlot, ErrKeyMissing.
func (s *Store) ChangeSlot(_ context.Context, number int, secret crypt.Secret) error {
	return s.withSlots(func() error {
		info, err := s.slot(number)
		if err != nil {
			return err
		}
		return s.changeSlots(info.VolumeKey, func(ring *crypt.Keyring, vk *crypt.VolumeKey) error {
			return ring.ReplaceSlot(number, vk, secret)
		})
	})
}

// RemoveSlot removes a slot: the last one of a volume key, without which nothing
// opens it any more, only with force. An old copy of the keyring still opens with
// the slot's secret. Errors: ErrNoSlot, ErrKeyMissing, ErrLastSlot.
func (s *Store) RemoveSlot(_ context.Context, number int, force bool) error {
	return s.withSlots(func() error {
		info, err := s.slot(number)
		if err != nil {
			return err
		}
		if len(slotsOf(s.Keyring(), info.VolumeKey)) == 1 && !force {
			return fmt.Errorf("slot %d: %w", number, ErrLastSlot)
		}
		return s.changeSlots(info.VolumeKey, func(ring *crypt.Keyring, _ *crypt.VolumeKey) error {
			return ring.RemoveSlot(number)
		})
	})
}

// withSlots runs a change of the slots, alone.
func (s *Store) withSlots(change func() error) error {
	if !s.calls.enter() {
		return ErrClosed
	}
	defer s.calls.leave()
	s.ops.Lock()
	defer s.ops.Unlock()
	if s.opt.ReadOnly {
		return ErrReadOnly
	}
	return change()
}

func (s *Store) slot(number int) (crypt.SlotInfo, error) {
	for _, info := range s.Keyring().Slots() {
		if info.Number == number {
			return info, nil
		}
	}
	return crypt.SlotInfo{}, fmt.Errorf("slot %d: %w", number, ErrNoSlot)
}

// slotsOf are the slots of a volume key.
func slotsOf(ring *crypt.Keyring, id crypt.ID) []crypt.SlotInfo {
	return slices.DeleteFunc(ring.Slots(), func(i crypt.SlotInfo) bool { return i.VolumeKey != id })
}

// changeSlots changes the slots of a volume key, together with all heads under it:
// each names the digest of these slots. The caller holds ops.
func (s *Store) changeSlots(id crypt.ID, change func(*crypt.Keyring, *crypt.VolumeKey) error) error {
	vk := s.keyOf(layout.KeyID(id))
	if vk == nil {
		return fmt.Errorf("volume key %s: %w", id, ErrKeyMissing)
	}
	if err := s.mustTrust(vk); err != nil {
		return err
	}
	heads := &headsUnder{s: s, keys: []*crypt.VolumeKey{vk}}
	defer heads.release()
	return s.changeKeys(func(ring *crypt.Keyring) error { return change(ring, vk) }, heads.sign, heads.takeLocked)
}

// headsUnder are the heads of all volumes under some volume keys, hidden ones too,
// while they are signed again. Between sign and release no volume is opened, since
// its head and the keyring in memory would not belong together, and none of those
// that are open makes a head of its own.
type headsUnder struct {
	s      *Store
	keys   []*crypt.VolumeKey
	rescue bool // what the heads name now does not count
	held   bool
	open   []*Volume // by ascending number; their upkeep is held
	next   []layout.Head
}

// sign has the heads name the slots of a keyring, in one transaction. About 900
// fit; more are metadb.ErrTooLarge.
func (k *headsUnder) sign(ring *crypt.Keyring) error {
	k.hold()
	k.next = nil
	err := k.s.db.Update(func(tx *metadb.Txn) error {
		for _, id := range k.volumes() {
			head, encoded, err := k.signed(id, ring)
			if err != nil {
				return err
			}
			if err := tx.Set(layout.HeadKey(id), encoded); err != nil {
				return err
			}
			k.next = append(k.next, head)
		}
		return nil
	})
	if errors.Is(err, metadb.ErrTooLarge) {
		err = fmt.Errorf("a volume key has too many volumes for one change: %w", err)
	}
	if err != nil {
		return err
	}
	for _, v := range k.open {
		i := slices.IndexFunc(k.next, func(h layout.Head) bool { return h.Volume == v.id })
		v.mu.Lock()
		v.head = k.next[i]
		v.mu.Unlock()
	}
	return nil
}

// takeLocked takes over the heads that are durable now. The caller holds s.mu.
func (k *headsUnder) takeLocked() {
	for _, h := range k.next {
		k.s.heads[h.Volume] = h
	}
}

func (k *headsUnder) hold() {
	k.s.opening.Lock()
	k.held = true
	for _, id := range k.volumes() {
		if v := k.s.openedVolume(id); v != nil {
			v.upkeep.Lock()
			k.open = append(k.open, v)
		}
	}
}

func (k *headsUnder) release() {
	for _, v := range k.open {
		v.upkeep.Unlock()
	}
	if k.held {
		k.s.opening.Unlock()
	}
}

// keyOf is the one of the keys that a head is under.
func (k *headsUnder) keyOf(h *layout.Head) *crypt.VolumeKey {
	for _, vk := range k.keys {
		if vk.ID() == crypt.ID(h.VolumeKey) {
			return vk
		}
	}
	return nil
}

// volumes are the volumes under the keys, by ascending number. One that is going has
// no head.
func (k *headsUnder) volumes() (ids []layout.VolumeID) {
	k.s.mu.RLock()
	defer k.s.mu.RUnlock()
	for id, h := range k.s.heads {
		if k.keyOf(&h) != nil {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// signed is the next head of a volume. Only one that is authentic, and that names
// what is there now, is signed again: nothing else may become authentic by it.
func (k *headsUnder) signed(id layout.VolumeID, next *crypt.Keyring) (head layout.Head, encoded []byte, err error) {
	if v := k.s.openedVolume(id); v != nil {
		head = v.headNow()
		head.SlotsDigest = next.SlotsDigest(crypt.ID(head.VolumeKey))
		head.Epoch++
		return head, head.Encode(v.signHead), nil
	}
	k.s.mu.RLock()
	hint, ring := k.s.heads[id], k.s.keyring
	k.s.mu.RUnlock()
	super := k.s.dir.Super
	auth, err := crypt.NewAuthority(k.keyOf(&hint), crypt.UUID(super.UUID), crypt.UUID(hint.UUID))
	if err != nil {
		return head, nil, err
	}
	defer auth.Wipe()
	sign := func(parts ...[]byte) [32]byte { return auth.MAC(crypt.PurposeHead, parts...) }
	err = k.s.db.Get(layout.HeadKey(id), func(val []byte) error {
		h, err := layout.DecodeHead(val, sign)
		if err == nil {
			head = *h
		}
		return err
	})
	switch {
	case errors.Is(err, metadb.ErrNotFound), errors.Is(err, layout.ErrCorrupt):
		return head, nil, fmt.Errorf("volume %s: %w: %w", hint.Name, ErrDamaged, err)
	case err != nil:
		return head, nil, err
	case head.Store != super.UUID || head.Volume != id || head.UUID != hint.UUID || head.VolumeKey != hint.VolumeKey || head.Superblock != super.Digest():
		return head, nil, fmt.Errorf("volume %s: %w: the head belongs to another volume or store", hint.Name, ErrDamaged)
	case !k.rescue && !named(&head, ring, slotted(ring)):
		return head, nil, fmt.Errorf("volume %s: %w: the keyring is not the one that the head names", hint.Name, ErrDamaged)
	}
	if err := k.s.recent(&head); err != nil {
		return head, nil, fmt.Errorf("volume %s: %w", head.Name, err)
	}
	head.SlotsDigest = next.SlotsDigest(crypt.ID(head.VolumeKey))
	head.Epoch++
	return head, head.Encode(sign), nil
}
