package volume

import (
	"context"
	"fmt"
	"slices"

	"github.com/fsximg/fsx/pkg/layout"
	"github.com/fsximg/fsx/pkg/layout/maptree"
)

// deleteSnapshot frees what only a snapshot has: what is neither in the one
// before nor in the one behind it, or in the volume itself, whose root is
// given. A snapshot from which volumes start is hidden instead.
func (c *checkpoint) deleteSnapshot(ctx context.Context, seq layout.Seq, root maptree.Root) error {
	i := slices.IndexFunc(c.snaps, func(s layout.Snapshot) bool { return s.Seq == seq })
	if i < 0 {
		return fmt.Errorf("%w: snapshot %d, which the log deletes, is missing", ErrDamaged, seq)
	}
	if c.v.store.pinned(c.v.id, seq) {
		c.snaps = slices.Clone(c.snaps)
		c.snaps[i].Hidden = true
		c.hidden = append(c.hidden, seq)
		return nil
	}
	next := root
	if i+1 < len(c.snaps) {
		next = c.snaps[i+1].Root
	}
	neighbours := []maptree.Root{next}
	var before, after layout.Seq
	if i > 0 {
		neighbours = append(neighbours, c.snaps[i-1].Root)
		before = c.snaps[i-1].Seq
	}
	if i+1 < len(c.snaps) {
		after = c.snaps[i+1].Seq
	}
	if err := c.book.deleted(before, seq, after); err != nil {
		return err
	}
	err := c.v.store.tree.Exclusive(ctx, c.snaps[i].Root, neighbours, maptree.ExclusiveOptions{
		Ref: func(_ layout.BlockNo, ref *layout.BlockRef) error {
			if ref.Owner != c.v.id {
				return nil
			}
			return c.ch.died(*ref)
		},
		Node: func(n maptree.NodeID) error {
			if n.Owner != c.v.id {
				return nil
			}
			c.obsolete = append(c.obsolete, n.Key())
			n.Gen ^= 1
			c.obsolete = append(c.obsolete, n.Key())
			return nil
		},
	})
	c.snaps = slices.Delete(slices.Clone(c.snaps), i, i+1)
	c.gone = append(c.gone, seq)
	return err
}
