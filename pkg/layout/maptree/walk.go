package maptree

import (
	"math/bits"

	"github.com/fsximg/fsx/pkg/layout"
)

// Walk calls fn with the runs of [from, to) in order, until fn returns false or
// all is covered. A run of holes or of zeros is as long as can be; a data block
// is a run of its own, with its reference, which is valid during the call only.
// What lies outside the tree is a hole. After an error, fn has seen everything
// before the damage.
func (r *Reader) Walk(root Root, from, to layout.BlockNo, fn func(start layout.BlockNo, n uint64, kind layout.Kind, ref *layout.BlockRef) bool) error {
	return r.walk(root, from, to, walker{block: fn})
}

// Runs is Walk with data blocks merged too, and without references.
func (r *Reader) Runs(root Root, from, to layout.BlockNo, fn func(start layout.BlockNo, n uint64, kind layout.Kind) bool) error {
	return r.walk(root, from, to, walker{merged: fn})
}

// walker goes over a part of a tree. It holds back one run, to which what
// follows may still belong.
type walker struct {
	r        *Reader
	from, to uint64
	block    func(layout.BlockNo, uint64, layout.Kind, *layout.BlockRef) bool
	merged   func(layout.BlockNo, uint64, layout.Kind) bool

	start, n uint64 // the run held back
	kind     layout.Kind
	stopped  bool
	ref      layout.BlockRef
}

func (r *Reader) walk(root Root, from, to layout.BlockNo, w walker) error {
	w.r, w.from, w.to = r, uint64(from), uint64(to)
	if w.from >= w.to {
		return nil
	}
	if root.Height > MaxHeight {
		return errHeight(&root)
	}
	w.start = w.from
	end := min(w.to, Capacity(root.Height))
	if w.from < end {
		p := rootPointer(&root)
		if err := w.subtree(&p, root.Height, 0); err != nil {
			w.flush()
			return err
		}
	}
	if w.to > end {
		w.run(max(end, w.from), w.to, layout.Hole)
	}
	w.flush()
	return nil
}

// subtree walks the part of a subtree that lies in [from, to), which is not
// empty.
func (w *walker) subtree(p *pointer, level uint8, index uint64) error {
	shift := Shift(level)
	lo := max(w.from, index<<shift)
	hi := min(w.to, (index+1)<<shift)
	if p.kind != layout.Data {
		w.run(lo, hi, p.kind)
		return nil
	}
	buf := w.r.bufs.Get().(*[]byte)
	defer w.r.bufs.Put(buf)
	// Leaves are not kept in the cache, or one scan would empty it.
	b, err := w.r.node(p, level, index, *buf, level > 0)
	if err != nil {
		return err
	}
	if level == 0 {
		w.leaf(b, lo, hi)
		return nil
	}
	first, last := lo>>Shift(level-1), (hi-1)>>Shift(level-1)
	for c := first; c <= last && !w.stopped; c++ {
		child := interiorBytes(b).child(uint(c % Fanout))
		if err := w.subtree(&child, level-1, c); err != nil {
			return err
		}
	}
	return nil
}

func (w *walker) leaf(b leafBytes, lo, hi uint64) {
	data := b.data()
	n := bits.OnesCount16(data & (1<<(lo%LeafBlocks) - 1))
	for at := lo; at < hi && !w.stopped; at++ {
		kind := b.kind(uint(at % LeafBlocks))
		if kind != layout.Data || w.block == nil {
			w.run(at, at+1, kind)
			continue
		}
		w.flush()
		if w.stopped {
			return
		}
		b.refAt(n, &w.ref)
		n++
		w.stopped = !w.block(layout.BlockNo(at), 1, layout.Data, &w.ref)
		w.start = at + 1
	}
}

// run adds [lo, hi) to the run held back, or begins another.
func (w *walker) run(lo, hi uint64, kind layout.Kind) {
	if w.n > 0 && kind != w.kind {
		w.flush()
	}
	if w.n == 0 {
		w.start, w.kind = lo, kind
	}
	w.n += hi - lo
}

func (w *walker) flush() {
	if w.n == 0 || w.stopped {
		return
	}
	if w.block != nil {
		w.stopped = !w.block(layout.BlockNo(w.start), w.n, w.kind, nil)
	} else {
		w.stopped = !w.merged(layout.BlockNo(w.start), w.n, w.kind)
	}
	w.n = 0
}
