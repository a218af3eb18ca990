package volume

import (
	"slices"

	"github.com/fsximg/fsx/pkg/layout"
)

// Status calls fn with consecutive runs of blocks from off on, until fn returns
// false or n bytes are covered. A run is a hole, allocated zeros, or data.
func (v *Volume) Status(off, n int64, fn func(length int64, hole, zero bool) bool) error {
	return v.status(now, v.Size(), off, n, fn)
}

// status describes a state of the volume, now or a snapshot, of size bytes.
func (v *Volume) status(state layout.Seq, size, off, n int64, fn func(length int64, hole, zero bool) bool) error {
	return v.statusAs(v.allocation(state), size, off, n, func(length int64, flags uint32) bool {
		return fn(length, layout.Kind(flags) == layout.Hole, layout.Kind(flags) != layout.Data)
	})
}

// aspect is what is told of a state of the volume, as flags of each block.
type aspect struct {
	state layout.Seq
	// begin, if there is one, is called first; the caller holds mu.
	begin func() error
	// cuts are blocks of which more is known than of those beside them.
	cuts []layout.BlockNo
	// known says what a buffer or an overlay tells of a block; the caller holds mu.
	known func(layers []*frozenOverlay, b layout.BlockNo) (flags uint32, ok bool)
	// tree tells the rest, until add returns false.
	tree func(root layout.Root, from, to layout.BlockNo, add func(end layout.BlockNo, flags uint32) bool) error
}

// allocation tells the kind of each block.
func (v *Volume) allocation(state layout.Seq) aspect {
	return aspect{
		state: state,
		known: func(layers []*frozenOverlay, b layout.BlockNo) (uint32, bool) {
			kind, ok := v.memoryKindLocked(state, layers, b)
			return uint32(kind), ok
		},
		tree: func(root layout.Root, from, to layout.BlockNo, add func(layout.BlockNo, uint32) bool) error {
			return v.store.tree.Runs(root, from, to, func(start layout.BlockNo, n uint64, kind layout.Kind) bool {
				return add(start+layout.BlockNo(n), uint32(kind))
			})
		},
	}
}

func (v *Volume) statusAs(a aspect, size, off, n int64, fn func(length int64, flags uint32) bool) error {
	if !v.calls.enter() {
		return ErrClosed
	}
	defer v.calls.leave()
	if err := checkRange(size, off, n); err != nil {
		return err
	}
	s := statusRun{fn: fn, pos: off, end: off + n}
	first := layout.BlockNo(off / blockSize)
	last := layout.BlockNo((off + n + blockSize - 1) / blockSize)
	for first < last && !s.stopped {
		to := min(last, first+statusChunk)
		if err := v.statusChunk(a, first, to, &s); err != nil {
			s.flush() // all before the error is known
			return err
		}
		first = to
	}
	s.flush()
	return nil
}

// statusChunk bounds the blocks that are described at a time: 16 TiB.
const statusChunk = 1 << 32

// statusRun merges runs with the same flags and cuts them to the range asked for.
type statusRun struct {
	fn      func(length int64, flags uint32) bool
	pos     int64 // reported up to here
	until   int64 // the open run ends here
	end     int64
	flags   uint32
	stopped bool
}

func (s *statusRun) add(to layout.BlockNo, flags uint32) bool {
	end := min(int64(to)*blockSize, s.end)
	if flags != s.flags || s.until <= s.pos {
		s.flush()
		s.flags = flags
	}
	s.until = end
	return !s.stopped
}

func (s *statusRun) flush() {
	if s.until > s.pos && !s.stopped {
		s.stopped = !s.fn(s.until-s.pos, s.flags)
		s.pos = s.until
	}
}

// memoryRun is a run of blocks that buffers or overlays know, or of blocks that
// the map tree has to be asked for.
type memoryRun struct {
	end   layout.BlockNo
	flags uint32
	known bool
}

// statusChunk describes [first, last). It starts again behind what it has
// reported if a checkpoint replaced the tree meanwhile.
func (v *Volume) statusChunk(a aspect, first, last layout.BlockNo, s *statusRun) error {
	for try := 0; ; try++ {
		v.mu.RLock()
		layers, root, err := v.stateLocked(a.state)
		gen := v.gen
		if err == nil && a.begin != nil {
			err = a.begin()
		}
		var runs []memoryRun
		if err == nil {
			runs = v.memoryRunsLocked(a, layers, first, last)
		}
		v.mu.RUnlock()
		if err != nil {
			return err
		}
		for _, r := range runs {
			if r.known {
				first = r.end
				if !s.add(first, r.flags) {
					return nil
				}
				continue
			}
			err = a.tree(root, first, r.end, func(end layout.BlockNo, flags uint32) bool {
				first = end
				return s.add(first, flags)
			})
			if s.stopped {
				return nil
			}
			if err != nil {
				break
			}
			first = r.end
		}
		if err == nil {
			return nil
		}
		v.mu.RLock()
		moved := v.gen != gen
		v.mu.RUnlock()
		if !moved || try >= maxRetries {
			return v.blockError(first, err)
		}
	}
}

// memoryRunsLocked cuts [first, last) where a buffer or an overlay changes what
// is known: at every point and at both ends of every range.
func (v *Volume) memoryRunsLocked(a aspect, layers []*frozenOverlay, first, last layout.BlockNo) []memoryRun {
	cuts := []layout.BlockNo{last}
	cut := func(b layout.BlockNo) {
		if b > first && b < last {
			cuts = append(cuts, b)
		}
	}
	point := func(b layout.BlockNo) {
		if b >= first && b < last {
			cut(b)
			cut(b + 1)
		}
	}
	ranges := func(z zeroRanges) {
		for _, r := range z {
			cut(r.start)
			cut(r.end)
		}
	}
	for _, b := range a.cuts {
		point(b)
	}
	var buffers []*buffer
	if a.state == now {
		buffers = append(slices.Clone(v.frozen), v.active)
		v.overlay.each(first, last, point)
		ranges(v.overlay.zeros)
	}
	for _, b := range buffers {
		if b == nil {
			continue
		}
		for _, h := range b.homes {
			if h != noHome {
				point(layout.BlockNo(h))
			}
		}
		ranges(b.zeros)
	}
	for _, o := range append(layers[:len(layers):len(layers)], v.waiting...) {
		o.each(first, last, point)
		ranges(o.zeros)
	}
	slices.Sort(cuts)
	cuts = slices.Compact(cuts)
	runs := make([]memoryRun, 0, len(cuts))
	start := first
	for _, end := range cuts {
		flags, known := a.known(layers, start)
		if n := len(runs); n > 0 && runs[n-1].flags == flags && runs[n-1].known == known {
			runs[n-1].end = end
		} else {
			runs = append(runs, memoryRun{end, flags, known})
		}
		start = end
	}
	return runs
}

// bufferedLocked is the kind of a block that a buffer knows.
func (v *Volume) bufferedLocked(b layout.BlockNo) (layout.Kind, bool) {
	for i := len(v.frozen); i >= 0; i-- {
		buf := v.active
		if i < len(v.frozen) {
			buf = v.frozen[i]
		}
		if buf == nil {
			continue
		}
		if buf.find(b) != nil {
			return layout.Data, true
		}
		if kind, ok := buf.zeros.find(b); ok {
			return kind, true
		}
	}
	return layout.Hole, false
}

// memoryKindLocked is the kind of a block that a buffer or an overlay knows.
func (v *Volume) memoryKindLocked(state layout.Seq, layers []*frozenOverlay, b layout.BlockNo) (layout.Kind, bool) {
	if state == now {
		if kind, ok := v.bufferedLocked(b); ok {
			return kind, true
		}
	}
	e, ok := v.findLocked(state, layers, b)
	return e.kind, ok
}
