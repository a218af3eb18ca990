package crypt

import "crypto/aes"

// SetRandom replaces the random source for a test and returns what undoes it.
func SetRandom(fill func([]byte)) (restore func()) {
	old := random
	random = fill
	return func() { random = old }
}

// SetSealed sets the count of sealed extents.
func SetSealed(n uint64) { sealed.Store(n) }

// DataKeyFrom makes a data key of 64 given bytes.
func DataKeyFrom(raw []byte, m Mode) *DataKey { return dataKeyFrom(raw, m) }

// VolumeKeyFrom makes a volume key of 32 given bytes.
func VolumeKeyFrom(raw []byte) *VolumeKey {
	c := newCell(volumeKeySize + prf512)
	copy(c.b, raw)
	return volumeKeyIn(c)
}

// KeyIdentifier is the identifier of a master key of any size.
func KeyIdentifier(master []byte) ID {
	prf := newCell(prf512)
	defer prf.free()
	extract(prf.b, nil, master)
	return keyIdentifier(prf.b)
}

// CommitOf is the data key's commitment.
func CommitOf(k *DataKey) [32]byte { return k.commit }

// SealWith seals with the nonce that e was opened with.
func (e *Extent) SealWith(buf []byte, homes []uint64, tags []Tag) {
	s := new(scratch)
	for i := range homes {
		e.seal(s, buf[i*BlockSize:], homes[i], i, &tags[i])
	}
}

// NonceOf draws a nonce as Seal does.
func NonceOf(a *Authority, seq uint64, prev *[32]byte) (Nonce, error) { return a.nonce(seq, prev) }

// RecoveryText is the text of a recovery key of 32 given bytes.
func RecoveryText(key []byte) string { return formatRecoveryKey(key) }

// EncryptXTS encrypts one block as a data unit under a 64-byte XTS key.
func EncryptXTS(key, block []byte, unit uint64) {
	x := &xtsCipher{}
	x.data, _ = aes.NewCipher(key[:32])
	x.tweak, _ = aes.NewCipher(key[32:])
	x.encrypt(new(scratch), block, unit)
}

// DecodeBag reads the plaintext of a bag; Encode is its inverse.
func DecodeBag(plain []byte) (*Bag, error) { return decodeBag(plain) }

// EncodeBag is the plaintext of a bag.
func EncodeBag(b *Bag) []byte {
	c, err := b.encode()
	if err != nil {
		panic(err)
	}
	defer c.free()
	return append([]byte(nil), c.b...)
}

// RecoveryBytes is the key in a recovery key's secret.
func RecoveryBytes(s Secret) []byte { return s.(*secret).mem.b }

// Vault is a memory of its own, with a lock of the test's choice.
type Vault struct{ m memory }

// NewVault locks pages with lock.
func NewVault(lock func([]byte) error) *Vault { return &Vault{memory{lock: lock}} }

// Status is Memory of the vault.
func (v *Vault) Status() MemoryStatus { return v.m.status() }

// Alloc returns n bytes and what frees them.
func (v *Vault) Alloc(n int) ([]byte, func()) {
	c := v.m.newCell(n)
	return c.b, c.free
}
