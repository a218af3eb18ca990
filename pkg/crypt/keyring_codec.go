package crypt

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

const (
	keyringHeader = 80
	maxSlots      = 65535
	maxBags       = 65535
	kdfArgon2id   = 1

	// MaxKeyring is the largest encoded keyring in bytes: an area of the
	// keyring file, 16 MiB, without its header.
	MaxKeyring = 16<<20 - 64
)

// The encoded keyring. Integers are big endian.
//
//	0  4  "FSXK"
//	4  1  version, 1
//	5  1  KDF, 1 = Argon2id version 1.3
//	6  2  zero
//	8  16 store UUID
//	24 4  Argon2 memory in KiB
//	28 4  Argon2 passes
//	32 1  Argon2 lanes
//	33 3  zero
//	36 32 Argon2 salt
//	68 4  number of slots
//	72 4  number of bags
//	76 4  zero
//	80 …  slots by ascending number, see slot
//	   …  bags by ascending volume UUID, see sealedBag

// Encode returns the body of the keyring file.
func (k *Keyring) Encode() []byte {
	k.mu.RLock()
	defer k.mu.RUnlock()
	b := append([]byte("FSXK\x01\x01\x00\x00"), k.store[:]...)
	b = binary.BigEndian.AppendUint32(b, k.kdf.MemoryKiB)
	b = binary.BigEndian.AppendUint32(b, k.kdf.Passes)
	b = append(b, k.kdf.Lanes, 0, 0, 0)
	b = append(b, k.salt[:]...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(k.slots)))
	b = binary.BigEndian.AppendUint32(b, uint32(len(k.bags)))
	b = binary.BigEndian.AppendUint32(b, 0)
	for _, s := range k.slots {
		b = append(b, s...)
	}
	for _, s := range k.bags {
		b = append(b, s...)
	}
	return b
}

// roomLocked tells whether n more bytes fit.
func (k *Keyring) roomLocked(n int) bool {
	for _, s := range k.slots {
		n += len(s)
	}
	for _, s := range k.bags {
		n += len(s)
	}
	return keyringHeader+n <= MaxKeyring
}

// ParseKeyring reads what Encode wrote and nothing else: whatever it accepts
// encodes to the same bytes. It allocates no more than body is long, and checks
// the Argon2 parameters before they can cost anything. It proves nothing about
// who made the keyring. Errors: ErrKeyring, ErrKeyringVersion, ErrKeyringStore,
// ErrKDF.
func ParseKeyring(body []byte, store UUID) (*Keyring, error) {
	k, slots, bags, err := parseKeyringHeader(body, store)
	if err != nil {
		return nil, fmt.Errorf("parse keyring: %w", err)
	}
	d := decoder{rest: bytes.Clone(body[keyringHeader:])}
	for range slots {
		s, err := d.slot()
		if err != nil {
			return nil, fmt.Errorf("parse keyring: %w", err)
		}
		k.slots = append(k.slots, s)
	}
	for range bags {
		s, err := d.bag()
		if err != nil {
			return nil, fmt.Errorf("parse keyring: %w", err)
		}
		k.bags = append(k.bags, s)
	}
	if len(d.rest) > 0 {
		return nil, fmt.Errorf("parse keyring: %d trailing bytes: %w", len(d.rest), ErrKeyring)
	}
	return k, nil
}

func parseKeyringHeader(b []byte, store UUID) (k *Keyring, slots, bags uint32, err error) {
	if len(b) < keyringHeader || len(b) > MaxKeyring || string(b[:4]) != "FSXK" {
		return nil, 0, 0, fmt.Errorf("not a keyring: %w", ErrKeyring)
	}
	if b[4] != 1 || b[5] != kdfArgon2id {
		return nil, 0, 0, fmt.Errorf("version %d, kdf %d: %w", b[4], b[5], ErrKeyringVersion)
	}
	if b[6]|b[7]|b[33]|b[34]|b[35]|b[76]|b[77]|b[78]|b[79] != 0 {
		return nil, 0, 0, fmt.Errorf("reserved bytes: %w", ErrKeyring)
	}
	if UUID(b[8:24]) != store {
		return nil, 0, 0, fmt.Errorf("keyring of store %s: %w", UUID(b[8:24]), ErrKeyringStore)
	}
	k = &Keyring{store: store, salt: [saltSize]byte(b[36:68]), kdf: KDF{
		MemoryKiB: binary.BigEndian.Uint32(b[24:]),
		Passes:    binary.BigEndian.Uint32(b[28:]),
		Lanes:     b[32],
	}}
	if err := k.kdf.check(); err != nil {
		return nil, 0, 0, err
	}
	slots, bags = binary.BigEndian.Uint32(b[68:]), binary.BigEndian.Uint32(b[72:])
	if slots > maxSlots || bags > maxBags {
		return nil, 0, 0, fmt.Errorf("%d slots and %d bags: %w", slots, bags, ErrKeyring)
	}
	return k, slots, bags, nil
}

// decoder takes slots and bags off the front of rest. They alias it.
type decoder struct {
	rest       []byte
	lastSlot   int
	lastVolume []byte
}

func (d *decoder) take(n int) []byte {
	b := d.rest[:n:n]
	d.rest = d.rest[n:]
	return b
}

func (d *decoder) slot() (slot, error) {
	if len(d.rest) < slotHeader {
		return nil, fmt.Errorf("slot header is cut: %w", ErrKeyring)
	}
	s := slot(d.rest)
	n := binary.BigEndian.Uint32(s[4:])
	number := s.number()
	switch {
	case s.kind() == 0 || s[1] != 0:
		return nil, fmt.Errorf("slot type or flags: %w", ErrKeyring)
	case number <= d.lastSlot:
		return nil, fmt.Errorf("slot number %d after %d: %w", number, d.lastSlot, ErrKeyring)
	case n > maxSlotPayload || int(n) > len(d.rest)-slotHeader:
		return nil, fmt.Errorf("slot %d of %d bytes: %w", number, n, ErrKeyring)
	case s.kind().opens() && (n < slotPayload || (n > slotPayload) != s.kind().wrapped()):
		return nil, fmt.Errorf("%s slot %d of %d bytes: %w", s.kind(), number, n, ErrKeyring)
	}
	d.lastSlot = number
	return d.take(slotHeader + int(n)), nil
}

func (d *decoder) bag() (sealedBag, error) {
	if len(d.rest) < bagHeader {
		return nil, fmt.Errorf("bag header is cut: %w", ErrKeyring)
	}
	s := sealedBag(d.rest)
	n := binary.BigEndian.Uint32(s[96:])
	switch {
	case d.lastVolume != nil && bytes.Compare(s[:16], d.lastVolume) <= 0:
		return nil, fmt.Errorf("bag of volume %s out of order: %w", s.volume(), ErrKeyring)
	case n < minBagSealed || n > maxBagSealed || (n-minBagSealed)%bagEntry != 0 || int(n) > len(d.rest)-bagHeader:
		return nil, fmt.Errorf("bag of volume %s of %d bytes: %w", s.volume(), n, ErrKeyring)
	}
	d.lastVolume = s[:16]
	return d.take(bagHeader + int(n)), nil
}
