package volume_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/fsximg/fsx/internal/vfs/faultfs"
	"github.com/fsximg/fsx/internal/volume"
)

// flushed is what a later recovery must not fall behind.
func (c *cells) flushed() []uint32 {
	l := make([]uint32, len(c.done))
	for i := range l {
		l[i] = c.done[i].Load()
	}
	return l
}

// recovered takes a volume over that was recovered: every cell has a version
// since the last flush, and that is its version from now on.
func (c *cells) recovered(t *testing.T, v *volume.Volume, since []uint32) {
	t.Helper()
	c.v = v
	p := make([]byte, 1<<20)
	for i := 0; i < len(since); i++ {
		if i%2048 == 0 {
			if err := v.ReadAt(p[:min(1<<20, (len(since)-i)*cell)], int64(i)*cell, false); err != nil {
				t.Fatal(err)
			}
		}
		content := p[i%2048*cell : (i%2048+1)*cell]
		hi := c.started[i].Load()
		if err := checkCell(content, int64(i), since[i], hi); err != nil {
			t.Error("after recovery: ", err)
		}
		if hi != since[i] {
			// It may be any of them; the versions to come are above.
			c.done[i].Store(hi)
			now := uint32(0)
			for version := since[i]; version <= hi; version++ {
				if checkCell(content, int64(i), version, version) == nil {
					now = version
				}
			}
			c.done[i].Store(now)
			c.started[i].Store(now)
		}
	}
}

// TestFailedLog makes a write or a sync of the log fail. The volume turns
// read-only and says so, whatever is tried; reads go on; the next process
// recovers everything that was flushed.
func TestFailedLog(t *testing.T) {
	watchdog(t, 6*time.Minute)
	seed := seedOf(t)
	for name, rule := range map[string]faultfs.Rule{
		"sync":  {Ops: []faultfs.Op{faultfs.Sync}, Path: "*.seg", Err: syscall.EIO, Count: 1},
		"write": {Ops: []faultfs.Op{faultfs.Write}, Path: "*.seg", Err: syscall.EIO, Count: 1},
		"torn":  {Ops: []faultfs.Op{faultfs.Write}, Path: "*.seg", Torn: true, Count: 1},
	} {
		t.Run(name, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 7))
			const size = 8 << 20
			d := newDisk(t, busy, faultfs.Options{DropOnFailedSync: true, Seed: seed})
			s := d.create(t, size)
			c := newCells(mainVolume(t, s))
			random := func() error {
				n := 1 + rng.Int64N(64)
				return c.write(rng, rng.Int64N(size/cell-n), n)
			}
			for round := range 6 {
				for range 100 {
					if err := random(); err != nil {
						t.Fatal(err)
					}
				}
				flush(t, c.v)
				since := c.flushed()
				rule.Skip = rng.IntN(20)
				armed := d.Arm(rule)
				for ok, tries := true, 0; ok; tries++ {
					if tries == 5000 {
						t.Fatalf("round %d: nothing failed", round)
					}
					if random() != nil {
						ok = c.v.Flush() == nil
					} else if rng.IntN(10) == 0 {
						before := c.flushed()
						if ok = c.v.Flush() == nil; ok {
							since = before
						}
					}
					if armed.Fired() > 0 && tries%100 == 0 {
						armed = d.Arm(rule) // it met a compaction
					}
				}
				d.DisarmAll()
				for range 3 {
					if err := c.v.Flush(); err == nil {
						t.Fatal("a flush after the failure succeeds")
					}
					if err := c.v.WriteAt(make([]byte, 512), 0, false); err == nil {
						t.Fatal("a write after the failure succeeds")
					}
				}
				c.mayBeNewer(t, since)
				if err := s.Close(); err == nil {
					t.Error("closing after the failure tells nothing")
				}
				s = openWith(t, d.path, d.o)
				c.recovered(t, mainVolume(t, s), since)
				checkClean(t, s)
			}
			closeStore(t, s)
		})
	}
}

// mayBeNewer reads everything of a volume whose log failed. A block that was
// written since the last flush may be lost, and is an error then.
func (c *cells) mayBeNewer(t *testing.T, since []uint32) {
	t.Helper()
	p := make([]byte, cell)
	for i := range since {
		if err := c.v.ReadAt(p, int64(i)*cell, false); err != nil {
			if !c.writtenSince(i/blockCells, since) || !errors.Is(err, syscall.EIO) {
				t.Fatal(err)
			}
			continue
		}
		if err := checkCell(p, int64(i), since[i], c.started[i].Load()); err != nil {
			t.Error("after the failure: ", err)
		}
	}
}

func (c *cells) writtenSince(block int, since []uint32) bool {
	for i := block * blockCells; i < (block+1)*blockCells; i++ {
		if c.started[i].Load() != since[i] {
			return true
		}
	}
	return false
}

// TestCloseWhileBusy closes a store under full load. Every call succeeds or
// says that the volume is closed, and what was acknowledged is there.
func TestCloseWhileBusy(t *testing.T) {
	watchdog(t, 6*time.Minute)
	seed := seedOf(t)
	const size, workers = 8 << 20, 6
	path := filepath.Join(fastDir(t), "s.fsx")
	s := createBusy(t, path, size, busy)
	c := newCells(mainVolume(t, s))
	rounds := 12
	if testing.Short() {
		rounds = 4
	}
	for round := range rounds {
		rng := rand.New(rand.NewPCG(seed, uint64(round)))
		var wg sync.WaitGroup
		for w := range int64(workers) {
			wg.Add(1)
			rng := rand.New(rand.NewPCG(rng.Uint64(), uint64(w)))
			go func() {
				defer wg.Done()
				for {
					err := c.anything(rng, s, w, workers)
					if errors.Is(err, volume.ErrClosed) {
						return
					}
					if err != nil {
						t.Errorf("worker %d: %v", w, err)
						return
					}
				}
			}()
		}
		time.Sleep(time.Duration(rng.IntN(150)) * time.Millisecond)
		closeStore(t, s)
		if err := s.Close(); err != nil {
			t.Errorf("closing again: %v", err)
		}
		wg.Wait()
		if err := c.v.Flush(); !errors.Is(err, volume.ErrClosed) {
			t.Errorf("flush of a closed volume: %v", err)
		}
		since := c.flushed()
		s = openBusy(t, path, busy)
		c.recovered(t, mainVolume(t, s), since)
		checkClean(t, s)
	}
	closeStore(t, s)
}

// anything does one operation to the part of the volume that is the worker's.
func (c *cells) anything(rng *rand.Rand, s *volume.Store, worker, workers int64) error {
	own := int64(len(c.done)) / workers
	n := 1 + rng.Int64N(100)
	first := worker*own + rng.Int64N(own-n)
	switch k := rng.IntN(100); {
	case k < 60:
		return c.write(rng, first, n)
	case k < 65:
		return c.zero(rng, first, n)
	case k < 85:
		return c.read(rng, first, n)
	case k < 90:
		return c.v.Flush()
	case k < 93:
		return c.v.Status(first*cell, n*cell, func(int64, bool, bool) bool { return true })
	case k < 95:
		return c.v.Checkpoint(context.Background())
	case k < 96:
		_, err := s.Compact(context.Background())
		return err
	case k < 97:
		_, err := s.Info()
		return err
	case k < 98:
		_, err := s.Check(context.Background(), volume.CheckOptions{})
		return err
	}
	return s.Map("main", "", func(volume.Run) bool { return true })
}
