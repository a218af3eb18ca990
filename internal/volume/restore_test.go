package volume_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/fsximg/fsx/internal/vfs/faultfs"
	"github.com/fsximg/fsx/internal/volume"
	"github.com/fsximg/fsx/pkg/crypt"
	"github.com/fsximg/fsx/pkg/layout"
)

func backupOf(t *testing.T, s *volume.Store) *layout.KeyringBackup {
	t.Helper()
	return &layout.KeyringBackup{Store: s.UUID(), Body: s.Keyring().Encode()}
}

// restore restores a keyring in a store that is not open.
func restore(t *testing.T, path string, o volume.Options, b *layout.KeyringBackup, r volume.RestoreOptions) (volume.Restored, error) {
	t.Helper()
	s, err := volume.OpenForRestore(path, o, b)
	must(t, err)
	got, err := s.RestoreKeyring(ctx0, b, r)
	_ = s.Close()
	return got, err
}

func noneAside(t *testing.T, path string) {
	t.Helper()
	if l, _ := filepath.Glob(filepath.Join(path, "keyring.old-*")); len(l) != 0 {
		t.Errorf("left: %v", l)
	}
}

// TestRestoreSlots brings slots back that were shredded, for which the heads need not
// be told, and one that was removed, for which they do.
func TestRestoreSlots(t *testing.T) {
	path := filepath.Join(fastDir(t), "s.fsx")
	slottedStore(t, path, options(t))
	s := allOpen(t, path, options(t), secret(t))
	id := keyOfMain(t, s)
	b := backupOf(t, s)
	_, err := s.ShredSlots(ctx0, id)
	must(t, err)
	closeStore(t, s)
	dry, err := restore(t, path, options(t), b, volume.RestoreOptions{DryRun: true})
	if err != nil || len(dry.Slots) != 1 {
		t.Fatalf("what would be done: %+v, %v", dry, err)
	}
	got, err := restore(t, path, options(t), b, volume.RestoreOptions{})
	if err != nil || len(got.Slots) != 1 || got.Slots[0].VolumeKey != id {
		t.Fatalf("restored: %+v, %v", got, err)
	}
	s = allOpen(t, path, options(t), secret(t), underMain...)

	n, err := s.AddSlot(ctx0, id, passphrase(t, "new"))
	must(t, err)
	must(t, s.RemoveSlot(ctx0, 1, false))
	closeStore(t, s)
	if _, err := restore(t, path, options(t), b, volume.RestoreOptions{}); !errors.Is(err, volume.ErrKeyMissing) {
		t.Errorf("without the slot's secret: %v", err)
	}
	if _, err := restore(t, path, options(t), b, volume.RestoreOptions{Secrets: []crypt.Secret{passphrase(t, "new")}}); !errors.Is(err, volume.ErrWrongKey) {
		t.Errorf("with a secret that opens nothing of the backup: %v", err)
	}
	got, err = restore(t, path, options(t), b, volume.RestoreOptions{Secrets: []crypt.Secret{secret(t)}})
	if err != nil || len(got.Slots) != 1 {
		t.Fatalf("restored: %+v, %v", got, err)
	}
	closeStore(t, allOpen(t, path, options(t), secret(t), underMain...))
	s = allOpen(t, path, options(t), passphrase(t, "new"), underMain...)
	// The slot's number was given to another secret: that one would go.
	must(t, s.ChangeSlot(ctx0, 1, otherSecret(t)))
	must(t, s.RemoveSlot(ctx0, n, false))
	closeStore(t, s)
	with := volume.RestoreOptions{Secrets: []crypt.Secret{secret(t)}}
	if got, err := restore(t, path, options(t), b, with); !errors.Is(err, volume.ErrWouldLose) || len(got.Replaced) != 1 {
		t.Errorf("in place of another: %+v, %v", got, err)
	}
	with.Force = true
	_, err = restore(t, path, options(t), b, with)
	must(t, err)
	closeStore(t, allOpen(t, path, options(t), secret(t), underMain...))
	noneAside(t, path)
	sameAreas(t, path)
}

// TestRestoreKeyring restores a keyring file that is gone, or bad.
func TestRestoreKeyring(t *testing.T) {
	for name, ruin := range map[string]func(file string) error{
		"gone": os.Remove,
		"bad":  func(file string) error { return os.Truncate(file, 40) },
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(fastDir(t), "s.fsx")
			slottedStore(t, path, options(t))
			s := allOpen(t, path, options(t), secret(t), "main")
			b := backupOf(t, s)
			closeStore(t, s)
			must(t, ruin(filepath.Join(path, "keyring")))
			if _, err := volume.Open(path, options(t)); err == nil {
				t.Fatal("a store without a keyring opens")
			}
			_, err := restore(t, path, options(t), b, volume.RestoreOptions{})
			must(t, err)
			closeStore(t, allOpen(t, path, options(t), secret(t), underMain...))
			s = allOpen(t, path, options(t), otherSecret(t), "own")
			// Now one that is older than a slot and a clone.
			must(t, s.Unlock([]crypt.Secret{secret(t)}))
			_, err = s.AddSlot(ctx0, keyOfMain(t, s), passphrase(t, "new"))
			must(t, err)
			must(t, s.Clone(ctx0, "main", "s1", "late", volume.CloneOptions{}))
			closeStore(t, s)
			must(t, ruin(filepath.Join(path, "keyring")))
			if got, err := restore(t, path, options(t), b, volume.RestoreOptions{}); !errors.Is(err, volume.ErrKeyMissing) {
				t.Errorf("of an older one, without a secret: %+v, %v", got, err)
			}
			with := volume.RestoreOptions{Secrets: []crypt.Secret{secret(t)}}
			got, err := restore(t, path, options(t), b, with)
			if !errors.Is(err, volume.ErrWouldLose) || len(got.Lost) != 1 || got.Lost[0] != "late" {
				t.Errorf("of an older one: %+v, %v", got, err)
			}
			with.Force = true
			_, err = restore(t, path, options(t), b, with)
			must(t, err)
			s = allOpen(t, path, options(t), secret(t), underMain...)
			if _, err := s.Volume("late"); !errors.Is(err, volume.ErrDamaged) {
				t.Errorf("a volume without its bag: %v", err)
			}
			must(t, s.DeleteVolume(ctx0, "late"))
			closeStore(t, s)
			noneAside(t, path)
			sameAreas(t, path)
		})
	}
}

// TestRestoreOtherStore: a backup belongs to one store.
func TestRestoreOtherStore(t *testing.T) {
	dir := fastDir(t)
	a, b := create(t, filepath.Join(dir, "a.fsx"), 1<<20), create(t, filepath.Join(dir, "b.fsx"), 1<<20)
	if _, err := a.RestoreKeyring(ctx0, backupOf(t, b), volume.RestoreOptions{}); err == nil {
		t.Error("another store's keyring is accepted")
	}
	closeStore(t, a)
	closeStore(t, b)
}

// TestRestoreInterrupted fails every write and sync of a restoration of slots, and
// kills the process: what is there opens as before, or as restored, and restoring
// again succeeds.
func TestRestoreInterrupted(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: one goroutine, and it takes long")
	}
	for _, op := range []faultfs.Op{faultfs.Create, faultfs.Write, faultfs.Sync} {
		for skip := range 3 {
			t.Run(fmt.Sprintf("%s %d", op, skip), func(t *testing.T) {
				d := newDisk(t, volume.Limits{}, faultfs.Options{})
				slottedStore(t, d.path, d.o)
				s := allOpen(t, d.path, d.o, secret(t))
				b := backupOf(t, s)
				_, err := s.AddSlot(ctx0, keyOfMain(t, s), passphrase(t, "new"))
				must(t, err)
				must(t, s.RemoveSlot(ctx0, 1, false))
				closeStore(t, s)
				s, err = volume.OpenForRestore(d.path, d.o, b)
				must(t, err)
				armed := d.Arm(faultfs.Rule{Ops: []faultfs.Op{op}, Path: "keyring*", Err: syscall.EIO, Skip: skip, Torn: op == faultfs.Write})
				with := volume.RestoreOptions{Secrets: []crypt.Secret{secret(t)}}
				_, err = s.RestoreKeyring(ctx0, b, with)
				if armed.Fired() == 0 && err != nil {
					t.Errorf("nothing failed, and: %v", err)
				}
				left := killed(t, d.path)
				d.DisarmAll()
				_ = s.Close()
				closeStore(t, allOpen(t, left, options(t), passphrase(t, "new"), underMain...))
				_, err = restore(t, left, options(t), b, with)
				must(t, err)
				closeStore(t, allOpen(t, left, options(t), secret(t), underMain...))
				sameAreas(t, left)
				noneAside(t, left)
			})
		}
	}
}
