package volume_test

import (
	"errors"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/fsximg/fsx/internal/vfs/faultfs"
	"github.com/fsximg/fsx/internal/volume"
	"github.com/fsximg/fsx/pkg/crypt"
)

// keyOf is the status of the volume key that a volume is under.
func keyOf(t testing.TB, s *volume.Store, name string) volume.KeyStatus {
	t.Helper()
	for _, k := range s.KeyStates() {
		if slices.Contains(k.Volumes, name) {
			return k
		}
	}
	t.Fatalf("no key of volume %s: %+v", name, s.KeyStates())
	return volume.KeyStatus{}
}

func expectState(t testing.TB, s *volume.Store, name string, state volume.KeyState, clients int) {
	t.Helper()
	if k := keyOf(t, s, name); k.State != state || k.Clients != clients {
		t.Fatalf("key of %s: %v with %d clients, want %v with %d", name, k.State, k.Clients, state, clients)
	}
}

func useVolume(t testing.TB, s *volume.Store, name string) (*volume.Volume, func()) {
	t.Helper()
	v, leave, err := s.UseVolume(name)
	must(t, err)
	return v, leave
}

// expectNoProblem checks a store of which not every key is there.
func expectNoProblem(t testing.TB, s *volume.Store) {
	t.Helper()
	rep, err := s.Check(ctx0, volume.CheckOptions{})
	must(t, err)
	if !rep.Clean() {
		t.Errorf("check: %v", rep.Problems)
	}
}

// TestRemoveKey goes through the states of a key that is removed while it is used.
func TestRemoveKey(t *testing.T) {
	watchdog(t, 60*time.Second)
	path := filepath.Join(fastDir(t), "s.fsx")
	s := create(t, path, 16<<20)
	v, leave := useVolume(t, s, "main")
	put(t, v, 1, 1)
	must(t, v.CreateSnapshot(ctx0, "snap"))
	d, leaveSnap, err := s.UseSnapshot("main", "snap")
	must(t, err)
	id := keyOf(t, s, "main").ID
	expectState(t, s, "main", volume.KeyPresent, 2)

	for range 2 { // a second removal finds the same
		r, err := s.RemoveKey(ctx0, id, false)
		must(t, err)
		if r.State != volume.KeyIncompletelyRemoved || r.Clients != 2 || len(r.Lost) != 0 {
			t.Errorf("removed while in use: %+v", r)
		}
	}
	put(t, v, 2, 2)
	expect(t, v, 1, 1)
	expect(t, v, 2, 2)
	flush(t, v)
	must(t, d.ReadAt(make([]byte, 4096), 4096, false))
	if _, _, err := s.UseVolume("main"); !errors.Is(err, volume.ErrKeyMissing) {
		t.Errorf("a new client: %v", err)
	}
	if _, err := s.Volume("main"); !errors.Is(err, volume.ErrKeyMissing) {
		t.Errorf("a command: %v", err)
	}
	if err := s.Clone(ctx0, "main", "snap", "c", volume.CloneOptions{}); !errors.Is(err, volume.ErrKeyMissing) {
		t.Errorf("a clone: %v", err)
	}
	checkClean(t, s)

	must(t, s.Unlock([]crypt.Secret{secret(t)}))
	expectState(t, s, "main", volume.KeyPresent, 2)
	w, leaveToo := useVolume(t, s, "main")
	if w != v {
		t.Error("added while in use, it opens anew")
	}
	leaveToo()
	_, err = s.RemoveKey(ctx0, id, false)
	must(t, err)

	put(t, v, 3, 3) // late, and never flushed
	leaveSnap()
	expectState(t, s, "main", volume.KeyIncompletelyRemoved, 1)
	leave()
	leave() // does nothing
	expectState(t, s, "main", volume.KeyAbsent, 0)
	if err := v.WriteAt(make([]byte, 4096), 0, false); !errors.Is(err, volume.ErrClosed) {
		t.Errorf("write to what is closed: %v", err)
	}
	if _, err := s.RemoveKey(ctx0, id, true); !errors.Is(err, volume.ErrNoKey) {
		t.Errorf("removed again: %v", err)
	}
	expectNoProblem(t, s)

	must(t, s.Unlock([]crypt.Secret{secret(t)}))
	v, leave = useVolume(t, s, "main")
	for n := range int64(3) {
		expect(t, v, n+1, int(n)+1)
	}
	leave()
	closeStore(t, s)
	s = open(t, path)
	expect(t, mainVolume(t, s), 3, 3)
	checkClean(t, s)
	closeStore(t, s)
}

// TestRemoveKeyForced cuts clients off: what was acknowledged is there when the key
// is back.
func TestRemoveKeyForced(t *testing.T) {
	watchdog(t, 60*time.Second)
	path := filepath.Join(fastDir(t), "s.fsx")
	s := create(t, path, 64<<20)
	v, leave := useVolume(t, s, "main")
	acked := make([]int, 4)
	var wg sync.WaitGroup
	for i := range acked {
		wg.Go(func() {
			for n := 1; ; n++ {
				if err := v.WriteAt(block(n), int64(i)*4096, false); err != nil {
					if !errors.Is(err, volume.ErrClosed) {
						t.Errorf("cut off: %v", err)
					}
					return
				}
				acked[i] = n
			}
		})
	}
	time.Sleep(20 * time.Millisecond)
	r, err := s.RemoveKey(ctx0, keyOf(t, s, "main").ID, true)
	must(t, err)
	if r.State != volume.KeyAbsent || len(r.Lost) != 0 {
		t.Errorf("forced: %+v", r)
	}
	wg.Wait()
	if err := errors.Join(v.Flush(), v.ReadAt(make([]byte, 512), 0, false)); !errors.Is(err, volume.ErrClosed) {
		t.Errorf("afterwards: %v", err)
	}
	must(t, s.Unlock([]crypt.Secret{secret(t)}))
	w, leaveNew := useVolume(t, s, "main")
	for i, n := range acked {
		if n > 0 {
			expect(t, w, int64(i), n)
		}
	}
	leave() // of the one that was cut off: it changes nothing
	expectState(t, s, "main", volume.KeyPresent, 1)
	leaveNew()
	closeStore(t, s)
}

// TestRemoveKeyOfFamily removes the key of a parent: a clone under a key of its own
// goes on, and reads what it shares; what a rollback left stays as long as a client
// needs it.
func TestRemoveKeyOfFamily(t *testing.T) {
	watchdog(t, 60*time.Second)
	path := filepath.Join(fastDir(t), "s.fsx")
	s := create(t, path, 16<<20)
	put(t, mainVolume(t, s), 1, 1)
	must(t, mainVolume(t, s).CreateSnapshot(ctx0, "snap"))
	put(t, mainVolume(t, s), 1, 2)
	must(t, s.Clone(ctx0, "main", "snap", "own", volume.CloneOptions{Secrets: []crypt.Secret{numbered(t, 1)}}))
	_, err := s.Rollback(ctx0, "main", "snap", false)
	must(t, err)

	own, leaveOwn := useVolume(t, s, "own")
	v, leave := useVolume(t, s, "main")
	d, leaveSnap, err := s.UseSnapshot("main", "snap") // in what a rollback left
	must(t, err)
	id := keyOf(t, s, "main").ID
	_, err = s.RemoveKey(ctx0, id, false)
	must(t, err)
	leave()
	expectState(t, s, "main", volume.KeyIncompletelyRemoved, 1)
	must(t, d.ReadAt(make([]byte, 4096), 4096, false))
	expect(t, v, 1, 1)
	leaveSnap()
	expectState(t, s, "main", volume.KeyAbsent, 0)
	expectState(t, s, "own", volume.KeyPresent, 1)

	expect(t, own, 1, 1)
	put(t, own, 2, 5)
	flush(t, own)
	must(t, own.CreateSnapshot(ctx0, "mine"))
	expectNoProblem(t, s)
	if _, err := s.Compact(ctx0); err != nil {
		t.Errorf("compact: %v", err)
	}
	leaveOwn()
	must(t, s.DeleteVolume(ctx0, "own"))
	closeStore(t, s)
	s = open(t, path)
	expect(t, mainVolume(t, s), 1, 1)
	expectNoProblem(t, s)
	closeStore(t, s)
}

// TestRemoveKeyEphemeral takes force: there is no way back.
func TestRemoveKeyEphemeral(t *testing.T) {
	path := filepath.Join(fastDir(t), "s.fsx")
	s := create(t, path, 16<<20)
	must(t, mainVolume(t, s).CreateSnapshot(ctx0, "snap"))
	must(t, s.Clone(ctx0, "main", "snap", "gone", volume.CloneOptions{Ephemeral: true}))
	id := keyOf(t, s, "gone").ID
	if _, err := s.RemoveKey(ctx0, id, false); !errors.Is(err, volume.ErrOnlyCopy) {
		t.Errorf("removed: %v", err)
	}
	if _, err := s.RemoveKey(ctx0, id, true); err != nil {
		t.Error(err)
	}
	if _, err := s.Volume("gone"); !errors.Is(err, volume.ErrLost) {
		t.Errorf("open: %v", err)
	}
	must(t, s.DeleteVolume(ctx0, "gone"))
	closeStore(t, s)
}

// TestRemoveKeyUnclean: a volume that was recovered and closed with its key has no
// log to replay.
func TestRemoveKeyUnclean(t *testing.T) {
	path := filepath.Join(fastDir(t), "s.fsx")
	s := create(t, path, 16<<20)
	v := mainVolume(t, s)
	put(t, v, 1, 1)
	flush(t, v)
	left := killed(t, path)
	closeStore(t, s)
	s = open(t, left)
	expect(t, mainVolume(t, s), 1, 1)
	_, err := s.RemoveKey(ctx0, keyOf(t, s, "main").ID, false)
	must(t, err)
	if l, err := s.Contents(); err != nil || l[0].NeedsReplay {
		t.Errorf("contents: %+v, %v", l, err)
	}
	closeStore(t, s)
	s, err = volume.Open(left, options(t))
	must(t, err)
	if l, err := s.Contents(); err != nil || l[0].NeedsReplay {
		t.Errorf("contents, opened again: %+v, %v", l, err)
	}
	closeStore(t, s)
}

// TestRemoveKeyKilled: a store that is killed while a key is removed incompletely
// has what was flushed.
func TestRemoveKeyKilled(t *testing.T) {
	path := filepath.Join(fastDir(t), "s.fsx")
	s := create(t, path, 16<<20)
	v, leave := useVolume(t, s, "main")
	put(t, v, 1, 1)
	_, err := s.RemoveKey(ctx0, keyOf(t, s, "main").ID, false)
	must(t, err)
	flushed := killed(t, path)
	put(t, v, 2, 2)
	flush(t, v)
	late := killed(t, path)
	leave()
	for _, path := range []string{flushed, late, killed(t, path)} {
		s := open(t, path)
		expect(t, mainVolume(t, s), 1, 1)
		if path != flushed {
			expect(t, mainVolume(t, s), 2, 2)
		}
		checkClean(t, s)
		closeStore(t, s)
	}
	closeStore(t, s)
}

// TestRemoveKeyNotFlushed: a key whose volume cannot be flushed stays, unless that is
// forced; then it is said, and what was flushed before is there.
func TestRemoveKeyNotFlushed(t *testing.T) {
	watchdog(t, 60*time.Second)
	d := newDisk(t, volume.Limits{}, faultfs.Options{DropOnFailedSync: true, Seed: 1})
	s := d.create(t, 16<<20)
	v, leave := useVolume(t, s, "main")
	put(t, v, 1, 1)
	flush(t, v)
	put(t, v, 2, 2)
	d.Arm(faultfs.Rule{Ops: []faultfs.Op{faultfs.Sync}, Path: "*.seg", Err: syscall.EIO, Count: 1})
	id := keyOf(t, s, "main").ID
	if _, err := s.RemoveKey(ctx0, id, false); !errors.Is(err, volume.ErrNotFlushed) || !errors.Is(err, syscall.EIO) {
		t.Errorf("not flushed: %v", err)
	}
	expectState(t, s, "main", volume.KeyPresent, 1)
	r, err := s.RemoveKey(ctx0, id, true)
	must(t, err)
	if r.State != volume.KeyAbsent || len(r.Lost) != 1 || !errors.Is(r.Lost[0], syscall.EIO) {
		t.Errorf("forced: %+v", r)
	}
	leave()
	must(t, s.Close())
	s, err = volume.Open(d.path, d.o)
	must(t, err)
	if l, err := s.Contents(); err != nil || !l[0].NeedsReplay {
		t.Errorf("contents, its log not saved: %+v, %v", l, err)
	}
	must(t, s.Unlock([]crypt.Secret{secret(t)}))
	expect(t, mainVolume(t, s), 1, 1)
	checkClean(t, s)
	closeStore(t, s)
	s = openWith(t, d.path, d.o)
	if l, err := s.Contents(); err != nil || l[0].NeedsReplay {
		t.Errorf("contents: %+v, %v", l, err)
	}
	closeStore(t, s)
}
