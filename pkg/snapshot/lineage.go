package snapshot

import (
	"slices"
	"strings"

	"github.com/fsximg/fsx/pkg/layout"
)

// Lineage tells who descends from whom in a store, by the heads of its volumes.
// It shares the maps with whoever made it and needs no lock of its own.
type Lineage struct {
	Heads map[layout.VolumeID]layout.Head
	Fates map[layout.VolumeID]layout.Fate
}

// ByName finds the volume that has a name: deleted ones have none.
func (l Lineage) ByName(name string) (layout.VolumeID, bool) {
	for id, h := range l.Heads {
		if h.Name == name && l.Fates[id] == 0 {
			return id, true
		}
	}
	return 0, false
}

// Visible lists the volumes that are not deleted, by name.
func (l Lineage) Visible() (ids []layout.VolumeID) {
	for id := range l.Heads {
		if l.Fates[id] == 0 {
			ids = append(ids, id)
		}
	}
	slices.SortFunc(ids, func(a, b layout.VolumeID) int { return strings.Compare(l.Heads[a].Name, l.Heads[b].Name) })
	return ids
}

// Pinned says whether a volume starts from a snapshot, so that the snapshot has
// to stay.
func (l Lineage) Pinned(v layout.VolumeID, snapshot layout.Seq) bool {
	for _, h := range l.Heads {
		if h.Parent == v && h.ParentSnapshot == snapshot {
			return true
		}
	}
	return false
}

// Children lists the volumes that start from a snapshot of v, deleted ones
// included.
func (l Lineage) Children(v layout.VolumeID) (ids []layout.VolumeID) {
	for id, h := range l.Heads {
		if h.Parent == v {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// Part is a volume of a history, of which the snapshots up to UpTo belong to it.
type Part struct {
	Volume layout.VolumeID
	UpTo   layout.Seq
}

// History lists the volumes whose snapshots a volume's name stands for: itself,
// and before that what each rollback left behind. The newest comes first.
func (l Lineage) History(v layout.VolumeID) []Part {
	parts := []Part{{v, ^layout.Seq(0)}}
	for len(parts) <= len(l.Heads) {
		h, ok := l.Heads[parts[len(parts)-1].Volume]
		if !ok || !h.Continues {
			break
		}
		parts = append(parts, Part{h.Parent, h.ParentSnapshot})
	}
	return parts
}

// Depths tells how many volumes away v's ancestors are: 1 is v itself.
func (l Lineage) Depths(v layout.VolumeID) map[layout.VolumeID]uint32 {
	depths := map[layout.VolumeID]uint32{}
	for v != 0 && depths[v] == 0 {
		depths[v] = uint32(len(depths) + 1)
		v = l.Heads[v].Parent
	}
	return depths
}

// Useless lists the hidden volumes from which no other starts: they can go.
func (l Lineage) Useless() (ids []layout.VolumeID) {
	for id := range l.Heads {
		if l.Fates[id] == layout.Hidden && len(l.Children(id)) == 0 {
			ids = append(ids, id)
		}
	}
	return ids
}
