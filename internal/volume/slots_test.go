package volume_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/fsximg/fsx/internal/vfs/faultfs"
	"github.com/fsximg/fsx/internal/volume"
	"github.com/fsximg/fsx/pkg/crypt"
	"github.com/fsximg/fsx/pkg/layout/metadb"
)

// slottedStore is a store whose volume key has volumes of every kind: open ones,
// ones that are not, hidden ones, and one under another volume key.
func slottedStore(t *testing.T, path string, o volume.Options) {
	t.Helper()
	c := createOptions(t, 1<<20)
	c.Options = o
	s, err := volume.Create(path, c)
	must(t, err)
	put(t, mainVolume(t, s), 1, 1)
	must(t, mainVolume(t, s).CreateSnapshot(ctx0, "s1"))
	must(t, s.Clone(ctx0, "main", "s1", "closed", volume.CloneOptions{}))
	must(t, s.Clone(ctx0, "main", "s1", "parent", volume.CloneOptions{}))
	parent, err := s.Volume("parent")
	must(t, err)
	must(t, parent.CreateSnapshot(ctx0, "p1"))
	must(t, s.Clone(ctx0, "parent", "p1", "child", volume.CloneOptions{}))
	must(t, s.DeleteVolume(ctx0, "parent"))
	_, err = s.Rollback(ctx0, "main", "s1", false)
	must(t, err)
	must(t, s.Clone(ctx0, "main", "s1", "own", volume.CloneOptions{Secrets: []crypt.Secret{otherSecret(t)}}))
	closeStore(t, s)
}

// allOpen opens a store with one secret and reads the volumes that are named.
func allOpen(t *testing.T, path string, o volume.Options, with crypt.Secret, names ...string) *volume.Store {
	t.Helper()
	s, err := volume.Open(path, o)
	must(t, err)
	must(t, s.Unlock([]crypt.Secret{with}))
	for _, name := range names {
		v, err := s.Volume(name)
		if err != nil {
			t.Fatal(err)
		}
		expect(t, v, 1, 1)
	}
	return s
}

func passphrase(t *testing.T, text string) crypt.Secret {
	t.Helper()
	p, err := crypt.NewPassphrase([]byte(text))
	must(t, err)
	return p
}

func keyOfMain(t *testing.T, s *volume.Store) crypt.ID {
	t.Helper()
	volumes, err := s.Volumes()
	must(t, err)
	for _, v := range volumes {
		if v.Name == "main" {
			return v.VolumeKey
		}
	}
	t.Fatal("there is no main")
	return crypt.ID{}
}

var underMain = []string{"main", "closed", "child"}

// TestSlots adds, changes and removes slots; afterwards every volume of the key, open
// then or not, opens with what is left, and with nothing else.
func TestSlots(t *testing.T) {
	path := filepath.Join(fastDir(t), "s.fsx")
	slottedStore(t, path, options(t))
	s := allOpen(t, path, options(t), secret(t), "main")
	put(t, mainVolume(t, s), 2, 2) // and it goes on being written
	n, err := s.AddSlot(ctx0, keyOfMain(t, s), passphrase(t, "one"))
	must(t, err)
	put(t, mainVolume(t, s), 3, 3)
	must(t, s.ChangeSlot(ctx0, n, passphrase(t, "two")))
	if err := s.RemoveSlot(ctx0, 99, false); !errors.Is(err, volume.ErrNoSlot) {
		t.Errorf("removing a slot that is not there: %v", err)
	}
	if err := s.ChangeSlot(ctx0, slotOf(t, s, "own"), secret(t)); !errors.Is(err, volume.ErrKeyMissing) {
		t.Errorf("changing a slot of another key: %v", err)
	}
	must(t, s.RemoveSlot(ctx0, 1, false))
	if err := s.RemoveSlot(ctx0, n, false); !errors.Is(err, volume.ErrLastSlot) {
		t.Errorf("removing the last slot: %v", err)
	}
	closeStore(t, s)

	s = allOpen(t, path, options(t), passphrase(t, "two"), underMain...)
	expect(t, mainVolume(t, s), 3, 3)
	noProblems(t, s)
	for _, old := range []crypt.Secret{secret(t), passphrase(t, "one")} {
		if err := s.Unlock([]crypt.Secret{old}); !errors.Is(err, volume.ErrWrongKey) {
			t.Errorf("a %s that was removed: %v", old.Type(), err)
		}
	}
	must(t, s.RemoveSlot(ctx0, n, true))
	closeStore(t, s)
	s = allOpen(t, path, options(t), otherSecret(t), "own")
	if _, err := s.Volume("main"); !errors.Is(err, volume.ErrKeyMissing) {
		t.Errorf("a volume without a slot: %v", err)
	}
	closeStore(t, s)
}

// slotOf is the slot of a volume's key.
func slotOf(t *testing.T, s *volume.Store, name string) int {
	t.Helper()
	volumes, err := s.Volumes()
	must(t, err)
	for _, v := range volumes {
		for _, slot := range s.Keyring().Slots() {
			if v.Name == name && slot.VolumeKey == v.VolumeKey {
				return slot.Number
			}
		}
	}
	t.Fatalf("volume %s has no slot", name)
	return 0
}

// TestSlotsInterrupted fails every write and sync of the keyring during a change of
// slots, and the index's transaction between them, kills the process there, and looks
// at what the next one finds: the old slots or the new ones, in both areas.
func TestSlotsInterrupted(t *testing.T) {
	for _, op := range []faultfs.Op{faultfs.Write, faultfs.Sync, faultfs.SyncDir} {
		for skip := range 2 {
			for _, torn := range []bool{false, true} {
				if torn && op != faultfs.Write {
					continue
				}
				t.Run(fmt.Sprintf("%s %d torn %v", op, skip, torn), func(t *testing.T) {
					d := newDisk(t, volume.Limits{}, faultfs.Options{})
					slottedStore(t, d.path, d.o)
					s := allOpen(t, d.path, d.o, secret(t), "main")
					rule := faultfs.Rule{Ops: []faultfs.Op{op}, Path: "keyring", Err: syscall.EIO, Torn: torn, Skip: skip}
					if op == faultfs.SyncDir {
						rule.Path = "s.fsx"
					}
					armed := d.Arm(rule)
					_, err := s.AddSlot(ctx0, keyOfMain(t, s), otherSecret(t))
					if armed.Fired() == 0 {
						t.Fatal("nothing failed")
					}
					if (err == nil) != (skip == 1) { // the second area only adds safety
						t.Errorf("the change says %v", err)
					}
					left := killed(t, d.path)
					d.DisarmAll()
					_ = s.Close()
					settled(t, left, err == nil)
				})
			}
		}
	}
}

// settled opens what a killed process left: all volumes open with the first secret,
// and with the second exactly if done; the areas are alike then.
func settled(t *testing.T, path string, done bool) {
	t.Helper()
	s := allOpen(t, path, options(t), secret(t), underMain...)
	noProblems(t, s)
	closeStore(t, s)
	sameAreas(t, path)
	names := []string{"own"}
	if done {
		names = append(names, underMain...)
	}
	s = allOpen(t, path, options(t), otherSecret(t), names...)
	if _, err := s.Volume("main"); done != (err == nil) {
		t.Errorf("with the second secret: %v", err)
	}
	closeStore(t, s)
}

// noProblems checks what the keys that are there open.
func noProblems(t *testing.T, s *volume.Store) {
	t.Helper()
	r, err := s.Check(ctx0, volume.CheckOptions{})
	must(t, err)
	for _, p := range r.Problems {
		t.Errorf("check: volume %s: %s", p.Volume, p.Text)
	}
}

// area is the keyring's area, without generation and digest.
func area(t *testing.T, path string, n int64) []byte {
	t.Helper()
	f, err := os.Open(filepath.Join(path, "keyring"))
	must(t, err)
	defer f.Close()
	b := make([]byte, 1<<20)
	m, _ := f.ReadAt(b, n*16<<20)
	return bytes.TrimRight(b[:m], "\x00")
}

func sameAreas(t *testing.T, path string) {
	t.Helper()
	a, b := area(t, path, 0), area(t, path, 1)
	if len(a) < 64 || !bytes.Equal(a[64:], b[64:]) {
		t.Errorf("the areas differ: %d and %d bytes", len(a), len(b))
	}
}

// TestSlotsIndexFails has the index's transaction fail after it was written. Whether
// it is durable is not known, so that both areas stay as they are, whatever is tried
// later, and the next process finds out.
func TestSlotsIndexFails(t *testing.T) {
	path := filepath.Join(fastDir(t), "s.fsx")
	slottedStore(t, path, options(t))
	s := allOpen(t, path, options(t), secret(t), "main")
	meta := filepath.Join(path, "meta")
	must(t, os.Rename(meta, meta+"-away")) // no directory to sync
	_, err := s.AddSlot(ctx0, keyOfMain(t, s), otherSecret(t))
	must(t, os.Rename(meta+"-away", meta))
	if !errors.Is(err, metadb.ErrFailed) {
		t.Fatalf("the change says %v", err)
	}
	if _, err := s.AddSlot(ctx0, keyOfMain(t, s), passphrase(t, "late")); !errors.Is(err, metadb.ErrFailed) {
		t.Errorf("a change after it says %v", err)
	}
	if _, err := s.ShredSlots(ctx0, keyOfMain(t, s)); !errors.Is(err, metadb.ErrFailed) {
		t.Errorf("shredding after it says %v", err)
	}
	if a, b := area(t, path, 0), area(t, path, 1); bytes.Equal(a[64:], b[64:]) {
		t.Error("the change was undone, or done, in both areas")
	}
	left := killed(t, path)
	_ = s.Close()
	settled(t, left, true)
}

// TestShred: no key is needed, nothing of the slots is left in the file, and only the
// volumes of that key are lost.
func TestShred(t *testing.T) {
	path := filepath.Join(fastDir(t), "s.fsx")
	slottedStore(t, path, options(t))
	before := area(t, path, 0)[64:]
	s, err := volume.Open(path, options(t))
	must(t, err)
	if _, err := s.ShredSlots(ctx0, crypt.ID{1}); !errors.Is(err, volume.ErrNoSlot) {
		t.Errorf("shredding nothing: %v", err)
	}
	aside := filepath.Join(path, "keyring.old-1") // that a restoration left
	must(t, os.WriteFile(aside, before, 0o600))
	gone, err := s.ShredSlots(ctx0, keyOfMain(t, s))
	must(t, err)
	if len(gone) != 1 || gone[0].Number != 1 {
		t.Errorf("shredded: %v", gone)
	}
	gone, err = s.ShredSlots(ctx0, keyOfMain(t, s)) // overwrites once more
	if err != nil || len(gone) != 0 {
		t.Errorf("shredding again: %v, %v", gone, err)
	}
	closeStore(t, s)
	noneAside(t, path)
	all, err := os.ReadFile(filepath.Join(path, "keyring"))
	must(t, err)
	if slot := before[80 : 80+40+80]; bytes.Contains(all, slot[24:40]) || bytes.Contains(all, slot[len(slot)-16:]) {
		t.Error("the slot is still in the file")
	}
	s = allOpen(t, path, options(t), otherSecret(t), "own")
	if err := s.Unlock([]crypt.Secret{secret(t)}); !errors.Is(err, volume.ErrWrongKey) {
		t.Errorf("a slot that was shredded: %v", err)
	}
	// What is changed later is still decided by the heads.
	_, err = s.AddSlot(ctx0, volumeKeyOf(t, s, "own"), secret(t))
	must(t, err)
	must(t, s.DeleteVolume(ctx0, "closed"))
	closeStore(t, s)
	closeStore(t, allOpen(t, path, options(t), secret(t), "own"))
}

func volumeKeyOf(t *testing.T, s *volume.Store, name string) crypt.ID {
	t.Helper()
	for _, slot := range s.Keyring().Slots() {
		if slot.Number == slotOf(t, s, name) {
			return slot.VolumeKey
		}
	}
	return crypt.ID{}
}

// TestShredOpen: a process that has the key in memory goes on, and may even make a
// slot again.
func TestShredOpen(t *testing.T) {
	path := filepath.Join(fastDir(t), "s.fsx")
	slottedStore(t, path, options(t))
	s := allOpen(t, path, options(t), secret(t), "main")
	id := keyOfMain(t, s)
	_, err := s.ShredSlots(ctx0, id)
	must(t, err)
	put(t, mainVolume(t, s), 2, 2)
	v, err := s.Volume("closed")
	must(t, err)
	expect(t, v, 1, 1)
	_, err = s.AddSlot(ctx0, id, passphrase(t, "again"))
	must(t, err)
	closeStore(t, s)
	s = allOpen(t, path, options(t), passphrase(t, "again"), underMain...)
	expect(t, mainVolume(t, s), 2, 2)
	closeStore(t, s)
}

// TestShredInterrupted fails every write and sync of the two areas. What counts
// afterwards is the shredded keyring as soon as one area has it, and then no area
// has the slot.
func TestShredInterrupted(t *testing.T) {
	for _, op := range []faultfs.Op{faultfs.Write, faultfs.Sync} {
		for skip := range 2 {
			t.Run(fmt.Sprintf("%s %d", op, skip), func(t *testing.T) {
				d := newDisk(t, volume.Limits{}, faultfs.Options{})
				slottedStore(t, d.path, d.o)
				s, err := volume.Open(d.path, d.o)
				must(t, err)
				d.Arm(faultfs.Rule{Ops: []faultfs.Op{op}, Path: "keyring", Err: syscall.EIO, Torn: op == faultfs.Write, Skip: skip})
				_, err = s.ShredSlots(ctx0, keyOfMain(t, s))
				if !errors.Is(err, volume.ErrNotShredded) {
					t.Errorf("shredding says %v", err)
				}
				left := killed(t, d.path)
				d.DisarmAll()
				_ = s.Close()
				s, err = volume.Open(left, options(t))
				must(t, err)
				slots := len(s.Keyring().Slots())
				closeStore(t, s)
				sameAreas(t, left)
				if skip == 1 && slots != 1 {
					t.Errorf("%d slots are back", slots)
				}
				if skip == 0 && op == faultfs.Write && slots == 1 {
					t.Log("the torn write was whole")
				}
			})
		}
	}
}
