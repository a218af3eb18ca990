package maptree

import (
	"context"
	"fmt"
	"math/bits"

	"github.com/fsximg/fsx/pkg/layout"
)

// Change is a new state of the blocks [Start, Start+N): Hole or Zero, or Data
// with a reference, and then N is 1.
type Change struct {
	Start layout.BlockNo
	N     uint64
	Kind  layout.Kind
	Ref   layout.BlockRef
}

// Iterator is a stream of changes, ascending and without overlap.
type Iterator interface {
	// Next stores the next change in c. It returns false at the end.
	Next(c *Change) (bool, error)
}

// NodeWriter takes new nodes; it copies what it is given. A metadb.Batch is
// one.
type NodeWriter interface {
	Set(key, val []byte) error
}

// UpdateOptions say what is updated.
type UpdateOptions struct {
	// Volume owns the nodes that are written.
	Volume layout.VolumeID
	// Epoch is the greatest commit sequence that a snapshot of the volume ever
	// had, 0 if it never had one. It must never go back.
	Epoch layout.Seq
	// Kept is the sequence of the newest snapshot that there still is, 0 if
	// there is none.
	Kept layout.Seq
	// Root is the tree to start from.
	Root Root
	// Blocks is the volume's size. The new tree has the height for it, and
	// nothing but holes behind it.
	Blocks uint64
	// Obsolete, if not nil, is called with the keys of nodes of this volume,
	// not older than Kept, that the new tree has no use for, nor any snapshot. They may be
	// deleted once the new root is durable, but not after the next update of
	// the volume has begun, which may write there again. (The unused slot of a
	// node that still exists is not reported: the next update writes there.)
	// The key is valid during the call only; some are of nodes that never
	// existed.
	Obsolete func(key []byte) error
}

// Stats count what an update did.
type Stats struct {
	Read    uint64 // nodes that had to be opened
	Written uint64 // nodes written
	Bytes   uint64 // size of the nodes written, without keys
	Dropped uint64 // nodes without a successor
	Added   uint64 // data blocks mapped, or mapped anew
	Dead    uint64 // data references given up
}

// Update applies changes to a tree and returns the new root. New nodes go to w,
// bottom-up, none twice; dead, if not nil, is called for every data reference
// that the new tree has no more at its place, and decides itself what that
// frees. The tree it starts from stays readable. What does not change is not
// written, so changes that change nothing return the root they started from.
//
// Memory is bounded by the tree's height. After an error what was written is of
// no consequence: the same update starts again from the same root.
func (r *Reader) Update(ctx context.Context, o UpdateOptions, changes Iterator, w NodeWriter, dead func(layout.BlockRef) error) (Root, Stats, error) {
	u := &updater{r: r, ctx: ctx, o: o, w: w, dead: dead}
	root, err := u.run(changes)
	if err != nil {
		return Root{}, u.stats, fmt.Errorf("update map of volume %s: %w", o.Volume, err)
	}
	return root, u.stats, nil
}

// updater is one update. The open nodes are a path from the root of the tree to
// the place where it works; everything left of the path is done, everything
// right of it untouched.
type updater struct {
	r     *Reader
	ctx   context.Context
	o     UpdateOptions
	w     NodeWriter
	dead  func(layout.BlockRef) error
	stats Stats

	target uint8 // height of the new tree
	height uint8 // height of the old or the new, whichever is taller
	top    pointer
	low    uint8 // lowest open level; height+1 if none is open
	open   [MaxHeight + 1]openNode
	leaf   leaf
	pos    uint64 // all before it is done
	steps  uint

	buf []byte
	key []byte
}

// openNode is a node on the path. Level 0 has its content in updater.leaf.
type openNode struct {
	index uint64
	old   pointer // what the parent pointed to
	dirty bool
	node  interior
}

func (u *updater) run(changes Iterator) (Root, error) {
	if u.o.Root.Height > MaxHeight {
		return Root{}, errHeight(&u.o.Root)
	}
	if u.o.Volume == 0 || u.o.Blocks > Capacity(MaxHeight) || u.o.Epoch >= 1<<63 || u.o.Kept > u.o.Epoch {
		return Root{}, fmt.Errorf("%w: %d blocks, epoch %d", ErrOrder, u.o.Blocks, u.o.Epoch)
	}
	u.buf = make([]byte, 0, maxNode)
	u.target = HeightFor(u.o.Blocks)
	u.height = max(u.target, u.o.Root.Height)
	u.low = u.height + 1
	if err := u.begin(); err != nil {
		return Root{}, err
	}
	var c Change
	for {
		more, err := changes.Next(&c)
		if err != nil {
			return Root{}, err
		}
		if !more {
			break
		}
		if err := u.apply(&c); err != nil {
			return Root{}, err
		}
	}
	// Nothing may lie behind the end of the volume, whoever shrank it.
	if end := Capacity(u.height); u.pos < end {
		u.pos = max(u.pos, u.o.Blocks)
		if err := u.fill(end, layout.Hole); err != nil {
			return Root{}, err
		}
	}
	for u.low <= u.height {
		if err := u.close(); err != nil {
			return Root{}, err
		}
	}
	return u.top.root(u.target), nil
}

// begin brings the old tree to the working height. Nodes above the old root
// have it as their leftmost descendant; nodes above the new root are opened, so
// that close finds and removes them.
func (u *updater) begin() error {
	old := rootPointer(&u.o.Root)
	if u.o.Root.Height >= u.height || old.kind == layout.Hole {
		u.top = old
		for u.low > u.target+1 {
			level := u.low - 1
			if err := u.openNode(level, 0, u.pointer(level, 0)); err != nil {
				return err
			}
		}
		return nil
	}
	for level := u.height; level > u.o.Root.Height; level-- {
		u.low = level
		u.open[level] = openNode{dirty: true}
	}
	u.open[u.low].node.setChild(0, &old)
	return nil
}

// apply makes one change.
func (u *updater) apply(c *Change) error {
	start, end := uint64(c.Start), uint64(c.Start)+c.N
	if c.Kind == layout.Hole && end > u.o.Blocks {
		end = max(start, u.o.Blocks) // that is a hole already, or will be
	}
	if start < u.pos || end < start || end > u.o.Blocks || c.Kind > layout.Data || c.Kind == layout.Data && c.N != 1 {
		return fmt.Errorf("%w: blocks %d+%d behind %d of %d", ErrOrder, c.Start, c.N, u.pos, u.o.Blocks)
	}
	u.pos = start
	if c.Kind == layout.Data {
		return u.set(&c.Ref)
	}
	return u.fill(end, c.Kind)
}

// set maps the block at pos.
func (u *updater) set(ref *layout.BlockRef) error {
	if err := u.seek(); err != nil {
		return err
	}
	for u.low > 0 {
		level := u.low - 1
		if err := u.openNode(level, u.pos>>Shift(level), u.pointer(level, u.pos)); err != nil {
			return err
		}
	}
	i := u.pos % LeafBlocks
	l, bit := &u.leaf, uint16(1)<<i
	u.pos++
	if l.data&bit != 0 {
		if l.refs[i] == *ref {
			return nil
		}
		if err := u.reportDead(&l.refs[i]); err != nil {
			return err
		}
	}
	l.data, l.zeros = l.data|bit, l.zeros&^bit
	l.refs[i] = *ref
	u.open[0].dirty = true
	u.stats.Added++
	return nil
}

// fill makes the blocks from pos to end all of a kind, whole subtrees at a
// time where it can.
func (u *updater) fill(end uint64, kind layout.Kind) error {
	for u.pos < end {
		if err := u.seek(); err != nil {
			return err
		}
		if u.low == 0 {
			if err := u.fillLeaf(end, kind); err != nil {
				return err
			}
			continue
		}
		level := u.low - 1
		index := u.pos >> Shift(level)
		p := u.pointer(level, u.pos)
		first, last := index<<Shift(level), (index+1)<<Shift(level)
		switch {
		case p.kind == kind:
			u.pos = min(end, last)
		case u.pos == first && end >= last:
			if err := u.drop(p, level, index); err != nil {
				return err
			}
			u.setPointer(level, index, &pointer{kind: kind})
			u.pos = last
		default:
			if err := u.openNode(level, index, p); err != nil {
				return err
			}
		}
	}
	return nil
}

func (u *updater) fillLeaf(end uint64, kind layout.Kind) error {
	last := min(end, (u.open[0].index+1)*LeafBlocks)
	mask := uint16((1<<(last-u.pos) - 1) << (u.pos % LeafBlocks))
	u.pos = last
	l := &u.leaf
	for set := l.data & mask; set != 0; set &= set - 1 {
		if err := u.reportDead(&l.refs[bits.TrailingZeros16(set)]); err != nil {
			return err
		}
	}
	data, zeros := l.data&^mask, l.zeros&^mask
	if kind == layout.Zero {
		zeros |= mask
	}
	if data != l.data || zeros != l.zeros {
		l.data, l.zeros = data, zeros
		u.open[0].dirty = true
	}
	return nil
}
