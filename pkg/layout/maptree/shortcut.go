package maptree

import "github.com/fsximg/fsx/pkg/layout"

const (
	cutWays  = 4   // shortcuts in a set
	cutRoots = 256 // roots that have shortcuts in one shard
)

// shortcuts say at which position in a shard the leaf of a root lies, so that a
// lookup need not descend. A root is named by its hash, and what it reaches
// never changes, so a shortcut cannot become wrong; its position becomes
// invalid, which the shard can tell. Thus nothing has to be removed.
type shortcuts struct {
	sets  []cutSet
	roots []cutRoot
	last  uint16 // the last root number given out
}

// cutSet is a cache line of shortcuts, the newest first. The words are
// leaf << 16 | the root's number, and position/8 << 16 | the leaf's data bitmap,
// which saves a lookup from waiting for the leaf's header before it can fetch
// the reference. Root 0 is none, so a zero word never matches.
type cutSet [cutWays][2]uint64

// cutRoot gives a root's hash a number in this shard. Numbers are not reused.
type cutRoot struct {
	hash   layout.Hash
	number uint16
}

// resize fits the tables to an index of n slots. What was there is given up.
func (c *shortcuts) resize(n int) {
	c.sets = make([]cutSet, max(1, n/cutWays))
	if c.roots == nil {
		c.roots = make([]cutRoot, cutRoots)
	}
}

func (c *shortcuts) bytes() int64 { return int64(len(c.sets))*cutWays*16 + int64(len(c.roots))*36 }

func (c *shortcuts) root(h *layout.Hash) *cutRoot { return &c.roots[h[31]] }

func (c *shortcuts) set(number uint16, leaf uint64) *cutSet {
	return &c.sets[mix(leaf^uint64(number)<<48)>>24&uint64(len(c.sets)-1)]
}

// find returns the position of a root's leaf, which may not be valid any more,
// and the leaf's data bitmap.
func (c *shortcuts) find(h *layout.Hash, leaf uint64) (pos uint64, data uint16, ok bool) {
	if len(c.sets) == 0 {
		return 0, 0, false
	}
	r := c.root(h)
	if r.number == 0 || r.hash != *h {
		return 0, 0, false
	}
	word := leaf<<16 | uint64(r.number)
	set := c.set(r.number, leaf)
	for i := range set {
		if set[i][0] == word {
			return set[i][1] >> 16 << 3, uint16(set[i][1]), true
		}
	}
	return 0, 0, false
}

// add makes a shortcut, in place of the oldest of its set.
func (c *shortcuts) add(h *layout.Hash, leaf, pos uint64, data uint16) {
	r := c.root(h)
	if r.number == 0 || r.hash != *h {
		if c.last++; c.last == 0 {
			// All numbers were used: begin anew, with nothing that has one.
			clear(c.sets)
			clear(c.roots)
			c.last = 1
		}
		*r = cutRoot{*h, c.last}
	}
	set := c.set(r.number, leaf)
	copy(set[1:], set[:cutWays-1])
	set[0] = [2]uint64{leaf<<16 | uint64(r.number), pos>>3<<16 | uint64(data)}
}
