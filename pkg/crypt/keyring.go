package crypt

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"sync"
)

// Keyring is the body of a store's keyring file: slots, which wrap volume keys,
// and bags, which hold data keys under a volume key. Without a secret it tells
// only what is not secret. It is safe for concurrent use.
type Keyring struct {
	store UUID
	salt  [saltSize]byte
	kdf   KDF

	mu    sync.RWMutex
	slots []slot      // by number
	bags  []sealedBag // by volume UUID
}

// SlotInfo describes a slot; no key is needed for it.
type SlotInfo struct {
	Number    int // from 1
	Type      SlotType
	VolumeKey ID
	KDF       KDF    // of a passphrase slot, else zero
	Data      string // what the Wrapper of an age or TPM slot keeps there, bytes; else empty
}

// BagInfo describes a sealed bag; no key is needed for it.
type BagInfo struct {
	Volume    UUID
	VolumeKey ID
	Keys      int // number of data keys
}

// NewKeyring makes an empty keyring with a fresh salt. kdf's zero value is the
// default; the error is ErrKDF.
func NewKeyring(store UUID, kdf KDF) (*Keyring, error) {
	kdf = kdf.orDefault()
	if err := kdf.check(); err != nil {
		return nil, fmt.Errorf("new keyring: %w", err)
	}
	k := &Keyring{store: store, kdf: kdf}
	random(k.salt[:])
	return k, nil
}

// Store is the UUID of the store the keyring belongs to.
func (k *Keyring) Store() UUID { return k.store }

// KDF is what a passphrase costs in this keyring.
func (k *Keyring) KDF() KDF { return k.kdf }

// AddSlot wraps vk under s in a new slot with the lowest free number, which it
// returns. A passphrase takes as long as the KDF says. Errors: ErrWiped, ErrFull.
func (k *Keyring) AddSlot(vk *VolumeKey, s Secret) (int, error) {
	kek, data, err := s.makeKEK(k.kdf, &k.salt)
	if err != nil {
		return 0, fmt.Errorf("add slot: %w", err)
	}
	defer kek.free()
	k.mu.Lock()
	defer k.mu.Unlock()
	number := k.freeNumberLocked()
	if number > maxSlots || !k.roomLocked(slotHeader+slotPayload+len(data)) {
		return 0, fmt.Errorf("add slot: %w", ErrFull)
	}
	if err := k.putSlotLocked(number, vk, s.Type(), kek.b, data); err != nil {
		return 0, fmt.Errorf("add slot: %w", err)
	}
	return number, nil
}

// ReplaceSlot wraps vk under s in slot number, whatever was there.
func (k *Keyring) ReplaceSlot(number int, vk *VolumeKey, s Secret) error {
	kek, data, err := s.makeKEK(k.kdf, &k.salt)
	if err != nil {
		return fmt.Errorf("replace slot %d: %w", number, err)
	}
	defer kek.free()
	k.mu.Lock()
	defer k.mu.Unlock()
	i, ok := k.findSlotLocked(number)
	if !ok {
		return fmt.Errorf("replace slot %d: %w", number, ErrNoSlot)
	}
	if !k.roomLocked(slotHeader + slotPayload + len(data) - len(k.slots[i])) {
		return fmt.Errorf("replace slot %d: %w", number, ErrFull)
	}
	return k.putSlotLocked(number, vk, s.Type(), kek.b, data)
}

func (k *Keyring) putSlotLocked(number int, vk *VolumeKey, t SlotType, kek, data []byte) error {
	n, err := newSlot(k.store, number, t, vk, kek, data)
	if err != nil {
		return err
	}
	i, ok := k.findSlotLocked(number)
	if ok {
		k.slots[i] = n
	} else {
		k.slots = slices.Insert(k.slots, i, n)
	}
	return nil
}

func (k *Keyring) findSlotLocked(number int) (int, bool) {
	return slices.BinarySearchFunc(k.slots, number, func(s slot, n int) int { return s.number() - n })
}

func (k *Keyring) freeNumberLocked() int {
	for i, s := range k.slots {
		if s.number() != i+1 {
			return i + 1
		}
	}
	return len(k.slots) + 1
}

// RemoveSlot drops a slot. Whoever has an old copy of the keyring and the
// slot's secret still opens it: only a new volume key revokes.
func (k *Keyring) RemoveSlot(number int) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	i, ok := k.findSlotLocked(number)
	if !ok {
		return fmt.Errorf("remove slot %d: %w", number, ErrNoSlot)
	}
	k.slots = slices.Delete(k.slots, i, i+1)
	return nil
}

// TakeSlots takes over the slots of another state of the same keyring, in place of its
// own.
func (k *Keyring) TakeSlots(from *Keyring) {
	from.mu.RLock()
	slots := slices.Clone(from.slots) // slots are never changed in place
	from.mu.RUnlock()
	k.mu.Lock()
	defer k.mu.Unlock()
	k.slots = slots
}

// Slots lists the slots by number.
func (k *Keyring) Slots() []SlotInfo {
	k.mu.RLock()
	defer k.mu.RUnlock()
	infos := make([]SlotInfo, len(k.slots))
	for i, s := range k.slots {
		infos[i] = SlotInfo{Number: s.number(), Type: s.kind(), VolumeKey: s.volumeKey()}
		if s.kind() == SlotPassphrase {
			infos[i].KDF = k.kdf
		}
		if s.kind().wrapped() {
			infos[i].Data = string(s.data())
		}
	}
	return infos
}

// HasClearSlot tells whether anyone can open a volume key of this keyring.
func (k *Keyring) HasClearSlot() bool {
	return slices.ContainsFunc(k.Slots(), func(s SlotInfo) bool { return s.Type == SlotClear })
}

// Unlock returns every volume key that any of the secrets opens, each once, in
// the order of their slots. A passphrase costs one Argon2 run, however many
// slots there are. If nothing opens the error is ErrWrongKey, and ErrAuth too
// if a secret was right but its slot is damaged. The caller wipes the keys.
//
// The secrets that prove something are tried first, wherever they stand: a key
// that one of them opens is VolumeKey.Proven, whatever else opens it too.
func (k *Keyring) Unlock(secrets ...Secret) ([]*VolumeKey, error) {
	k.mu.RLock()
	slots := slices.Clone(k.slots) // slots are never changed in place
	k.mu.RUnlock()
	u := unlocking{found: map[ID]*VolumeKey{}}
	for _, s := range provingFirst(secrets) {
		if err := k.unlock(slots, s, &u); err != nil {
			for _, vk := range u.found {
				vk.Wipe()
			}
			return nil, fmt.Errorf("unlock: %w", err)
		}
	}
	var keys []*VolumeKey
	for _, s := range slots {
		if vk := u.found[s.volumeKey()]; vk != nil {
			keys = append(keys, vk)
			delete(u.found, s.volumeKey())
		}
	}
	if len(keys) == 0 {
		return nil, u.err()
	}
	return keys, nil
}

// unlocking is what trying secrets on slots has come to.
type unlocking struct {
	found   map[ID]*VolumeKey
	damage  error      // a right secret's slot is damaged
	refusal *SlotError // why a wrapper did not open a slot; the first that says most
}

// err is why no slot opened.
func (u *unlocking) err() error {
	switch {
	case u.damage != nil:
		return errors.Join(ErrWrongKey, u.damage)
	case u.refusal != nil:
		return u.refusal
	}
	return ErrWrongKey
}

// refuse notes why a slot did not open. That it may be the right one says more
// than that it belongs to another.
func (u *unlocking) refuse(sl slot, err error) {
	if err == ErrWrongKey {
		return // no more than any wrong secret says
	}
	e := &SlotError{sl.number(), sl.kind(), err}
	if u.refusal == nil || errors.Is(u.refusal.Err, ErrWrongKey) && !errors.Is(err, ErrWrongKey) {
		u.refusal = e
	}
}

func provingFirst(secrets []Secret) []Secret {
	sorted := slices.Clone(secrets)
	slices.SortStableFunc(sorted, func(a, b Secret) int {
		switch pa, pb := a.Type().proves(), b.Type().proves(); {
		case pa == pb:
			return 0
		case pa:
			return -1
		}
		return 1
	})
	return sorted
}

// unlock tries one secret on all slots of its type whose key is not yet found.
// The error is ErrWiped.
func (k *Keyring) unlock(slots []slot, s Secret, u *unlocking) error {
	var kek *cell
	defer func() { kek.free() }()
	for _, sl := range slots {
		if sl.kind() != s.Type() || !sl.kind().opens() || u.found[sl.volumeKey()] != nil {
			continue
		}
		if kek == nil || sl.kind().wrapped() {
			kek.free()
			var err error
			if kek, err = s.slotKEK(k.kdf, &k.salt, sl.data()); errors.Is(err, ErrWiped) {
				return err
			} else if err != nil {
				u.refuse(sl, err)
				continue
			}
		}
		switch vk, err := sl.open(k.store, kek.b); {
		case err == nil:
			u.found[sl.volumeKey()] = vk
		case !errors.Is(err, errSlotSecret):
			u.damage = err
		}
	}
	return nil
}

// OpenSlot opens one slot. The error is ErrNoSlot, ErrWrongKey, or ErrAuth if
// the slot is damaged. The caller wipes the key.
func (k *Keyring) OpenSlot(number int, s Secret) (*VolumeKey, error) {
	k.mu.RLock()
	i, ok := k.findSlotLocked(number)
	var sl slot
	if ok {
		sl = k.slots[i]
	}
	k.mu.RUnlock()
	if !ok {
		return nil, fmt.Errorf("open slot %d: %w", number, ErrNoSlot)
	}
	if sl.kind() != s.Type() || !sl.kind().opens() {
		return nil, fmt.Errorf("open %s slot %d with a %s: %w", sl.kind(), number, s.Type(), ErrWrongKey)
	}
	kek, err := s.slotKEK(k.kdf, &k.salt, sl.data())
	switch {
	case errors.Is(err, ErrWiped):
		return nil, fmt.Errorf("open slot %d: %w", number, err)
	case err != nil:
		return nil, &SlotError{number, sl.kind(), err}
	}
	defer kek.free()
	vk, err := sl.open(k.store, kek.b)
	if errors.Is(err, errSlotSecret) {
		err = fmt.Errorf("open slot %d: %w", number, ErrWrongKey)
	}
	return vk, err
}

// SlotsDigest is SHA-256 over "FSXD", the digest's version 1, three zero bytes,
// and the slots of one volume key as they stand in the keyring.
func (k *Keyring) SlotsDigest(vk ID) (sum [32]byte) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	h := sha256.New()
	h.Write([]byte("FSXD\x01\x00\x00\x00"))
	for _, s := range k.slots {
		if s.volumeKey() == vk {
			h.Write(s)
		}
	}
	return [32]byte(h.Sum(sum[:0]))
}

// SetBag seals b under vk as the bag of volume vol, in place of the one before.
// b stays the caller's. Errors: ErrWiped, ErrFull; the bag before stays.
func (k *Keyring) SetBag(vol UUID, vk *VolumeKey, b *Bag) error {
	s, err := sealBag(k.store, vol, vk, b)
	if err != nil {
		return fmt.Errorf("seal bag of volume %s: %w", vol, err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	i, ok := k.findBagLocked(vol)
	grow := len(s)
	if ok {
		grow -= len(k.bags[i])
	}
	if !ok && len(k.bags) >= maxBags || !k.roomLocked(grow) {
		return fmt.Errorf("set bag of volume %s: %w", vol, ErrFull)
	}
	if ok {
		k.bags[i] = s
	} else {
		k.bags = slices.Insert(k.bags, i, s)
	}
	return nil
}

func (k *Keyring) findBagLocked(vol UUID) (int, bool) {
	return slices.BinarySearchFunc(k.bags, vol, func(s sealedBag, v UUID) int { return bytes.Compare(s[:16], v[:]) })
}

func (k *Keyring) bag(vol UUID) (sealedBag, bool) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	i, ok := k.findBagLocked(vol)
	if !ok {
		return nil, false
	}
	return k.bags[i], true // bags are never changed in place
}

// OpenBag opens the bag of volume vol. The error is ErrNoBag, ErrWrongKey if it
// is sealed under another volume key, or ErrAuth. The caller wipes the bag.
func (k *Keyring) OpenBag(vol UUID, vk *VolumeKey) (*Bag, error) {
	s, ok := k.bag(vol)
	if !ok {
		return nil, fmt.Errorf("open bag of volume %s: %w", vol, ErrNoBag)
	}
	b, err := s.open(k.store, vk)
	if err != nil {
		return nil, fmt.Errorf("open bag of volume %s: %w", vol, err)
	}
	return b, nil
}

// RemoveBag drops the bag of volume vol, if there is one.
func (k *Keyring) RemoveBag(vol UUID) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if i, ok := k.findBagLocked(vol); ok {
		k.bags = slices.Delete(k.bags, i, i+1)
	}
}

// Bags lists the bags by volume UUID.
func (k *Keyring) Bags() []BagInfo {
	k.mu.RLock()
	defer k.mu.RUnlock()
	infos := make([]BagInfo, len(k.bags))
	for i, s := range k.bags {
		infos[i] = BagInfo{s.volume(), s.volumeKey(), (len(s) - bagHeader - bagBody - tagSize) / bagEntry}
	}
	return infos
}

// BagDigest is SHA-256 of the sealed bag of volume vol, as it stands in the
// keyring.
func (k *Keyring) BagDigest(vol UUID) ([32]byte, bool) {
	s, ok := k.bag(vol)
	if !ok {
		return [32]byte{}, false
	}
	return sha256.Sum256(s), true
}

// BagVolumeKey names the volume key that the bag of volume vol is sealed under.
func (k *Keyring) BagVolumeKey(vol UUID) (ID, bool) {
	s, ok := k.bag(vol)
	if !ok {
		return ID{}, false
	}
	return s.volumeKey(), true
}
