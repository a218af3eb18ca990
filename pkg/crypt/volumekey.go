package crypt

import (
	"fmt"
	"sync"
)

const volumeKeySize = 32

// VolumeKey is the authority over a volume: it authenticates the head, the log
// and the key bag, and encrypts no block. Slots wrap it. It is safe for
// concurrent use.
//
// Its memory is one cell: key 32 | PRK absorbed for HMAC-SHA-512.
type VolumeKey struct {
	redact
	mu  sync.RWMutex
	mem *cell // nil once wiped
	id  ID

	proven bool // never changes once the key is handed out
}

// NewVolumeKey makes a random volume key.
func NewVolumeKey() (*VolumeKey, error) {
	c := newCell(volumeKeySize + prf512)
	random(c.b[:volumeKeySize])
	k := volumeKeyIn(c)
	k.proven = true
	return k, nil
}

// volumeKeyIn takes over a cell that starts with the key.
func volumeKeyIn(c *cell) *VolumeKey {
	k := &VolumeKey{mem: c}
	ownedBy(k, c)
	prf := c.b[volumeKeySize:]
	extract(prf, nil, c.b[:volumeKeySize])
	expandFSX(k.id[:], prf, labelVolumeID)
	return k
}

// ID names the key; it is derived from it and not secret.
func (k *VolumeKey) ID() ID { return k.id }

// Proven tells whether the key is known to come from someone who holds a secret
// of the user's: it was made by this process, or a passphrase, a key file or a
// recovery key opened it. A slot of any other type can be made by whoever
// writes the store, for a volume key of his own choice, and proves nothing.
func (k *VolumeKey) Proven() bool { return k.proven }

// Wipe destroys the key. Authorities made from it go on; wipe them too.
func (k *VolumeKey) Wipe() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.mem.free()
	k.mem = nil
}

// use calls fn with the key and its absorbed PRK, unless it is wiped.
func (k *VolumeKey) use(fn func(key, prf []byte) error) error {
	k.mu.RLock()
	defer k.mu.RUnlock()
	if k.mem == nil {
		return fmt.Errorf("use volume key %s: %w", k.id, ErrWiped)
	}
	return fn(k.mem.b[:volumeKeySize], k.mem.b[volumeKeySize:])
}
