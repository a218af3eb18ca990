package crypt

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
)

const (
	slotHeader      = 40
	slotCommit      = 32
	slotWrapped     = volumeKeySize + tagSize
	slotPayload     = slotCommit + slotWrapped // how every payload begins
	maxSlotPayload  = 16 << 10
	slotExtractSalt = "fsx-slot-v1"
)

// slot wraps one volume key under one secret. It is kept as its bytes:
//
//	0  1  type
//	1  1  zero
//	2  2  number, from 1
//	4  4  length of the payload, at most 16 KiB
//	8  16 volume key ID
//	24 16 random salt
//	40 …  payload; of types 01 to 04 just this:
//	      0  32 commitment to the wrapping key
//	      32 48 AES-256-GCM of the volume key, tag last
//	      of types 05 and 06 the same, and
//	      80 …  the data of the age file or the TPM, at least one byte
//
// Integers are big endian. A type that is not known is kept and skipped.
type slot []byte

func (s slot) kind() SlotType  { return SlotType(s[0]) }
func (s slot) number() int     { return int(binary.BigEndian.Uint16(s[2:])) }
func (s slot) volumeKey() ID   { return ID(s[8:24]) }
func (s slot) payload() []byte { return s[slotHeader:][:slotPayload] }
func (s slot) data() []byte    { return s[slotHeader+slotPayload:] }

// opens tells whether this code knows how to open such slots.
func (t SlotType) opens() bool { return t >= SlotPassphrase && t <= SlotTPM2 }

// errSlotSecret: the commitment does not match; wrong secret or altered slot.
var errSlotSecret = errors.New("slot does not open with this secret")

// newSlot wraps vk. The wrapping key is new for every salt, so the GCM nonce
// may be zero.
func newSlot(store UUID, number int, t SlotType, vk *VolumeKey, kek, data []byte) (slot, error) {
	s := make(slot, slotHeader+slotPayload, slotHeader+slotPayload+len(data))
	s = append(s, data...)
	s[0] = byte(t)
	binary.BigEndian.PutUint16(s[2:], uint16(number))
	binary.BigEndian.PutUint32(s[4:], uint32(slotPayload+len(data)))
	id := vk.ID()
	copy(s[8:], id[:])
	random(s[24:40])
	ad, okm := s.derive(store, kek)
	defer okm.free()
	copy(s.payload(), okm.b[32:])
	aead, err := newGCM(okm.b[:32])
	if err != nil {
		return nil, err
	}
	err = vk.use(func(key, _ []byte) error {
		aead.Seal(s.payload()[slotCommit:slotCommit], make([]byte, 12), key, ad)
		return nil
	})
	return s, err
}

// derive returns the slot's associated data, and wrapping key 32 | commit 32:
//
//	HKDF-SHA-512(salt "fsx-slot-v1", kek, info = ad, 64)
//	ad = "FSXS" || 01 || 000000 || store UUID || slot header
func (s slot) derive(store UUID, kek []byte) (ad []byte, okm *cell) {
	ad = append([]byte("FSXS\x01\x00\x00\x00"), store[:]...)
	ad = append(ad, s[:slotHeader]...)
	prf := newCell(prf512)
	defer prf.free()
	extract(prf.b, []byte(slotExtractSalt), kek)
	okm = newCell(64)
	expand(okm.b, prf.b, ad)
	return ad, okm
}

// open unwraps the volume key. The error is errSlotSecret, or ErrAuth if the
// secret is the right one and the slot is damaged.
func (s slot) open(store UUID, kek []byte) (*VolumeKey, error) {
	ad, okm := s.derive(store, kek)
	defer okm.free()
	p := s.payload()
	if subtle.ConstantTimeCompare(okm.b[32:], p[:slotCommit]) != 1 {
		return nil, errSlotSecret
	}
	aead, err := newGCM(okm.b[:32])
	if err != nil {
		return nil, err
	}
	c := newCell(volumeKeySize + prf512)
	if _, err := aead.Open(c.b[:0], make([]byte, 12), p[slotCommit:], ad); err != nil {
		c.free()
		return nil, fmt.Errorf("slot %d: %w", s.number(), ErrAuth)
	}
	vk := volumeKeyIn(c)
	vk.proven = s.kind().proves()
	if want := s.volumeKey(); subtle.ConstantTimeCompare(vk.id[:], want[:]) != 1 {
		vk.Wipe()
		return nil, fmt.Errorf("slot %d holds another volume key: %w", s.number(), ErrAuth)
	}
	return vk, nil
}

func newGCM(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}
