package volume_test

import (
	"path/filepath"
	"testing"

	"github.com/fsximg/fsx/internal/volume"
)

// TestCompactWithoutKey gives back what is dead in a store of which no key is
// known, closed or killed, and everything is there afterwards.
func TestCompactWithoutKey(t *testing.T) {
	for _, kill := range []bool{false, true} {
		path := filepath.Join(fastDir(t), "s.fsx")
		s := create(t, path, 64<<20)
		v := mainVolume(t, s)
		want := make([]byte, v.Size())
		write := func(from, n int) {
			for b := from; b < from+n; b++ {
				copy(want[b*blockBytes:], block(b*7+from))
			}
			must(t, v.WriteAt(want[from*blockBytes:(from+n)*blockBytes], int64(from)*blockBytes, false))
		}
		write(0, 8000)
		must(t, v.CreateSnapshot(ctx0, "s"))
		must(t, v.Checkpoint(ctx0))
		write(1000, 6000)
		must(t, v.DeleteSnapshot(ctx0, "s"))
		must(t, v.Checkpoint(ctx0))
		write(100, 10)
		must(t, v.Flush())
		if kill {
			release := s.HoldUpkeep() // not amid a compaction, whose segments stay
			path = killed(t, path)
			release()
		}
		closeStore(t, s)

		s, err := volume.Open(path, options(t))
		must(t, err)
		r, err := s.Compact(ctx0)
		must(t, err)
		// Maintenance may have compacted already.
		if r.After >= r.Before && kill && r.Before > 45<<20 || r.After > r.Before+1<<20 {
			t.Errorf("killed %v: %d bytes, were %d", kill, r.After, r.Before)
		}
		closeStore(t, s)
		s = open(t, path)
		(&snapModel{t: t}).compare("main", mainVolume(t, s), want)
		checkClean(t, s)
		closeStore(t, s)
	}
}
