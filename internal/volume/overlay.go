package volume

import (
	"slices"

	"github.com/fsximg/fsx/pkg/layout"
)

// entry maps one block that the log has and the map tree has not yet. It is
// free of pointers and 40 bytes long.
type entry struct {
	home   uint64 // block number + 1; 0 is a free place
	extent layout.ExtentID
	tag    layout.Tag
	index  uint8
	kind   layout.Kind
}

// overlay is what was sealed since the last checkpoint: points in a hash table
// and ranges of zeros. A point is newer than any range that covers it. It is
// changed by the log's goroutine under Volume.mu; a frozen one is immutable.
type overlay struct {
	shards  [overlayShards]overlayShard
	wide    bool // all shards are used, not just the first
	count   int
	runs    int // of consecutive homes that were added
	zeros   zeroRanges
	extents map[layout.ExtentID]layout.ExtentRecord
	segs    map[layout.SegmentNo]*segmentUse
	deletes []layout.Seq // snapshots
	sealed  uint64       // bytes of the extents
}

const (
	overlayShards = 64
	// narrowEntries is how many points a single shard holds: a small overlay
	// does not need a page for each of 64.
	narrowEntries = 1536
)

type overlayShard struct {
	raw     []byte
	entries []entry // length a power of two, or empty
	n       int
}

// segmentUse is what a session of the log put into a segment.
type segmentUse struct {
	class       uint8
	used        uint32
	first, last layout.Seq
	live        []byte // bitmap of blocks
}

func newOverlay() *overlay {
	return &overlay{extents: map[layout.ExtentID]layout.ExtentRecord{}, segs: map[layout.SegmentNo]*segmentUse{}}
}

// free gives its memory back. Nobody may use the overlay any more.
func (o *overlay) free() {
	for i := range o.shards {
		unmap(o.shards[i].raw)
		o.shards[i] = overlayShard{}
	}
}

func (o *overlay) empty() bool {
	return o.count == 0 && len(o.zeros) == 0 && len(o.segs) == 0 && len(o.deletes) == 0
}

// weight is the overlay's size in entries, for checkpoint limits.
func (o *overlay) weight() int { return o.count + len(o.zeros) + 2*len(o.extents) }

func (o *overlay) shard(home uint64) (*overlayShard, uint64) {
	h := home * hashFactor
	if !o.wide {
		return &o.shards[0], h << 6 >> 32
	}
	return &o.shards[h>>58], h << 6 >> 32
}

// widen spreads the points over all shards.
func (o *overlay) widen() error {
	old := o.shards[0]
	o.shards[0], o.wide = overlayShard{}, true
	for i := range old.entries {
		e := &old.entries[i]
		if e.home == 0 {
			continue
		}
		s, h := o.shard(e.home)
		if (s.n+1)*4 > len(s.entries)*3 {
			if err := s.grow(); err != nil {
				return err
			}
		}
		mask := uint64(len(s.entries)) - 1
		j := h & mask
		for s.entries[j].home != 0 {
			j = (j + 1) & mask
		}
		s.entries[j] = *e
		s.n++
	}
	unmap(old.raw)
	return nil
}

// find returns the block's mapping. ok is false if the overlay does not know
// the block.
func (o *overlay) find(b layout.BlockNo) (e entry, ok bool) {
	home := uint64(b) + 1
	s, h := o.shard(home)
	if mask := uint64(len(s.entries)) - 1; s.n > 0 {
		for i := h & mask; s.entries[i].home != 0; i = (i + 1) & mask {
			if s.entries[i].home == home {
				return s.entries[i], true
			}
		}
	}
	if kind, ok := o.zeros.find(b); ok {
		return entry{kind: kind}, true
	}
	return entry{}, false
}

// set maps a block, marking the block it replaces dead.
func (o *overlay) set(b layout.BlockNo, e entry) error {
	e.home = uint64(b) + 1
	if !o.wide && o.count >= narrowEntries {
		if err := o.widen(); err != nil {
			return err
		}
	}
	s, h := o.shard(e.home)
	if (s.n+1)*4 > len(s.entries)*3 {
		if err := s.grow(); err != nil {
			return err
		}
	}
	mask := uint64(len(s.entries)) - 1
	i := h & mask
	for ; s.entries[i].home != 0; i = (i + 1) & mask {
		if s.entries[i].home == e.home {
			o.died(&s.entries[i])
			s.entries[i] = e
			return nil
		}
	}
	s.entries[i] = e
	s.n++
	o.count++
	return nil
}

func (s *overlayShard) grow() error {
	n := max(64, 2*len(s.entries))
	raw, entries, err := mapEntries(n)
	if err != nil {
		return err
	}
	mask := uint64(n) - 1
	for i := range s.entries {
		e := &s.entries[i]
		if e.home == 0 {
			continue
		}
		j := (e.home * hashFactor << 6 >> 32) & mask
		for entries[j].home != 0 {
			j = (j + 1) & mask
		}
		entries[j] = *e
	}
	unmap(s.raw)
	s.raw, s.entries = raw, entries
	return nil
}

// zero maps [start, end) to zeros. Points inside become zeros themselves.
func (o *overlay) zero(start, end layout.BlockNo, kind layout.Kind) {
	if n := uint64(end - start); n < uint64(o.count) {
		for b := start; b < end; b++ {
			home := uint64(b) + 1
			s, h := o.shard(home)
			if s.n == 0 {
				continue
			}
			mask := uint64(len(s.entries)) - 1
			for i := h & mask; s.entries[i].home != 0; i = (i + 1) & mask {
				if s.entries[i].home == home {
					o.clear(&s.entries[i], kind)
					break
				}
			}
		}
	} else {
		for i := range o.shards {
			for j := range o.shards[i].entries {
				e := &o.shards[i].entries[j]
				if e.home != 0 && layout.BlockNo(e.home-1) >= start && layout.BlockNo(e.home-1) < end {
					o.clear(e, kind)
				}
			}
		}
	}
	o.zeros = o.zeros.add(start, end, kind)
}

func (o *overlay) clear(e *entry, kind layout.Kind) {
	o.died(e)
	*e = entry{home: e.home, kind: kind}
}

// died notes that a block which no checkpoint ever knew is not needed any
// more. Its space is reusable after the next checkpoint (I3).
func (o *overlay) died(e *entry) {
	if e.kind != layout.Data {
		return
	}
	rec := o.extents[e.extent]
	if use := o.segs[rec.Segment]; use != nil {
		at := rec.Offset + uint32(e.index)
		use.live[at/8] &^= 1 << (at % 8)
	}
}

// segment notes that commit seq uses a segment up to block used.
func (o *overlay) segment(no layout.SegmentNo, class uint8, seq layout.Seq, used uint32) *segmentUse {
	u := o.segs[no]
	if u == nil {
		u = &segmentUse{class: class, first: seq, live: make([]byte, (1<<class+7)/8)}
		o.segs[no] = u
	}
	u.last, u.used = max(u.last, seq), max(u.used, used)
	return u
}

// add applies a sealed extent: its record, the live blocks, the mappings.
func (o *overlay) add(id layout.ExtentID, rec layout.ExtentRecord, class uint8, homes []uint64, tags []layout.Tag) error {
	u := o.segment(rec.Segment, class, id.Birth(), rec.Offset+uint32(rec.Blocks))
	o.extents[id] = rec
	o.sealed += uint64(rec.Blocks) * blockSize
	for i := range homes {
		at := rec.Offset + uint32(i)
		u.live[at/8] |= 1 << (at % 8)
		e := entry{extent: id, tag: tags[i], index: uint8(i), kind: layout.Data}
		if err := o.set(layout.BlockNo(homes[i]), e); err != nil {
			return err
		}
	}
	return nil
}

// sorted returns all points in the order of their homes.
func (o *overlay) sorted() []entry {
	l := make([]entry, 0, o.count)
	for i := range o.shards {
		for _, e := range o.shards[i].entries {
			if e.home != 0 {
				l = append(l, e)
			}
		}
	}
	slices.SortFunc(l, func(a, b entry) int {
		if a.home < b.home {
			return -1
		}
		return 1
	})
	return l
}

// each calls fn with every point in [first, last), in no order.
func (o *overlay) each(first, last layout.BlockNo, fn func(layout.BlockNo)) {
	if n := uint64(last - first); n < uint64(o.count)/8 {
		for b := first; b < last; b++ {
			if o.has(b) {
				fn(b)
			}
		}
		return
	}
	for i := range o.shards {
		for j := range o.shards[i].entries {
			if h := o.shards[i].entries[j].home; h != 0 {
				fn(layout.BlockNo(h - 1))
			}
		}
	}
}

// has says whether a point is known.
func (o *overlay) has(b layout.BlockNo) bool {
	home := uint64(b) + 1
	s, h := o.shard(home)
	if s.n == 0 {
		return false
	}
	mask := uint64(len(s.entries)) - 1
	for i := h & mask; s.entries[i].home != 0; i = (i + 1) & mask {
		if s.entries[i].home == home {
			return true
		}
	}
	return false
}
