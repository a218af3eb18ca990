package maptree_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/fsximg/fsx/pkg/layout"
	"github.com/fsximg/fsx/pkg/layout/maptree"
	"github.com/fsximg/fsx/pkg/layout/metadb"
)

func put(t *testing.T, db *metadb.DB, key, val []byte) {
	t.Helper()
	if err := db.Update(func(txn *metadb.Txn) error {
		if val == nil {
			return txn.Delete(key)
		}
		return txn.Set(key, val)
	}); err != nil {
		t.Fatal(err)
	}
}

// sample is a small tree of three levels, with data, zeros and holes.
func sample(t *testing.T) (*metadb.DB, maptree.Root) {
	db := openDB(t)
	r := maptree.NewReader(db, maptree.ReaderOptions{})
	root, _ := update(t, r, db, maptree.UpdateOptions{Volume: 1, Blocks: 5000}, nil,
		data(1, newRef(1, 1)), data(20, newRef(1, 2)), fill(21, 900, layout.Zero), data(1040, newRef(1, 3)), data(4999, newRef(1, 4)))
	return db, root
}

func nodesOf(t *testing.T, r *maptree.Reader, root maptree.Root) (ids []maptree.NodeID) {
	t.Helper()
	if err := r.Verify(context.Background(), root, maptree.VerifyOptions{Node: func(id maptree.NodeID, _ layout.Hash) bool {
		ids = append(ids, id)
		return true
	}}); err != nil {
		t.Fatal(err)
	}
	return ids
}

// TestDamage breaks every node in several ways. Whatever needs the node must
// say so and name it, and nothing else may fail.
func TestDamage(t *testing.T) {
	db, root := sample(t)
	ids := nodesOf(t, maptree.NewReader(db, maptree.ReaderOptions{}), root)
	if len(ids) != 9 {
		t.Fatalf("%d nodes", len(ids))
	}
	for _, id := range ids {
		good, err := db.GetAppend(id.Key(), nil)
		if err != nil {
			t.Fatal(err)
		}
		flipped := slices.Clone(good)
		flipped[len(flipped)-1] ^= 1
		for name, bad := range map[string][]byte{
			"missing": nil, "flipped": flipped, "short": good[:len(good)-1], "long": append(slices.Clone(good), 0), "empty": {},
		} {
			put(t, db, id.Key(), bad)
			checkDamage(t, maptree.NewReader(db, maptree.ReaderOptions{}), root, id, name)
		}
		put(t, db, id.Key(), good)
	}
}

func checkDamage(t *testing.T, r *maptree.Reader, root maptree.Root, id maptree.NodeID, name string) {
	t.Helper()
	ctx := context.Background()
	expect := func(op string, err error) {
		t.Helper()
		var damage *maptree.NodeError
		if !errors.Is(err, maptree.ErrDamaged) || !errors.As(err, &damage) || damage.NodeID != id {
			t.Errorf("%s: %s of %v: %v", name, op, id, err)
		}
	}
	lo := id.Index << maptree.Shift(id.Level)
	hi := min(5000, lo+1<<maptree.Shift(id.Level))
	for _, b := range []uint64{1, 20, 1040, 4999} {
		_, _, err := r.Lookup(root, layout.BlockNo(b))
		if b >= lo && b < hi {
			expect("lookup", err)
		} else if err != nil {
			t.Errorf("lookup beside the damage: %v", err)
		}
	}
	any := func(layout.BlockNo, uint64, layout.Kind, *layout.BlockRef) bool { return true }
	expect("walk", r.Walk(root, 0, 5000, any))
	if lo > 0 {
		if err := r.Walk(root, 0, layout.BlockNo(lo), any); err != nil {
			t.Errorf("walk before the damage: %v", err)
		}
	}
	expect("verify", r.Verify(ctx, root, maptree.VerifyOptions{}))
	expect("exclusive", r.Exclusive(ctx, root, nil, maptree.ExclusiveOptions{}))
	found := 0
	if err := r.Verify(ctx, root, maptree.VerifyOptions{Damage: func(e *maptree.NodeError) error {
		expect("verify on", e)
		found++
		return nil
	}}); err != nil || found != 1 {
		t.Errorf("verify past the damage: %d found, %v", found, err)
	}
	for _, c := range []maptree.Change{fill(0, 5000, layout.Hole), data(hi-1, newRef(1, 99))} {
		_, _, err := r.Update(ctx, maptree.UpdateOptions{Volume: 1, Root: root, Blocks: 5000}, &changes{c}, discard{}, func(layout.BlockRef) error { return nil })
		expect("update", err)
	}
}

// TestNodeSwap: a node that is valid elsewhere is not accepted here.
func TestNodeSwap(t *testing.T) {
	db, root := sample(t)
	ids := nodesOf(t, maptree.NewReader(db, maptree.ReaderOptions{}), root)
	for _, a := range ids {
		good, err := db.GetAppend(a.Key(), nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range ids {
			if a == b {
				continue
			}
			other, err := db.GetAppend(b.Key(), nil)
			if err != nil {
				t.Fatal(err)
			}
			put(t, db, a.Key(), other)
			checkDamage(t, maptree.NewReader(db, maptree.ReaderOptions{}), root, a, "swapped")
		}
		put(t, db, a.Key(), good)
	}
}

// TestRootMismatch: what the head says of its root is checked too.
func TestRootMismatch(t *testing.T) {
	db, root := sample(t)
	for name, change := range map[string]func(*maptree.Root){
		"hash":   func(r *maptree.Root) { r.Hash[31] ^= 1 },
		"owner":  func(r *maptree.Root) { r.Owner++ },
		"gen":    func(r *maptree.Root) { r.Gen++ },
		"height": func(r *maptree.Root) { r.Height++ },
		"lower":  func(r *maptree.Root) { r.Height-- },
		"tall":   func(r *maptree.Root) { r.Height = maptree.MaxHeight + 1 },
		"huge":   func(r *maptree.Root) { r.Height = 255 },
	} {
		bad := root
		change(&bad)
		r := maptree.NewReader(db, maptree.ReaderOptions{})
		if _, _, err := r.Lookup(bad, 1); !errors.Is(err, maptree.ErrDamaged) {
			t.Errorf("%s: lookup: %v", name, err)
		}
		if err := r.Runs(bad, 0, 10, func(layout.BlockNo, uint64, layout.Kind) bool { return true }); !errors.Is(err, maptree.ErrDamaged) {
			t.Errorf("%s: runs: %v", name, err)
		}
		if err := r.Verify(context.Background(), bad, maptree.VerifyOptions{}); !errors.Is(err, maptree.ErrDamaged) {
			t.Errorf("%s: verify: %v", name, err)
		}
		if err := r.Exclusive(context.Background(), bad, nil, maptree.ExclusiveOptions{}); !errors.Is(err, maptree.ErrDamaged) {
			t.Errorf("%s: exclusive: %v", name, err)
		}
		if _, _, err := r.Update(context.Background(), maptree.UpdateOptions{Volume: 1, Root: bad, Blocks: 5000}, &changes{data(1, newRef(1, 9))}, discard{}, func(layout.BlockRef) error { return nil }); !errors.Is(err, maptree.ErrDamaged) {
			t.Errorf("%s: update: %v", name, err)
		}
	}
}

// TestReadersDuringUpdates: a reader that starts again whenever the root has
// moved never sees anything but what the root it used says.
func TestReadersDuringUpdates(t *testing.T) {
	const blocks, rounds = 5000, 40
	db := openDB(t)
	r := maptree.NewReader(db, maptree.ReaderOptions{CacheBytes: 1})
	type head struct {
		root  maptree.Root
		round uint64
	}
	var current atomic.Pointer[head]
	root, _ := update(t, r, db, maptree.UpdateOptions{Volume: 1, Blocks: blocks}, nil)
	current.Store(&head{root: root})
	done := make(chan struct{})
	var wg sync.WaitGroup
	for i := range 3 {
		wg.Go(func() {
			for b := uint64(i); ; b = (b + 1021) % blocks {
				select {
				case <-done:
					return
				default:
				}
				h := current.Load()
				kind, ref, err := r.Lookup(h.root, layout.BlockNo(b))
				switch {
				case err != nil && current.Load() != h:
					// Given up while it was used; the next turn takes the new one.
				case err != nil:
					t.Errorf("lookup: %v", err)
					return
				case h.round == 0 && kind != layout.Hole, h.round > 0 && (kind != layout.Data || ref != newRef(1, h.round<<32|b)):
					t.Errorf("block %d in round %d: %d %v", b, h.round, kind, ref)
					return
				}
			}
		})
	}
	for round := uint64(1); round <= rounds; round++ {
		cs := make([]maptree.Change, blocks)
		for b := range cs {
			cs[b] = data(uint64(b), newRef(1, round<<32|uint64(b)))
		}
		root, _ = update(t, r, db, maptree.UpdateOptions{Volume: 1, Root: root, Blocks: blocks}, nil, cs...)
		current.Store(&head{root, round})
	}
	close(done)
	wg.Wait()
}

// TestGivenUpRoot: a root from before the last two updates gives the old block
// or ErrDamaged, never a newer one.
func TestGivenUpRoot(t *testing.T) {
	const blocks = 5000
	db := openDB(t)
	r := maptree.NewReader(db, maptree.ReaderOptions{})
	o := maptree.UpdateOptions{Volume: 1, Blocks: blocks}
	var roots []maptree.Root
	for round := range uint64(4) {
		var cs []maptree.Change
		for b := uint64(0); b < blocks; b += 1 + 40*(round%3) {
			cs = append(cs, data(b, newRef(1, round<<32|b)))
		}
		o.Root, _ = update(t, r, db, o, nil, cs...)
		roots = append(roots, o.Root)
	}
	for _, r := range []*maptree.Reader{r, maptree.NewReader(db, maptree.ReaderOptions{})} {
		damaged := 0
		for b := range uint64(blocks) {
			_, ref, err := r.Lookup(roots[0], layout.BlockNo(b))
			if errors.Is(err, maptree.ErrDamaged) {
				damaged++
			} else if err != nil || ref != newRef(1, b) {
				t.Fatalf("block %d of the first root: %v, %v", b, ref, err)
			}
			// The last root but one is still whole.
			if _, _, err := r.Lookup(roots[2], layout.BlockNo(b)); err != nil {
				t.Fatal(err)
			}
		}
		t.Logf("%d of %d blocks of a given up root are damaged", damaged, blocks)
		if damaged == 0 {
			t.Error("no node was overwritten")
		}
	}
}
