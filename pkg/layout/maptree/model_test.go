package maptree_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/fsximg/fsx/pkg/layout"
	"github.com/fsximg/fsx/pkg/layout/maptree"
	"github.com/fsximg/fsx/pkg/layout/metadb"
)

// volume is one volume under test: its head, and the snapshots kept.
type volume struct {
	id     layout.VolumeID
	epoch  layout.Seq
	root   maptree.Root
	blocks uint64
	m      model
}

func (v *volume) clone() *volume {
	c := *v
	c.m = maps.Clone(v.m)
	return &c
}

// world is several volumes over one database.
type world struct {
	t     *testing.T
	rng   *rand.Rand
	db    *metadb.DB
	r     *maptree.Reader
	heads []*volume
	kept  []*volume // snapshots
	seq   uint64    // for references, epochs and volume numbers
}

func (w *world) next() uint64 { w.seq++; return w.seq }

// someChanges makes a sorted stream of changes, and applies it to the model.
// It returns the references that die.
func (w *world) someChanges(v *volume) (cs []maptree.Change, dead map[layout.BlockRef]int) {
	dead = map[layout.BlockRef]int{}
	step := 1 << w.rng.UintN(9)
	for at := uint64(0); at < v.blocks; {
		at += w.rng.Uint64N(uint64(2 * step))
		if at >= v.blocks {
			break
		}
		c := data(at, newRef(v.id, w.next()))
		switch w.rng.UintN(8) {
		case 0, 1:
			n := 1 + w.rng.Uint64N(1<<w.rng.UintN(13))
			c = fill(at, min(n, v.blocks-at), layout.Kind(w.rng.UintN(2)))
		case 2:
			if old := v.m[at]; old.kind == layout.Data {
				c.Ref = old.ref // no change
			}
		}
		cs = append(cs, c)
		for ; at < uint64(c.Start)+c.N; at++ {
			w.set(v, at, mapping{c.Kind, c.Ref}, dead)
		}
	}
	return cs, dead
}

func (w *world) set(v *volume, at uint64, to mapping, dead map[layout.BlockRef]int) {
	if old := v.m[at]; old.kind == layout.Data && old != to {
		dead[old.ref]++
	}
	if to.kind == layout.Hole {
		delete(v.m, at)
	} else {
		v.m[at] = to
	}
}

// resize changes the size; what is cut off dies.
func (w *world) resize(v *volume, dead map[layout.BlockRef]int) {
	size := 1 + w.rng.Uint64N(1<<(4+w.rng.UintN(10)))
	for at := size; at < v.blocks; at++ {
		w.set(v, at, mapping{}, dead)
	}
	v.blocks = size
}

// failing fails at the n-th write.
type failing struct {
	maptree.NodeWriter
	left int
}

var errFailing = errors.New("no more writes")

func (f *failing) Set(key, val []byte) error {
	if f.left--; f.left < 0 {
		return errFailing
	}
	return f.NodeWriter.Set(key, val)
}

// interrupt runs an update whose writer fails at some point; what was written
// until then is flushed.
func (w *world) interrupt(o maptree.UpdateOptions, cs []maptree.Change) {
	b := w.db.NewBatch()
	it := changes(cs)
	f := &failing{b, w.rng.IntN(20)}
	_, _, err := w.r.Update(context.Background(), o, &it, f, func(layout.BlockRef) error { return nil })
	if err != nil && !errors.Is(err, errFailing) {
		w.t.Fatal(err)
	}
	if err := b.Flush(); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) checkpoint(v *volume) {
	old := v.clone()
	// Resizing comes first: what is cut off is not part of the changes.
	dead := map[layout.BlockRef]int{}
	if w.rng.UintN(4) == 0 {
		w.resize(v, dead)
	}
	cs, more := w.someChanges(v)
	for ref, n := range more {
		dead[ref] += n
	}
	o := maptree.UpdateOptions{Volume: v.id, Epoch: v.epoch, Kept: v.epoch, Root: v.root, Blocks: v.blocks}
	if w.rng.UintN(3) == 0 {
		w.interrupt(o, cs)
		verify(w.t, w.r, old.root, old.m, old.blocks)
	}
	var stats maptree.Stats
	v.root, stats = update(w.t, w.r, w.db, o, func(ref layout.BlockRef) { dead[ref]-- }, cs...)
	for ref, n := range dead {
		if n != 0 {
			w.t.Fatalf("reference %v: reported dead %d times too few", ref, n)
		}
	}
	verify(w.t, w.r, v.root, v.m, v.blocks)
	if again, st := update(w.t, w.r, w.db, maptree.UpdateOptions{Volume: v.id, Epoch: v.epoch, Kept: v.epoch, Root: v.root, Blocks: v.blocks}, nil, cs...); again != v.root || st.Written != 0 || st.Dead != 0 {
		w.t.Fatalf("the same changes again made %+v of %+v, %+v after %+v", again, v.root, st, stats)
	}
}

// TestModel runs random updates of several volumes, with snapshots and clones,
// against plain maps. Every snapshot must stay as it was.
func TestModel(t *testing.T) {
	rounds := 150
	if testing.Short() {
		rounds = 40
	}
	w := &world{t: t, rng: newRand(t), db: openDB(t)}
	w.r = maptree.NewReader(w.db, maptree.ReaderOptions{CacheBytes: 2 << 20})
	w.heads = append(w.heads, &volume{id: 1, m: model{}, blocks: 3000})
	for i := range rounds {
		v := w.heads[w.rng.IntN(len(w.heads))]
		w.checkpoint(v)
		switch w.rng.UintN(6) {
		case 0: // snapshot
			w.kept = append(w.kept, v.clone())
			v.epoch = layout.Seq(w.next())
		case 1: // clone of a snapshot
			if len(w.kept) > 0 && len(w.heads) < 5 {
				c := w.kept[w.rng.IntN(len(w.kept))].clone()
				c.id, c.epoch = layout.VolumeID(1+len(w.heads)), 0
				w.heads = append(w.heads, c)
			}
		}
		if i%10 == 0 {
			// Half of the time with nothing cached.
			if w.rng.UintN(2) == 0 {
				w.r = maptree.NewReader(w.db, maptree.ReaderOptions{CacheBytes: 1})
			}
			for _, s := range w.kept {
				verifyRuns(t, w.r, s.root, s.m, 0, s.blocks)
			}
		}
	}
	w.exclusive()
	w.diffs()
	w.noOrphans()
	fresh := maptree.NewReader(w.db, maptree.ReaderOptions{CacheBytes: 1})
	for _, v := range append(w.kept, w.heads...) {
		verify(t, fresh, v.root, v.m, v.blocks)
		for range 20 {
			from := w.rng.Uint64N(v.blocks)
			verifyRuns(t, w.r, v.root, v.m, from, from+w.rng.Uint64N(v.blocks))
		}
	}
}

func (w *world) nodes(root maptree.Root) map[maptree.NodeID]bool {
	ids := map[maptree.NodeID]bool{}
	for _, id := range nodesOf(w.t, w.r, root) {
		ids[id] = true
	}
	return ids
}

// exclusive checks what is said to come free with a snapshot against the sets
// of all blocks and nodes.
func (w *world) exclusive() {
	all := append(slices.Clone(w.kept), w.heads...)
	for i, v := range all {
		var others []maptree.Root
		refs, ids := map[uint64]layout.BlockRef{}, w.nodes(v.root)
		for b, at := range v.m {
			if at.kind == layout.Data {
				refs[b] = at.ref
			}
		}
		for j, other := range all {
			if j == i || w.rng.UintN(3) == 0 {
				continue
			}
			others = append(others, other.root)
			for b, at := range other.m {
				if at.kind == layout.Data && refs[b] == at.ref {
					delete(refs, b)
				}
			}
			for id := range w.nodes(other.root) {
				delete(ids, id)
			}
		}
		var from uint64
		if w.rng.UintN(2) == 0 {
			from = w.rng.Uint64N(v.blocks)
		}
		maps.DeleteFunc(refs, func(b uint64, _ layout.BlockRef) bool { return b < from })
		maps.DeleteFunc(ids, func(id maptree.NodeID, _ bool) bool { return (id.Index+1)<<maptree.Shift(id.Level) <= from })
		err := w.r.Exclusive(context.Background(), v.root, others, maptree.ExclusiveOptions{
			From: layout.BlockNo(from),
			Ref: func(b layout.BlockNo, ref *layout.BlockRef) error {
				if refs[uint64(b)] != *ref {
					return fmt.Errorf("block %d, %v is not exclusive", b, *ref)
				}
				delete(refs, uint64(b))
				return nil
			},
			Node: func(id maptree.NodeID) error {
				if !ids[id] {
					return fmt.Errorf("node %v is not exclusive", id)
				}
				delete(ids, id)
				for b := range refs {
					if b>>maptree.Shift(id.Level) == id.Index {
						return fmt.Errorf("node %v came before its block %d", id, b)
					}
				}
				return nil
			},
		})
		if err != nil || len(refs) != 0 || len(ids) != 0 {
			w.t.Fatalf("%d of %d blocks and %d nodes missed: %v", len(refs), len(v.m), len(ids), err)
		}
	}
}

// diffs compares pairs of trees, whole and in part.
func (w *world) diffs() {
	all := append(slices.Clone(w.kept), w.heads...)
	for range 200 {
		a, b := all[w.rng.IntN(len(all))], all[w.rng.IntN(len(all))]
		blocks := max(a.blocks, b.blocks)
		from := w.rng.Uint64N(blocks)
		to := from + 1 + w.rng.Uint64N(blocks)
		if w.rng.UintN(2) == 0 {
			from, to = 0, blocks+10
		}
		at, last := from, -1
		err := w.r.Diff(context.Background(), a.root, b.root, layout.BlockNo(from), layout.BlockNo(to), func(start layout.BlockNo, n uint64, differs bool) bool {
			kind := 0
			if differs {
				kind = 1
			}
			if uint64(start) != at || n == 0 || kind == last {
				w.t.Fatalf("run %d+%d %v behind %d", start, n, differs, at)
			}
			last = kind
			for ; at < uint64(start)+n; at++ {
				x, y := a.m[at], b.m[at]
				want := (x.kind == layout.Data || y.kind == layout.Data) && x != y
				if want != differs {
					w.t.Fatalf("block %d: %+v and %+v, differs %v", at, x, y, differs)
				}
			}
			return true
		})
		if err != nil || at != to {
			w.t.Fatalf("%d of [%d, %d): %v", at, from, to, err)
		}
	}
}

// noOrphans checks that every stored node is reached by a head or a snapshot,
// or is the other slot of one that is.
func (w *world) noOrphans() {
	live := map[maptree.NodeID]bool{}
	reached := map[*volume]map[maptree.NodeID]bool{}
	for _, v := range append(slices.Clone(w.kept), w.heads...) {
		reached[v] = w.nodes(v.root)
		for id := range reached[v] {
			live[id] = true
			id.Gen ^= 1
			live[id] = true
		}
	}
	n := 0
	for _, v := range w.heads {
		if err := w.r.Nodes(v.id, func(id maptree.NodeID) error {
			if n++; !live[id] || id.Owner != v.id {
				return fmt.Errorf("node %v is an orphan", id)
			}
			for _, some := range w.heads {
				if ok, err := w.r.Reaches(some.root, id); err != nil || ok != reached[some][id] {
					return fmt.Errorf("volume %v reaches node %v: %v, %v", some.id, id, ok, err)
				}
			}
			return nil
		}); err != nil {
			w.t.Fatal(err)
		}
	}
	if 2*n < len(live) {
		w.t.Fatalf("%d nodes listed, %d live", n, len(live)/2)
	}
}
