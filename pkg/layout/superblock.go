package layout

import (
	"crypto/sha256"
	"fmt"
	"time"
)

// Feature flags of the superblock. A store with an unknown incompat flag is
// refused, with an unknown ro-compat flag opened for reading only; unknown
// compat flags are ignored.
const (
	knownIncompat = 0
	knownROCompat = 0
)

// SuperblockSize is the size of the file "fsx" in bytes.
const SuperblockSize = 4096

// SuperblockMagic begins every superblock.
const SuperblockMagic = "FSXSTORE"

// Superblock is the identity of a store. It is written once, at creation.
//
//	   0  magic "FSXSTORE"
//	   8  format version, be32
//	  12  log2 of the block size, be32 (12)
//	  16  store UUID, 16 bytes
//	  32  incompat flags, be64
//	  40  ro-compat flags, be64
//	  48  compat flags, be64
//	  56  created, be64, seconds since 1970
//	  64  zeros
//	4064  SHA-256 of bytes 0 to 4063
type Superblock struct {
	UUID     UUID
	Incompat uint64
	ROCompat uint64
	Compat   uint64
	Created  time.Time // whole seconds
}

// Encode returns the superblock's bytes.
func (s *Superblock) Encode() []byte {
	b := make([]byte, SuperblockSize)
	copy(b, SuperblockMagic)
	be.PutUint32(b[8:], Version)
	be.PutUint32(b[12:], BlockShift)
	copy(b[16:], s.UUID[:])
	be.PutUint64(b[32:], s.Incompat)
	be.PutUint64(b[40:], s.ROCompat)
	be.PutUint64(b[48:], s.Compat)
	be.PutUint64(b[56:], uint64(s.Created.Unix()))
	h := sha256.Sum256(b[:SuperblockSize-32])
	copy(b[SuperblockSize-32:], h[:])
	return b
}

// Digest is the hash that heads name the superblock by.
func (s *Superblock) Digest() Hash { return Hash(s.Encode()[SuperblockSize-32:]) }

// ReadOnly says that the store uses a feature which this program may only
// read.
func (s *Superblock) ReadOnly() bool { return s.ROCompat&^knownROCompat != 0 }

// DecodeSuperblock reads a superblock. It returns ErrVersion for another
// format version or an unknown incompat feature, ErrCorrupt otherwise.
func DecodeSuperblock(b []byte) (*Superblock, error) {
	if len(b) != SuperblockSize || string(b[:8]) != SuperblockMagic {
		return nil, corrupt("superblock", "no fsx magic")
	}
	if v := be.Uint32(b[8:]); v != Version {
		return nil, fmt.Errorf("superblock: format version %d, this program knows %d: %w", v, Version, ErrVersion)
	}
	if h := sha256.Sum256(b[:SuperblockSize-32]); Hash(h) != Hash(b[SuperblockSize-32:]) {
		return nil, corrupt("superblock", "checksum differs")
	}
	c := newCursor(b[12 : SuperblockSize-32])
	shift := c.u32()
	s := &Superblock{UUID: UUID(c.take(16)), Incompat: c.u64(), ROCompat: c.u64(), Compat: c.u64()}
	s.Created = time.Unix(int64(c.u64()), 0).UTC()
	for len(c.b) > 0 {
		c.zero(min(len(c.b), len(zeros)))
	}
	if shift != BlockShift || !c.done() {
		return nil, corrupt("superblock", "field out of range")
	}
	if s.Incompat&^knownIncompat != 0 {
		return nil, fmt.Errorf("superblock: incompatible features %#x: %w", s.Incompat&^knownIncompat, ErrVersion)
	}
	return s, nil
}
