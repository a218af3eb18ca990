package volume_test

import (
	"bytes"
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fsximg/fsx/internal/volume"
	"github.com/fsximg/fsx/pkg/crypt"
)

// numbered is a secret of its own for every n.
func numbered(t testing.TB, n int) crypt.Secret {
	t.Helper()
	s, err := crypt.NewKeyFile(bytes.Repeat([]byte{0xf0, byte(n), byte(n >> 8), 7}, 8))
	must(t, err)
	return s
}

func openAs(t testing.TB, path string, secrets ...crypt.Secret) *volume.Store {
	t.Helper()
	s, err := volume.Open(path, options(t))
	must(t, err)
	must(t, s.Unlock(secrets))
	return s
}

// TestRekey: the new key alone opens everything, what was written before and after,
// snapshots and what a rollback left; the old one opens nothing.
func TestRekey(t *testing.T) {
	watchdog(t, 60*time.Second)
	path := filepath.Join(fastDir(t), "s.fsx")
	s := create(t, path, 16<<20)
	v := mainVolume(t, s)
	for b := range int64(64) {
		put(t, v, b, 1)
	}
	must(t, v.CreateSnapshot(ctx0, "one"))
	put(t, v, 3, 2)
	must(t, v.CreateSnapshot(ctx0, "two"))
	_, err := s.Rollback(ctx0, "main", "one", true)
	must(t, err)
	v = mainVolume(t, s)
	put(t, v, 5, 3) // in the buffer

	r, err := s.Rekey(ctx0, "main", volume.RekeyOptions{Secrets: []crypt.Secret{numbered(t, 1)}})
	must(t, err)
	if len(r.Removed) != 1 || len(r.Shared) != 0 {
		t.Errorf("rekeyed: %+v", r)
	}
	put(t, v, 6, 4)
	flush(t, v)
	expect(t, v, 5, 3)
	must(t, v.CreateSnapshot(ctx0, "late"))
	left := killed(t, path)
	closeStore(t, s)

	for name, path := range map[string]string{"closed": path, "killed": left} {
		t.Run(name, func(t *testing.T) {
			s, err := volume.Open(path, options(t))
			must(t, err)
			if err := s.Unlock([]crypt.Secret{secret(t)}); !errors.Is(err, volume.ErrWrongKey) {
				t.Errorf("the old key: %v", err)
			}
			must(t, s.Unlock([]crypt.Secret{numbered(t, 1)}))
			v := mainVolume(t, s)
			for at, n := range map[int64]int{0: 1, 3: 1, 5: 3, 6: 4} {
				expect(t, v, at, n)
			}
			if l := v.Snapshots(); len(l) != 2 || l[0].Name != "one" || l[1].Name != "late" {
				t.Errorf("snapshots: %+v", l)
			}
			put(t, v, 9, 9)
			must(t, v.DeleteSnapshot(ctx0, "one"))
			must(t, v.Checkpoint(ctx0))
			checkClean(t, s)
			closeStore(t, s)
		})
	}
}

// TestRekeyNeverWritten: a volume without a log gets its keys too.
func TestRekeyNeverWritten(t *testing.T) {
	path := filepath.Join(fastDir(t), "s.fsx")
	s := create(t, path, 1<<20)
	_, err := s.Rekey(ctx0, "main", volume.RekeyOptions{Secrets: []crypt.Secret{numbered(t, 1)}})
	must(t, err)
	closeStore(t, s)
	s = openAs(t, path, numbered(t, 1))
	put(t, mainVolume(t, s), 1, 1)
	checkClean(t, s)
	closeStore(t, s)
}

// TestRekeyFifty: after fifty new keys in a row the last one opens everything.
func TestRekeyFifty(t *testing.T) {
	path := filepath.Join(fastDir(t), "s.fsx")
	s := create(t, path, 4<<20)
	for n := range 50 {
		put(t, mainVolume(t, s), int64(n), n+1)
		_, err := s.Rekey(ctx0, "main", volume.RekeyOptions{Secrets: []crypt.Secret{numbered(t, n)}})
		must(t, err)
		if n%10 == 9 {
			closeStore(t, s)
			s = openAs(t, path, numbered(t, n))
		}
	}
	v := mainVolume(t, s)
	for n := range 50 {
		expect(t, v, int64(n), n+1)
	}
	if keys := v.DataKeys(); len(keys) != 51 || keys[3].Bytes != 4096 {
		t.Errorf("data keys: %+v", keys)
	}
	r, err := s.Reencrypt(ctx0, "main", volume.ReencryptOptions{})
	must(t, err)
	if r.Bytes != 50*4096 || len(r.Removed) != 50 || len(r.Held) != 0 {
		t.Errorf("reencrypted: %+v", r)
	}
	for n := range 50 {
		expect(t, v, int64(n), n+1)
	}
	checkClean(t, s)
	closeStore(t, s)
	s = openAs(t, path, numbered(t, 49))
	expect(t, mainVolume(t, s), 7, 8)
	if keys := mainVolume(t, s).DataKeys(); len(keys) != 1 || keys[0].Number != 51 || keys[0].Bytes != 50*4096 {
		t.Errorf("data keys: %+v", keys)
	}
	closeStore(t, s)
}

// TestRekeyShared: who shares the volume key keeps it, with its slots.
func TestRekeyShared(t *testing.T) {
	path := filepath.Join(fastDir(t), "s.fsx")
	s := create(t, path, 1<<20)
	put(t, mainVolume(t, s), 1, 1)
	must(t, mainVolume(t, s).CreateSnapshot(ctx0, "one"))
	must(t, s.Clone(ctx0, "main", "one", "c", volume.CloneOptions{}))
	r, err := s.Rekey(ctx0, "c", volume.RekeyOptions{Secrets: []crypt.Secret{numbered(t, 1)}})
	must(t, err)
	if len(r.Shared) != 1 || r.Shared[0] != "main" || len(r.Removed) != 0 {
		t.Errorf("rekeyed: %+v", r)
	}
	closeStore(t, s)
	s = openAs(t, path, numbered(t, 1))
	c, err := s.Volume("c")
	must(t, err)
	expect(t, c, 1, 1)
	if _, err := s.Volume("main"); !errors.Is(err, volume.ErrKeyMissing) {
		t.Errorf("main opens under the clone's key: %v", err)
	}
	must(t, s.Unlock([]crypt.Secret{secret(t)}))
	expect(t, mainVolume(t, s), 1, 1)
	closeStore(t, s)
}

// TestReencryptHeld: snapshots keep the data keys that their blocks are under, and
// no others.
func TestReencryptHeld(t *testing.T) {
	s := create(t, filepath.Join(fastDir(t), "s.fsx"), 1<<20)
	v := mainVolume(t, s)
	put(t, v, 1, 1)
	must(t, v.CreateSnapshot(ctx0, "one"))
	rekey := func(n int) {
		_, err := s.Rekey(ctx0, "main", volume.RekeyOptions{Secrets: []crypt.Secret{numbered(t, n)}})
		must(t, err)
	}
	rekey(1)
	put(t, v, 2, 2)
	rekey(2)
	r, err := s.Reencrypt(ctx0, "main", volume.ReencryptOptions{})
	must(t, err)
	if len(r.Held) != 1 || r.Held[0].Number != 1 || len(r.Held[0].Snapshots) != 1 || r.Held[0].Snapshots[0] != "one" || len(r.Removed) != 1 {
		t.Errorf("reencrypted: %+v", r)
	}
	must(t, v.CreateSnapshot(ctx0, "two")) // has nothing under the first key
	must(t, v.DeleteSnapshot(ctx0, "one"))
	r, err = s.Reencrypt(ctx0, "main", volume.ReencryptOptions{})
	must(t, err)
	if r.Bytes != 0 || len(r.Held) != 0 || len(r.Removed) != 1 || r.Removed[0].Number != 1 {
		t.Errorf("reencrypted: %+v", r)
	}
	expect(t, v, 1, 1)
	checkClean(t, s)
	closeStore(t, s)
}

// TestReencryptClone: a clone that has everything under its own key needs its base
// no more.
func TestReencryptClone(t *testing.T) {
	path := filepath.Join(fastDir(t), "s.fsx")
	s := create(t, path, 1<<20)
	for b := range int64(100) {
		put(t, mainVolume(t, s), b, 5)
	}
	must(t, mainVolume(t, s).CreateSnapshot(ctx0, "base"))
	must(t, s.Clone(ctx0, "main", "base", "home", volume.CloneOptions{Secrets: []crypt.Secret{numbered(t, 1)}}))
	r, err := s.Reencrypt(ctx0, "home", volume.ReencryptOptions{})
	must(t, err)
	if r.Bytes != 100*4096 || len(r.Removed) != 1 {
		t.Errorf("reencrypted: %+v", r)
	}
	must(t, s.DeleteVolume(ctx0, "main"))
	if err := s.Unlock([]crypt.Secret{secret(t)}); !errors.Is(err, volume.ErrWrongKey) {
		t.Errorf("the base's key opens something: %v", err)
	}
	closeStore(t, s)
	s = openAs(t, path, numbered(t, 1))
	home, err := s.Volume("home")
	must(t, err)
	expect(t, home, 99, 5)
	checkClean(t, s)
	closeStore(t, s)
}

// TestEphemeral: what a clone with an ephemeral key has is there until the store is
// closed, and then lost, whatever keys there are. It can only be deleted.
func TestEphemeral(t *testing.T) {
	path := filepath.Join(fastDir(t), "s.fsx")
	s := create(t, path, 1<<20)
	put(t, mainVolume(t, s), 1, 1)
	must(t, mainVolume(t, s).CreateSnapshot(ctx0, "base"))
	must(t, s.Clone(ctx0, "main", "base", "web", volume.CloneOptions{Ephemeral: true}))
	web, err := s.Volume("web")
	must(t, err)
	expect(t, web, 1, 1)
	put(t, web, 2, 2)
	flush(t, web)
	expect(t, web, 2, 2)
	left := killed(t, path)
	must(t, s.Clone(ctx0, "main", "base", "gone", volume.CloneOptions{Ephemeral: true}))
	must(t, s.DeleteVolume(ctx0, "gone"))
	closeStore(t, s)
	for _, path := range []string{path, left} {
		s = open(t, path)
		if _, err := s.Volume("web"); !errors.Is(err, volume.ErrKeyMissing) || !errors.Is(err, volume.ErrLost) {
			t.Errorf("lost volume: %v", err)
		}
		expect(t, mainVolume(t, s), 1, 1)
		must(t, s.DeleteVolume(ctx0, "web"))
		must(t, mainVolume(t, s).DeleteSnapshot(ctx0, "base"))
		checkClean(t, s)
		closeStore(t, s)
		s = open(t, path)
		if n := s.Names(); len(n) != 1 {
			t.Errorf("volumes: %v", n)
		}
		closeStore(t, s)
	}
}

// TestNoChain: with its own key alone a clone without a chain reads what it wrote,
// and nothing of its base but holes; with the base's key too, everything.
func TestNoChain(t *testing.T) {
	path := filepath.Join(fastDir(t), "s.fsx")
	s := create(t, path, 1<<20)
	for b := range int64(8) {
		put(t, mainVolume(t, s), b, 1)
	}
	must(t, mainVolume(t, s).CreateSnapshot(ctx0, "base"))
	must(t, s.Clone(ctx0, "main", "base", "c", volume.CloneOptions{Secrets: []crypt.Secret{numbered(t, 1)}, NoChain: true}))
	c := volumeOf(t, s, "c")
	put(t, c, 1, 2)
	expect(t, c, 0, 1) // the base's key is open
	must(t, c.CreateSnapshot(ctx0, "mine"))
	_, err := s.Rollback(ctx0, "c", "mine", false)
	must(t, err)
	must(t, s.Clone(ctx0, "c", "mine", "d", volume.CloneOptions{}))
	closeStore(t, s)

	for round := range 2 {
		s = openAs(t, path, numbered(t, 1))
		for _, name := range []string{"c", "d"} {
			c = volumeOf(t, s, name)
			expect(t, c, 1, 2)
			var be *volume.BlockError
			if err := c.ReadAt(make([]byte, 8192), 0, false); !errors.Is(err, volume.ErrKeyMissing) || !errors.As(err, &be) || be.At != 0 {
				t.Errorf("%s: read without the base's key: %v", name, err)
			}
			must(t, c.ReadAt(make([]byte, 4096), 9*4096, false)) // a hole
		}
		noProblems(t, s)
		must(t, s.Unlock([]crypt.Secret{secret(t), numbered(t, 2)}))
		expect(t, c, 0, 1)
		noProblems(t, s)
		if round == 0 { // the base gets another key; the clone goes on
			_, err := s.Rekey(ctx0, "main", volume.RekeyOptions{Secrets: []crypt.Secret{numbered(t, 2)}})
			must(t, err)
			expect(t, volumeOf(t, s, "d"), 7, 1)
		}
		closeStore(t, s)
	}
	s = openAs(t, path, numbered(t, 1), numbered(t, 2))
	r, err := s.Reencrypt(ctx0, "d", volume.ReencryptOptions{})
	must(t, err)
	if r.Unreadable != 0 || r.Bytes < 7*4096 {
		t.Errorf("reencrypted: %+v", r)
	}
	closeStore(t, s)
	s = openAs(t, path, numbered(t, 1))
	for b, n := range []int{1, 2, 1, 1, 1, 1, 1, 1} {
		expect(t, volumeOf(t, s, "d"), int64(b), n)
	}
	must(t, s.DeleteVolume(ctx0, "c"))
	closeStore(t, s)
}

func volumeOf(t testing.TB, s *volume.Store, name string) *volume.Volume {
	t.Helper()
	v, err := s.Volume(name)
	must(t, err)
	return v
}

// TestNoChainKeyShared: a base that gets a key of its own takes what it lends along,
// also when others stay under the old one.
func TestNoChainKeyShared(t *testing.T) {
	path := filepath.Join(fastDir(t), "s.fsx")
	s := create(t, path, 1<<20)
	put(t, mainVolume(t, s), 1, 1)
	must(t, mainVolume(t, s).CreateSnapshot(ctx0, "base"))
	must(t, s.CreateVolume(ctx0, "other", 1<<20, volume.VolumeOptions{}))
	must(t, s.Clone(ctx0, "main", "base", "c", volume.CloneOptions{Secrets: []crypt.Secret{numbered(t, 1)}, NoChain: true}))
	_, err := s.Rekey(ctx0, "main", volume.RekeyOptions{Secrets: []crypt.Secret{numbered(t, 2)}})
	must(t, err)
	must(t, s.DeleteVolume(ctx0, "other")) // the last under the old key
	closeStore(t, s)
	s = openAs(t, path, numbered(t, 1), numbered(t, 2))
	expect(t, volumeOf(t, s, "c"), 1, 1)
	closeStore(t, s)
}

// TestManyBytes: once a data key has encrypted 1 PiB that is said, once.
func TestManyBytes(t *testing.T) {
	var text bytes.Buffer
	o := createOptions(t, 1<<20)
	o.Log = slog.New(slog.NewTextHandler(&text, nil))
	s, err := volume.Create(filepath.Join(fastDir(t), "s.fsx"), o)
	must(t, err)
	v := mainVolume(t, s)
	v.CountBytes(volume.ManyBytes - 2*4096)
	for n, want := range []int{0, 1, 1} {
		put(t, v, int64(n), n+1)
		must(t, v.Checkpoint(ctx0))
		if got := strings.Count(text.String(), "1 PiB"); got != want {
			t.Errorf("after %d blocks it was said %d times", n+1, got)
		}
	}
	_, err = s.Rekey(ctx0, "main", volume.RekeyOptions{Secrets: []crypt.Secret{numbered(t, 1)}})
	must(t, err)
	if keys := v.DataKeys(); keys[0].Bytes != volume.ManyBytes+4096 || keys[1].Bytes != 0 {
		t.Errorf("data keys: %+v", keys)
	}
	closeStore(t, s)
}

// TestLoanAfterBothRekeyed: when clone and base have both got new keys, what is lent
// goes with the base's new one.
func TestLoanAfterBothRekeyed(t *testing.T) {
	s := create(t, filepath.Join(fastDir(t), "s.fsx"), 1<<20)
	put(t, mainVolume(t, s), 1, 1)
	must(t, mainVolume(t, s).CreateSnapshot(ctx0, "base"))
	must(t, s.Clone(ctx0, "main", "base", "c", volume.CloneOptions{Secrets: []crypt.Secret{numbered(t, 1)}, NoChain: true}))
	expect(t, volumeOf(t, s, "c"), 1, 1)
	_, err := s.Rekey(ctx0, "c", volume.RekeyOptions{Secrets: []crypt.Secret{numbered(t, 2)}})
	must(t, err)
	r, err := s.Rekey(ctx0, "main", volume.RekeyOptions{Secrets: []crypt.Secret{numbered(t, 3)}})
	must(t, err)
	expect(t, volumeOf(t, s, "c"), 1, 1)
	_, err = s.RemoveKey(ctx0, r.New, true)
	must(t, err)
	if err := volumeOf(t, s, "c").ReadAt(make([]byte, 4096), 4096, false); !errors.Is(err, volume.ErrKeyMissing) {
		t.Errorf("read without the base's key: %v", err)
	}
	must(t, s.Unlock([]crypt.Secret{numbered(t, 3)}))
	expect(t, volumeOf(t, s, "c"), 1, 1)
	// Without the base's key the clone gets no other: it would read nothing of it.
	_, err = s.RemoveKey(ctx0, r.New, true)
	must(t, err)
	if _, err := s.Rekey(ctx0, "c", volume.RekeyOptions{Secrets: []crypt.Secret{numbered(t, 4)}}); !errors.Is(err, volume.ErrKeyMissing) {
		t.Errorf("rekeyed without the base's key: %v", err)
	}
	closeStore(t, s)
}
