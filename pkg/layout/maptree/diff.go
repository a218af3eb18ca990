package maptree

import (
	"context"

	"github.com/fsximg/fsx/pkg/layout"
)

// Diff calls fn with consecutive runs of [from, to) and whether they may read
// differently in two trees, until fn returns false. Subtrees with equal pointers
// are not looked at. A block that was written again differs, whatever was
// written; holes and zeros do not differ from each other. What lies outside a
// tree is a hole.
func (r *Reader) Diff(ctx context.Context, a, b Root, from, to layout.BlockNo, fn func(start layout.BlockNo, n uint64, differs bool) bool) error {
	for _, root := range []*Root{&a, &b} {
		if root.Height > MaxHeight {
			return errHeight(root)
		}
	}
	d := &differ{r: r, ctx: ctx, from: uint64(from), to: uint64(to), fn: fn, start: uint64(from), pos: uint64(from)}
	if d.from >= d.to {
		return nil
	}
	height := max(a.Height, b.Height)
	end := min(d.to, Capacity(height))
	if d.from < end {
		pa, pb := peer{rootPointer(&a), a.Height}, peer{rootPointer(&b), b.Height}
		if err := d.subtree(&pa, &pb, height, 0); err != nil {
			return err
		}
	}
	d.run(d.to, false)
	d.flush(d.to)
	return nil
}

type differ struct {
	r        *Reader
	ctx      context.Context
	from, to uint64
	fn       func(layout.BlockNo, uint64, bool) bool

	start   uint64 // of the run held back
	pos     uint64
	differs bool
	stopped bool
}

// run adds what lies between the last run and end.
func (d *differ) run(end uint64, differs bool) {
	if end <= d.pos {
		return
	}
	if differs != d.differs {
		d.flush(d.pos)
		d.differs = differs
	}
	d.pos = end
}

func (d *differ) flush(end uint64) {
	if end > d.start && !d.stopped {
		d.stopped = !d.fn(layout.BlockNo(d.start), end-d.start, d.differs)
	}
	d.start = end
}

func (d *differ) subtree(a, b *peer, level uint8, index uint64) error {
	lo, hi := max(d.from, index<<Shift(level)), min(d.to, (index+1)<<Shift(level))
	if a.pointer == b.pointer || a.kind != layout.Data && b.kind != layout.Data {
		d.run(hi, false)
		return nil
	}
	if err := d.ctx.Err(); err != nil {
		return err
	}
	bufA, bufB := d.r.bufs.Get().(*[]byte), d.r.bufs.Get().(*[]byte)
	defer d.r.bufs.Put(bufA)
	defer d.r.bufs.Put(bufB)
	nodeA, err := d.node(a, level, index, *bufA)
	if err != nil {
		return err
	}
	nodeB, err := d.node(b, level, index, *bufB)
	if err != nil {
		return err
	}
	if level == 0 {
		d.leaf(nodeA, nodeB, lo, hi)
		return nil
	}
	for c := lo >> Shift(level-1); c <= (hi-1)>>Shift(level-1) && !d.stopped; c++ {
		childA, childB := a.below(nodeA, level, c), b.below(nodeB, level, c)
		if err := d.subtree(&childA, &childB, level-1, c); err != nil {
			return err
		}
	}
	return nil
}

// node reads the node of the level that p points to; nil if there is none.
func (d *differ) node(p *peer, level uint8, index uint64, buf []byte) ([]byte, error) {
	if p.kind != layout.Data || level > p.height {
		return nil, nil
	}
	return d.r.node(&p.pointer, level, index, buf, level > 0)
}

// below is the peer for a child, by its number in the level below; node is what
// p points to, if that is a node of the level.
func (p *peer) below(node []byte, level uint8, child uint64) peer {
	switch {
	case level > p.height && child != 0:
		return peer{height: p.height}
	case node == nil:
		return *p
	}
	return peer{interiorBytes(node).child(uint(child % Fanout)), p.height}
}

func (d *differ) leaf(nodeA, nodeB leafBytes, lo, hi uint64) {
	for at := lo; at < hi && !d.stopped; at++ {
		i := uint(at % LeafBlocks)
		var refA, refB layout.BlockRef
		dataA, dataB := nodeA.has(i, &refA), nodeB.has(i, &refB)
		d.run(at+1, dataA != dataB || refA != refB)
	}
}

// has reads the reference of block i, if the leaf has one.
func (b leafBytes) has(i uint, ref *layout.BlockRef) bool {
	if b == nil || b.kind(i) != layout.Data {
		return false
	}
	b.ref(i, ref)
	return true
}
