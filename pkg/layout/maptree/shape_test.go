package maptree_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/fsximg/fsx/pkg/layout"
	"github.com/fsximg/fsx/pkg/layout/maptree"
)

type run struct {
	start, n uint64
	kind     layout.Kind
}

func runsOf(t *testing.T, r *maptree.Reader, root maptree.Root, from, to uint64) (runs []run) {
	t.Helper()
	if err := r.Runs(root, layout.BlockNo(from), layout.BlockNo(to), func(start layout.BlockNo, n uint64, kind layout.Kind) bool {
		runs = append(runs, run{uint64(start), n, kind})
		return true
	}); err != nil {
		t.Fatal(err)
	}
	return runs
}

func expectRuns(t *testing.T, r *maptree.Reader, root maptree.Root, to uint64, want ...run) {
	t.Helper()
	if got := runsOf(t, r, root, 0, to); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Fatalf("runs %v, want %v", got, want)
	}
}

// TestHugeVolume: the largest volumes, with ranges of nearly all of them, cost
// a path and no more.
func TestHugeVolume(t *testing.T) {
	for _, blocks := range []uint64{1 << 51, 1<<51 - 1, 1 << 28, 1<<46 + 1} {
		db := openDB(t)
		r := maptree.NewReader(db, maptree.ReaderOptions{})
		o := maptree.UpdateOptions{Volume: 1, Blocks: blocks}
		mid := blocks / 2
		began := time.Now()
		var stats maptree.Stats
		o.Root, stats = update(t, r, db, o, nil, fill(1, blocks-2, layout.Zero))
		if max := uint64(2*maptree.HeightFor(blocks) + 2); stats.Written > max {
			t.Errorf("%d blocks: %d nodes for a range of zeros, more than %d", blocks, stats.Written, max)
		}
		expectRuns(t, r, o.Root, blocks, run{0, 1, layout.Hole}, run{1, blocks - 2, layout.Zero}, run{blocks - 1, 1, layout.Hole})

		o.Root, stats = update(t, r, db, o, nil, data(mid, newRef(1, 1)), fill(mid+1, 5, layout.Hole), data(blocks-1, newRef(1, 2)))
		if max := uint64(3*maptree.HeightFor(blocks) + 3); stats.Written > max || stats.Dead != 0 {
			t.Errorf("%d blocks: %+v for two blocks", blocks, stats)
		}
		expectRuns(t, r, o.Root, blocks, run{0, 1, layout.Hole}, run{1, mid - 1, layout.Zero}, run{mid, 1, layout.Data},
			run{mid + 1, 5, layout.Hole}, run{mid + 6, blocks - mid - 7, layout.Zero}, run{blocks - 1, 1, layout.Data})
		if kind, ref, err := r.Lookup(o.Root, layout.BlockNo(mid)); kind != layout.Data || ref != newRef(1, 1) || err != nil {
			t.Errorf("lookup: %d, %v, %v", kind, ref, err)
		}
		if kind, _, err := r.Lookup(o.Root, layout.BlockNo(blocks)); kind != layout.Hole || err != nil {
			t.Errorf("lookup behind the end: %d, %v", kind, err)
		}

		var dead []layout.BlockRef
		o.Root, stats = update(t, r, db, o, func(ref layout.BlockRef) { dead = append(dead, ref) }, fill(0, blocks, layout.Hole))
		if o.Root != (maptree.Root{Height: maptree.HeightFor(blocks)}) || fmt.Sprint(dead) != fmt.Sprint([]layout.BlockRef{newRef(1, 1), newRef(1, 2)}) {
			t.Errorf("%d blocks: discarding all left %+v, freed %v", blocks, o.Root, dead)
		}
		if err := r.Nodes(1, func(id maptree.NodeID) error { return fmt.Errorf("node %v is left", id) }); err != nil {
			t.Errorf("%d blocks: %v", blocks, err)
		}
		if took := time.Since(began); took > 20*time.Second {
			t.Errorf("%d blocks took %v", blocks, took)
		}
	}
}

// TestResize goes through sizes at which the height changes. Whatever lay
// behind a smaller size is gone for good.
func TestResize(t *testing.T) {
	for _, kind := range []layout.Kind{layout.Hole, layout.Zero, layout.Data} {
		db := openDB(t)
		r := maptree.NewReader(db, maptree.ReaderOptions{})
		m := model{}
		o := maptree.UpdateOptions{Volume: 1, Blocks: 1}
		n := uint64(0)
		for _, blocks := range []uint64{1, 16, 17, 1024, 1025, 16, 15, 2000, 1024, 1, 0, 3000, 3000, 0, 1} {
			for b := range m {
				if b >= blocks {
					delete(m, b)
				}
			}
			var cs []maptree.Change
			for b := uint64(0); b < blocks; b++ {
				if _, ok := m[b]; ok || kind == layout.Hole {
					continue
				}
				c := fill(b, 1, kind)
				if kind == layout.Data {
					n++
					c.Ref = newRef(1, n)
				}
				m[b] = mapping{kind, c.Ref}
				cs = append(cs, c)
			}
			o.Blocks = blocks
			o.Root, _ = update(t, r, db, o, nil, cs...)
			if o.Root.Height != maptree.HeightFor(blocks) {
				t.Fatalf("height %d for %d blocks", o.Root.Height, blocks)
			}
			verify(t, r, o.Root, m, blocks)
			// The same without changes, and a bigger size: only holes appear.
			o.Blocks = 70000
			big, _ := update(t, r, db, o, nil)
			verifyRuns(t, r, big, m, 0, 70000)
			o.Root, o.Blocks = big, blocks
			o.Root, _ = update(t, r, db, o, nil)
			verify(t, r, o.Root, m, blocks)
		}
	}
}

// TestCacheTurnover reads and updates a tree several times the size of its cache.
func TestCacheTurnover(t *testing.T) {
	const blocks = 80_000
	db := openDB(t)
	r := maptree.NewReader(db, maptree.ReaderOptions{CacheBytes: 1})
	rng := newRand(t)
	m := make([]uint64, blocks)
	o := maptree.UpdateOptions{Volume: 1, Blocks: blocks}
	for round := range uint64(3) {
		var cs []maptree.Change
		for b := rng.Uint64N(3); b < blocks; b += 1 + rng.Uint64N(1+round*8) {
			m[b] = round<<32 | b | 1<<40
			cs = append(cs, data(b, newRef(1, m[b])))
		}
		o.Root, _ = update(t, r, db, o, nil, cs...)
		for range 30_000 {
			b := rng.Uint64N(blocks)
			if rng.UintN(2) == 0 {
				b %= 5000 // stays in the cache
			}
			kind, ref, err := r.Lookup(o.Root, layout.BlockNo(b))
			if err != nil {
				t.Fatal(err)
			}
			if want := m[b]; want == 0 && kind != layout.Hole || want != 0 && (kind != layout.Data || ref != newRef(1, want)) {
				t.Fatalf("block %d: %d %v, want %x", b, kind, ref, want)
			}
		}
		if n, err := maptree.CheckCache(r); err != nil || n < 1000 {
			t.Fatalf("cache of %d nodes: %v", n, err)
		}
		if n := r.CacheBytes(); n < 1<<19 || n > 1<<20+1<<18 {
			t.Fatalf("the cache takes %d bytes", n)
		}
	}
}

// TestLookupAllocatesNothing holds for cached nodes.
func TestLookupAllocatesNothing(t *testing.T) {
	db, root := sample(t)
	r := maptree.NewReader(db, maptree.ReaderOptions{})
	if n := testing.AllocsPerRun(100, func() {
		for _, b := range []layout.BlockNo{1, 2, 20, 500, 1040, 3000, 4999, 100000} {
			if _, _, err := r.Lookup(root, b); err != nil {
				t.Fatal(err)
			}
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestCancel(t *testing.T) {
	db := openDB(t)
	r := maptree.NewReader(db, maptree.ReaderOptions{})
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, _, err := r.Update(ctx, maptree.UpdateOptions{Volume: 1, Blocks: 1 << 20}, &every{n: 1 << 20}, discard{}, nil)
	if err == nil || ctx.Err() == nil {
		t.Fatal("a cancelled update went on")
	}
}

// FuzzNode: what the decoder accepts encodes to the same bytes.
func FuzzNode(f *testing.F) {
	ref := bytes.Repeat([]byte{1}, 29)
	child := bytes.Repeat([]byte{2}, 44)
	f.Add([]byte("L\x00\x00\x01\x00\x02"+string(ref)), uint8(0))
	f.Add([]byte("L\x00\x00\x00\x00\x02"), uint8(0))
	f.Add([]byte("L\x00\x00\x00\xff\xff"), uint8(0))
	f.Add([]byte("I\x03\x80\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x02"+string(child)+string(child)), uint8(3))
	f.Add([]byte("I\x01\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\xff\xff\xff\xff\xff\xff"), uint8(1))
	f.Fuzz(func(t *testing.T, b []byte, level uint8) {
		if out, ok := maptree.Recode(b, level); ok && !bytes.Equal(out, b) {
			t.Fatalf("%x at level %d became %x", b, level, out)
		} else if !ok && out != nil {
			t.Fatalf("accepted a node that must not be stored: %x", b)
		}
	})
}

// TestDecoderRejects tries every single-bit change of the header of good nodes
// and every other length.
func TestDecoderRejects(t *testing.T) {
	ref, child := bytes.Repeat([]byte{1}, 29), bytes.Repeat([]byte{2}, 44)
	for _, c := range []struct {
		b      []byte
		level  uint8
		header int
	}{
		{[]byte("L\x00\x00\x01\x00\x02" + string(ref)), 0, 4},
		{[]byte("I\x03\x80\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x02" + string(child) + string(child)), 3, 10},
	} {
		if out, ok := maptree.Recode(c.b, c.level); !ok || !bytes.Equal(out, c.b) {
			t.Fatalf("good node refused: %x", c.b)
		}
		for i := range 8 * c.header {
			bad := bytes.Clone(c.b)
			bad[i/8] ^= 1 << (i % 8)
			if _, ok := maptree.Recode(bad, c.level); ok {
				t.Errorf("accepted %x", bad)
			}
		}
		for n := range len(c.b) {
			if _, ok := maptree.Recode(c.b[:n], c.level); ok {
				t.Errorf("accepted %d bytes of %x", n, c.b)
			}
		}
		if _, ok := maptree.Recode(append(bytes.Clone(c.b), 0), c.level); ok {
			t.Error("accepted trailing bytes")
		}
		if _, ok := maptree.Recode(c.b, c.level+1); ok {
			t.Error("accepted a node of another level")
		}
		noOwner := bytes.Clone(c.b)
		copy(noOwner[map[uint8]int{0: 6, 3: 18}[c.level]:], make([]byte, 4))
		if _, ok := maptree.Recode(noOwner, c.level); ok {
			t.Error("accepted owner 0")
		}
	}
	for _, bad := range []string{"L\x00\x00\x00\x00\x00", "L\x00\x00\x00\xff\xff"} {
		if _, ok := maptree.Recode([]byte(bad), 0); ok {
			t.Errorf("accepted %x", bad)
		}
	}
	rng := rand.New(rand.NewPCG(1, 1))
	junk := make([]byte, 500)
	for range 1000 {
		for i := range junk {
			junk[i] = byte(rng.Uint32())
		}
		maptree.Recode(junk[:rng.IntN(len(junk))], uint8(rng.UintN(10)))
	}
}
