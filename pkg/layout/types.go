// Package layout is the on-disk format of a store: the byte maps of every
// object and their strict decoders. It does no I/O and never sees a key or
// plaintext; whoever decodes hands it a MAC to check.
//
// docs/format.md is the normative text; the types here carry the same maps.
package layout

import (
	"encoding/hex"
	"fmt"
)

// Format constants, docs/format.md section 1.
const (
	// Version is the format version this code reads and writes.
	Version = 0
	// BlockSize is the unit of mapping and authentication, in bytes.
	BlockSize = 4096
	// BlockShift is log2(BlockSize).
	BlockShift = 12
	// SectorSize is what the size of a volume is a multiple of, in bytes.
	SectorSize = 512
	// TagSize is the size of a block's authentication tag, in bytes.
	TagSize = 16
	// MaxExtentBlocks is the largest number of blocks in one extent.
	MaxExtentBlocks = 256
	// MaxVolumeSize is the largest size of a volume in bytes: 8 EiB - 4 KiB.
	MaxVolumeSize = 1<<63 - BlockSize
)

// BlockNo is a home: the number of a 4 KiB block in a volume.
type BlockNo uint64

// VolumeID numbers a volume inside its store. It is never reused; 0 is none.
type VolumeID uint32

func (v VolumeID) String() string { return fmt.Sprintf("%08x", uint32(v)) }

// Seq is a commit sequence number of one volume's log. The first commit is 1.
type Seq uint64

// SegmentNo numbers a segment of one volume. It is never reused; 0 is none.
type SegmentNo uint64

// ExtentID names an extent within its owner volume: the sequence of the
// commit it was born in, shifted left by 16, or-ed with its ordinal there.
type ExtentID uint64

// NewExtentID composes an extent's identifier.
func NewExtentID(birth Seq, ordinal uint16) ExtentID {
	return ExtentID(uint64(birth)<<16 | uint64(ordinal))
}

// Birth is the commit the extent was born in.
func (id ExtentID) Birth() Seq { return Seq(id >> 16) }

// Ordinal is the extent's position among its commit's extents.
func (id ExtentID) Ordinal() uint16 { return uint16(id) }

// Tag authenticates one block.
type Tag [TagSize]byte

// Hash is a SHA-256 digest.
type Hash [32]byte

func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// MAC is an HMAC-SHA-256 value.
type MAC [32]byte

// UUID names a store or a volume.
type UUID [16]byte

func (u UUID) String() string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[0:4], u[4:6], u[6:8], u[8:10], u[10:16])
}

// KeyID names a data key (fscrypt's key identifier) or a volume key.
type KeyID [16]byte

func (k KeyID) String() string { return hex.EncodeToString(k[:]) }

// Kind says what a block or a subtree of the map is.
type Kind uint8

const (
	// Hole reads as zeros and was never written, or was trimmed.
	Hole Kind = iota
	// Zero reads as zeros and was asked for with "no hole".
	Zero
	// Data is stored in an extent (for a subtree: in a node).
	Data
)

// BlockRef is a leaf's pointer to one stored block.
type BlockRef struct {
	Owner  VolumeID // volume the block was born in
	Extent ExtentID // extent in that volume
	Index  uint8    // position in the extent
	Tag    Tag
}
