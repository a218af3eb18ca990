package crypt

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
)

const (
	// BlockSize is the unit of encryption and authentication, in bytes.
	BlockSize = 4096
	// Slack is the capacity in bytes that a buffer handed to Seal or Open
	// must have behind its length.
	Slack = 16
	// MaxExtentBlocks is the largest number of blocks sealed under one nonce.
	MaxExtentBlocks = 256

	blockShift = 12
	tagSize    = 16
	keyVersion = 1 // version byte in every derivation and associated data
)

// Mode is how a data key encrypts. It is a property of the data key, chosen by
// the user, never by the CPU.
type Mode uint8

const (
	// AES256XTS is fscrypt's per-extent AES-256-XTS with an HMAC tag.
	AES256XTS Mode = 0x01
	// AES256GCM is the default.
	AES256GCM Mode = 0x81
	// ChaCha20Poly1305 is for CPUs without AES instructions.
	ChaCha20Poly1305 Mode = 0x82
)

// ParseMode reads a mode's name as String writes it. Any other name is ErrMode.
func ParseMode(s string) (Mode, error) {
	for _, m := range []Mode{AES256GCM, ChaCha20Poly1305, AES256XTS} {
		if s == m.String() {
			return m, nil
		}
	}
	return 0, fmt.Errorf("cipher %q: %w", s, ErrMode)
}

// Valid tells whether m is a mode this code can use.
func (m Mode) Valid() bool {
	return m == AES256GCM || m == ChaCha20Poly1305 || m == AES256XTS
}

func (m Mode) String() string {
	switch m {
	case AES256GCM:
		return "aes-256-gcm"
	case ChaCha20Poly1305:
		return "chacha20-poly1305"
	case AES256XTS:
		return "aes-256-xts"
	}
	return fmt.Sprintf("mode-0x%02x", uint8(m))
}

// ID names a volume key, or a data key (then it is the fscrypt key identifier).
// It is derived from the key and not secret.
type ID [16]byte

// String is 32 lower-case hexadecimal digits.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// MarshalText is String.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UUID names a store or a volume.
type UUID [16]byte

// LoanName names a bag of data keys that are lent to a volume as long as it is under
// the volume key vk, sealed under the volume key of what it starts from: SHA-256 of
// "FSXC" || UUID || identifier of vk, the first 16 bytes.
func LoanName(volume UUID, vk ID) UUID {
	sum := sha256.Sum256(append(append([]byte("FSXC"), volume[:]...), vk[:]...))
	return UUID(sum[:16])
}

func (u UUID) String() string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[0:4], u[4:6], u[6:8], u[8:10], u[10:16])
}

// Tag authenticates one block.
type Tag [tagSize]byte

// Nonce is drawn anew for every extent and stored beside it.
type Nonce [16]byte
