package maptree_test

import (
	"context"
	"math/rand/v2"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/fsximg/fsx/pkg/layout"
	"github.com/fsximg/fsx/pkg/layout/maptree"
	"github.com/fsximg/fsx/pkg/layout/metadb"
)

const (
	blocks4G  = 4 << 30 / layout.BlockSize
	blocks10G = 10 << 30 / layout.BlockSize
)

// every maps the first n blocks.
type every struct{ at, n uint64 }

func (e *every) Next(c *maptree.Change) (bool, error) {
	if e.at == e.n {
		return false, nil
	}
	*c = data(e.at, newRef(1, e.at))
	e.at++
	return true, nil
}

// these maps the given blocks.
type these struct {
	at []uint64
	n  uint64
}

func (e *these) Next(c *maptree.Change) (bool, error) {
	if len(e.at) == 0 {
		return false, nil
	}
	*c = data(e.at[0], newRef(1, e.n))
	e.at, e.n = e.at[1:], e.n+1
	return true, nil
}

// cpuTime is the processor time of this process so far. On a shared machine it
// says more than the time on the wall.
func cpuTime() time.Duration {
	var ru syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &ru); err != nil {
		panic(err)
	}
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}

func mustUpdate(b *testing.B, r *maptree.Reader, db *metadb.DB, root maptree.Root, blocks uint64, it maptree.Iterator) (maptree.Root, maptree.Stats) {
	batch := db.NewBatch()
	root, stats, err := r.Update(context.Background(), maptree.UpdateOptions{Volume: 1, Root: root, Blocks: blocks}, it, batch, func(layout.BlockRef) error { return nil })
	if err != nil {
		b.Fatal(err)
	}
	if err := batch.Flush(); err != nil {
		b.Fatal(err)
	}
	return root, stats
}

// BenchmarkLookupCached is a random block of a fully written 4 GiB volume whose
// map is in memory; "other-root" mostly without shortcuts, "uncached" from Badger.
func BenchmarkLookupCached(b *testing.B) {
	db := openDB(b)
	r := maptree.NewReader(db, maptree.ReaderOptions{})
	root, _ := mustUpdate(b, r, db, maptree.Root{}, blocks4G, &every{n: blocks4G})
	lookup := func(b *testing.B, r *maptree.Reader, rng *rand.Rand) {
		block := layout.BlockNo(rng.Uint64N(blocks4G))
		if kind, _, err := r.Lookup(root, block); kind != layout.Data || err != nil {
			b.Fatal(kind, err)
		}
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for at := layout.BlockNo(0); at < blocks4G; at += maptree.LeafBlocks {
		if _, _, err := r.Lookup(root, at); err != nil {
			b.Fatal(err)
		}
	}
	b.Run("shortcut", func(b *testing.B) {
		b.ReportAllocs()
		cpu := cpuTime()
		for b.Loop() {
			lookup(b, r, rng)
		}
		b.ReportMetric(float64(cpuTime()-cpu)/float64(b.N), "cpu-ns/op")
		b.ReportMetric(float64(r.CacheBytes())/(1<<20), "MiB")
	})
	b.Run("parallel", func(b *testing.B) {
		b.RunParallel(func(pb *testing.PB) {
			rng := rand.New(rand.NewPCG(1, rand.Uint64()))
			for pb.Next() {
				lookup(b, r, rng)
			}
		})
	})
	b.Run("rng", func(b *testing.B) {
		for b.Loop() {
			rng.Uint64N(blocks4G)
		}
	})
	b.Run("uncached", func(b *testing.B) {
		b.ReportAllocs()
		r := maptree.NewReader(db, maptree.ReaderOptions{CacheBytes: 8 << 20})
		for b.Loop() {
			lookup(b, r, rng)
		}
	})
	b.Run("other-root", func(b *testing.B) {
		// Alternating checkpoints of one block: every lookup's root is new to
		// most leaves' shards.
		other := root
		for n := 0; b.Loop(); n++ {
			if n%1000 == 0 {
				b.StopTimer()
				other, _ = mustUpdate(b, r, db, other, blocks4G, &these{[]uint64{rng.Uint64N(blocks4G)}, rng.Uint64()})
				b.StartTimer()
			}
			if kind, _, err := r.Lookup(other, layout.BlockNo(rng.Uint64N(blocks4G))); kind != layout.Data || err != nil {
				b.Fatal(kind, err)
			}
		}
	})
}

// BenchmarkUpdateRandom1M is a checkpoint of a million random blocks into a
// fully mapped 10 GiB volume.
func BenchmarkUpdateRandom1M(b *testing.B) {
	db := openDB(b)
	r := maptree.NewReader(db, maptree.ReaderOptions{})
	start := time.Now()
	root, stats := mustUpdate(b, r, db, maptree.Root{}, blocks10G, &every{n: blocks10G})
	b.Logf("mapping 10 GiB: %v, %d nodes", time.Since(start), stats.Written)
	rng := rand.New(rand.NewPCG(1, 3))
	var nodes uint64
	cpu := cpuTime()
	for b.Loop() {
		b.StopTimer()
		at := make([]uint64, 1_000_000)
		for i := range at {
			at[i] = rng.Uint64N(blocks10G)
		}
		slices.Sort(at)
		at = slices.Compact(at)
		b.StartTimer()
		root, stats = mustUpdate(b, r, db, root, blocks10G, &these{at, rng.Uint64()})
		nodes += stats.Written
	}
	b.ReportMetric(float64(cpuTime()-cpu)/float64(nodes)/1e3, "cpu-us/node")
	b.ReportMetric(float64(nodes)/b.Elapsed().Seconds(), "nodes/s")
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	b.ReportMetric(float64(m.Sys)/(1<<20), "MiB-sys")
	size, _ := db.Size()
	b.ReportMetric(float64(size)/(1<<20), "MiB-disk")
}

// discard is a writer that writes nothing: the CPU of an update by itself.
type discard struct{}

func (discard) Set(key, val []byte) error { return nil }

// BenchmarkUpdateDense is the time for a block when whole leaves change.
func BenchmarkUpdateDense(b *testing.B) {
	db := openDB(b)
	r := maptree.NewReader(db, maptree.ReaderOptions{})
	root, _ := mustUpdate(b, r, db, maptree.Root{}, blocks4G, &every{n: blocks4G})
	b.ReportAllocs()
	b.ResetTimer()
	for n := 0; n < b.N; n += blocks4G {
		it := &every{n: min(uint64(b.N-n), blocks4G)}
		if _, _, err := r.Update(context.Background(), maptree.UpdateOptions{Volume: 1, Epoch: 1, Kept: 1, Root: root, Blocks: blocks4G}, it, discard{}, func(layout.BlockRef) error { return nil }); err != nil {
			b.Fatal(err)
		}
	}
}
