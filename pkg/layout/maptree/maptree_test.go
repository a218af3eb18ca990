package maptree_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/fsximg/fsx/pkg/layout"
	"github.com/fsximg/fsx/pkg/layout/maptree"
	"github.com/fsximg/fsx/pkg/layout/metadb"
)

var seedFlag = flag.Uint64("seed", 0, "seed of random tests (0: a new one)")

func newRand(t testing.TB) *rand.Rand {
	seed := *seedFlag
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("-seed %d", seed)
	return rand.New(rand.NewPCG(seed, 1))
}

func openDB(t testing.TB) *metadb.DB {
	t.Helper()
	db, err := metadb.Open(t.TempDir(), metadb.Options{Create: true, MinFree: -1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

// changes is an Iterator over a slice.
type changes []maptree.Change

func (c *changes) Next(out *maptree.Change) (bool, error) {
	if len(*c) == 0 {
		return false, nil
	}
	*out = (*c)[0]
	*c = (*c)[1:]
	return true, nil
}

func data(block uint64, ref layout.BlockRef) maptree.Change {
	return maptree.Change{Start: layout.BlockNo(block), N: 1, Kind: layout.Data, Ref: ref}
}

func fill(start, n uint64, kind layout.Kind) maptree.Change {
	return maptree.Change{Start: layout.BlockNo(start), N: n, Kind: kind}
}

func newRef(owner layout.VolumeID, n uint64) (r layout.BlockRef) {
	r.Owner, r.Extent, r.Index = owner, layout.ExtentID(n>>8), uint8(n)
	for i := range r.Tag {
		r.Tag[i] = byte(n >> (i % 8 * 8))
	}
	return r
}

// update applies changes and flushes; obsolete nodes are deleted.
func update(t testing.TB, r *maptree.Reader, db *metadb.DB, o maptree.UpdateOptions, dead func(layout.BlockRef), cs ...maptree.Change) (maptree.Root, maptree.Stats) {
	t.Helper()
	var obsolete [][]byte
	o.Obsolete = func(key []byte) error {
		obsolete = append(obsolete, slices.Clone(key))
		return nil
	}
	b := db.NewBatch()
	it := changes(cs)
	root, stats, err := r.Update(context.Background(), o, &it, b, func(ref layout.BlockRef) error {
		if dead != nil {
			dead(ref)
		}
		return nil
	})
	if err != nil {
		b.Cancel()
		t.Fatal(err)
	}
	if err := b.Flush(); err != nil {
		t.Fatal(err)
	}
	if len(obsolete) > 0 {
		b := db.NewBatch()
		for _, k := range obsolete {
			if err := b.Delete(k); err != nil {
				t.Fatal(err)
			}
		}
		if err := b.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	return root, stats
}

func TestHeights(t *testing.T) {
	for _, c := range []struct {
		blocks uint64
		height uint8
	}{
		{0, 0}, {1, 0}, {16, 0}, {17, 1}, {1024, 1}, {1025, 2}, {65536, 2}, {65537, 3},
		{1 << 22, 3}, {1<<22 + 1, 4}, {1 << 46, 7}, {1<<46 + 1, 8}, {1 << 51, 8}, {1<<51 - 1, 8},
	} {
		if h := maptree.HeightFor(c.blocks); h != c.height {
			t.Errorf("HeightFor(%d) = %d, want %d", c.blocks, h, c.height)
		}
	}
}

func TestKeys(t *testing.T) {
	id := maptree.NodeID{Owner: 0x01020304, Level: 5, Index: 0x1122, Gen: 0x33445566}
	key := id.Key()
	if want := "n\x01\x02\x03\x04\x05\x00\x00\x00\x00\x00\x00\x11\x22\x00\x00\x00\x00\x33\x44\x55\x66"; string(key) != want {
		t.Fatalf("key %x", key)
	}
	if got, ok := maptree.ParseKey(key); !ok || got != id {
		t.Fatalf("parsed %v, %v", got, ok)
	}
	for _, bad := range [][]byte{key[:21], append(slices.Clone(key), 0), {}, maptree.NodeID{Level: 9}.Key(), maptree.NodeID{Level: 8, Index: 1}.Key()} {
		if got, ok := maptree.ParseKey(bad); ok {
			t.Errorf("accepted %x as %v", bad, got)
		}
	}
}

// TestCodec pins the byte maps.
func TestCodec(t *testing.T) {
	db := openDB(t)
	r := maptree.NewReader(db, maptree.ReaderOptions{})
	root, stats := update(t, r, db, maptree.UpdateOptions{Volume: 7, Epoch: 3, Kept: 3, Blocks: 17}, nil,
		data(1, newRef(0x0a0b0c0d, 0x1122334455667788)), fill(2, 2, layout.Zero), data(16, newRef(9, 5)))
	if stats.Written != 3 {
		t.Fatalf("%d nodes written", stats.Written)
	}
	get := func(level uint8, index uint64) []byte {
		b, err := db.GetAppend(maptree.NodeID{Owner: 7, Level: level, Index: index, Gen: 6}.Key(), nil)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	want := "L\x00" + "\x00\x02" + "\x00\x0c" +
		"\x0a\x0b\x0c\x0d" + "\x00\x11\x22\x33\x44\x55\x66\x77" + "\x88" +
		"\x88\x77\x66\x55\x44\x33\x22\x11\x88\x77\x66\x55\x44\x33\x22\x11"
	if got := get(0, 0); string(got) != want {
		t.Errorf("leaf\n%x, want\n%x", got, want)
	}
	sum := func(b []byte) string { h := maptree.HashOf(b); return string(h[:]) }
	child := "\x00\x00\x00\x07" + "\x00\x00\x00\x00\x00\x00\x00\x06"
	want = "I\x01" + "\x00\x00\x00\x00\x00\x00\x00\x03" + "\x00\x00\x00\x00\x00\x00\x00\x00" +
		child + sum(get(0, 0)) + child + sum(get(0, 1))
	if got := get(1, 0); string(got) != want {
		t.Errorf("interior\n%x, want\n%x", got, want)
	}
	if root != (maptree.Root{Kind: layout.Data, Height: 1, Owner: 7, Gen: 6, Hash: maptree.HashOf([]byte(want))}) {
		t.Errorf("root %+v", root)
	}
}

// mapping is what the model holds for a block; a hole is not in the map.
type mapping struct {
	kind layout.Kind
	ref  layout.BlockRef
}

type model map[uint64]mapping

// verify compares a tree with the model in every way to read it.
func verify(t *testing.T, r *maptree.Reader, root maptree.Root, m model, blocks uint64) {
	t.Helper()
	for b := range blocks {
		kind, ref, err := r.Lookup(root, layout.BlockNo(b))
		if err != nil {
			t.Fatalf("lookup %d: %v", b, err)
		}
		if want := m[b]; kind != want.kind || kind == layout.Data && ref != want.ref {
			t.Fatalf("block %d: kind %d ref %v, want %v", b, kind, ref, want)
		}
	}
	verifyRuns(t, r, root, m, 0, blocks+100)
	n := 0
	err := r.Verify(context.Background(), root, maptree.VerifyOptions{Ref: func(b layout.BlockNo, ref *layout.BlockRef) error {
		if n++; m[uint64(b)] != (mapping{layout.Data, *ref}) {
			return fmt.Errorf("block %d is %v", b, *ref)
		}
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range m {
		if v.kind == layout.Data {
			n--
		}
	}
	if n != 0 {
		t.Fatalf("verify saw %d data blocks too many", n)
	}
}

func verifyRuns(t *testing.T, r *maptree.Reader, root maptree.Root, m model, from, to uint64) {
	t.Helper()
	at, last := from, layout.Kind(99)
	err := r.Walk(root, layout.BlockNo(from), layout.BlockNo(to), func(start layout.BlockNo, n uint64, kind layout.Kind, ref *layout.BlockRef) bool {
		if uint64(start) != at || n == 0 || kind == layout.Data && n != 1 || kind == last && kind != layout.Data {
			t.Fatalf("run %d+%d of kind %d after %d", start, n, kind, at)
		}
		for ; at < uint64(start)+n; at++ {
			want := m[at]
			if want.kind != kind || kind == layout.Data && want.ref != *ref {
				t.Fatalf("walk: block %d is %d %v, want %v", at, kind, ref, want)
			}
		}
		last = kind
		return true
	})
	if err != nil || at != max(from, to) {
		t.Fatalf("walk ended at %d: %v", at, err)
	}
	at, last = from, 99
	err = r.Runs(root, layout.BlockNo(from), layout.BlockNo(to), func(start layout.BlockNo, n uint64, kind layout.Kind) bool {
		if uint64(start) != at || n == 0 || kind == last {
			t.Fatalf("run %d+%d of kind %d after %d", start, n, kind, at)
		}
		for ; at < uint64(start)+n; at++ {
			if m[at].kind != kind {
				t.Fatalf("runs: block %d is %d", at, kind)
			}
		}
		last = kind
		return true
	})
	if err != nil || at != max(from, to) {
		t.Fatalf("runs ended at %d: %v", at, err)
	}
}

func TestWalkStops(t *testing.T) {
	db := openDB(t)
	r := maptree.NewReader(db, maptree.ReaderOptions{})
	root, _ := update(t, r, db, maptree.UpdateOptions{Volume: 1, Blocks: 5000}, nil,
		data(1, newRef(1, 1)), data(2, newRef(1, 2)), fill(3, 2000, layout.Zero), data(4000, newRef(1, 3)))
	for stop := 1; stop <= 7; stop++ {
		calls := 0
		if err := r.Walk(root, 0, 5000, func(layout.BlockNo, uint64, layout.Kind, *layout.BlockRef) bool {
			calls++
			return calls < stop
		}); err != nil || calls != stop {
			t.Errorf("walk: %d calls of %d, %v", calls, stop, err)
		}
	}
	calls := 0
	if err := r.Runs(root, 0, 5000, func(layout.BlockNo, uint64, layout.Kind) bool { calls++; return calls < 3 }); err != nil || calls != 3 {
		t.Errorf("runs: %d calls, %v", calls, err)
	}
}

func TestChangesOutOfOrder(t *testing.T) {
	db := openDB(t)
	r := maptree.NewReader(db, maptree.ReaderOptions{})
	for name, cs := range map[string]changes{
		"twice":       {data(1, newRef(1, 1)), data(1, newRef(1, 2))},
		"descending":  {data(2, newRef(1, 1)), data(1, newRef(1, 2))},
		"overlap":     {fill(0, 100, layout.Zero), data(99, newRef(1, 1))},
		"behind end":  {data(1000, newRef(1, 1))},
		"zero behind": {fill(900, 101, layout.Zero)},
		"overflow":    {fill(900, 1<<64-900, layout.Zero)},
		"wide data":   {{Start: 1, N: 2, Kind: layout.Data, Ref: newRef(1, 1)}},
		"kind":        {{Start: 1, N: 1, Kind: 3}},
	} {
		b := db.NewBatch()
		_, _, err := r.Update(context.Background(), maptree.UpdateOptions{Volume: 1, Blocks: 1000}, &cs, b, func(layout.BlockRef) error { return nil })
		b.Cancel()
		if !errors.Is(err, maptree.ErrOrder) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
