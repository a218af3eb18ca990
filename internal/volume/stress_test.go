package volume_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime/pprof"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fsximg/fsx/internal/volume"
)

// fastDir is a temporary directory in memory, where there is one.
func fastDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "fsx-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// watchdog ends the process with all goroutines' stacks if the test hangs.
func watchdog(t testing.TB, d time.Duration) {
	timer := time.AfterFunc(d, func() {
		_ = pprof.Lookup("goroutine").WriteTo(os.Stderr, 2)
		panic(t.Name() + " hangs")
	})
	t.Cleanup(func() { timer.Stop() })
}

// busy are limits under which checkpoints and compactions never end.
var busy = volume.Limits{Overlay: 300, Log: 1 << 20, Slack: 32}

func createBusy(t testing.TB, path string, size int64, l volume.Limits) *volume.Store {
	t.Helper()
	o := createOptions(t, size)
	o.SetLimits(l)
	s, err := volume.Create(path, o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func openBusy(t testing.TB, path string, l volume.Limits) *volume.Store {
	t.Helper()
	o := options(t)
	o.SetLimits(l)
	return openWith(t, path, o)
}

const (
	cell       = 512
	blockCells = 8
	blockBytes = cell * blockCells
)

// cells is a volume whose 512-byte cells each tell who wrote them and when, so
// that a reader sees a lost, stale, torn or foreign cell. Every cell has one
// writer. A cell's versions go up: odd ones are data, even ones zeros.
type cells struct {
	v       *volume.Volume
	started []atomic.Uint32
	done    []atomic.Uint32
}

func newCells(v *volume.Volume) *cells {
	n := v.Size() / cell
	return &cells{v: v, started: make([]atomic.Uint32, n), done: make([]atomic.Uint32, n)}
}

// fill makes a cell's content.
func fillCell(p []byte, no int64, version uint32) {
	if version%2 == 0 {
		clear(p[:cell])
		return
	}
	for i := 0; i < cell; i += 16 {
		binary.LittleEndian.PutUint64(p[i:], uint64(no)*0x9E3779B97F4A7C15+uint64(i))
		binary.LittleEndian.PutUint32(p[i+8:], version)
		binary.LittleEndian.PutUint32(p[i+12:], ^version)
	}
}

// check says what is wrong with a cell that was read while its version was
// between lo and hi.
func checkCell(p []byte, no int64, lo, hi uint32) error {
	version := binary.LittleEndian.Uint32(p[8:])
	var want [cell]byte
	fillCell(want[:], no, version|1)
	if version == 0 {
		clear(want[:])
	}
	if string(p[:cell]) != string(want[:]) {
		return fmt.Errorf("cell %d is torn or foreign: %x", no, p[:32])
	}
	if version == 0 {
		if hi-lo > 0 || lo%2 == 0 {
			return nil
		}
		return fmt.Errorf("cell %d is zero, but its version is %d", no, lo)
	}
	if version < lo || version > hi {
		return fmt.Errorf("cell %d has version %d, not %d to %d", no, version, lo, hi)
	}
	return nil
}

// begin gives the cells [first, first+n) their next version of a parity.
func (c *cells) begin(first, n int64, data bool) {
	for i := first; i < first+n; i++ {
		version := c.done[i].Load() + 1
		if (version%2 == 1) != data {
			version++
		}
		c.started[i].Store(version)
	}
}

func (c *cells) end(first, n int64) {
	for i := first; i < first+n; i++ {
		c.done[i].Store(c.started[i].Load())
	}
}

func (c *cells) write(rng *rand.Rand, first, n int64) error {
	c.begin(first, n, true)
	p := make([]byte, n*cell)
	for i := range n {
		fillCell(p[i*cell:], first+i, c.started[first+i].Load())
	}
	err := c.v.WriteAt(p, first*cell, rng.IntN(2) == 0)
	if errors.Is(err, volume.ErrWouldBlock) {
		err = c.v.WriteAt(p, first*cell, false)
	}
	if err == nil {
		c.end(first, n)
	}
	return err
}

func (c *cells) zero(rng *rand.Rand, first, n int64) error {
	c.begin(first, n, false)
	var err error
	if rng.IntN(2) == 0 && first%blockCells == 0 && n%blockCells == 0 {
		err = c.v.TrimAt(first*cell, n*cell)
	} else {
		err = c.v.ZeroAt(first*cell, n*cell, rng.IntN(2) == 0)
	}
	if err == nil {
		c.end(first, n)
	}
	return err
}

func (c *cells) read(rng *rand.Rand, first, n int64) error {
	lo := make([]uint32, n)
	for i := range n {
		lo[i] = c.done[first+i].Load()
	}
	p := make([]byte, n*cell, n*cell+int64(rng.IntN(2)*16))
	err := c.v.ReadAt(p, first*cell, rng.IntN(2) == 0)
	if errors.Is(err, volume.ErrWouldBlock) {
		err = c.v.ReadAt(p, first*cell, false)
	}
	if err != nil {
		return err
	}
	for i := range n {
		if err := checkCell(p[i*cell:], first+i, lo[i], c.started[first+i].Load()); err != nil {
			return err
		}
	}
	return nil
}

// verify reads everything, when nobody writes.
func (c *cells) verify(t *testing.T, v *volume.Volume) {
	t.Helper()
	c.v = v
	rng := rand.New(rand.NewPCG(1, 1))
	n := int64(len(c.done))
	for i := int64(0); i < n; i += 2048 {
		if err := c.read(rng, i, min(2048, n-i)); err != nil {
			t.Error(err)
		}
	}
}

// TestStress has goroutines write, zero, trim, flush and read, in regions of
// their own and in shared blocks, while checkpoints and compactions never end.
func TestStress(t *testing.T) {
	d := 8 * time.Second
	if testing.Short() {
		d = 2 * time.Second
	}
	if os.Getenv("FSX_FULL") != "" {
		d = 5 * time.Minute
	}
	watchdog(t, d+2*time.Minute)
	seed := seedOf(t)
	const (
		size    = 24 << 20
		shared  = size / 4 / blockBytes // blocks whose cells have different writers
		workers = 4
	)
	path := filepath.Join(fastDir(t), "s.fsx")
	s := createBusy(t, path, size, busy)
	c := newCells(mainVolume(t, s))
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	var wg sync.WaitGroup
	var ops atomic.Int64
	loop := func(id uint64, op func(*rand.Rand) error) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			rng := rand.New(rand.NewPCG(seed, id))
			for ctx.Err() == nil {
				if err := op(rng); err != nil {
					t.Errorf("worker %d: %v", id, err)
					cancel()
					return
				}
				ops.Add(1)
			}
		}()
	}
	own := int64(size/blockBytes-shared) / workers
	for w := range int64(workers) {
		// One goroutine writes two cells of every shared block, and a region of
		// its own.
		loop(uint64(w), func(rng *rand.Rand) error {
			if rng.IntN(2) == 0 {
				b := rng.Int64N(shared)
				return c.write(rng, b*blockCells+2*w+rng.Int64N(2), 1)
			}
			n := 1 + rng.Int64N(200)
			if rng.IntN(3) > 0 {
				n = 1 + rng.Int64N(20)
			}
			first := (shared+w*own)*blockCells + rng.Int64N(own*blockCells-n+1)
			if rng.IntN(3) > 0 {
				first &^= blockCells - 1
			}
			if rng.IntN(8) == 0 {
				return c.zero(rng, first, n)
			}
			if rng.IntN(30) == 0 {
				return c.v.Flush()
			}
			return c.write(rng, first, n)
		})
	}
	for r := range uint64(3) {
		loop(100+r, func(rng *rand.Rand) error {
			n := 1 + rng.Int64N(64)
			if rng.IntN(20) == 0 {
				n = 1 + rng.Int64N(4096)
			}
			first := rng.Int64N(size/cell - n + 1)
			if rng.IntN(20) == 0 {
				last := int64(0)
				return c.v.Status(first*cell, n*cell, func(m int64, _, _ bool) bool { last += m; return true })
			}
			return c.read(rng, first, n)
		})
	}
	loop(200, func(rng *rand.Rand) error {
		time.Sleep(time.Duration(rng.IntN(20)) * time.Millisecond)
		switch rng.IntN(3) {
		case 0:
			return c.v.Checkpoint(ctx0)
		case 1:
			return c.v.CompactAll(ctx0)
		}
		return c.v.Flush()
	})
	wg.Wait()
	st := c.v.Stats()
	t.Logf("%d operations, %d commits, %d checkpoints", ops.Load(), st.Commits, st.Checkpoints)
	c.verify(t, c.v)
	checkClean(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openBusy(t, path, busy)
	c.verify(t, mainVolume(t, s))
	checkClean(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

var ctx0 = context.Background()
