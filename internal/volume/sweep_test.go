package volume_test

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/fsximg/fsx/internal/volume"
)

// TestSweepWhileSnapshotsCome: hidden snapshots are freed while new ones are made as
// fast as they can be.
func TestSweepWhileSnapshotsCome(t *testing.T) {
	watchdog(t, 60*time.Second)
	path := filepath.Join(fastDir(t), "s.fsx")
	s := create(t, path, 1<<20)
	v := mainVolume(t, s)
	const n = 60
	for i := range n {
		snap := fmt.Sprint("s", i)
		put(t, v, int64(i), i)
		must(t, v.CreateSnapshot(ctx0, snap))
		must(t, s.Clone(ctx0, "main", snap, fmt.Sprint("c", i), volume.CloneOptions{}))
		must(t, v.DeleteSnapshot(ctx0, snap))
	}
	closeStore(t, s)
	s, err := volume.Open(path, options(t)) // without the key
	must(t, err)
	for i := range n {
		must(t, s.DeleteVolume(ctx0, fmt.Sprint("c", i)))
	}
	closeStore(t, s)
	s = open(t, path)
	v = mainVolume(t, s)
	errs := make(chan error, 4)
	for w := range 4 {
		go func() {
			for i := range 30 {
				if err := v.CreateSnapshot(ctx0, fmt.Sprintf("n%d-%d", w, i)); err != nil {
					errs <- err
					return
				}
			}
			errs <- nil
		}()
	}
	for range 4 {
		must(t, <-errs)
	}
	must(t, v.Checkpoint(ctx0))
	time.Sleep(100 * time.Millisecond)
	must(t, v.Checkpoint(ctx0))
	checkClean(t, s)
	closeStore(t, s)
}
