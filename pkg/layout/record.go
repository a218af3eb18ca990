package layout

import "fmt"

// RecordMagic begins every commit record.
const RecordMagic = "FSXCMT00"

// RecordType tells what a record is for.
type RecordType uint8

const (
	// RecordCommit carries operations.
	RecordCommit RecordType = 1
	// RecordContinue is the first record of a session: a fresh incarnation that
	// names the record it continues. It carries no operations.
	RecordContinue RecordType = 2
)

const (
	recordHeaderSize = 160
	recordMACSize    = 32
	flagLast         = 1

	// RecordOverhead is the size of a record without operations, in bytes.
	RecordOverhead = recordHeaderSize + recordMACSize
	// MaxRecordSize bounds what a decoder accepts, in bytes.
	MaxRecordSize = 1 << 20
)

// Record is a commit record: the authenticated description of one commit. A
// record starts at a block boundary, right behind its commit's data.
//
//	  0  magic "FSXCMT00"
//	  8  length in bytes, be32: header, operations and MAC
//	 12  type, u8;  13 flags, u8 (bit 0: last record of its segment);  14 zeros, 2
//	 16  volume, be32
//	 20  start, be32: block of the segment where the commit's data begins
//	 24  segment, be64
//	 32  block, be32: this record's own first block
//	 36  number of operations, be32
//	 40  sequence, be64
//	 48  synced, be64: highest sequence whose fdatasync had returned
//	 56  checkpoint, be64: sequence of the last durable checkpoint
//	 64  next segment, be64: named by the last record of a segment, else 0
//	 72  previous record's segment, be64
//	 80  previous record's block, be32;  84 zeros, 4
//	 88  incarnation, 16 bytes
//	104  time, be64: nanoseconds since 1970, for people only
//	112  previous record's MAC, 32 bytes (zeros before the first)
//	144  volume size after this commit in bytes, be64
//	152  zeros, 8
//	160  operations
//	 -32 MAC: HMAC-SHA-256 over all before it
type Record struct {
	Type        RecordType
	Last        bool
	Volume      VolumeID
	Segment     SegmentNo
	Start       uint32
	Block       uint32
	Seq         Seq
	Synced      Seq
	Checkpoint  Seq
	NextSegment SegmentNo
	PrevSegment SegmentNo
	PrevBlock   uint32
	PrevMAC     MAC
	Incarnation [16]byte
	Time        int64
	Size        uint64
	Ops         []Op
	MAC         MAC // set by AppendRecord and by DecodeRecord
}

// End is the block of the segment behind the record.
func (r *Record) End() uint32 {
	n := RecordOverhead
	for i := range r.Ops {
		n += r.Ops[i].EncodedSize()
	}
	return r.Block + uint32((n+BlockSize-1)/BlockSize)
}

// Signer makes and checks the MAC of records and heads. It is the only thing
// this package's callers let it know of a key.
type Signer func(parts ...[]byte) [32]byte

// AppendRecord appends the encoded record, padded to whole blocks, to dst and
// sets r.MAC.
func AppendRecord(dst []byte, r *Record, sign Signer) []byte {
	base := len(dst)
	dst = append(dst, make([]byte, recordHeaderSize)...)
	for i := range r.Ops {
		dst = r.Ops[i].append(dst)
	}
	h := dst[base:]
	length := len(h) + recordMACSize
	copy(h, RecordMagic)
	be.PutUint32(h[8:], uint32(length))
	h[12] = byte(r.Type)
	if r.Last {
		h[13] = flagLast
	}
	be.PutUint32(h[16:], uint32(r.Volume))
	be.PutUint32(h[20:], r.Start)
	be.PutUint64(h[24:], uint64(r.Segment))
	be.PutUint32(h[32:], r.Block)
	be.PutUint32(h[36:], uint32(len(r.Ops)))
	be.PutUint64(h[40:], uint64(r.Seq))
	be.PutUint64(h[48:], uint64(r.Synced))
	be.PutUint64(h[56:], uint64(r.Checkpoint))
	be.PutUint64(h[64:], uint64(r.NextSegment))
	be.PutUint64(h[72:], uint64(r.PrevSegment))
	be.PutUint32(h[80:], r.PrevBlock)
	copy(h[88:], r.Incarnation[:])
	be.PutUint64(h[104:], uint64(r.Time))
	copy(h[112:], r.PrevMAC[:])
	be.PutUint64(h[144:], r.Size)
	r.MAC = sign(h)
	dst = append(dst, r.MAC[:]...)
	if pad := (len(dst) - base) % BlockSize; pad != 0 {
		dst = append(dst, make([]byte, BlockSize-pad)...)
	}
	return dst
}

// PeekRecord looks at one block and says how many bytes a record that begins
// there claims to have. ok is false if it cannot be a record at this place.
func PeekRecord(block []byte, v VolumeID, seg SegmentNo, at uint32) (length int, ok bool) {
	if len(block) < recordHeaderSize || string(block[:8]) != RecordMagic {
		return 0, false
	}
	n := be.Uint32(block[8:])
	if n < RecordOverhead || n > MaxRecordSize ||
		be.Uint32(block[16:]) != uint32(v) || be.Uint64(block[24:]) != uint64(seg) || be.Uint32(block[32:]) != at {
		return 0, false
	}
	return int(n), true
}

// DecodeRecord decodes and authenticates exactly one record (without the
// padding behind it).
func DecodeRecord(b []byte, sign Signer) (*Record, error) {
	if len(b) < RecordOverhead || len(b) > MaxRecordSize || string(b[:8]) != RecordMagic || be.Uint32(b[8:]) != uint32(len(b)) {
		return nil, corrupt("commit record", "no record")
	}
	body := b[:len(b)-recordMACSize]
	r := &Record{MAC: MAC(b[len(body):])}
	if sign(body) != [32]byte(r.MAC) {
		return nil, corrupt("commit record", "authentication failed")
	}
	c := newCursor(body[12:])
	r.Type = RecordType(c.u8())
	flags := c.u8()
	c.zero(2)
	r.Last = flags&flagLast != 0
	r.Volume = VolumeID(c.u32())
	r.Start = c.u32()
	r.Segment = SegmentNo(c.u64())
	r.Block = c.u32()
	nops := c.u32()
	r.Seq = Seq(c.u64())
	r.Synced = Seq(c.u64())
	r.Checkpoint = Seq(c.u64())
	r.NextSegment = SegmentNo(c.u64())
	r.PrevSegment = SegmentNo(c.u64())
	r.PrevBlock = c.u32()
	c.zero(4)
	r.Incarnation = [16]byte(c.take(16))
	r.Time = int64(c.u64())
	r.PrevMAC = MAC(c.take(32))
	r.Size = c.u64()
	c.zero(8)
	if !c.ok || flags&^flagLast != 0 || r.Last != (r.NextSegment != 0) || r.Start > r.Block || r.Size%SectorSize != 0 || r.Size > MaxVolumeSize {
		return nil, corrupt("commit record", "field out of range")
	}
	if r.Type != RecordCommit && r.Type != RecordContinue {
		return nil, fmt.Errorf("commit record: type %d: %w", r.Type, ErrVersion)
	}
	if r.Type == RecordContinue && nops != 0 {
		return nil, corrupt("commit record", "continue with operations")
	}
	if int(nops) > len(c.b)/minOpSize {
		return nil, corrupt("commit record", "%d operations", nops)
	}
	r.Ops = make([]Op, nops)
	for i := range r.Ops {
		if err := r.Ops[i].decode(c, r); err != nil {
			return nil, err
		}
	}
	if !c.done() {
		return nil, corrupt("commit record", "trailing bytes")
	}
	return r, nil
}
