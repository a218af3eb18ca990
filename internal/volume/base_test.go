package volume_test

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/fsximg/fsx/internal/volume"
	"github.com/fsximg/fsx/pkg/crypt"
)

// lending is a store with a clone "c" without a chain, under a volume key of its own,
// of which block 1 is its parent's.
func lending(t *testing.T) (s *volume.Store, v, c *volume.Volume) {
	t.Helper()
	s = create(t, filepath.Join(fastDir(t), "s.fsx"), 1<<20)
	v = mainVolume(t, s)
	put(t, v, 1, 1)
	must(t, v.CreateSnapshot(ctx0, "one"))
	must(t, s.Clone(ctx0, "main", "one", "c", volume.CloneOptions{NoChain: true, Secrets: []crypt.Secret{numbered(t, 1)}}))
	c, err := s.Volume("c")
	must(t, err)
	expect(t, c, 1, 1)
	return s, v, c
}

// keyAlone is the identifier of a volume's key.
func keyAlone(t *testing.T, s *volume.Store, volume string) crypt.ID {
	t.Helper()
	for _, k := range s.KeyStates() {
		if len(k.Volumes) == 1 && k.Volumes[0] == volume {
			return k.ID
		}
	}
	t.Fatalf("no key of %s alone", volume)
	return crypt.ID{}
}

// TestLentKeyStaysWhileRekeyed: a read that has found a lent data key can use it,
// although what the clone starts from gets another volume key meanwhile.
func TestLentKeyStaysWhileRekeyed(t *testing.T) {
	s, v, c := lending(t)
	found := c.LentKey(v.DataKeys()[0].ID)
	_, err := s.Rekey(ctx0, "main", volume.RekeyOptions{Secrets: []crypt.Secret{numbered(t, 2)}})
	must(t, err)
	if err := found(); err != nil {
		t.Errorf("a lent data key that a read had found: %v", err)
	}
	expect(t, c, 1, 1)
	// Under the new key it goes with that.
	_, err = s.RemoveKey(ctx0, keyAlone(t, s, "main"), false)
	must(t, err)
	if n := c.OpenLoans(); n != 0 {
		t.Errorf("%d bags are lent without the parent's key", n)
	}
	closeStore(t, s)
}

// TestLoansOfAClosedVolume: who still has a closed volume, as a reencryption may,
// opens nothing that is lent to it again.
func TestLoansOfAClosedVolume(t *testing.T) {
	s, _, c := lending(t)
	_, err := s.RemoveKey(ctx0, keyAlone(t, s, "c"), true)
	must(t, err)
	if n := c.OpenLoans(); n != 0 {
		t.Errorf("%d bags are open for a closed volume", n)
	}
	closeStore(t, s)
}

// TestCloseWhileLoansAreLookedAt: who looks for a lent key looks at the head, too, and
// is not in the way of a volume that closes.
func TestCloseWhileLoansAreLookedAt(t *testing.T) {
	watchdog(t, 20*time.Second)
	s, _, c := lending(t)
	release := c.HoldLoans()
	deleted := make(chan error, 1)
	go func() { deleted <- s.DeleteVolume(ctx0, "c") }()
	time.Sleep(200 * time.Millisecond)
	c.Snapshots() // takes the volume's lock, as its head does
	release()
	must(t, <-deleted)
	closeStore(t, s)
}
