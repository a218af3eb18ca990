package crypt

import (
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
)

const (
	bagHeader    = 100
	bagBody      = 8                 // plaintext before the keys
	bagEntry     = 64 + dataKeySize  // plaintext of one key
	minBagSealed = bagBody + tagSize // an empty bag's ciphertext
	maxBagSealed = bagBody + MaxBagKeys*bagEntry + tagSize
	bagWritable  = 0x01
)

// sealedBag is a bag under its volume key, kept as its bytes:
//
//	0   16 volume UUID
//	16  16 volume key ID
//	32  32 salt
//	64  32 commitment to the sealing key
//	96  4  length of the rest
//	100 …  AES-256-GCM of the plaintext, tag last
//
// Integers are big endian. The plaintext:
//
//	0 1 version, 1
//	1 1 zero
//	2 2 number of keys, at most 4096
//	4 4 number the next key will get
//	8 … keys in the order of their numbers, 128 bytes each:
//	    0  1  mode
//	    1  1  01 if writable, at most one
//	    2  2  zero
//	    4  4  number, from 1
//	    8  8  bytes encrypted
//	    16 16 KID
//	    32 32 commitment
//	    64 64 key
type sealedBag []byte

func (s sealedBag) volume() UUID  { return UUID(s[0:16]) }
func (s sealedBag) volumeKey() ID { return ID(s[16:32]) }

// sealBag seals b. The salt makes a new key of every sealing, so the GCM nonce
// may be zero; it is hedged with the plaintext, so that a random source that
// repeats cannot seal two bags alike:
//
//	salt = HMAC-SHA-512(Expand(PRK, "fsx\0" || 22 || store || volume, 64), 32 random || plaintext)[0:32]
func sealBag(store, vol UUID, vk *VolumeKey, b *Bag) (sealedBag, error) {
	plain, err := b.encode()
	if err != nil {
		return nil, err
	}
	defer plain.free()
	s := make(sealedBag, bagHeader, bagHeader+len(plain.b)+tagSize)
	id := vk.ID()
	copy(s[0:], vol[:])
	copy(s[16:], id[:])
	binary.BigEndian.PutUint32(s[96:], uint32(len(plain.b)+tagSize))
	err = vk.use(func(_, prf []byte) error {
		drawBagSalt(s[32:64], prf, store, vol, plain.b)
		okm := s.derive(store, prf)
		defer okm.free()
		copy(s[64:96], okm.b[32:])
		aead, err := newGCM(okm.b[:32])
		if err != nil {
			return err
		}
		s = aead.Seal(s, make([]byte, 12), plain.b, s.ad(store))
		return nil
	})
	if err != nil {
		return nil, err
	}
	return s, nil
}

func drawBagSalt(salt, prf []byte, store, vol UUID, plain []byte) {
	key := newCell(64 + prf512)
	defer key.free()
	expandFSX(key.b[:64], prf, labelBagSalt, store[:], vol[:])
	var r [32]byte
	random(r[:])
	h := get512()
	defer h.put(&pool512)
	h.absorb(key.b[64:], key.b[:64])
	h.begin(key.b[64:])
	h.h.Write(r[:])
	h.h.Write(plain)
	copy(salt, h.finish(key.b[64:]))
}

// derive returns sealing key 32 | commit 32:
//
//	Expand(PRK of the volume key, "fsx\0" || 21 || store || volume || salt, 64)
func (s sealedBag) derive(store UUID, prf []byte) *cell {
	okm := newCell(64)
	expandFSX(okm.b, prf, labelBag, store[:], s[0:16], s[32:64])
	return okm
}

// ad is "FSXB" || 01 || 000000 || store UUID || the bag's header.
func (s sealedBag) ad(store UUID) []byte {
	ad := append([]byte("FSXB\x01\x00\x00\x00"), store[:]...)
	return append(ad, s[:bagHeader]...)
}

func (s sealedBag) open(store UUID, vk *VolumeKey) (b *Bag, err error) {
	if s.volumeKey() != vk.ID() {
		return nil, fmt.Errorf("bag is sealed under volume key %s: %w", s.volumeKey(), ErrWrongKey)
	}
	err = vk.use(func(_, prf []byte) error {
		b, err = s.openWith(store, prf)
		return err
	})
	return b, err
}

func (s sealedBag) openWith(store UUID, prf []byte) (*Bag, error) {
	okm := s.derive(store, prf)
	defer okm.free()
	if subtle.ConstantTimeCompare(okm.b[32:], s[64:96]) != 1 {
		return nil, ErrAuth
	}
	aead, err := newGCM(okm.b[:32])
	if err != nil {
		return nil, err
	}
	plain := newCell(len(s) - bagHeader - tagSize)
	defer plain.free()
	if _, err := aead.Open(plain.b[:0], make([]byte, 12), s[bagHeader:], s.ad(store)); err != nil {
		return nil, ErrAuth
	}
	return decodeBag(plain.b)
}

// encode returns the plaintext in a cell that the caller frees.
func (b *Bag) encode() (*cell, error) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	c := newCell(bagBody + len(b.keys)*bagEntry)
	c.b[0] = 1
	binary.BigEndian.PutUint16(c.b[2:], uint16(len(b.keys)))
	binary.BigEndian.PutUint32(c.b[4:], b.next)
	for i := range b.keys {
		if err := b.keys[i].encode(c.b[bagBody+i*bagEntry:]); err != nil {
			c.free()
			return nil, err
		}
	}
	return c, nil
}

func (e *bagKey) encode(p []byte) error {
	k := e.key
	k.mu.RLock()
	defer k.mu.RUnlock()
	if k.mem == nil {
		return fmt.Errorf("encode data key %s: %w", k.id, ErrWiped)
	}
	p[0] = byte(k.mode)
	if e.writable {
		p[1] = bagWritable
	}
	binary.BigEndian.PutUint32(p[4:], e.number)
	binary.BigEndian.PutUint64(p[8:], e.bytes)
	copy(p[16:32], k.id[:])
	copy(p[32:64], k.commit[:])
	copy(p[64:bagEntry], k.mem.b[:dataKeySize])
	return nil
}

var errBag = errors.New("malformed key bag")

// decodeBag is strict: re-encoding gives plain. Every data key must have the
// identifier and the commitment it is stored with.
func decodeBag(plain []byte) (*Bag, error) {
	if len(plain) < bagBody || plain[0] != 1 || plain[1] != 0 {
		return nil, fmt.Errorf("bag header: %w", errBag)
	}
	n := int(binary.BigEndian.Uint16(plain[2:]))
	if n > MaxBagKeys || len(plain) != bagBody+n*bagEntry {
		return nil, fmt.Errorf("bag of %d keys in %d bytes: %w", n, len(plain), errBag)
	}
	b := NewBag()
	b.next = binary.BigEndian.Uint32(plain[4:])
	for p := plain[bagBody:]; len(p) > 0; p = p[bagEntry:] {
		if err := b.decodeKey(p[:bagEntry]); err != nil {
			b.Wipe()
			return nil, err
		}
	}
	if last := b.last(); b.next <= last {
		b.Wipe()
		return nil, fmt.Errorf("next key number %d after %d: %w", b.next, last, errBag)
	}
	return b, nil
}

func (b *Bag) last() uint32 {
	if len(b.keys) == 0 {
		return 0
	}
	return b.keys[len(b.keys)-1].number
}

func (b *Bag) decodeKey(p []byte) error {
	mode, number := Mode(p[0]), binary.BigEndian.Uint32(p[4:])
	writable := p[1] == bagWritable
	switch {
	case !mode.Valid():
		return fmt.Errorf("data key %d: %w", number, ErrMode)
	case p[1]&^bagWritable != 0 || p[2]|p[3] != 0:
		return fmt.Errorf("data key %d has unknown flags: %w", number, errBag)
	case number <= b.last():
		return fmt.Errorf("data key number %d after %d: %w", number, b.last(), errBag)
	case writable && b.WriteKey() != nil:
		return fmt.Errorf("data key %d is the second writable one: %w", number, errBag)
	}
	k := dataKeyFrom(p[64:bagEntry], mode)
	if _, dup := b.index[k.id]; dup || !k.matches(p[16:32], p[32:64]) {
		k.Wipe()
		return fmt.Errorf("data key %d is not the one it is named: %w", number, errBag)
	}
	b.index[k.id] = len(b.keys)
	b.keys = append(b.keys, bagKey{k, number, writable, binary.BigEndian.Uint64(p[8:])})
	return nil
}
