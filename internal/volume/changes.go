package volume

import (
	"github.com/fsximg/fsx/pkg/layout"
	"github.com/fsximg/fsx/pkg/layout/maptree"
)

// overlayChanges gives a frozen overlay to the map tree in the order of homes:
// its points, and its ranges without the points inside.
type overlayChanges struct {
	volume layout.VolumeID
	points []entry
	zeros  zeroRanges
	pos    layout.BlockNo // the current range is done up to here
	blocks layout.BlockNo // the volume's size: behind it there is nothing to change
}

func newOverlayChanges(id layout.VolumeID, o *overlay, blocks uint64) *overlayChanges {
	return &overlayChanges{volume: id, points: o.sorted(), zeros: o.zeros, blocks: layout.BlockNo(blocks)}
}

// Next is maptree.Iterator's.
func (c *overlayChanges) Next(ch *maptree.Change) (bool, error) {
	for len(c.zeros) > 0 {
		z := &c.zeros[0]
		start, end := max(z.start, c.pos), min(z.end, c.blocks)
		if start >= end {
			c.zeros = c.zeros[1:]
			continue
		}
		if len(c.points) > 0 {
			p := layout.BlockNo(c.points[0].home - 1)
			if p <= start {
				break
			}
			end = min(end, p)
		}
		*ch = maptree.Change{Start: start, N: uint64(end - start), Kind: z.kind}
		c.pos = end
		return true, nil
	}
	if len(c.points) == 0 || layout.BlockNo(c.points[0].home-1) >= c.blocks {
		return false, nil
	}
	e := &c.points[0]
	b := layout.BlockNo(e.home - 1)
	*ch = maptree.Change{Start: b, N: 1, Kind: e.kind}
	if e.kind == layout.Data {
		ch.Ref = layout.BlockRef{Owner: c.volume, Extent: e.extent, Index: e.index, Tag: e.tag}
	}
	c.pos = b + 1
	c.points = c.points[1:]
	return true, nil
}
