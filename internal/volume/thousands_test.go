package volume_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/fsximg/fsx/internal/volume"
)

// TestThousands makes many snapshots and clones in one store, opens it, deletes
// them in random order, and compares what is left with a fresh store of the same
// content. FSX_FULL makes a thousand of each.
func TestThousands(t *testing.T) {
	n, size := 60, int64(64<<20)
	if os.Getenv("FSX_FULL") != "" {
		n, size = 1000, 1<<30
	}
	if testing.Short() {
		n = 20
	}
	rng := rand.New(rand.NewPCG(seedOf(t), 7))
	dir := fastDir(t)
	path := filepath.Join(dir, "s.fsx")
	s := create(t, path, size)
	v := mainVolume(t, s)
	write := func(v *volume.Volume, blocks int) {
		p := make([]byte, 4096)
		for range blocks {
			for i := range p {
				p[i] = byte(rng.Uint32() | 1)
			}
			must(t, v.WriteAt(p, rng.Int64N(v.Size()/4096)*4096, false))
		}
	}
	fillRandom(t, v, rng)
	must(t, v.Checkpoint(ctx0))
	var snapTimes, cloneTimes []time.Duration
	timed := func(l *[]time.Duration, f func() error) {
		t.Helper()
		began := time.Now()
		must(t, f())
		*l = append(*l, time.Since(began))
	}
	for i := range n {
		write(v, 20)
		timed(&snapTimes, func() error { return v.CreateSnapshot(ctx0, fmt.Sprint("s", i)) })
	}
	must(t, v.Checkpoint(ctx0))
	for i := range n {
		timed(&cloneTimes, func() error {
			return s.Clone(ctx0, "main", fmt.Sprint("s", rng.IntN(n)), fmt.Sprint("c", i), volume.CloneOptions{})
		})
		if i%10 == 0 {
			c, err := s.Volume(fmt.Sprint("c", i))
			must(t, err)
			write(c, 20)
		}
	}
	report := func(what string, l []time.Duration) {
		slices.Sort(l)
		t.Logf("RESULT %s: median %v, 99th of a hundred %v, longest %v", what, l[len(l)/2], l[len(l)*99/100], l[len(l)-1])
	}
	report("snapshot", snapTimes)
	report("clone", cloneTimes)
	began := time.Now()
	closeStore(t, s)
	t.Logf("RESULT close: %v", time.Since(began))
	began = time.Now()
	s = open(t, path)
	v = mainVolume(t, s)
	must(t, v.ReadAt(make([]byte, 4096), 0, false))
	t.Logf("RESULT open with %d snapshots and %d clones, to the first read: %v (the key file's slot included)", n, n, time.Since(began))
	began = time.Now()
	names := s.Names()
	_, err := s.Info()
	must(t, err)
	t.Logf("RESULT info: %v", time.Since(began))

	want := make([]byte, size)
	must(t, v.ReadAt(want, 0, false))
	began = time.Now()
	rng.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	for _, name := range names {
		if name != "main" {
			must(t, s.DeleteVolume(ctx0, name))
		}
	}
	t.Logf("RESULT %d clones deleted: %v", n, time.Since(began))
	began = time.Now()
	for _, i := range rng.Perm(n) {
		must(t, v.DeleteSnapshot(ctx0, fmt.Sprint("s", i)))
	}
	t.Logf("RESULT %d snapshots deleted: %v", n, time.Since(began))
	began = time.Now()
	_, err = s.Compact(ctx0)
	must(t, err)
	t.Logf("RESULT compact: %v", time.Since(began))
	checkClean(t, s)
	closeStore(t, s)

	fresh := filepath.Join(dir, "fresh.fsx")
	f := create(t, fresh, size)
	must(t, mainVolume(t, f).WriteAt(want, 0, false))
	_, err = f.Compact(ctx0)
	must(t, err)
	closeStore(t, f)
	got, least := allocated(t, path), allocated(t, fresh)
	t.Logf("RESULT allocated: %.1f MiB, a fresh store %.1f MiB", float64(got)/(1<<20), float64(least)/(1<<20))
	if got > least+least/50+64<<20 {
		t.Errorf("%d bytes are allocated, a fresh store has %d", got, least)
	}
}

// fillRandom writes all of a volume.
func fillRandom(t *testing.T, v *volume.Volume, rng *rand.Rand) {
	t.Helper()
	p := make([]byte, 1<<20)
	for off := int64(0); off < v.Size(); off += int64(len(p)) {
		for i := 0; i < len(p); i += 8 {
			x := rng.Uint64() | 1
			for j := range 8 {
				p[i+j] = byte(x >> (8 * j))
			}
		}
		must(t, v.WriteAt(p, off, false))
	}
}

// allocated is what a folder takes on disk, in bytes.
func allocated(t *testing.T, path string) (n int64) {
	t.Helper()
	s, err := volume.Open(path, options(t))
	must(t, err)
	i, err := s.Info()
	must(t, err)
	closeStore(t, s)
	return i.Allocated
}
