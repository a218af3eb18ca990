package volume_test

import (
	"errors"
	"path/filepath"
	"testing"

	"github.com/fsximg/fsx/internal/volume"
	"github.com/fsximg/fsx/pkg/crypt"
	"github.com/fsximg/fsx/pkg/layout"
)

// knowledge is a trust file in memory.
type knowledge struct {
	keys   map[crypt.ID]bool
	epochs map[layout.UUID]uint64
}

func (k *knowledge) trust() volume.Trust {
	return volume.Trust{
		Trusted:    func(_ layout.UUID, key crypt.ID) bool { return k.keys[key] },
		LeastEpoch: func(_, vol layout.UUID, _ string) uint64 { return k.epochs[vol] },
		Seen: func(s volume.Seen) {
			for _, key := range s.Keys {
				k.keys[key] = true
			}
			for vol, n := range s.Heads {
				k.epochs[vol] = n
			}
		},
	}
}

func newKnowledge() *knowledge {
	return &knowledge{map[crypt.ID]bool{}, map[layout.UUID]uint64{}}
}

// TestUntrusted: a volume that only a clear slot opened is not changed, in any way; a
// log that waits is read, and waits on. Once its key is known it is as any other.
func TestUntrusted(t *testing.T) {
	path := filepath.Join(fastDir(t), "s.fsx")
	o := createOptions(t, 1<<20)
	o.Secrets = append(o.Secrets, crypt.NewClear())
	s, err := volume.Create(path, o)
	must(t, err)
	v := mainVolume(t, s)
	must(t, v.CreateSnapshot(ctx0, "s1"))
	must(t, s.Clone(ctx0, "main", "s1", "clone", volume.CloneOptions{}))
	put(t, v, 1, 1)
	flush(t, v)
	left := killed(t, path) // with a log to replay
	closeStore(t, s)

	k := newKnowledge()
	with := options(t)
	with.Trust = k.trust()
	opened := func(secret crypt.Secret) *volume.Store {
		s, err := volume.Open(left, with)
		must(t, err)
		must(t, s.Unlock([]crypt.Secret{secret}))
		return s
	}
	s = opened(crypt.NewClear())
	v = mainVolume(t, s)
	expect(t, v, 1, 1)
	if !v.ReadOnly() {
		t.Error("it says that it can be written")
	}
	id := keyOfMain(t, s)
	_, rollback := s.Rollback(ctx0, "main", "s1", true)
	_, addSlot := s.AddSlot(ctx0, id, otherSecret(t))
	for name, err := range map[string]error{
		"write":           v.WriteAt(make([]byte, 4096), 0, false),
		"zero":            v.ZeroAt(0, 4096, false),
		"create snapshot": v.CreateSnapshot(ctx0, "s2"),
		"delete snapshot": v.DeleteSnapshot(ctx0, "s1"),
		"resize":          s.Resize(ctx0, "main", 2<<20, false),
		"clone":           s.Clone(ctx0, "main", "s1", "c", volume.CloneOptions{}),
		"rename":          s.RenameVolume(ctx0, "main", "other"),
		"create volume":   s.CreateVolume(ctx0, "c", 1<<20, volume.VolumeOptions{}),
		"flatten":         s.Flatten(ctx0, "clone", nil),
		"rollback":        rollback,
		"add slot":        addSlot,
		"change slot":     s.ChangeSlot(ctx0, 1, otherSecret(t)),
		"remove slot":     s.RemoveSlot(ctx0, 1, true),
	} {
		if !errors.Is(err, volume.ErrUntrusted) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := s.Compact(ctx0); err != nil {
		t.Errorf("compact: %v", err)
	}
	must(t, s.Close())
	if len(k.keys)+len(k.epochs) != 0 {
		t.Errorf("taken note of: %v", k)
	}

	s = opened(secret(t)) // proves it, and makes it known
	expect(t, mainVolume(t, s), 1, 1)
	put(t, mainVolume(t, s), 2, 2)
	closeStore(t, s)
	s = opened(crypt.NewClear())
	put(t, mainVolume(t, s), 3, 3)
	expect(t, mainVolume(t, s), 2, 2)
	closeStore(t, s)
}

// TestRolledBack: what is older than it was is not opened, nor signed again.
func TestRolledBack(t *testing.T) {
	path := filepath.Join(fastDir(t), "s.fsx")
	k := newKnowledge()
	o := createOptions(t, 1<<20)
	o.Trust = k.trust()
	s, err := volume.Create(path, o)
	must(t, err)
	put(t, mainVolume(t, s), 1, 1)
	closeStore(t, s)
	old := killed(t, path)
	s = openWith(t, path, o.Options)
	put(t, mainVolume(t, s), 1, 2)
	closeStore(t, s)
	closeStore(t, openWith(t, path, o.Options))

	s = openWith(t, old, o.Options)
	if _, err := s.Volume("main"); !errors.Is(err, volume.ErrRolledBack) {
		t.Errorf("an old copy: %v", err)
	}
	if _, err := s.AddSlot(ctx0, keyOfMain(t, s), otherSecret(t)); !errors.Is(err, volume.ErrRolledBack) {
		t.Errorf("a slot of an old copy: %v", err)
	}
	closeStore(t, s)
	s = openWith(t, path, o.Options)
	expect(t, mainVolume(t, s), 1, 2)
	closeStore(t, s)
}
