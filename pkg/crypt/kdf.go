package crypt

import (
	"fmt"

	"golang.org/x/crypto/argon2"
)

// KDF is the cost of a passphrase: Argon2id parameters (RFC 9106). A keyring
// has one set for all its passphrase slots. The zero value is the default,
// 64 MiB, 3 passes, 4 lanes; then all three fields must be zero.
type KDF struct {
	MemoryKiB uint32 // 19 MiB to 1 GiB
	Passes    uint32 // 2 to 16; memory times passes at most 4 GiB
	Lanes     uint8  // 1 to 16
}

const (
	minKDFMemory = 19 << 10 // KiB
	maxKDFMemory = 1 << 20
	maxKDFWork   = 4 << 20 // KiB times passes
	saltSize     = 32
)

func (k KDF) orDefault() KDF {
	if k == (KDF{}) {
		return KDF{MemoryKiB: 64 << 10, Passes: 3, Lanes: 4}
	}
	return k
}

// check is called on everything that comes from a user or a disk, before
// anything is allocated for it.
func (k KDF) check() error {
	switch {
	case k.MemoryKiB < minKDFMemory || k.MemoryKiB > maxKDFMemory:
		return fmt.Errorf("memory of %d KiB: %w", k.MemoryKiB, ErrKDF)
	case k.Passes < 2 || k.Passes > 16:
		return fmt.Errorf("%d passes: %w", k.Passes, ErrKDF)
	case k.Lanes < 1 || k.Lanes > 16:
		return fmt.Errorf("%d lanes: %w", k.Lanes, ErrKDF)
	case uint64(k.MemoryKiB)*uint64(k.Passes) > maxKDFWork:
		return fmt.Errorf("memory times passes of %d KiB: %w", uint64(k.MemoryKiB)*uint64(k.Passes), ErrKDF)
	}
	return nil
}

// derive runs Argon2id. Its working memory is ordinary Go memory.
func (k KDF) derive(passphrase []byte, salt *[saltSize]byte) *cell {
	key := argon2.IDKey(passphrase, salt[:], k.Passes, k.MemoryKiB, k.Lanes, 32)
	c := newCell(32)
	copy(c.b, key)
	clear(key)
	return c
}
