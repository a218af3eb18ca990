package seglog

import (
	"errors"
	"fmt"
	"time"

	"github.com/fsximg/fsx/internal/vfs"
	"github.com/fsximg/fsx/pkg/layout"
)

// ErrPoisoned is returned after a write or a sync of the log failed: the state
// of the disk is unknown, a retry would prove nothing (I7).
var ErrPoisoned = errors.New("log failed earlier")

// switchBelow is the number of free blocks under which a commit is the last of
// its segment: a further one could not hold data, a large record and the rule
// that the last record always fits.
const switchBelow = 4

// RecordRoom is what a session's first segment must have, in blocks, beyond its
// data: its first record, that of the data, and a rest that can only be left.
const RecordRoom = 2 + switchBelow

// Writer appends commits to a volume's log. One goroutine owns it.
//
// Data of the open commit may be written ahead; its record is written behind
// it by Commit, and only after the sync of the record before (so that an
// authentic record proves its predecessors durable).
type Writer struct {
	files *Files
	sign  layout.Signer
	vol   layout.VolumeID

	incarnation [16]byte
	cur         *appendSegment
	next        *appendSegment
	tail        layout.Position // last record written and synced
	start       uint32          // first block of the open commit
	ops         []layout.Op
	opsSize     int
	ordinal     uint16
	checkpoint  layout.Seq
	record      []byte
	err         error
}

type appendSegment struct {
	no     layout.SegmentNo
	class  uint8
	blocks uint32
	pos    uint32 // next block to write
	seg    *Segment
	file   vfs.File
}

// NewWriter returns a writer that continues the log behind tail. Nothing is
// written before Begin.
func NewWriter(files *Files, vol layout.VolumeID, sign layout.Signer, tail layout.Position, checkpoint layout.Seq) *Writer {
	return &Writer{files: files, vol: vol, sign: sign, tail: tail, checkpoint: checkpoint}
}

// Tail is the last durable record.
func (w *Writer) Tail() layout.Position { return w.tail }

// Seq is the sequence of the open commit.
func (w *Writer) Seq() layout.Seq { return w.tail.Seq + 1 }

// SetCheckpoint notes the last durable checkpoint, which later records name.
func (w *Writer) SetCheckpoint(seq layout.Seq) { w.checkpoint = seq }

// Err is the error that poisoned the log, if any.
func (w *Writer) Err() error { return w.err }

// Begun says whether this session has written its first record.
func (w *Writer) Begun() bool { return w.cur != nil }

// Current is the segment that is appended to; 0 before Begin.
func (w *Writer) Current() layout.SegmentNo {
	if w.cur == nil {
		return 0
	}
	return w.cur.no
}

// Class is the class of the current segment; 0 before Begin.
func (w *Writer) Class() uint8 {
	if w.cur == nil {
		return 0
	}
	return w.cur.class
}

// PreparedClass is the class of the prepared segment; 0 if there is none.
func (w *Writer) PreparedClass() uint8 {
	if w.next == nil {
		return 0
	}
	return w.next.class
}

// Capacity is the number of blocks, records included, that can be written
// without another segment, after the record of the open commit.
func (w *Writer) Capacity() int {
	n := -switchBelow // the last segment's last blocks can only be left
	for _, s := range []*appendSegment{w.cur, w.next} {
		if s != nil {
			n += int(s.blocks - s.pos)
		}
	}
	if len(w.ops) > 0 {
		n -= w.recordBlocks(0)
	}
	return max(n, 0)
}

// Prepared is the prepared segment; 0 if there is none.
func (w *Writer) Prepared() layout.SegmentNo {
	if w.next == nil {
		return 0
	}
	return w.next.no
}

// NeedsSegment says that no further segment is prepared.
func (w *Writer) NeedsSegment() bool { return w.next == nil }

// AddSegment makes segment no, a number above all ever used, of 1<<class
// blocks and keeps it ready. ENOSPC is returned as it is, and harms nothing.
func (w *Writer) AddSegment(no layout.SegmentNo, class uint8) error {
	if w.err != nil {
		return w.err
	}
	if w.next != nil {
		return nil
	}
	if err := w.files.Create(no, class); err != nil {
		return fmt.Errorf("create segment %d: %w", no, err)
	}
	seg, err := w.files.Acquire(no)
	if err != nil {
		return err
	}
	file, err := w.files.File(seg)
	if err != nil {
		seg.Release()
		return err
	}
	w.next = &appendSegment{no: no, class: class, blocks: 1 << class, seg: seg, file: file}
	return nil
}

// Begin writes the session's first record: a fresh incarnation that names the
// record it continues, in a segment of its own, durable before anything else
// of the session. A segment must have been added.
func (w *Writer) Begin(incarnation [16]byte, size uint64) error {
	if w.err != nil || w.cur != nil {
		return w.err
	}
	w.incarnation = incarnation
	w.cur, w.next = w.next, nil
	return w.commit(layout.RecordContinue, size, false)
}

// recordBlocks is the size in blocks of the open commit's record with extra
// bytes of operations.
func (w *Writer) recordBlocks(extra int) int {
	return (layout.RecordOverhead + w.opsSize + extra + layout.BlockSize - 1) / layout.BlockSize
}

// maxOpsSize bounds a record: its commit is closed when it is reached.
const maxOpsSize = layout.MaxRecordSize / 2

// Room is how many blocks, up to an extent's limit, the open commit can take
// in the current segment. 0 asks for a Commit (which switches the segment, if
// it is full).
func (w *Writer) Room() int {
	if w.opsSize > maxOpsSize || w.ordinal >= 1<<15 {
		return 0
	}
	free := int(w.cur.blocks - w.cur.pos)
	n := min(free, layout.MaxExtentBlocks)
	for n > 0 && n+w.recordBlocks(layout.MaxExtentOpSize(n)) > free {
		n--
	}
	return n
}

// Append writes an extent's ciphertext and adds it to the open commit. It sets
// op.Offset and returns the extent's identifier and segment. len(data) is at
// most Room blocks.
func (w *Writer) Append(data []byte, op layout.Op) (layout.ExtentID, layout.SegmentNo, uint32, error) {
	if w.err != nil {
		return 0, 0, 0, w.err
	}
	at := w.cur.pos
	if _, err := w.cur.file.WriteAt(data, int64(at)*layout.BlockSize); err != nil {
		return 0, 0, 0, w.poison(fmt.Errorf("write segment %d: %w", w.cur.no, err))
	}
	op.Code, op.Offset = layout.OpExtent, at
	w.cur.pos += uint32(len(data) / layout.BlockSize)
	id := layout.NewExtentID(w.Seq(), w.ordinal)
	w.ordinal++
	w.add(op)
	return id, w.cur.no, at, nil
}

// RoomForZero says whether the open commit can take one more zero operation.
func (w *Writer) RoomForZero() bool {
	const size = 20
	return w.opsSize <= maxOpsSize && int(w.cur.pos)+w.recordBlocks(size) <= int(w.cur.blocks)
}

// AppendZero adds a zero operation to the open commit; RoomForZero was true.
func (w *Writer) AppendZero(kind layout.Kind, start layout.BlockNo, count uint64) {
	w.add(layout.Op{Code: layout.OpZero, Kind: kind, Start: start, Count: count})
}

// RoomForControl says whether the open commit can take an operation that
// changes the volume's state.
func (w *Writer) RoomForControl(op *layout.Op) bool {
	return w.opsSize <= maxOpsSize && int(w.cur.pos)+w.recordBlocks(op.EncodedSize()) <= int(w.cur.blocks)
}

// AppendControl adds an operation that changes the volume's state;
// RoomForControl was true.
func (w *Writer) AppendControl(op layout.Op) { w.add(op) }

func (w *Writer) add(op layout.Op) {
	w.ops = append(w.ops, op)
	w.opsSize += op.EncodedSize()
}

// Empty says that the open commit has no operations.
func (w *Writer) Empty() bool { return len(w.ops) == 0 }

// Commit writes the open commit's record and makes it and its data durable
// with one fdatasync. size is the volume's size after it. If the segment is
// full the record names the prepared one, to which the log then moves; the
// caller sees to it that there is one before Room ends.
func (w *Writer) Commit(size uint64) error {
	if w.err != nil {
		return w.err
	}
	return w.commit(layout.RecordCommit, size, false)
}

// CommitLast is Commit, but moves the log to the prepared segment, which there
// must be, however much room the current one has.
func (w *Writer) CommitLast(size uint64) error {
	if w.err != nil {
		return w.err
	}
	return w.commit(layout.RecordCommit, size, true)
}

// DropSegment gives the prepared segment back.
func (w *Writer) DropSegment() error {
	if w.next == nil {
		return nil
	}
	no, class := w.next.no, w.next.class
	w.next.seg.Release()
	w.next = nil
	return w.files.Retire(no, class, false)
}

func (w *Writer) commit(t layout.RecordType, size uint64, last bool) error {
	end := w.cur.pos + uint32(w.recordBlocks(0))
	last = last || w.cur.blocks-end < switchBelow
	r := layout.Record{
		Type: t, Last: last, Volume: w.vol, Segment: w.cur.no, Start: w.start, Block: w.cur.pos,
		Seq: w.Seq(), Synced: w.tail.Seq, Checkpoint: w.checkpoint,
		PrevSegment: w.tail.Segment, PrevBlock: w.tail.Block, PrevMAC: w.tail.MAC,
		Incarnation: w.incarnation, Time: time.Now().UnixNano(), Size: size, Ops: w.ops,
	}
	if last {
		if w.next == nil {
			return w.poison(errors.New("segment full and none prepared"))
		}
		r.NextSegment = w.next.no
	}
	w.record = layout.AppendRecord(w.record[:0], &r, w.sign)
	if _, err := w.cur.file.WriteAt(w.record, int64(w.cur.pos)*layout.BlockSize); err != nil {
		return w.poison(fmt.Errorf("write segment %d: %w", w.cur.no, err))
	}
	// I2: the one sync of a commit. The record behind this one is written only
	// after it returned.
	if err := w.cur.file.Datasync(); err != nil {
		return w.poison(fmt.Errorf("sync segment %d: %w", w.cur.no, err))
	}
	w.tail = layout.Position{Segment: w.cur.no, Block: w.cur.pos, End: end, Seq: r.Seq, MAC: r.MAC}
	w.cur.pos, w.start = end, end
	clear(w.ops) // drop the tags
	w.ops, w.opsSize, w.ordinal = w.ops[:0], 0, 0
	if last {
		w.cur.seg.Release()
		w.cur, w.next, w.start = w.next, nil, 0
	}
	return nil
}

func (w *Writer) poison(err error) error {
	w.err = errors.Join(ErrPoisoned, err)
	return w.err
}

// Close ends the session: it cuts the unused rest off the current segment and
// removes the prepared one. The open commit must be empty. An error only means
// that space stays allocated. After a failure nothing is touched: a record that
// could not be written may be whole and name the prepared segment.
func (w *Writer) Close() error {
	var errs error
	if w.err == nil {
		errs = w.DropSegment()
		if w.cur != nil {
			errs = errors.Join(errs, w.cur.file.Truncate(int64(w.cur.pos)*layout.BlockSize))
		}
	}
	for _, s := range []*appendSegment{w.cur, w.next} {
		if s != nil {
			s.seg.Release()
		}
	}
	w.cur, w.next = nil, nil
	return errs
}
