package maptree

import (
	"crypto/sha256"
	"fmt"
	"math/bits"

	"github.com/fsximg/fsx/pkg/layout"
)

// seek closes the nodes that do not cover pos.
func (u *updater) seek() error {
	for u.low <= u.height && u.open[u.low].index != u.pos>>Shift(u.low) {
		if err := u.close(); err != nil {
			return err
		}
	}
	if u.steps++; u.steps%4096 == 0 {
		return u.ctx.Err()
	}
	return nil
}

// pointer is the pointer to the subtree at a block, of the level under the
// lowest open one.
func (u *updater) pointer(level uint8, block uint64) pointer {
	if level == u.height {
		return u.top
	}
	return u.open[level+1].node.child(uint(block>>Shift(level)) % Fanout)
}

func (u *updater) setPointer(level uint8, index uint64, p *pointer) {
	if level == u.height {
		u.top = *p
		return
	}
	parent := &u.open[level+1]
	parent.node.setChild(uint(index)%Fanout, p)
	parent.dirty = true
}

// openNode lengthens the path by a node, which is made if p is no node.
func (u *updater) openNode(level uint8, index uint64, p pointer) error {
	n := &u.open[level]
	if p.kind == layout.Data {
		b, err := u.r.node(&p, level, index, u.buf, level > 0)
		if err != nil {
			return err
		}
		u.stats.Read++
		if level == 0 {
			u.leaf.decode(b)
		} else {
			n.node.decode(b)
		}
	} else if level == 0 {
		u.leaf.fill(p.kind)
	} else {
		n.node.fill(p.kind)
	}
	n.index, n.old, n.dirty = index, p, false
	u.low = level
	return nil
}

// close ends the work on the lowest open node: it is written if it changed.
func (u *updater) close() error {
	level := u.low
	n := &u.open[level]
	u.low++
	if level > u.target {
		return u.collapse(level, n)
	}
	if !n.dirty {
		return nil
	}
	var p pointer
	var err error
	if level == 0 {
		p.kind = u.leaf.kind()
		u.buf = u.leaf.append(u.buf[:0])
	} else {
		p.kind = n.node.kind()
		u.buf = n.node.append(u.buf[:0], level)
	}
	if p.kind == layout.Data {
		p, err = u.write(level, n)
	} else {
		err = u.obsolete(&n.old, level, n.index)
	}
	if err == nil && p != n.old {
		u.setPointer(level, n.index, &p)
	}
	return err
}

// write stores the node in u.buf.
func (u *updater) write(level uint8, n *openNode) (pointer, error) {
	p := pointer{layout.Data, u.o.Volume, uint64(u.o.Epoch) << 1, sha256.Sum256(u.buf)}
	cached := level > 0
	if n.old.kind == layout.Data && n.old.owner == p.owner && n.old.gen>>1 == p.gen>>1 {
		// The durable head reaches the old node: the other slot, then.
		p.gen = n.old.gen ^ 1
		cached = u.r.cache.remove(level, n.index, &n.old.hash) || cached
	} else if n.old.kind == layout.Data {
		if err := u.useless(&n.old, level, n.index); err != nil {
			return p, err
		}
	}
	id := p.id(level, n.index)
	u.key = id.AppendKey(u.key[:0])
	if err := u.w.Set(u.key, u.buf); err != nil {
		return p, err
	}
	if cached {
		u.r.cache.put(level, n.index, &p.hash, u.buf)
	}
	u.stats.Written++
	u.stats.Bytes += uint64(len(u.buf))
	return p, nil
}

// collapse removes a node above the new root, of which only the leftmost child
// is left.
func (u *updater) collapse(level uint8, n *openNode) error {
	if n.node.nodes > 1 || n.node.zeros > 1 {
		return fmt.Errorf("%w: blocks behind the end of the volume", ErrOrder)
	}
	p := n.node.child(0)
	u.setPointer(level, n.index, &p)
	return u.obsolete(&n.old, level, n.index)
}

func (u *updater) reportDead(ref *layout.BlockRef) error {
	u.stats.Dead++
	if u.dead == nil {
		return nil
	}
	return u.dead(*ref)
}

// obsolete counts and reports a node that has no successor.
func (u *updater) obsolete(p *pointer, level uint8, index uint64) error {
	if p.kind != layout.Data {
		return nil
	}
	u.stats.Dropped++
	return u.useless(p, level, index)
}

// useless reports a node that was replaced or dropped, with its other slot, if
// no snapshot has it.
func (u *updater) useless(p *pointer, level uint8, index uint64) error {
	// A node that is as old as Kept, or younger, was written after it.
	if u.o.Obsolete == nil || p.owner != u.o.Volume || p.gen>>1 < uint64(u.o.Kept) {
		return nil
	}
	id := p.id(level, index)
	for range 2 {
		u.key = id.AppendKey(u.key[:0])
		if err := u.o.Obsolete(u.key); err != nil {
			return err
		}
		id.Gen ^= 1
	}
	return nil
}

// drop reports everything below a pointer that is about to be replaced.
func (u *updater) drop(p pointer, level uint8, index uint64) error {
	if p.kind != layout.Data {
		return nil
	}
	if err := u.ctx.Err(); err != nil {
		return err
	}
	buf := u.r.bufs.Get().(*[]byte)
	defer u.r.bufs.Put(buf)
	b, err := u.r.node(&p, level, index, *buf, false)
	if err != nil {
		return err
	}
	u.stats.Read++
	if level == 0 {
		err = eachRef(b, index, func(_ layout.BlockNo, ref *layout.BlockRef) error { return u.reportDead(ref) })
	}
	for set := nodesOf(b, level); set != 0 && err == nil; set &= set - 1 {
		i := uint(bits.TrailingZeros64(set))
		err = u.drop(interiorBytes(b).child(i), level-1, index<<fanoutShift|uint64(i))
	}
	if err != nil {
		return err
	}
	return u.obsolete(&p, level, index)
}

// nodesOf is the bitmap of child nodes; a leaf has none.
func nodesOf(b []byte, level uint8) uint64 {
	if level == 0 {
		return 0
	}
	return interiorBytes(b).nodes()
}
