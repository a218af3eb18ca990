package volume_test

import (
	"path/filepath"
	"testing"

	"github.com/fsximg/fsx/internal/volume"
	"github.com/fsximg/fsx/pkg/crypt"
)

// TestCloneApart: whoever has only a clone's own volume key has no data key under
// which any other volume goes on, however the clone descends from it.
func TestCloneApart(t *testing.T) {
	path := filepath.Join(fastDir(t), "s.fsx")
	s := create(t, path, 1<<20)
	must(t, mainVolume(t, s).CreateSnapshot(ctx0, "s1"))
	must(t, s.Clone(ctx0, "main", "s1", "middle", volume.CloneOptions{}))
	middle, err := s.Volume("middle")
	must(t, err)
	must(t, middle.CreateSnapshot(ctx0, "s2"))
	own := volume.CloneOptions{Secrets: []crypt.Secret{otherSecret(t)}}
	must(t, s.Clone(ctx0, "middle", "s2", "grandchild", own))
	_, err = s.Rollback(ctx0, "main", "s1", false)
	must(t, err)
	must(t, s.Clone(ctx0, "main", "s1", "child", own))
	apart := func() {
		for _, clone := range []string{"grandchild", "child"} {
			c, err := s.Volume(clone)
			must(t, err)
			for _, name := range []string{"main", "middle"} {
				v, err := s.Volume(name)
				must(t, err)
				if v.WritesUnderKeyOf(c) {
					t.Errorf("%s has the key under which %s is written", clone, name)
				}
				put(t, v, 5, 7)
				expect(t, v, 5, 7)
			}
		}
	}
	apart()
	closeStore(t, s)
	s = open(t, path)
	must(t, s.Unlock([]crypt.Secret{otherSecret(t)}))
	apart()
	closeStore(t, s)
}
