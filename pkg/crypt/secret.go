package crypt

import (
	"fmt"
	"sync"
)

// SlotType is the kind of secret that opens a slot.
type SlotType uint8

const (
	SlotPassphrase  SlotType = 0x01
	SlotKeyFile     SlotType = 0x02
	SlotRecoveryKey SlotType = 0x03
	SlotClear       SlotType = 0x04 // anyone can open it
	SlotAge         SlotType = 0x05 // an age file holds the key; see NewWrapped
	SlotTPM2        SlotType = 0x06 // a TPM seals the key; see NewWrapped
)

func (t SlotType) String() string {
	switch t {
	case SlotPassphrase:
		return "passphrase"
	case SlotKeyFile:
		return "key-file"
	case SlotRecoveryKey:
		return "recovery-key"
	case SlotClear:
		return "clear"
	case SlotAge:
		return "age"
	case SlotTPM2:
		return "tpm2"
	}
	return fmt.Sprintf("unknown-0x%02x", uint8(t))
}

// proves tells whether only someone who knows the secret can make a slot that
// it opens.
func (t SlotType) proves() bool { return t >= SlotPassphrase && t <= SlotRecoveryKey }

// Secret opens and makes slots of one type. It prints as "[secret]". Wipe
// destroys it; using it afterwards is ErrWiped.
type Secret interface {
	// Type is the type of slot that the secret opens.
	Type() SlotType
	Wipe()

	// makeKEK is the key that wraps a volume key in a new slot, in a cell that
	// the caller frees, and what else the slot's payload holds. Only a
	// passphrase's depends on the keyring.
	makeKEK(kdf KDF, salt *[saltSize]byte) (kek *cell, data []byte, err error)
	// slotKEK is the key of a slot that holds data.
	slotKEK(kdf KDF, salt *[saltSize]byte, data []byte) (*cell, error)
}

// MaxPassphrase is the longest passphrase in bytes.
const MaxPassphrase = 64 << 10

// secret is all there is to a secret: some bytes in locked memory.
type secret struct {
	redact
	typ SlotType
	mu  sync.RWMutex
	mem *cell // nil once wiped

	size    int     // bytes of mem that are the secret
	wrapper Wrapper // of types that are wrapped, else nil
}

func newSecret(t SlotType, b []byte) *secret {
	c := newCell(max(len(b), 1))
	copy(c.b, b)
	s := &secret{typ: t, mem: c, size: len(b)}
	ownedBy(s, c)
	return s
}

// NewPassphrase copies a passphrase; the caller wipes its own copy. The bytes
// are used as they are: no trimming, no Unicode normalization.
func NewPassphrase(passphrase []byte) (Secret, error) {
	switch {
	case len(passphrase) == 0:
		return nil, ErrEmptyPassphrase
	case len(passphrase) > MaxPassphrase:
		return nil, ErrLongPassphrase
	}
	return newSecret(SlotPassphrase, passphrase), nil
}

// NewKeyFile copies the contents of a key file, 32 to 64 random bytes. It is a
// wrapping secret, not the volume key. Text is refused with
// ErrPrintableKeyFile: it is a passphrase and needs Argon2.
func NewKeyFile(content []byte) (Secret, error) {
	if len(content) > 0 && printable(content) {
		return nil, ErrPrintableKeyFile
	}
	if len(content) < 32 || len(content) > 64 {
		return nil, fmt.Errorf("key file of %d bytes: %w", len(content), ErrKeyFileSize)
	}
	return newSecret(SlotKeyFile, content), nil
}

func printable(b []byte) bool {
	for _, c := range b {
		if (c < ' ' || c > '~') && (c < '\t' || c > '\r') {
			return false
		}
	}
	return true
}

// NewClear opens clear slots: slots that protect nothing. Asking for it keeps
// a clear slot from being opened unawares.
func NewClear() Secret {
	return newSecret(SlotClear, make([]byte, 32))
}

func (s *secret) Type() SlotType { return s.typ }

func (s *secret) Wipe() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mem.free()
	s.mem = nil
}

func (s *secret) makeKEK(kdf KDF, salt *[saltSize]byte) (*cell, []byte, error) {
	if s.wrapper != nil {
		return s.newKEK()
	}
	kek, err := s.slotKEK(kdf, salt, nil)
	return kek, nil, err
}

func (s *secret) slotKEK(kdf KDF, salt *[saltSize]byte, data []byte) (*cell, error) {
	if s.wrapper != nil {
		return s.keptKEK(data)
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.mem == nil {
		return nil, fmt.Errorf("use %s: %w", s.typ, ErrWiped)
	}
	if s.typ == SlotPassphrase {
		return kdf.derive(s.mem.b, salt), nil
	}
	c := newCell(len(s.mem.b))
	copy(c.b, s.mem.b)
	return c, nil
}
