package picture

import (
	"slices"
	"time"
)

// Tree is a store's volumes, snapshots and clones. Sizes are in bytes.
type Tree struct {
	Store      string // its path or name
	Size, Used int64
	Volumes    []TreeVolume // in the order in which siblings are drawn
}

// TreeVolume is a volume. Names are unique in a Tree, those of hidden ones too.
type TreeVolume struct {
	Name      string
	Size, Own int64  // Own is what nothing else shares
	Key       string // short identifier of the key it writes under; "" when unknown
	// Parent and ParentSnapshot are what it was cloned from; "" for none. With a
	// Parent that is not in the Tree it is drawn as a volume of its own.
	Parent, ParentSnapshot string
	Hidden                 bool // deleted, kept for its clones
	Snapshots              []TreeSnapshot
}

// TreeSnapshot is a snapshot of the volume that holds it.
type TreeSnapshot struct {
	Name    string
	Created time.Time // drawn in its own location; the zero time is not drawn
	Size    int64
	Freed   int64 // what deleting it would free
	Hidden  bool  // deleted, kept for its clones
}

func (s *TreeSnapshot) created() string {
	if s.Created.IsZero() {
		return ""
	}
	return s.Created.Format("2006-01-02 15:04")
}

// node is a volume with what hangs on it.
type node struct {
	*TreeVolume
	snapshots []branch // oldest first
	clones    []*node  // those of no snapshot that is here
	parent    *node
}

// branch is a snapshot with its clones.
type branch struct {
	*TreeSnapshot
	clones []*node
}

// forest links each volume to its parent and returns those that have none.
func (t *Tree) forest() (roots []*node) {
	byName := make(map[string]*node, len(t.Volumes))
	nodes := make([]*node, len(t.Volumes))
	for i := range t.Volumes {
		n := &node{TreeVolume: &t.Volumes[i]}
		for j := range n.Snapshots {
			n.snapshots = append(n.snapshots, branch{TreeSnapshot: &n.Snapshots[j]})
		}
		slices.SortStableFunc(n.snapshots, func(a, b branch) int { return a.Created.Compare(b.Created) })
		nodes[i] = n
		if byName[n.Name] == nil {
			byName[n.Name] = n
		}
	}
	for _, n := range nodes {
		if p := byName[n.Parent]; n.Parent != "" && p != nil && !p.descends(n) {
			n.parent = p
			p.adopt(n)
		} else {
			roots = append(roots, n)
		}
	}
	return roots
}

// descends says that n is m or below it: a damaged store's parents may go in circles.
func (n *node) descends(m *node) bool {
	for ; n != nil; n = n.parent {
		if n == m {
			return true
		}
	}
	return false
}

func (n *node) adopt(clone *node) {
	for i := range n.snapshots {
		if n.snapshots[i].Name == clone.ParentSnapshot {
			n.snapshots[i].clones = append(n.snapshots[i].clones, clone)
			return
		}
	}
	n.clones = append(n.clones, clone)
}

// origin is what n was cloned from in words, where no line shows it.
func (n *node) origin() string {
	switch {
	case n.Parent == "":
		return ""
	case n.parent == nil && n.ParentSnapshot != "":
		return "from " + n.Parent + "@" + n.ParentSnapshot
	case n.parent == nil:
		return "from " + n.Parent
	case n.ParentSnapshot != "" && slices.Contains(n.parent.clones, n):
		return "from @" + n.ParentSnapshot
	}
	return ""
}

// count is how many volumes and snapshots there are.
func (t *Tree) count() (volumes, snapshots int) {
	for _, v := range t.Volumes {
		snapshots += len(v.Snapshots)
	}
	return len(t.Volumes), snapshots
}
