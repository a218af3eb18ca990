package powercut_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/fsximg/fsx/internal/vfs/trace"
	"github.com/fsximg/fsx/test/crash"
)

// A process that is killed before a sync leaves a store that opens. It must
// still be one after a power cut, since what is written to it from then on is
// acknowledged: what it is, is durable once it was opened.
func TestIdentityIsDurableOnceOpened(t *testing.T) {
	made := crash.TempDir(t)
	must(t, createStore(filepath.Join(made, storeName), volumeSize))
	start := emptyState(volumeSize)
	before := newModel(start)
	for _, written := range []bool{false, true} {
		rec := crash.Mount(t, crash.Options{})
		path := filepath.Join(rec.Dir(), storeName)
		if written {
			r := &runner{script: newScript(2, volumeSize), path: made, acked: func(int, bool) error { return nil }}
			must(t, errors.Join(r.open(), r.run(40), r.close()))
			before = modelOf(start, r.again(), 40)
		}
		must(t, trace.CopyTree(path, filepath.Join(made, storeName)))
		// Not the superblock, the keyring, and the directories that name them
		// and the volumes.
		syncAll(t, filepath.Join(path, "meta"))
		volumes, err := filepath.Glob(filepath.Join(path, "vol", "*"))
		must(t, err)
		for _, name := range volumes {
			syncAll(t, name)
		}
		r := &runner{script: newScript(1, volumeSize), path: rec.Dir(), acked: marker(rec.Dir(), 0)}
		must(t, r.open())
		rec.Mark(startMark(0))
		must(t, errors.Join(r.run(20), r.close()))
		rec.Unmount()
		c := &recording{Recorder: rec, models: []*model{modelOf(before.now, r.again(), 20)}}
		from := rec.Trace().MarkAt(startMark(0)) + 1
		for _, p := range policies {
			c.verifyCuts(t, "once opened", []cut{{from, 1, p}, {len(rec.Trace().Ops), 1, p}})
		}
	}
}

func syncAll(t *testing.T, dir string) {
	t.Helper()
	must(t, filepath.WalkDir(dir, func(name string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		return f.Sync()
	}))
}
