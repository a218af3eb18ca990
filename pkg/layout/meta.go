package layout

import (
	"hash/crc32"
	"math/bits"
)

// Badger keys: one letter, then big-endian numbers, so that an ascending scan
// goes by volume and number. Map nodes have the letter 'n' (package maptree).
const (
	headPrefix    = 'h' // | volume be32
	extentPrefix  = 'e' // | owner be32 | extent be64
	segmentPrefix = 's' // | volume be32 | segment be64 | slot u8
	fatePrefix    = 'd' // | volume be32
	volumesKey    = 'c'
)

// Fate is what becomes of a volume that was deleted. Like the list of volumes it
// is authenticated by nothing.
type Fate uint8

const (
	// Hidden volumes stay because something else needs their blocks.
	Hidden Fate = 1
	// Going volumes have no head any more; their files and records are removed.
	Going Fate = 2
)

// FatePrefix is the prefix of the keys of deleted volumes' fates, of which the
// value is one byte.
func FatePrefix() []byte { return []byte{fatePrefix} }

// FateKey is the key of a volume's fate.
func FateKey(v VolumeID) []byte { return be.AppendUint32([]byte{fatePrefix}, uint32(v)) }

// DecodeFate reads the key and the value of a volume's fate.
func DecodeFate(key, val []byte) (v VolumeID, f Fate, err error) {
	if len(key) != 5 || key[0] != fatePrefix || len(val) != 1 || Fate(val[0]) != Hidden && Fate(val[0]) != Going {
		return 0, 0, corrupt("fate of a volume", "out of range")
	}
	return VolumeID(be.Uint32(key[1:])), Fate(val[0]), nil
}

// VolumesKey is the key of the greatest number that a volume ever had, be32.
func VolumesKey() []byte { return []byte{volumesKey} }

// HeadPrefix is the prefix of all heads' keys.
func HeadPrefix() []byte { return []byte{headPrefix} }

// HeadKey is the key of a volume's head.
func HeadKey(v VolumeID) []byte { return be.AppendUint32([]byte{headPrefix}, uint32(v)) }

// ExtentKey is the key of an extent record.
func ExtentKey(v VolumeID, id ExtentID) []byte {
	return AppendExtentKey(make([]byte, 0, 13), v, id)
}

// AppendExtentKey appends the key of an extent record to dst.
func AppendExtentKey(dst []byte, v VolumeID, id ExtentID) []byte {
	return be.AppendUint64(be.AppendUint32(append(dst, extentPrefix), uint32(v)), uint64(id))
}

// ExtentPrefix is the prefix of a volume's extent records.
func ExtentPrefix(v VolumeID) []byte { return be.AppendUint32([]byte{extentPrefix}, uint32(v)) }

// ExtentOfKey takes an extent record's key apart.
func ExtentOfKey(key []byte) (VolumeID, ExtentID, bool) {
	if len(key) != 13 || key[0] != extentPrefix {
		return 0, 0, false
	}
	return VolumeID(be.Uint32(key[1:])), ExtentID(be.Uint64(key[5:])), true
}

// SegmentPrefix is the prefix of a volume's segment records.
func SegmentPrefix(v VolumeID) []byte { return be.AppendUint32([]byte{segmentPrefix}, uint32(v)) }

// SegmentKey is the key of a segment record; slot is 0 or 1.
func SegmentKey(v VolumeID, n SegmentNo, slot uint8) []byte {
	return append(be.AppendUint64(SegmentPrefix(v), uint64(n)), slot)
}

// SegmentOfKey takes a segment record's key apart.
func SegmentOfKey(key []byte) (v VolumeID, n SegmentNo, slot uint8, ok bool) {
	if len(key) != 14 || key[0] != segmentPrefix || key[13] > 1 {
		return 0, 0, 0, false
	}
	return VolumeID(be.Uint32(key[1:])), SegmentNo(be.Uint64(key[5:])), key[13], true
}

// ExtentRecord says how an extent was sealed and where its blocks are. It is a
// hint: a wrong one fails the blocks' tags.
//
//	0 nonce 16 | 16 key identifier 16 | 32 mode u8 | 33 flags u8 (bit 0: partial)
//	34 blocks be16 | 36 first block in the segment be32 | 40 segment be64
//	48 if partial: which blocks are there, 32 bytes, bit i of byte i/8; they lie
//	   one behind the other
type ExtentRecord struct {
	Nonce   [16]byte
	KID     KeyID
	Mode    uint8
	Blocks  uint16
	Offset  uint32
	Segment SegmentNo
	Partial bool
	Present [32]byte
}

const extentRecordSize = 48

// Append appends the encoded record to dst.
func (e *ExtentRecord) Append(dst []byte) []byte {
	dst = append(append(dst, e.Nonce[:]...), e.KID[:]...)
	flags := byte(0)
	if e.Partial {
		flags = 1
	}
	dst = append(dst, e.Mode, flags)
	dst = be.AppendUint16(dst, e.Blocks)
	dst = be.AppendUint32(dst, e.Offset)
	dst = be.AppendUint64(dst, uint64(e.Segment))
	if e.Partial {
		dst = append(dst, e.Present[:]...)
	}
	return dst
}

// DecodeExtentRecord reads an extent record.
func DecodeExtentRecord(b []byte) (e ExtentRecord, err error) {
	c := cursor{b: b, ok: true}
	e.Nonce, e.KID, e.Mode = [16]byte(c.take(16)), KeyID(c.take(16)), c.u8()
	flags := c.u8()
	e.Blocks, e.Offset, e.Segment = c.u16(), c.u32(), SegmentNo(c.u64())
	if e.Partial = flags&1 != 0; e.Partial {
		e.Present = [32]byte(c.take(32))
	}
	if !c.done() || flags > 1 || e.Blocks < 1 || e.Blocks > MaxExtentBlocks {
		return e, corrupt("extent record", "field out of range")
	}
	return e, nil
}

// BlockAt is the block of the segment that holds block i of the extent. ok is
// false if a compaction left it behind.
func (e *ExtentRecord) BlockAt(i uint8) (at uint32, ok bool) {
	if uint16(i) >= e.Blocks {
		return 0, false
	}
	if !e.Partial {
		return e.Offset + uint32(i), true
	}
	return e.packedAt(i)
}

// SegmentKind tells what a segment was written by.
type SegmentKind uint8

const (
	// SegmentLog is part of the volume's log.
	SegmentLog SegmentKind = 1
	// SegmentCompacted holds blocks that a compaction moved.
	SegmentCompacted SegmentKind = 2
)

// SegmentRecord accounts for a segment. It is a hint that check verifies. The
// valid one of the two slots is the one with the greater checkpoint among
// those not newer than the head's.
//
//	 0 checkpoint be64: sequence of the checkpoint that wrote it
//	 8 class u8: log2 of the segment's blocks | 9 kind u8 | 10 flags be16 (bit 0: punched, bit 1: moving)
//	12 used be32: blocks written | 16 first birth be64 | 24 last birth be64
//	32 extents be32, then be64 each, ascending (compacted segments only)
//	   live bitmap: (used+7)/8 bytes, bit b of byte b/8 is block b
//	-4 CRC-32C of all before it: what is called dead gets destroyed
type SegmentRecord struct {
	Checkpoint  Seq
	Class       uint8
	Kind        SegmentKind
	Punched     bool // holes were punched
	Moving      bool // a compaction moves extents here; some may still be elsewhere
	Used        uint32
	First, Last Seq
	Extents     []ExtentID
	Live        []byte
}

// Flags of a segment record.
const (
	segmentPunched = 1 << 0
	segmentMoving  = 1 << 1
)

// Encode returns the record's bytes.
func (s *SegmentRecord) Encode() []byte {
	b := make([]byte, 0, 40+8*len(s.Extents)+len(s.Live))
	b = be.AppendUint64(b, uint64(s.Checkpoint))
	flags := uint16(0)
	if s.Punched {
		flags |= segmentPunched
	}
	if s.Moving {
		flags |= segmentMoving
	}
	b = be.AppendUint16(append(b, s.Class, byte(s.Kind)), flags)
	b = be.AppendUint32(b, s.Used)
	b = be.AppendUint64(be.AppendUint64(b, uint64(s.First)), uint64(s.Last))
	b = be.AppendUint32(b, uint32(len(s.Extents)))
	for _, e := range s.Extents {
		b = be.AppendUint64(b, uint64(e))
	}
	b = append(b, s.Live...)
	return be.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// DecodeSegmentRecord reads a segment record; it copies what it keeps.
func DecodeSegmentRecord(b []byte) (*SegmentRecord, error) {
	end := len(b) - 4
	if end < 0 || crc32.Checksum(b[:end], castagnoli) != be.Uint32(b[end:]) {
		return nil, corrupt("segment record", "checksum differs")
	}
	c := newCursor(b[:end])
	s := &SegmentRecord{Checkpoint: Seq(c.u64()), Class: c.u8(), Kind: SegmentKind(c.u8())}
	flags := c.u16()
	s.Punched, s.Moving = flags&segmentPunched != 0, flags&segmentMoving != 0
	s.Used, s.First, s.Last = c.u32(), Seq(c.u64()), Seq(c.u64())
	n := c.u32()
	if !c.ok || flags > segmentPunched|segmentMoving || s.Moving && s.Kind != SegmentCompacted || s.Class > 20 || s.Used > 1<<s.Class || (s.Kind != SegmentLog && s.Kind != SegmentCompacted) ||
		(s.Kind == SegmentLog && n != 0) || uint64(len(c.b)) != 8*uint64(n)+uint64(s.Used+7)/8 {
		return nil, corrupt("segment record", "field out of range")
	}
	for i := range n {
		e := ExtentID(c.u64())
		if i > 0 && e <= s.Extents[i-1] {
			return nil, corrupt("segment record", "extents not ascending")
		}
		s.Extents = append(s.Extents, e)
	}
	s.Live = append([]byte(nil), c.b...)
	if s.Used%8 != 0 && s.Live[len(s.Live)-1]>>(s.Used%8) != 0 {
		return nil, corrupt("segment record", "live block behind the end")
	}
	return s, nil
}

func (e *ExtentRecord) packedAt(i uint8) (uint32, bool) {
	if e.Present[i/8]>>(i%8)&1 == 0 {
		return 0, false
	}
	n := bits.OnesCount8(e.Present[i/8] & (1<<(i%8) - 1))
	for _, b := range e.Present[:i/8] {
		n += bits.OnesCount8(b)
	}
	return e.Offset + uint32(n), true
}
