package maptree

import (
	"context"
	"errors"
	"math/bits"

	"github.com/fsximg/fsx/pkg/layout"
)

// VerifyOptions say what a full walk reports. Every function may be nil.
type VerifyOptions struct {
	// Node is called before a node is read; if it returns false, the node and
	// what is below it is passed over (a snapshot's tree shares most of its
	// nodes with the next).
	Node func(id NodeID, hash layout.Hash) bool
	// Ref is called for every data block, in order.
	Ref func(block layout.BlockNo, ref *layout.BlockRef) error
	// Damage is called for every node that cannot be read; the walk goes on
	// behind it. If it is nil, the first damage ends the walk.
	Damage func(*NodeError) error
}

// Verify reads every node of a tree from the database, past the cache. It
// returns a *NodeError for damage that o.Damage did not take, the error of a
// function of o, or ctx's.
func (r *Reader) Verify(ctx context.Context, root Root, o VerifyOptions) error {
	if root.Height > MaxHeight {
		return errHeight(&root)
	}
	p := rootPointer(&root)
	return r.verify(ctx, &p, root.Height, 0, &o)
}

func (r *Reader) verify(ctx context.Context, p *pointer, level uint8, index uint64, o *VerifyOptions) error {
	if p.kind != layout.Data || o.Node != nil && !o.Node(p.id(level, index), p.hash) {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	buf := r.bufs.Get().(*[]byte)
	defer r.bufs.Put(buf)
	b, err := r.load(p, level, index, *buf)
	if err != nil {
		var damage *NodeError
		if o.Damage != nil && errors.As(err, &damage) {
			return o.Damage(damage)
		}
		return err
	}
	if level == 0 {
		return eachRef(b, index, o.Ref)
	}
	for set := interiorBytes(b).nodes(); set != 0; set &= set - 1 {
		i := uint(bits.TrailingZeros64(set))
		c := interiorBytes(b).child(i)
		if err := r.verify(ctx, &c, level-1, index<<fanoutShift|uint64(i), o); err != nil {
			return err
		}
	}
	return nil
}

// eachRef calls fn with the references of a leaf; they are valid during the
// call only.
func eachRef(b leafBytes, index uint64, fn func(layout.BlockNo, *layout.BlockRef) error) error {
	if fn == nil {
		return nil
	}
	n := 0
	var ref layout.BlockRef
	for set := b.data(); set != 0; set &= set - 1 {
		b.refAt(n, &ref)
		n++
		if err := fn(layout.BlockNo(index<<leafShift|uint64(bits.TrailingZeros16(set))), &ref); err != nil {
			return err
		}
	}
	return nil
}

// Nodes calls fn with every node of a volume that is in the database, reachable
// or not, by level, index and generation, until fn returns an error; that error
// is returned.
func (r *Reader) Nodes(owner layout.VolumeID, fn func(NodeID) error) error {
	prefix := Prefix(owner)
	return r.db.ScanKeys(prefix, prefix, func(key []byte) error {
		id, ok := ParseKey(key)
		if !ok {
			return nil // not a node's; nobody reads it
		}
		return fn(id)
	})
}
