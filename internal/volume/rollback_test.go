package volume_test

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"
)

// TestRollbackWhileSnapshotsCome: a rollback without force loses no snapshot of
// which it was said that it is there.
func TestRollbackWhileSnapshotsCome(t *testing.T) {
	watchdog(t, 60*time.Second)
	s := create(t, filepath.Join(fastDir(t), "s.fsx"), 16<<20)
	must(t, mainVolume(t, s).CreateSnapshot(ctx0, "old"))
	for i := range operations(t, 20, 60, 2000) {
		name := fmt.Sprint("n", i)
		v := mainVolume(t, s)
		for b := range int64(300) {
			put(t, v, b*11%4096, i)
		}
		made := make(chan error, 1)
		go func() {
			time.Sleep(time.Duration(i%20) * 500 * time.Microsecond)
			made <- v.CreateSnapshot(ctx0, name)
		}()
		_, err := s.Rollback(ctx0, "main", "old", false)
		if err := <-made; err != nil {
			continue
		}
		if _, found := mainVolume(t, s).Snapshot(name); found != nil {
			t.Errorf("snapshot %s is lost: %v; the rollback: %v", name, found, err)
		}
		_, err = s.Rollback(ctx0, "main", "old", true)
		must(t, err)
	}
	closeStore(t, s)
}
