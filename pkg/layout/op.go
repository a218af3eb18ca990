package layout

import (
	"cmp"
	"fmt"
	"slices"
)

// OpCode names an operation of a commit.
type OpCode uint8

const (
	// OpExtent adds an extent and maps its blocks.
	OpExtent OpCode = 1
	// OpZero maps a range to a hole or to zeros.
	OpZero OpCode = 2
	// OpSnapshot makes a snapshot of the volume as it is after its commit. It is
	// the last operation of its commit, whose sequence is the snapshot's number.
	OpSnapshot OpCode = 16
	// OpDeleteSnapshot deletes a snapshot.
	OpDeleteSnapshot OpCode = 17
)

const (
	minOpSize        = 20
	controlSize      = 20 // of a control operation, without a name
	extentHeaderSize = 44
	runSize          = 12
)

// HomeRun is a run of consecutive homes of an extent's blocks.
type HomeRun struct {
	Start BlockNo
	Count uint32
}

// Op is one operation of a commit. Operations apply in their order.
//
//	OpExtent:  0 op u8 = 1 | 1 mode u8 | 2 blocks be16 (1 to 256)
//	           4 first block in the segment, be32 | 8 runs, be16 | 10 zeros, 2
//	          12 key identifier, 16 | 28 nonce, 16
//	          44 runs: home be64, count be32 each; then a tag of 16 bytes a block
//	OpZero:    0 op u8 = 2 | 1 kind u8 (0 hole, 1 zero) | 2 zeros, 2
//	           4 first block be64 | 12 count be64
//	OpSnapshot: 0 op u8 = 16 | 1 name length u8 | 2 zeros, 2
//	           4 created be64, seconds | 12 keys be32 | 16 zeros, 4 | 20 name
//	OpDeleteSnapshot: 0 op u8 = 17 | 1 zeros, 3 | 4 snapshot be64 | 12 zeros, 8
//
// The ordinal of an extent, in its ExtentID, is its position among the
// record's OpExtents.
type Op struct {
	Code OpCode

	// OpExtent
	Mode   uint8
	KID    KeyID
	Nonce  [16]byte
	Offset uint32 // first block in the segment
	Homes  []HomeRun
	Tags   []Tag

	// OpZero
	Kind  Kind
	Start BlockNo
	Count uint64

	// OpSnapshot
	Name    string
	Created int64  // seconds since 1970
	Keys    uint32 // as of Snapshot

	// OpDeleteSnapshot
	Snapshot Seq
}

// EncodedSize is the operation's size in a record, in bytes.
func (o *Op) EncodedSize() int {
	switch o.Code {
	case OpZero:
		return minOpSize
	case OpSnapshot, OpDeleteSnapshot:
		return controlSize + len(o.Name)
	}
	return extentHeaderSize + runSize*len(o.Homes) + TagSize*len(o.Tags)
}

// MaxExtentOpSize bounds the encoded size of an extent of n blocks, in bytes.
func MaxExtentOpSize(n int) int { return extentHeaderSize + n*(runSize+TagSize) }

func (o *Op) append(dst []byte) []byte {
	switch o.Code {
	case OpZero:
		dst = append(dst, byte(o.Code), byte(o.Kind), 0, 0)
		dst = be.AppendUint64(dst, uint64(o.Start))
		return be.AppendUint64(dst, o.Count)
	case OpSnapshot:
		dst = append(dst, byte(o.Code), byte(len(o.Name)), 0, 0)
		dst = be.AppendUint64(dst, uint64(o.Created))
		dst = be.AppendUint32(be.AppendUint32(dst, o.Keys), 0)
		return append(dst, o.Name...)
	case OpDeleteSnapshot:
		dst = append(dst, byte(o.Code), 0, 0, 0)
		return be.AppendUint64(be.AppendUint64(dst, uint64(o.Snapshot)), 0)
	}
	dst = append(dst, byte(o.Code), o.Mode)
	dst = be.AppendUint16(dst, uint16(len(o.Tags)))
	dst = be.AppendUint32(dst, o.Offset)
	dst = be.AppendUint16(dst, uint16(len(o.Homes)))
	dst = append(dst, 0, 0)
	dst = append(dst, o.KID[:]...)
	dst = append(dst, o.Nonce[:]...)
	for _, r := range o.Homes {
		dst = be.AppendUint64(dst, uint64(r.Start))
		dst = be.AppendUint32(dst, r.Count)
	}
	for i := range o.Tags {
		dst = append(dst, o.Tags[i][:]...)
	}
	return dst
}

func (o *Op) decode(c *cursor, r *Record) error {
	o.Code = OpCode(c.u8())
	switch o.Code {
	case OpExtent:
		return o.decodeExtent(c, r)
	case OpZero:
		o.Kind = Kind(c.u8())
		c.zero(2)
		o.Start, o.Count = BlockNo(c.u64()), c.u64()
		if !c.ok || o.Kind > Zero || o.Count == 0 || !validRange(o.Start, o.Count) {
			return corrupt("commit record", "zero operation out of range")
		}
		return nil
	case OpSnapshot:
		n := int(c.u8())
		c.zero(2)
		o.Created, o.Keys = int64(c.u64()), c.u32()
		c.zero(4)
		if !c.ok || n > len(c.b) {
			return corrupt("commit record", "snapshot out of range")
		}
		if o.Name = string(c.take(n)); !ValidName(o.Name) || len(c.b) != 0 {
			return corrupt("commit record", "snapshot with a wrong name, or not last")
		}
		return nil
	case OpDeleteSnapshot:
		c.zero(3)
		o.Snapshot = Seq(c.u64())
		c.zero(8)
		if !c.ok || o.Snapshot == 0 || o.Snapshot >= r.Seq {
			return corrupt("commit record", "deletion of a snapshot out of range")
		}
		return nil
	}
	return fmt.Errorf("commit record: operation %d: %w", o.Code, ErrVersion)
}

func (o *Op) decodeExtent(c *cursor, r *Record) error {
	o.Mode = c.u8()
	n := int(c.u16())
	o.Offset = c.u32()
	runs := int(c.u16())
	c.zero(2)
	o.KID = KeyID(c.take(16))
	o.Nonce = [16]byte(c.take(16))
	if !c.ok || n < 1 || n > MaxExtentBlocks || runs < 1 || runs > n || len(c.b) < runs*runSize+n*TagSize ||
		o.Offset < r.Start || uint64(o.Offset)+uint64(n) > uint64(r.Block) {
		return corrupt("commit record", "extent out of range")
	}
	o.Homes = make([]HomeRun, runs)
	total := uint64(0)
	for i := range o.Homes {
		h := HomeRun{Start: BlockNo(c.u64()), Count: c.u32()}
		if h.Count == 0 || !validRange(h.Start, uint64(h.Count)) {
			return corrupt("commit record", "home out of range")
		}
		if i > 0 && o.Homes[i-1].Start+BlockNo(o.Homes[i-1].Count) == h.Start {
			return corrupt("commit record", "homes not merged")
		}
		o.Homes[i] = h
		total += uint64(h.Count)
	}
	if total != uint64(n) {
		return corrupt("commit record", "%d homes for %d blocks", total, n)
	}
	if overlap(o.Homes) {
		return corrupt("commit record", "a home occurs twice")
	}
	o.Tags = make([]Tag, n)
	for i := range o.Tags {
		o.Tags[i] = Tag(c.take(TagSize))
	}
	return nil
}

// overlap says whether a home is in two runs.
func overlap(runs []HomeRun) bool {
	byStart := func(a, b HomeRun) int { return cmp.Compare(a.Start, b.Start) }
	if !slices.IsSortedFunc(runs, byStart) {
		runs = slices.Clone(runs)
		slices.SortFunc(runs, byStart)
	}
	for i := 1; i < len(runs); i++ {
		if runs[i].Start < runs[i-1].Start+BlockNo(runs[i-1].Count) {
			return true
		}
	}
	return false
}

func validRange(start BlockNo, count uint64) bool {
	const limit = MaxVolumeSize/BlockSize + 1
	return uint64(start) < limit && count <= limit-uint64(start)
}

// AppendHome adds a home behind the others, merging it into the last run
// where it continues it.
func AppendHome(runs []HomeRun, home BlockNo) []HomeRun {
	if n := len(runs); n > 0 && runs[n-1].Start+BlockNo(runs[n-1].Count) == home {
		runs[n-1].Count++
		return runs
	}
	return append(runs, HomeRun{home, 1})
}
