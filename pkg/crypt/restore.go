package crypt

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
)

// ErrOtherSalt: a passphrase slot of a keyring with another salt or other costs.
var ErrOtherSalt = errors.New("passphrase slots of a keyring with another salt")

// Empty is a keyring of the same store, salt and costs without slots and bags.
func (k *Keyring) Empty() *Keyring {
	return &Keyring{store: k.store, salt: k.salt, kdf: k.kdf}
}

// SameSlot says whether both keyrings have this slot, byte for byte.
func (k *Keyring) SameSlot(other *Keyring, number int) bool {
	a, b := k.rawSlot(number), other.rawSlot(number)
	return a != nil && bytes.Equal(a, b)
}

func (k *Keyring) rawSlot(number int) slot {
	k.mu.RLock()
	defer k.mu.RUnlock()
	if i, ok := k.findSlotLocked(number); ok {
		return k.slots[i] // slots are never changed in place
	}
	return nil
}

// CopySlot takes a slot over from another keyring of the same store, in place of one
// of the same number. No key is needed. Errors: ErrNoSlot, ErrKeyringStore,
// ErrOtherSalt, ErrFull.
func (k *Keyring) CopySlot(from *Keyring, number int) error {
	s := from.rawSlot(number)
	switch {
	case s == nil:
		return fmt.Errorf("copy slot %d: %w", number, ErrNoSlot)
	case k.store != from.store:
		return fmt.Errorf("copy slot %d: %w", number, ErrKeyringStore)
	case s.kind() == SlotPassphrase && (k.salt != from.salt || k.kdf != from.kdf):
		return fmt.Errorf("copy slot %d: %w", number, ErrOtherSalt)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.roomLocked(len(s)) {
		return fmt.Errorf("copy slot %d: %w", number, ErrFull)
	}
	i, ok := k.findSlotLocked(number)
	if ok {
		k.slots[i] = s
	} else {
		k.slots = slices.Insert(k.slots, i, s)
	}
	return nil
}

// CopyBag takes the bag of volume vol over from another keyring of the same store, in
// place of the one before. No key is needed. Errors: ErrNoBag, ErrKeyringStore,
// ErrFull.
func (k *Keyring) CopyBag(from *Keyring, vol UUID) error {
	b, ok := from.bag(vol)
	switch {
	case !ok:
		return fmt.Errorf("copy bag of volume %s: %w", vol, ErrNoBag)
	case k.store != from.store:
		return fmt.Errorf("copy bag of volume %s: %w", vol, ErrKeyringStore)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	i, found := k.findBagLocked(vol)
	if !found && len(k.bags) >= maxBags || !k.roomLocked(len(b)) {
		return fmt.Errorf("copy bag of volume %s: %w", vol, ErrFull)
	}
	if found {
		k.bags[i] = b
	} else {
		k.bags = slices.Insert(k.bags, i, b)
	}
	return nil
}
