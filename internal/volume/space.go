package volume

import (
	"errors"
	"math/bits"
	"sync"

	"github.com/fsximg/fsx/internal/vfs"
	"github.com/fsximg/fsx/pkg/layout"
	"github.com/fsximg/fsx/pkg/layout/metadb"
	"github.com/fsximg/fsx/pkg/layout/seglog"
)

// segmentInfo is what is kept in memory of a segment's record.
type segmentInfo struct {
	live    uint32 // blocks that something needs
	used    uint32 // blocks written
	class   uint8
	slot    uint8 // of the valid record
	kind    layout.SegmentKind
	punched bool
	moving  bool // a compaction into it was interrupted
	last    layout.Seq
}

// spaceTable knows all segments of a volume that a checkpoint has accounted
// for.
type spaceTable struct {
	mu   sync.Mutex
	segs map[layout.SegmentNo]segmentInfo
	live uint64 // blocks
	used uint64 // blocks in files, not counting punched ones exactly
}

func (t *spaceTable) set(no layout.SegmentNo, s segmentInfo) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.removeLocked(no)
	t.segs[no] = s
	t.live += uint64(s.live)
	t.used += uint64(s.used)
}

func (t *spaceTable) remove(no layout.SegmentNo) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.removeLocked(no)
}

func (t *spaceTable) removeLocked(no layout.SegmentNo) {
	old := t.segs[no]
	t.live -= uint64(old.live)
	t.used -= uint64(old.used)
	delete(t.segs, no)
}

func (t *spaceTable) get(no layout.SegmentNo) (segmentInfo, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s, ok := t.segs[no]
	return s, ok
}

func (t *spaceTable) totals() (live, used uint64, segments int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.live, t.used, len(t.segs)
}

// nextClass grows segments with what the volume has: 1, 4, 16 and 64 MiB.
// recent are the blocks written since the last checkpoint.
func (t *spaceTable) nextClass(recent uint64) uint8 {
	live, _, _ := t.totals()
	for class := uint8(seglog.MinClass); class < seglog.MaxClass; class += 2 {
		if live+recent < 4<<class {
			return class
		}
	}
	return seglog.MaxClass
}

// choose returns the segments that pick wants.
func (t *spaceTable) choose(pick func(layout.SegmentNo, segmentInfo) bool) []layout.SegmentNo {
	t.mu.Lock()
	defer t.mu.Unlock()
	var l []layout.SegmentNo
	for no, s := range t.segs {
		if pick(no, s) {
			l = append(l, no)
		}
	}
	return l
}

// segmentChange is a segment's record while a checkpoint or a compaction
// changes it.
type segmentChange struct {
	rec  *layout.SegmentRecord
	slot uint8  // where the changed record goes
	dead []byte // blocks that died by this change
}

// changes collects the segments that one checkpoint touches.
type changes struct {
	v   *Volume
	m   map[layout.SegmentNo]*segmentChange
	ext map[layout.ExtentID]layout.ExtentRecord // records looked up, bounded
}

func (v *Volume) newChanges() *changes {
	return &changes{v: v, m: map[layout.SegmentNo]*segmentChange{}, ext: map[layout.ExtentID]layout.ExtentRecord{}}
}

// segment returns a segment's change, loading its record on first use.
func (c *changes) segment(no layout.SegmentNo) (*segmentChange, error) {
	if s := c.m[no]; s != nil {
		return s, nil
	}
	info, ok := c.v.space.get(no)
	if !ok {
		return nil, nil
	}
	rec, err := c.v.segmentRecord(no, info.slot)
	if err != nil {
		return nil, err
	}
	s := &segmentChange{rec: rec, slot: 1 - info.slot, dead: make([]byte, len(rec.Live))}
	c.m[no] = s
	return s, nil
}

func (v *Volume) segmentRecord(no layout.SegmentNo, slot uint8) (rec *layout.SegmentRecord, err error) {
	err = v.store.db.Get(layout.SegmentKey(v.id, no, slot), func(val []byte) error {
		rec, err = layout.DecodeSegmentRecord(val)
		return err
	})
	if errors.Is(err, metadb.ErrNotFound) || errors.Is(err, layout.ErrCorrupt) {
		err = errors.Join(ErrDamaged, err)
	}
	return rec, err
}

// born adds what the log put into a segment.
func (c *changes) born(no layout.SegmentNo, u *segmentUse) error {
	if c.v.kept[no] {
		return nil
	}
	s, err := c.segment(no)
	if err != nil {
		return err
	}
	if s == nil {
		s = &segmentChange{rec: &layout.SegmentRecord{Class: u.class, Kind: layout.SegmentLog, First: u.first}}
		c.m[no] = s
	}
	s.rec.Used, s.rec.Last = max(s.rec.Used, u.used), max(s.rec.Last, u.last)
	s.rec.Live = append(s.rec.Live, make([]byte, int(s.rec.Used+7)/8-len(s.rec.Live))...)
	s.dead = append(s.dead, make([]byte, len(s.rec.Live)-len(s.dead))...)
	for i := range s.rec.Live {
		s.rec.Live[i] |= u.live[i]
	}
	return nil
}

// died takes a block that the map does not need any more.
func (c *changes) died(ref layout.BlockRef) error {
	rec, ok := c.ext[ref.Extent]
	if !ok {
		var err error
		if rec, err = c.v.extentRecord(ref.Owner, ref.Extent); err != nil {
			if errors.Is(err, ErrDamaged) {
				return nil // its space is lost until check repairs the accounting
			}
			return err
		}
		if len(c.ext) >= 64<<10 {
			clear(c.ext)
		}
		c.ext[ref.Extent] = rec
	}
	s, err := c.segment(rec.Segment)
	if err != nil || s == nil {
		return err
	}
	if at, ok := rec.BlockAt(ref.Index); ok && int(at/8) < len(s.rec.Live) {
		s.rec.Live[at/8] &^= 1 << (at % 8)
		s.dead[at/8] |= 1 << (at % 8)
	}
	return nil
}

// write puts the changed records, valid from checkpoint seq on, into a batch.
func (c *changes) write(b *metadb.Batch, seq layout.Seq) error {
	for no, s := range c.m {
		s.rec.Checkpoint = seq
		if err := b.Set(layout.SegmentKey(c.v.id, no, s.slot), s.rec.Encode()); err != nil {
			return err
		}
	}
	return nil
}

// apply takes the changes over after they are durable.
func (c *changes) apply() {
	for no, s := range c.m {
		c.v.space.set(no, infoOf(s.rec, s.slot))
	}
}

func infoOf(r *layout.SegmentRecord, slot uint8) segmentInfo {
	return segmentInfo{live: countBits(r.Live), used: r.Used, class: r.Class, slot: slot, kind: r.Kind, punched: r.Punched, moving: r.Moving, last: r.Last}
}

func countBits(b []byte) (n uint32) {
	for _, x := range b {
		n += uint32(bits.OnesCount8(x))
	}
	return n
}

// punchRun is the shortest run of dead blocks that is worth a hole: 64 KiB.
const punchRun = 16

// punch gives long runs of blocks that just died back to the file system. The
// segments are sealed, and the checkpoint that no longer needs the blocks is
// durable (I3).
func (c *changes) punch(sealed func(layout.SegmentNo) bool) error {
	for no, s := range c.m {
		if !sealed(no) {
			continue
		}
		live := countBits(s.rec.Live)
		if live == 0 || live < s.rec.Used/2 && !c.v.store.crowded() {
			continue // retired or compacted as a whole
		}
		runs := deadRuns(s.rec.Live, s.dead, s.rec.Used, punchRun)
		if len(runs) == 0 {
			continue
		}
		if err := c.v.punchSegment(no, runs); err != nil {
			return err
		}
		s.rec.Punched = true
		s.slot = 1 - s.slot
		if err := c.v.store.db.Update(func(tx *metadb.Txn) error {
			return tx.Set(layout.SegmentKey(c.v.id, no, s.slot), s.rec.Encode())
		}); err != nil {
			return err
		}
		c.v.space.set(no, infoOf(s.rec, s.slot))
	}
	return nil
}

type blockRun struct{ start, end uint32 }

// deadRuns finds runs of dead blocks, at least so long, in which a block died
// just now.
func deadRuns(live, died []byte, used uint32, shortest uint32) (runs []blockRun) {
	fresh := false
	start := uint32(0)
	for i := uint32(0); i <= used; i++ {
		if i < used && live[i/8]>>(i%8)&1 == 0 {
			fresh = fresh || died[i/8]>>(i%8)&1 != 0
			continue
		}
		if fresh && i-start >= shortest {
			runs = append(runs, blockRun{start, i})
		}
		start, fresh = i+1, false
	}
	return runs
}

func (v *Volume) punchSegment(no layout.SegmentNo, runs []blockRun) error {
	s, err := v.files.Acquire(no)
	if err != nil {
		return nil // gone already
	}
	defer s.Release()
	f, err := v.files.File(s)
	if err != nil {
		return err
	}
	for _, r := range runs {
		err := f.PunchHole(int64(r.start)*blockSize, int64(r.end-r.start)*blockSize)
		if errors.Is(err, vfs.ErrUnsupported) {
			return nil // compaction alone gives space back here
		}
		if err != nil {
			return err
		}
	}
	return nil
}
