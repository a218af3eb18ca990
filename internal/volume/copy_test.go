package volume_test

import (
	"errors"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"github.com/fsximg/fsx/internal/volume"
	"github.com/fsximg/fsx/pkg/crypt"
)

// TestCopy copies a store of volumes, snapshots and clones under several keys,
// with its UUID and with another, and uses both afterwards.
func TestCopy(t *testing.T) {
	steps := 3000
	if testing.Short() {
		steps = 600
	}
	for _, newUUID := range []bool{false, true} {
		dir := fastDir(t)
		f := &family{t: t, rng: rand.New(rand.NewPCG(seedOf(t), 11)), path: filepath.Join(dir, "s.fsx"), limits: busy,
			m: map[string]*relative{"main": {data: make([]byte, 2<<20), snaps: map[string][]byte{}}}}
		f.s = createBusy(t, f.path, 2<<20, f.limits)
		for f.count = 0; f.count < steps; f.count++ {
			f.step()
		}
		if f.m["main"] != nil && len(f.m["main"].names) == 0 {
			v, err := f.s.Volume("main")
			must(t, err)
			must(t, v.CreateSnapshot(ctx0, "last"))
			f.m["main"].names, f.m["main"].snaps["last"] = []string{"last"}, append([]byte(nil), f.m["main"].data...)
		}
		f.reopen()
		uuid := f.s.UUID()
		to := filepath.Join(dir, "copy.fsx")
		o := volume.CopyOptions{NewUUID: newUUID, Secrets: []crypt.Secret{secret(t), otherSecret(t)}}
		must(t, f.s.CopyTo(ctx0, to, o))
		for _, path := range []string{f.path, to} {
			f.s, f.path = f.open(path, options(t)), path
			if same := f.s.UUID() == uuid; same != (!newUUID || path != to) {
				t.Errorf("%s has UUID %v, the store had %v", path, f.s.UUID(), uuid)
			}
			f.verify()
			if path != to {
				closeStore(t, f.s)
			}
		}
		for f.count = 0; f.count < steps/3; f.count++ {
			f.step()
		}
		f.reopen()
		f.verify()
		if err := f.s.CopyTo(ctx0, to, o); !errors.Is(err, fs.ErrExist) {
			t.Errorf("over what exists: %v", err)
		}
		closeStore(t, f.s)
	}
}
