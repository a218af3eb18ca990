package maptree

import (
	"context"
	"fmt"
	"math/bits"

	"github.com/fsximg/fsx/pkg/layout"
)

// Adopt writes every node of a tree that another volume owns anew, as a node of
// o.Volume, and returns the new root: a tree with the same content that needs no
// other volume's nodes. It is an Update without changes, and what is said there
// of w, of errors and of o holds here too; o.Blocks is not looked at.
func (r *Reader) Adopt(ctx context.Context, o UpdateOptions, w NodeWriter) (Root, Stats, error) {
	u := &updater{r: r, ctx: ctx, o: o, w: w}
	if o.Root.Height > MaxHeight {
		return Root{}, u.stats, errHeight(&o.Root)
	}
	p, err := u.adopt(rootPointer(&o.Root), o.Root.Height, 0)
	if err != nil {
		return Root{}, u.stats, fmt.Errorf("adopt map of volume %s: %w", o.Volume, err)
	}
	return p.root(o.Root.Height), u.stats, nil
}

func (u *updater) adopt(p pointer, level uint8, index uint64) (pointer, error) {
	if p.kind != layout.Data {
		return p, nil
	}
	if err := u.ctx.Err(); err != nil {
		return p, err
	}
	buf := u.r.bufs.Get().(*[]byte)
	defer u.r.bufs.Put(buf)
	b, err := u.r.node(&p, level, index, *buf, false)
	if err != nil {
		return p, err
	}
	u.stats.Read++
	foreign := p.owner != u.o.Volume
	if level == 0 {
		if !foreign {
			return p, nil
		}
		u.buf = append(u.buf[:0], b...)
		return u.write(0, &openNode{index: index, old: p})
	}
	var node interior
	node.decode(b)
	for set := node.nodes; set != 0; set &= set - 1 {
		i := uint(bits.TrailingZeros64(set))
		c, err := u.adopt(node.children[i], level-1, index<<fanoutShift|uint64(i))
		if err != nil {
			return p, err
		}
		if c != node.children[i] {
			node.setChild(i, &c)
			foreign = true
		}
	}
	if !foreign {
		return p, nil
	}
	u.buf = node.append(u.buf[:0], level)
	return u.write(level, &openNode{index: index, old: p})
}
