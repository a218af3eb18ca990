package volume_test

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	"github.com/fsximg/fsx/internal/volume"
)

// runs is block status as text.
func runs(t testing.TB, v *volume.Volume, off, n int64) (l []string) {
	t.Helper()
	at := off
	if err := v.Status(off, n, func(m int64, hole, zero bool) bool {
		l = append(l, fmt.Sprint(at, "+", m, " ", hole, zero))
		at += m
		return true
	}); err != nil {
		t.Fatal(err)
	}
	if at != off+n {
		t.Fatalf("status of %d+%d ends at %d", off, n, at)
	}
	return l
}

// TestStatusTruth compares block status with what was done: a trim makes a
// hole, a zero that must not make one makes allocated zeros, a write makes
// data. It is told in the fewest runs, whatever the buffers, the overlay and
// the map tree know.
func TestStatusTruth(t *testing.T) {
	watchdog(t, time.Minute)
	const blocks = 3000
	rng := rand.New(rand.NewPCG(seedOf(t), 1))
	path := filepath.Join(fastDir(t), "s.fsx")
	l := volume.Limits{Overlay: 1000, Log: 4 << 20, Slack: 64}
	s := createBusy(t, path, blocks*blockBytes-512, l)
	v := mainVolume(t, s)
	kinds := make([]string, blocks) // as runs prints them
	for i := range kinds {
		kinds[i] = "true true"
	}
	ops := 1500
	if testing.Short() {
		ops = 400
	}
	for i := range ops {
		first := rng.Int64N(blocks)
		n := min(1+rng.Int64N(40), blocks-first)
		if rng.IntN(10) == 0 {
			n = min(1+rng.Int64N(2000), blocks-first)
		}
		off, length := first*blockBytes, min(n*blockBytes, v.Size()-first*blockBytes)
		var err error
		kind := ""
		switch rng.IntN(5) {
		case 0:
			kind, err = "true true", v.TrimAt(off, length)
		case 1:
			kind, err = "true true", v.ZeroAt(off, length, false)
		case 2:
			kind, err = "false true", v.ZeroAt(off, length, true)
		default:
			p := make([]byte, length)
			for j := range p {
				p[j] = byte(i) | 1
			}
			kind, err = "false false", v.WriteAt(p, off, false)
		}
		if err != nil {
			t.Fatal(err)
		}
		for b := first; b < first+n; b++ {
			kinds[b] = kind
		}
		switch rng.IntN(40) {
		case 0:
			flush(t, v)
		case 1:
			if err := v.Checkpoint(ctx0); err != nil {
				t.Fatal(err)
			}
		case 2:
			closeStore(t, s)
			s = openBusy(t, path, l)
			v = mainVolume(t, s)
		}
		// A part, at any alignment.
		lo := rng.Int64N(v.Size())
		hi := min(lo+1+rng.Int64N(v.Size()), v.Size())
		var want []string
		for at := lo; at < hi; {
			end := at
			for end < hi && kinds[end/blockBytes] == kinds[at/blockBytes] {
				end = min((end/blockBytes+1)*blockBytes, hi)
			}
			want = append(want, fmt.Sprint(at, "+", end-at, " ", kinds[at/blockBytes]))
			at = end
		}
		if got := runs(t, v, lo, hi-lo); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Fatalf("operation %d, status of %d+%d:\ngot  %.500q\nwant %.500q", i, lo, hi-lo, got, want)
		}
	}
	checkClean(t, s)
	closeStore(t, s)
}

// TestTerabyte does operations far apart in a volume of 1 TiB.
func TestTerabyte(t *testing.T) {
	watchdog(t, time.Minute)
	const size = 1 << 40
	rng := rand.New(rand.NewPCG(seedOf(t), 1))
	path := filepath.Join(fastDir(t), "s.fsx")
	s := create(t, path, size)
	v := mainVolume(t, s)
	at := map[int64]int{} // blocks by number; the rest are zeros
	for i := range 3000 {
		b := rng.Int64N(size / blockBytes)
		if i < 2 {
			b = []int64{0, size/blockBytes - 1}[i]
		}
		put(t, v, b, i)
		at[b] = i
		if i%1000 == 500 {
			lo, n := rng.Int64N(size/2), rng.Int64N(size/4)
			var err error
			if i < 1000 {
				err = v.TrimAt(lo, n)
			} else {
				err = v.ZeroAt(lo, n, i > 2000)
			}
			if err != nil {
				t.Fatal(err)
			}
			for b := range at {
				first, last := (lo+blockBytes-1)/blockBytes, (lo+n)/blockBytes
				if b >= first && b < last {
					delete(at, b)
				} else if b == lo/blockBytes || b == last {
					put(t, v, b, at[b]) // its edge was zeroed
				}
			}
		}
		if i%500 == 100 {
			if err := v.Checkpoint(ctx0); err != nil {
				t.Fatal(err)
			}
		}
	}
	verify := func() {
		t.Helper()
		data := int64(0)
		if err := v.Status(0, size, func(n int64, _, zero bool) bool {
			if !zero {
				data += n
			}
			return true
		}); err != nil {
			t.Fatal(err)
		}
		if data != int64(len(at))*blockBytes {
			t.Errorf("%d bytes of data, %d blocks were written", data, len(at))
		}
		for b, n := range at {
			expect(t, v, b, n)
		}
	}
	verify()
	checkClean(t, s)
	closeStore(t, s)
	s = open(t, path)
	v = mainVolume(t, s)
	verify()
	if err := v.TrimAt(0, size); err != nil {
		t.Fatal(err)
	}
	clear(at)
	verify()
	if _, err := s.Compact(ctx0); err != nil {
		t.Fatal(err)
	}
	verify()
	checkClean(t, s)
	closeStore(t, s)
	if _, allocated := segmentFiles(t, path); allocated > 2<<20 {
		t.Errorf("%d bytes are allocated for an empty volume", allocated)
	}
}
