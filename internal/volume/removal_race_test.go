package volume_test

import (
	"errors"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/fsximg/fsx/internal/volume"
	"github.com/fsximg/fsx/pkg/crypt"
)

// TestRemoveKeyRace removes and adds the key while clients come and go and commands
// are carried out: nobody sees anything but a missing key or the end of a volume, and
// what a client was told that it had written is there.
func TestRemoveKeyRace(t *testing.T) {
	watchdog(t, 120*time.Second)
	path := filepath.Join(fastDir(t), "s.fsx")
	s := createBusy(t, path, 16<<20, volume.Limits{Overlay: 300, Log: 1 << 20})
	put(t, mainVolume(t, s), 100, 7)
	must(t, mainVolume(t, s).CreateSnapshot(ctx0, "base"))
	must(t, s.Clone(ctx0, "main", "base", "own", volume.CloneOptions{Secrets: []crypt.Secret{numbered(t, 1)}}))
	id := keyOf(t, s, "main").ID
	stop := make(chan struct{})
	var wg sync.WaitGroup
	loop := func(name string, fn func(n int) error, allowed ...error) {
		wg.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				err := fn(n)
				if err != nil && !slices.ContainsFunc(allowed, func(a error) bool { return errors.Is(err, a) }) {
					t.Errorf("%s: %v", name, err)
					return
				}
			}
		})
	}
	gone := []error{volume.ErrKeyMissing, volume.ErrClosed}
	last := make([]int, 3)
	for i := range last {
		loop("client", func(n int) error {
			v, leave, err := s.UseVolume("main")
			if err != nil {
				return err
			}
			defer leave()
			at := int64(i) * 4096
			if last[i] > 0 {
				p := make([]byte, 4096)
				if err := v.ReadAt(p, at, false); err != nil {
					return err
				}
				if string(p) != string(block(last[i])) {
					t.Errorf("client %d: reads %d, wrote %d", i, numberOf(p), last[i])
				}
			}
			if err := v.WriteAt(block(n+1), at, false); err != nil {
				return err
			}
			last[i] = n + 1
			return nil
		}, gone...)
	}
	loop("remove", func(n int) error {
		_, err := s.RemoveKey(ctx0, id, n%3 == 0)
		time.Sleep(time.Millisecond)
		return err
	}, volume.ErrNoKey)
	loop("add", func(int) error {
		time.Sleep(2 * time.Millisecond)
		return s.Unlock([]crypt.Secret{secret(t)})
	})
	loop("commands", func(n int) error {
		v, err := s.Volume("main")
		if err != nil {
			return err
		}
		if err := v.CreateSnapshot(ctx0, "s"); err != nil && !errors.Is(err, volume.ErrExists) {
			return err
		}
		if err := s.Clone(ctx0, "main", "s", "c", volume.CloneOptions{}); err != nil && !errors.Is(err, volume.ErrExists) {
			return err
		}
		if err := s.DeleteVolume(ctx0, "c"); err != nil && !errors.Is(err, volume.ErrNotFound) {
			return err
		}
		_, err = s.Reencrypt(ctx0, "main", volume.ReencryptOptions{})
		return errors.Join(err, v.DeleteSnapshot(ctx0, "s"))
	}, append(gone, volume.ErrNoSnapshot, volume.ErrNotFound)...)
	loop("check", func(int) error {
		rep, err := s.Check(ctx0, volume.CheckOptions{})
		if err == nil && !rep.Clean() {
			t.Errorf("check: %v", rep.Problems)
		}
		_, compactErr := s.Compact(ctx0)
		_, infoErr := s.Info()
		return errors.Join(err, compactErr, infoErr)
	}, gone...)
	own := func() *volume.Volume {
		v, err := s.Volume("own")
		must(t, err)
		return v
	}()
	loop("another key", func(n int) error {
		p := make([]byte, 4096)
		if err := own.ReadAt(p, 100*4096, false); err != nil {
			return err
		}
		if string(p) != string(block(7)) {
			t.Errorf("the clone reads %d", numberOf(p))
		}
		return own.WriteAt(block(n), 4096, false)
	})
	time.Sleep(3 * time.Second)
	close(stop)
	wg.Wait()
	must(t, s.Unlock([]crypt.Secret{secret(t)}))
	for i, n := range last {
		if n > 0 {
			expect(t, mainVolume(t, s), int64(i), n)
		}
	}
	checkClean(t, s)
	closeStore(t, s)
}

// TestRemoveKeyWhileRekeyed removes and adds keys of a volume that is rekeyed and
// encrypted anew meanwhile, and that clients write: nothing of what they wrote is lost.
func TestRemoveKeyWhileRekeyed(t *testing.T) {
	watchdog(t, 120*time.Second)
	path := filepath.Join(fastDir(t), "s.fsx")
	s := createBusy(t, path, 16<<20, volume.Limits{Overlay: 300, Log: 1 << 20})
	secrets := []crypt.Secret{secret(t)}
	for i := range 8 {
		secrets = append(secrets, numbered(t, i))
	}
	allowed := func(err error) bool {
		return err == nil || errors.Is(err, volume.ErrKeyMissing) || errors.Is(err, volume.ErrClosed)
	}
	last, stop, wrote := 0, make(chan struct{}), make(chan struct{})
	var client sync.WaitGroup
	client.Go(func() {
		for n := 1; ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			v, leave, err := s.UseVolume("main")
			if err == nil {
				if err = v.WriteAt(block(n), 4096, false); err == nil {
					if last = n; n == 1 {
						close(wrote)
					}
				}
				leave()
			}
			if !allowed(err) {
				t.Errorf("client: %v", err)
				return
			}
		}
	})
	<-wrote
	removed := 0
	for i := range 40 {
		var change sync.WaitGroup
		change.Go(func() {
			if _, err := s.Rekey(ctx0, "main", volume.RekeyOptions{Secrets: secrets[1+i%8 : 2+i%8]}); !allowed(err) {
				t.Errorf("rekey: %v", err)
			}
		})
		change.Go(func() {
			if _, err := s.Reencrypt(ctx0, "main", volume.ReencryptOptions{}); !allowed(err) {
				t.Errorf("reencrypt: %v", err)
			}
		})
		_, err := s.RemoveKey(ctx0, keyOf(t, s, "main").ID, i%4 == 0)
		if err == nil {
			removed++
		} else if !errors.Is(err, volume.ErrNoKey) {
			t.Errorf("remove: %v", err)
		}
		change.Wait()
		must(t, s.Unlock(secrets))
	}
	close(stop)
	client.Wait()
	if removed == 0 {
		t.Error("no removal")
	}
	expect(t, mainVolume(t, s), 1, last)
	checkClean(t, s)
	closeStore(t, s)
	s = openAs(t, path, secrets...)
	expect(t, mainVolume(t, s), 1, last)
	checkClean(t, s)
	closeStore(t, s)
}
