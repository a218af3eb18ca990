package volume_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fsximg/fsx/internal/volume"
	"github.com/fsximg/fsx/pkg/crypt"
)

// TestCopyLive copies a store that is written, with snapshots, clones and a volume
// whose key is missing: each volume is as it was at one moment.
func TestCopyLive(t *testing.T) {
	watchdog(t, 60*time.Second)
	dir := fastDir(t)
	path := filepath.Join(dir, "s.fsx")
	s := create(t, path, 16<<20)
	must(t, s.CreateVolume(ctx0, "locked", 1<<20, volume.VolumeOptions{Secrets: []crypt.Secret{numbered(t, 1)}}))
	put(t, volumeOf(t, s, "locked"), 1, 7)
	closeStore(t, s)
	s = open(t, path)
	v := mainVolume(t, s)
	for b := range int64(2000) {
		put(t, v, b, 1)
	}
	must(t, v.CreateSnapshot(ctx0, "one"))
	must(t, s.Clone(ctx0, "main", "one", "c", volume.CloneOptions{}))
	put(t, volumeOf(t, s, "c"), 3, 3)

	// A writer writes rounds: all blocks of a round before those of the next.
	var stop atomic.Bool
	done := make(chan error, 1)
	go func() {
		for n := 2; !stop.Load(); n++ {
			for b := range int64(64) {
				if err := v.WriteAt(block(n), b*4096, false); err != nil {
					done <- err
					return
				}
			}
			if n%5 == 0 {
				if err := v.Flush(); err != nil {
					done <- err
					return
				}
			}
		}
		done <- nil
	}()
	for i := range 5 {
		dst := filepath.Join(dir, fmt.Sprint("copy", i, ".fsx"))
		must(t, s.CopyLive(ctx0, dst, nil))
		if err := s.CopyLive(ctx0, dst, nil); !errors.Is(err, fs.ErrExist) {
			t.Errorf("copied over a store: %v", err)
		}
		c := openAs(t, dst, secret(t), numbered(t, 1))
		rounds := map[int64]bool{}
		p := make([]byte, 64*4096, 64*4096+16)
		must(t, mainVolume(t, c).ReadAt(p, 0, false))
		for b := range 64 {
			rounds[numberOf(p[b*4096:])] = true
		}
		if len(rounds) > 2 {
			t.Errorf("main is of more than one moment: rounds %v", rounds)
		}
		expect(t, mainVolume(t, c), 1999, 1)
		one, err := mainVolume(t, c).Snapshot("one")
		must(t, err)
		must(t, one.ReadAt(p, 0, false))
		if !bytes.Equal(p[:4096], block(1)) {
			t.Error("the snapshot differs")
		}
		expect(t, volumeOf(t, c, "c"), 3, 3)
		expect(t, volumeOf(t, c, "c"), 4, 1)
		expect(t, volumeOf(t, c, "locked"), 1, 7)
		put(t, mainVolume(t, c), 5, 55)
		checkClean(t, c)
		closeStore(t, c)
		must(t, os.RemoveAll(dst))
	}
	stop.Store(true)
	must(t, <-done)
	noProblems(t, s)
	closeStore(t, s)
}
