package crypt

import (
	"crypto/subtle"
	"fmt"
	"sync"
)

const dataKeySize = 64

// DataKey encrypts extents and nothing else. It is safe for concurrent use.
//
// Its memory is one cell: key 64 | PRK absorbed for HMAC-SHA-512.
type DataKey struct {
	redact
	mu     sync.RWMutex
	mem    *cell // nil once wiped
	id     ID
	mode   Mode
	commit [32]byte
}

// NewDataKey makes a random data key. The mode is its for life.
func NewDataKey(m Mode) (*DataKey, error) {
	if !m.Valid() {
		return nil, fmt.Errorf("new data key: %w", ErrMode)
	}
	c := newCell(dataKeySize + prf512)
	random(c.b[:dataKeySize])
	return dataKeyIn(c, m), nil
}

// dataKeyFrom copies raw key bytes.
func dataKeyFrom(raw []byte, m Mode) *DataKey {
	c := newCell(dataKeySize + prf512)
	copy(c.b, raw)
	return dataKeyIn(c, m)
}

// dataKeyIn takes over a cell that starts with the key.
func dataKeyIn(c *cell, m Mode) *DataKey {
	k := &DataKey{mem: c, mode: m}
	ownedBy(k, c)
	prf := c.b[dataKeySize:]
	extract(prf, nil, c.b[:dataKeySize])
	k.id = keyIdentifier(prf)
	expandFSX(k.commit[:], prf, labelCommit)
	return k
}

// keyIdentifier is the kernel's fscrypt_key_identifier of an absorbed PRK.
func keyIdentifier(prf []byte) (id ID) {
	expand(id[:], prf, []byte("fscrypt\x00\x01"))
	return id
}

// ID is the key's fscrypt key identifier (KID).
func (k *DataKey) ID() ID { return k.id }

// Mode is the cipher the key was made for.
func (k *DataKey) Mode() Mode { return k.mode }

// Wipe destroys the key. Extents opened before go on working: a cipher cannot
// be wiped, only dropped.
func (k *DataKey) Wipe() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.mem.free()
	k.mem = nil
}

// clone copies the key, so that the copy can be wiped on its own.
func (k *DataKey) clone() (*DataKey, error) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	if k.mem == nil {
		return nil, fmt.Errorf("copy data key %s: %w", k.id, ErrWiped)
	}
	c := newCell(dataKeySize + prf512)
	copy(c.b, k.mem.b)
	n := &DataKey{mem: c, id: k.id, mode: k.mode, commit: k.commit}
	ownedBy(n, c)
	return n, nil
}

// matches tells in constant time whether the key is the one that was named.
func (k *DataKey) matches(id, commit []byte) bool {
	return subtle.ConstantTimeCompare(k.id[:], id)&subtle.ConstantTimeCompare(k.commit[:], commit) == 1
}
