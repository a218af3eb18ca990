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
	"github.com/fsximg/fsx/pkg/crypt"
)

// TestInstant reports what a snapshot, a clone, a rekeying and a deletion take in a small and
// in a large volume. The times are no condition; that a deletion frees what only
// the snapshot had is.
func TestInstant(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: one goroutine, and it takes long")
	}
	blocks := 20_000
	if os.Getenv("FSX_FULL") != "" {
		blocks = 2_000_000
	}
	rng := rand.New(rand.NewPCG(seedOf(t), 13))
	for _, size := range []int64{1 << 30, 1 << 40} {
		s := create(t, filepath.Join(fastDir(t), "s.fsx"), size)
		v := mainVolume(t, s)
		write := func(n int) {
			p := make([]byte, 4096)
			for range n {
				for i := 0; i < len(p); i += 64 {
					p[i] = byte(rng.Uint32() | 1)
				}
				must(t, v.WriteAt(p, rng.Int64N(size/4096)*4096, false))
			}
		}
		write(min(blocks, int(size/4096)))
		must(t, v.Checkpoint(ctx0))
		median := func(n int, f func(i int) error) time.Duration {
			var l []time.Duration
			for i := range n {
				began := time.Now()
				must(t, f(i))
				l = append(l, time.Since(began))
			}
			slices.Sort(l)
			return l[n/2]
		}
		const n = 21
		flush := median(n, func(int) error { write(10); return v.Flush() })
		snapshot := median(n, func(i int) error { write(10); return v.CreateSnapshot(ctx0, fmt.Sprint("s", i)) })
		must(t, v.Checkpoint(ctx0))
		clone := median(n, func(i int) error {
			return s.Clone(ctx0, "main", fmt.Sprint("s", i), fmt.Sprint("c", i), volume.CloneOptions{})
		})
		for i := range n {
			must(t, s.DeleteVolume(ctx0, fmt.Sprint("c", i)))
		}
		rekey := median(n, func(i int) error {
			write(10)
			_, err := s.Rekey(ctx0, "main", volume.RekeyOptions{Secrets: []crypt.Secret{numbered(t, i)}})
			return err
		})
		t.Logf("RESULT %d GiB, %d blocks: 10 writes and a flush %v, 10 writes and a snapshot %v, a clone %v, 10 writes and a rekey %v",
			size>>30, blocks, flush, snapshot, clone, rekey)
		for _, held := range []int{10, 1000, 20_000} {
			write(held)
			must(t, v.CreateSnapshot(ctx0, "gone"))
			write(held)
			must(t, v.Checkpoint(ctx0))
			began := time.Now()
			must(t, v.DeleteSnapshot(ctx0, "gone"))
			must(t, v.Checkpoint(ctx0))
			t.Logf("RESULT %d GiB: deleting a snapshot between %d and %d random writes, with its checkpoint: %v", size>>30, held, held, time.Since(began))
		}
		checkClean(t, s)
		closeStore(t, s)
	}
}
