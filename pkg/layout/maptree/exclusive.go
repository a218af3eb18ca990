package maptree

import (
	"context"

	"github.com/fsximg/fsx/pkg/layout"
)

// ExclusiveOptions say what Exclusive reports. Either function may be nil.
type ExclusiveOptions struct {
	// From is where an interrupted walk goes on: subtrees that end at or before
	// it are not looked at.
	From layout.BlockNo
	// Ref is called for every data block that none of the others has, in order.
	Ref func(block layout.BlockNo, ref *layout.BlockRef) error
	// Node is called for every node that none of the others has, after what is
	// below it: a walk that goes on at From needs no node that ended before.
	// The node's other slot (Gen^1) is reached by nobody either.
	Node func(NodeID) error
}

// Exclusive finds what is in a tree and in none of the others: what comes free
// when a snapshot goes, if the others are its neighbours in time and the roots
// of its clones. Equal subtrees are skipped by their pointers.
func (r *Reader) Exclusive(ctx context.Context, root Root, others []Root, o ExclusiveOptions) error {
	if root.Height > MaxHeight {
		return errHeight(&root)
	}
	x := &exclusive{r: r, ctx: ctx, o: o}
	peers := make([]peer, 0, len(others))
	for _, other := range others {
		if other.Height > MaxHeight {
			return errHeight(&other)
		}
		p := peer{pointer: rootPointer(&other), height: other.Height}
		for level := other.Height; level > root.Height; level-- {
			var err error
			if p, err = x.descend(p, level, 0, 0); err != nil {
				return err
			}
		}
		peers = append(peers, p)
	}
	p := rootPointer(&root)
	return x.subtree(&p, peers, root.Height, 0)
}

type exclusive struct {
	r   *Reader
	ctx context.Context
	o   ExclusiveOptions
}

// peer is another tree's pointer to the place where the walk is. Above its own
// root a tree has only a leftmost branch.
type peer struct {
	pointer
	height uint8 // of the tree
}

// descend goes to a child of a peer of the level.
func (x *exclusive) descend(p peer, level uint8, index uint64, child uint) (peer, error) {
	if level > p.height {
		if index != 0 || child != 0 {
			return peer{}, nil
		}
		return p, nil
	}
	if p.kind != layout.Data {
		return p, nil
	}
	buf := x.r.bufs.Get().(*[]byte)
	defer x.r.bufs.Put(buf)
	b, err := x.r.node(&p.pointer, level, index, *buf, true)
	if err != nil {
		return peer{}, err
	}
	p.pointer = interiorBytes(b).child(child)
	return p, nil
}

func (x *exclusive) subtree(p *pointer, peers []peer, level uint8, index uint64) error {
	if p.kind != layout.Data || (index+1)<<Shift(level) <= uint64(x.o.From) {
		return nil
	}
	for i := range peers {
		if peers[i].pointer == *p {
			return nil
		}
	}
	if err := x.ctx.Err(); err != nil {
		return err
	}
	buf := x.r.bufs.Get().(*[]byte)
	defer x.r.bufs.Put(buf)
	b, err := x.r.node(p, level, index, *buf, level > 0)
	if err != nil {
		return err
	}
	if level == 0 {
		err = x.leaf(b, peers, index)
	} else {
		err = x.children(b, peers, level, index)
	}
	if err != nil || x.o.Node == nil {
		return err
	}
	return x.o.Node(p.id(level, index))
}

func (x *exclusive) children(b interiorBytes, peers []peer, level uint8, index uint64) error {
	below := make([]peer, len(peers))
	for i := range uint(Fanout) {
		c := b.child(i)
		if c.kind != layout.Data {
			continue
		}
		for j := range peers {
			var err error
			if below[j], err = x.descend(peers[j], level, index, i); err != nil {
				return err
			}
		}
		if err := x.subtree(&c, below, level-1, index<<fanoutShift|uint64(i)); err != nil {
			return err
		}
	}
	return nil
}

func (x *exclusive) leaf(b leafBytes, peers []peer, index uint64) error {
	if x.o.Ref == nil {
		return nil
	}
	var theirs [LeafBlocks][]layout.BlockRef
	for i := range peers {
		if peers[i].kind != layout.Data {
			continue
		}
		buf := x.r.bufs.Get().(*[]byte)
		other, err := x.r.node(&peers[i].pointer, 0, index, *buf, false)
		if err == nil {
			err = eachRef(other, index, func(block layout.BlockNo, ref *layout.BlockRef) error {
				theirs[block%LeafBlocks] = append(theirs[block%LeafBlocks], *ref)
				return nil
			})
		}
		x.r.bufs.Put(buf)
		if err != nil {
			return err
		}
	}
	return eachRef(b, index, func(block layout.BlockNo, ref *layout.BlockRef) error {
		if block < x.o.From {
			return nil
		}
		for i := range theirs[block%LeafBlocks] {
			if theirs[block%LeafBlocks][i] == *ref {
				return nil
			}
		}
		return x.o.Ref(block, ref)
	})
}
