package layout

import (
	"crypto/sha256"
	"fmt"
	"time"
)

const (
	backupMagic   = "FSXKBACK"
	backupVersion = 1
	backupHeader  = 48
	backupSum     = 32
	// MaxKeyringBody is the longest body of a keyring, in bytes.
	MaxKeyringBody = 16<<20 - 64
	// MaxKeyringBackup is the size of the largest backup of a keyring, in bytes.
	MaxKeyringBackup = backupHeader + MaxKeyringBody + backupSum
)

// KeyringBackup is a copy of a store's keyring as it was at a time, outside the
// store.
//
//	  0 magic "FSXKBACK"
//	  8 version be32, 1;  12 zeros, 4
//	 16 store UUID, 16
//	 32 created be64, seconds since 1970
//	 40 length of the body be32;  44 zeros, 4
//	 48 body: the keyring's (docs/crypto.md)
//	-32 SHA-256 over all before it
//
// The sum finds accidents. What authenticates slots and bags is in them, and the
// heads that name their digests.
type KeyringBackup struct {
	Store   UUID
	Created time.Time // whole seconds
	Body    []byte
}

// Encode returns the backup's bytes.
func (k *KeyringBackup) Encode() []byte {
	b := make([]byte, 0, backupHeader+len(k.Body)+backupSum)
	b = append(b, backupMagic...)
	b = be.AppendUint32(b, backupVersion)
	b = append(b, 0, 0, 0, 0)
	b = append(b, k.Store[:]...)
	b = be.AppendUint64(b, uint64(k.Created.Unix()))
	b = be.AppendUint32(b, uint32(len(k.Body)))
	b = append(b, 0, 0, 0, 0)
	b = append(b, k.Body...)
	sum := sha256.Sum256(b)
	return append(b, sum[:]...)
}

// DecodeKeyringBackup decodes what Encode returns and nothing else. The body
// aliases b. Errors: ErrCorrupt, ErrVersion.
func DecodeKeyringBackup(b []byte) (*KeyringBackup, error) {
	const object = "keyring backup"
	if len(b) < backupHeader+backupSum || len(b) > MaxKeyringBackup || string(b[:8]) != backupMagic {
		return nil, corrupt(object, "not one")
	}
	if v := be.Uint32(b[8:]); v != backupVersion {
		return nil, fmt.Errorf("%s: %w: version %d", object, ErrVersion, v)
	}
	if sha256.Sum256(b[:len(b)-backupSum]) != [32]byte(b[len(b)-backupSum:]) {
		return nil, corrupt(object, "it was cut or altered")
	}
	c := newCursor(b[12 : len(b)-backupSum])
	c.zero(4)
	k := &KeyringBackup{Store: UUID(c.take(16)), Created: time.Unix(int64(c.u64()), 0).UTC()}
	n := c.u32()
	c.zero(4)
	if int(n) != len(c.b) {
		return nil, corrupt(object, "wrong length")
	}
	k.Body = c.take(int(n))
	if !c.done() {
		return nil, corrupt(object, "field out of range")
	}
	return k, nil
}
