package volume_test

import (
	"errors"
	"math/rand/v2"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/fsximg/fsx/internal/vfs/faultfs"
	"github.com/fsximg/fsx/internal/volume"
)

// disk is a store on a file system whose space a test sets. The index's files
// are on the real one, but ask this one whether there is space.
type disk struct {
	*faultfs.FS
	path string
	o    volume.Options
}

func newDisk(t testing.TB, l volume.Limits, o faultfs.Options) *disk {
	t.Helper()
	root := fastDir(t)
	f, err := faultfs.New(root, o)
	if err != nil {
		t.Fatal(err)
	}
	d := &disk{FS: f, path: filepath.Join(root, "s.fsx"), o: options(t)}
	d.o.FS = f
	d.o.SetLimits(l)
	return d
}

func (d *disk) create(t testing.TB, size int64) *volume.Store {
	t.Helper()
	o := createOptions(t, size)
	o.Options = d.o
	s, err := volume.Create(d.path, o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// small reserves let a small disk fill up.
var small = volume.Limits{LogReserve: 3 << 20, IndexReserve: 1 << 20, Overlay: 2000, Log: 8 << 20, Slack: 512}

// fillUp writes single blocks at random until the disk is full, and returns how
// many it wrote.
func fillUp(t testing.TB, c *cells, rng *rand.Rand, most int) int {
	t.Helper()
	blocks := int64(len(c.done)) / blockCells
	for i := range most {
		b := rng.Int64N(blocks)
		if err := c.write(rng, b*blockCells, blockCells); err != nil {
			if !errors.Is(err, syscall.ENOSPC) {
				t.Fatalf("after %d writes: %v", i, err)
			}
			return i
		}
	}
	t.Fatalf("%d blocks did not fill the disk", most)
	return 0
}

// TestFullDisk fills the disk: the write is told, everything acknowledged is
// there, and it goes on when there is space.
func TestFullDisk(t *testing.T) {
	watchdog(t, 6*time.Minute)
	size, rounds := int64(256<<20), 3
	if testing.Short() {
		size, rounds = 96<<20, 1
	}
	rng := rand.New(rand.NewPCG(seedOf(t), 1))
	d := newDisk(t, small, faultfs.Options{})
	s := d.create(t, size)
	v := mainVolume(t, s)
	c := newCells(v)
	for round := range rounds {
		d.Space.SetFree(20 << 20)
		n := fillUp(t, c, rng, 20_000)
		flush(t, v)
		t.Logf("%d blocks until the disk was full", n)
		c.verify(t, v)
		checkClean(t, s)
		if _, err := s.Compact(ctx0); err != nil {
			t.Fatal(err)
		}
		// A part of the volume is trimmed, on the full disk.
		first := int64(round) * (64 << 20) / cell
		if err := c.zero(rng, first, (64<<20)/cell); err != nil {
			t.Fatalf("trim on a full disk: %v", err)
		}
		flush(t, v)
		c.verify(t, v)
		d.Space.SetFree(64 << 20)
		for range 100 {
			if err := c.write(rng, rng.Int64N(1000)*blockCells, blockCells); err != nil {
				t.Fatal(err)
			}
		}
		closeStore(t, s)
		s = openWith(t, d.path, d.o)
		v = mainVolume(t, s)
		c.verify(t, v)
	}
	checkClean(t, s)
	closeStore(t, s)
}

// TestOverwriteOnFullDisk overwrites for ever where there is little more space
// than the volume takes.
func TestOverwriteOnFullDisk(t *testing.T) {
	watchdog(t, 3*time.Minute)
	rng := rand.New(rand.NewPCG(seedOf(t), 1))
	const size = 24 << 20
	times := 6
	if testing.Short() {
		times = 2
	}
	d := newDisk(t, small, faultfs.Options{})
	s := d.create(t, size)
	v := mainVolume(t, s)
	c := newCells(v)
	d.Space.SetFree(size + size/4 + small.LogReserve)
	for b := int64(0); b < size/blockBytes; b += 64 {
		if err := c.write(rng, b*blockCells, 64*blockCells); err != nil {
			t.Fatal(err)
		}
	}
	for i := range times * size / blockBytes {
		if err := c.write(rng, rng.Int64N(size/blockBytes)*blockCells, blockCells); err != nil {
			t.Fatalf("overwrite %d: %v", i, err)
		}
		if rng.IntN(100) == 0 {
			flush(t, v)
		}
	}
	c.verify(t, v)
	checkClean(t, s)
	closeStore(t, s)
	s = openWith(t, d.path, d.o)
	c.verify(t, mainVolume(t, s))
	closeStore(t, s)
}

// TestFullDiskBigRecord fills a large segment with single blocks at random and
// without a flush, so that the open commit's record is large when the disk is
// full: there must be space for it.
func TestFullDiskBigRecord(t *testing.T) {
	if testing.Short() {
		t.Skip("writes 200 MiB")
	}
	watchdog(t, 6*time.Minute)
	rng := rand.New(rand.NewPCG(seedOf(t), 1))
	d := newDisk(t, volume.Limits{}, faultfs.Options{})
	const size = 512 << 20
	s := d.create(t, size)
	v := mainVolume(t, s)
	c := newCells(v)
	for b := int64(0); b < 80<<20/blockBytes; b += 128 {
		if err := c.write(rng, b*blockCells, 128*blockCells); err != nil {
			t.Fatal(err)
		}
	}
	flush(t, v)
	d.Space.SetFree(0)
	fillUp(t, c, rng, 100_000)
	flush(t, v)
	c.verify(t, v)
	closeStore(t, s)
	d.Space.SetFree(-1)
	s = openWith(t, d.path, d.o)
	c.verify(t, mainVolume(t, s))
	closeStore(t, s)
}
