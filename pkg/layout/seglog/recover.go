package seglog

import (
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/fsximg/fsx/internal/vfs"
	"github.com/fsximg/fsx/pkg/layout"
)

// ErrDamaged says that something is missing or altered which was once durable.
var ErrDamaged = errors.New("log is damaged")

// Recovery reads a log forward from a head's position.
type Recovery struct {
	Files  *Files
	Volume layout.VolumeID
	Sign   layout.Signer
	// Verify checks every tag of an extent's ciphertext, which it may overwrite.
	// An error means that the commit is not whole; one that is [ErrDamaged] means
	// that the log cannot be read at all.
	Verify func(id layout.ExtentID, op *layout.Op, data []byte) error
	// Apply takes each whole commit, in order.
	Apply func(r *layout.Record) error

	segs      []layout.SegmentNo            // ascending
	continues map[layout.MAC]*layout.Record // first records of sessions, by the MAC they continue
	buf       []byte
}

// Result is what a recovery found.
type Result struct {
	Tail    layout.Position
	Next    layout.SegmentNo // named by the tail's record if that is the last of its segment, else 0
	Commits int
	Bytes   int64 // read from commits
	Cut     bool  // an unfinished commit was left out
}

// Run syncs everything past the position, since the page cache may hold what
// the disk does not, and then applies every whole commit behind it. An
// authentic record proves that all before it were durable; so a commit that is
// not whole is ErrDamaged if an authentic one follows, and otherwise the end
// of the log. Nothing is ever cut from a file. nextNo is the lowest number
// that no segment file has.
func (r *Recovery) Run(from layout.Position) (res Result, err error) {
	if err := r.settle(from.Segment); err != nil {
		return res, err
	}
	res.Tail = from
	next := layout.SegmentNo(0) // named by the tail's record, if that was the last of its segment
	if from.Seq > 0 {
		rec, err := r.readAt(from.Segment, from.Block)
		if err != nil {
			return res, err
		}
		if rec == nil || rec.MAC != from.MAC || rec.Seq != from.Seq {
			return res, fmt.Errorf("%w: the record that the head names (segment %d, block %d) is missing", ErrDamaged, from.Segment, from.Block)
		}
		next = rec.NextSegment
	}
	for {
		rec, err := r.follow(&res, next)
		if err != nil || rec == nil {
			res.Next = next
			return res, err
		}
		if err := r.Apply(rec); err != nil {
			return res, err
		}
		res.Commits++
		res.Tail = layout.Position{Segment: rec.Segment, Block: rec.Block, End: rec.End(), Seq: rec.Seq, MAC: rec.MAC}
		next = rec.NextSegment
	}
}

// settle makes durable what recovery is going to read.
func (r *Recovery) settle(from layout.SegmentNo) error {
	r.segs = nil
	for _, no := range r.Files.List() {
		if no >= from {
			r.segs = append(r.segs, no)
		}
	}
	slices.Sort(r.segs)
	for _, no := range r.segs {
		err := r.with(no, func(f vfs.File) error { return f.Datasync() })
		if err != nil {
			return fmt.Errorf("sync segment %d: %w", no, err)
		}
	}
	if err := r.Files.SyncDir(); err != nil {
		return err
	}
	r.continues = map[layout.MAC]*layout.Record{}
	for _, no := range r.segs {
		rec, err := r.readAt(no, 0)
		if err != nil {
			return err
		}
		if rec != nil && rec.Type == layout.RecordContinue {
			r.continues[rec.PrevMAC] = rec
		}
	}
	return nil
}

func (r *Recovery) with(no layout.SegmentNo, fn func(vfs.File) error) error {
	s, err := r.Files.Acquire(no)
	if err != nil {
		return err
	}
	defer s.Release()
	f, err := r.Files.File(s)
	if err != nil {
		return err
	}
	return fn(f)
}

// follow finds the whole commit behind the tail; nil is the log's end.
func (r *Recovery) follow(res *Result, next layout.SegmentNo) (*layout.Record, error) {
	tail := &res.Tail
	// A session that continued here wins over what lies behind the tail in its
	// segment: that was cut when the session began.
	if rec := r.continues[tail.MAC]; rec != nil && rec.Seq == tail.Seq+1 &&
		rec.PrevSegment == tail.Segment && rec.PrevBlock == tail.Block && rec.Segment > tail.Segment {
		return rec, nil
	}
	seg, start := tail.Segment, tail.End
	if next != 0 {
		seg, start = next, 0
	}
	if seg != 0 {
		if _, found := slices.BinarySearch(r.segs, seg); !found {
			return nil, fmt.Errorf("%w: segment %d is missing", ErrDamaged, seg)
		}
		rec, err := r.scan(seg, start)
		if err != nil {
			return nil, err
		}
		if rec != nil {
			return r.accept(res, rec, start)
		}
	}
	return nil, r.nothingAfter(tail, seg)
}

// accept takes the first authentic record behind the tail if it is the next
// one and its commit is whole.
func (r *Recovery) accept(res *Result, rec *layout.Record, start uint32) (*layout.Record, error) {
	tail := &res.Tail
	if rec.Seq != tail.Seq+1 || rec.PrevMAC != tail.MAC || rec.Start != start || rec.Type != layout.RecordCommit {
		return nil, fmt.Errorf("%w: commit %d is missing, though commit %d (segment %d, block %d) proves that it was durable",
			ErrDamaged, tail.Seq+1, rec.Seq, rec.Segment, rec.Block)
	}
	whole, err := r.whole(res, rec)
	if err != nil {
		return nil, err
	}
	if whole != nil {
		later, err := r.scan(rec.Segment, rec.End())
		if err == nil && later == nil {
			err = r.nothingAfter(&layout.Position{Segment: rec.Segment, Seq: rec.Seq}, rec.Segment)
		} else if err == nil {
			err = fmt.Errorf("%w: commit %d: %w, though commit %d proves that it was durable", ErrDamaged, rec.Seq, whole, later.Seq)
		}
		res.Cut = err == nil
		return nil, err
	}
	return rec, nil
}

// whole verifies the data of a commit; its first result says why it is not
// whole.
func (r *Recovery) whole(res *Result, rec *layout.Record) (broken, err error) {
	err = r.with(rec.Segment, func(f vfs.File) error {
		ordinal := uint16(0)
		for i := range rec.Ops {
			op := &rec.Ops[i]
			if op.Code != layout.OpExtent {
				continue
			}
			n := len(op.Tags) * layout.BlockSize
			buf := r.buffer(n)
			if _, err := f.ReadAt(buf, int64(op.Offset)*layout.BlockSize); err != nil {
				if errors.Is(err, io.EOF) {
					broken = errors.New("data behind the end of the file")
					return nil
				}
				return err
			}
			res.Bytes += int64(n)
			if broken = r.Verify(layout.NewExtentID(rec.Seq, ordinal), op, buf); errors.Is(broken, ErrDamaged) {
				return broken
			} else if broken != nil {
				return nil
			}
			ordinal++
		}
		return nil
	})
	return broken, err
}

// nothingAfter checks that no later segment holds a record of a later commit.
func (r *Recovery) nothingAfter(tail *layout.Position, scanned layout.SegmentNo) error {
	for _, no := range r.segs {
		if no <= tail.Segment || no == scanned {
			continue
		}
		rec, err := r.scan(no, 0)
		if err != nil {
			return err
		}
		if rec != nil && rec.Seq > tail.Seq {
			return fmt.Errorf("%w: commit %d is missing, though commit %d (segment %d) proves that it was durable", ErrDamaged, tail.Seq+1, rec.Seq, no)
		}
	}
	return nil
}

const scanChunk = 1 << 20

// buffer returns n bytes with the slack that openers need behind them.
func (r *Recovery) buffer(n int) []byte {
	const slack = 16
	if cap(r.buf) < scanChunk+layout.MaxRecordSize+slack {
		r.buf = make([]byte, scanChunk+layout.MaxRecordSize+slack)
	}
	return r.buf[: n : n+slack]
}

// scan finds the first authentic record of a segment at or behind a block.
func (r *Recovery) scan(no layout.SegmentNo, from uint32) (found *layout.Record, err error) {
	err = r.with(no, func(f vfs.File) error {
		size, err := f.Size()
		if err != nil {
			return err
		}
		for off := int64(from) * layout.BlockSize; off+layout.BlockSize <= size; off += scanChunk {
			buf := r.buffer(int(min(scanChunk, size-off)))
			n, err := f.ReadAt(buf, off)
			if err != nil && !errors.Is(err, io.EOF) {
				return err
			}
			for p := 0; p+layout.BlockSize <= n; p += layout.BlockSize {
				at := uint32((off + int64(p)) / layout.BlockSize)
				length, ok := layout.PeekRecord(buf[p:n], r.Volume, no, at)
				if !ok {
					continue
				}
				if found, err = r.decode(f, at, length); found != nil || err != nil {
					return err
				}
				// decode used the buffer
				if n, err = f.ReadAt(buf, off); err != nil && !errors.Is(err, io.EOF) {
					return err
				}
			}
		}
		return nil
	})
	return found, err
}

// readAt returns the authentic record at a block, or nil.
func (r *Recovery) readAt(no layout.SegmentNo, at uint32) (rec *layout.Record, err error) {
	err = r.with(no, func(f vfs.File) error {
		buf := r.buffer(layout.BlockSize)
		n, err := f.ReadAt(buf, int64(at)*layout.BlockSize)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if length, ok := layout.PeekRecord(buf[:n], r.Volume, no, at); ok {
			rec, err = r.decode(f, at, length)
			return err
		}
		return nil
	})
	if errors.Is(err, ErrNoSegment) {
		return nil, nil
	}
	return rec, err
}

func (r *Recovery) decode(f vfs.File, at uint32, length int) (*layout.Record, error) {
	buf := r.buffer(length)
	if _, err := f.ReadAt(buf, int64(at)*layout.BlockSize); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, nil
		}
		return nil, err
	}
	rec, err := layout.DecodeRecord(buf, r.Sign)
	if errors.Is(err, layout.ErrCorrupt) {
		return nil, nil
	}
	return rec, err
}
