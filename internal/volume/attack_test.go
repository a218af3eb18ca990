package volume_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/fsximg/fsx/internal/vfs"
	"github.com/fsximg/fsx/internal/volume"
	"github.com/fsximg/fsx/pkg/crypt"
	"github.com/fsximg/fsx/pkg/layout"
	"github.com/fsximg/fsx/pkg/layout/metadb"
	"github.com/fsximg/fsx/pkg/layout/seglog"
	"github.com/fsximg/fsx/pkg/layout/store"
)

// attacker has a store's files, for reading and writing, and what a secret of his
// opens.
type attacker struct {
	t    *testing.T
	path string
	ring *crypt.Keyring // as it was when he had the secret
	vk   *crypt.VolumeKey
}

func newAttacker(t *testing.T, path string, s crypt.Secret) *attacker {
	t.Helper()
	keys, err := ringOf(t, path).Unlock(s)
	must(t, err)
	return &attacker{t, path, ringOf(t, path), keys[0]}
}

// ringOf reads a keyring.
func ringOf(t *testing.T, path string) *crypt.Keyring {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(path, "keyring"))
	must(t, err)
	best, body := uint64(0), []byte(nil)
	for at := 0; at+64 < len(b); at += 16 << 20 {
		gen := binary.BigEndian.Uint64(b[at+8:])
		if n := binary.BigEndian.Uint32(b[at+16:]); gen > best {
			best, body = gen, b[at+64:at+64+int(n)]
		}
	}
	super, err := os.ReadFile(filepath.Join(path, "fsx"))
	must(t, err)
	ring, err := crypt.ParseKeyring(body, crypt.UUID(super[16:32]))
	must(t, err)
	return ring
}

// index opens the index of a closed store.
func (a *attacker) index(use func(*metadb.DB)) {
	a.t.Helper()
	db, err := metadb.Open(filepath.Join(a.path, "meta"), metadb.Options{})
	must(a.t, err)
	use(db)
	must(a.t, db.Close())
}

func (a *attacker) head(db *metadb.DB, id layout.VolumeID) (h *layout.Head) {
	a.t.Helper()
	must(a.t, db.Get(layout.HeadKey(id), func(val []byte) (err error) {
		h, err = layout.DecodeHead(val, nil)
		return err
	}))
	return h
}

// forge stores a head that is authenticated by the attacker's key.
func (a *attacker) forge(db *metadb.DB, h *layout.Head) {
	a.t.Helper()
	auth, err := crypt.NewAuthority(a.vk, crypt.UUID(h.Store), crypt.UUID(h.UUID))
	must(a.t, err)
	defer auth.Wipe()
	h.Epoch += 1000
	must(a.t, db.Update(func(tx *metadb.Txn) error {
		return tx.Set(layout.HeadKey(h.Volume), h.Encode(func(parts ...[]byte) [32]byte { return auth.MAC(crypt.PurposeHead, parts...) }))
	}))
}

// copyOf copies a closed store.
func copyOf(t *testing.T, path string) string {
	t.Helper()
	dst := filepath.Join(t.TempDir(), "copy.fsx")
	must(t, os.CopyFS(dst, os.DirFS(path)))
	return dst
}

// rekeyed makes a store with a block of before and one of after a rekeying, and
// what the holder of the old key kept of before.
func rekeyed(t *testing.T) (path, before string) {
	path = filepath.Join(t.TempDir(), "s.fsx")
	s := create(t, path, 1<<20)
	put(t, mainVolume(t, s), 1, 1)
	closeStore(t, s)
	before = copyOf(t, path)
	s = open(t, path)
	_, err := s.Rekey(ctx0, "main", volume.RekeyOptions{Secrets: []crypt.Secret{numbered(t, 1)}})
	must(t, err)
	put(t, mainVolume(t, s), 2, 2)
	flush(t, mainVolume(t, s))
	closeStore(t, s)
	return path, before
}

// TestOldKeyReadsNothingLater: the data keys that the old volume key opens are not
// those of what was written after a rekeying.
func TestOldKeyReadsNothingLater(t *testing.T) {
	path, before := rekeyed(t)
	a := newAttacker(t, before, secret(t))
	a.path = path
	var head *layout.Head
	var late []layout.ExtentRecord
	a.index(func(db *metadb.DB) {
		head = a.head(db, 1)
		old, err := a.ring.OpenBag(crypt.UUID(head.UUID), a.vk)
		must(t, err)
		must(t, db.Scan(layout.ExtentPrefix(1), func(_, val []byte) error {
			rec, err := layout.DecodeExtentRecord(val)
			if _, known := old.Get(crypt.ID(rec.KID)); err == nil && !known {
				late = append(late, rec)
			}
			return err
		}))
		if len(late) != 1 {
			t.Fatalf("%d extents under keys that the old bag has not, want 1", len(late))
		}
		// Nor does one of the keys that he has open it.
		data, err := os.ReadFile(filepath.Join(path, "vol", "00000001", seglog.FileName(late[0].Segment)))
		must(t, err)
		for _, k := range old.Keys() {
			key, _ := old.Get(k.ID)
			x, err := key.Extent(crypt.Nonce(late[0].Nonce), int(late[0].Blocks))
			must(t, err)
			b := append(bytes.Clone(data[int(late[0].Offset)*4096:][:4096]), make([]byte, 16)...)[:4096]
			for _, tag := range tagsOf(t, db, head) {
				if x.Open(bytes.Clone(b), 2, 0, &tag) == nil {
					t.Error("an old data key opens what was written later")
				}
			}
		}
	})
	if _, err := ringOf(t, path).OpenBag(crypt.UUID(head.UUID), a.vk); err == nil {
		t.Error("the old volume key opens the new bag")
	}
	if _, err := ringOf(t, path).Unlock(secret(t)); !errors.Is(err, crypt.ErrWrongKey) {
		t.Errorf("the old secret: %v", err)
	}
}

// tagsOf are all tags in a volume's leaves.
func tagsOf(t *testing.T, db *metadb.DB, h *layout.Head) (tags []crypt.Tag) {
	t.Helper()
	must(t, db.Scan([]byte("n"), func(_, val []byte) error {
		for at := 6; val[0] == 'L' && at+29 <= len(val); at += 29 {
			tags = append(tags, crypt.Tag(val[at+13:]))
		}
		return nil
	}))
	if len(tags) == 0 {
		t.Fatal("no leaf")
	}
	return tags
}

// TestOldKeyForgesNothing: with all files at hand, the holder of the old key makes no
// head, record or map that the new key's holder accepts.
func TestOldKeyForgesNothing(t *testing.T) {
	made, before := rekeyed(t)
	attempts := map[string]func(a *attacker, old string){
		"a head under the old key": func(a *attacker, _ string) {
			a.index(func(db *metadb.DB) {
				h := a.head(db, 1)
				h.VolumeKey = layout.KeyID(a.vk.ID())
				h.Root = layout.Root{Height: h.Root.Height}
				a.forge(db, h)
			})
		},
		"a head with the new key's name": func(a *attacker, _ string) {
			a.index(func(db *metadb.DB) {
				h := a.head(db, 1)
				h.Root = layout.Root{Height: h.Root.Height}
				a.forge(db, h)
			})
		},
		"the head and the keyring of before": func(a *attacker, old string) {
			var val []byte
			(&attacker{t: a.t, path: old}).index(func(db *metadb.DB) {
				must(a.t, db.Get(layout.HeadKey(1), func(b []byte) error { val = bytes.Clone(b); return nil }))
			})
			a.index(func(db *metadb.DB) {
				must(a.t, db.Update(func(tx *metadb.Txn) error { return tx.Set(layout.HeadKey(1), val) }))
			})
			b, err := os.ReadFile(filepath.Join(old, "keyring"))
			must(a.t, err)
			must(a.t, os.WriteFile(filepath.Join(a.path, "keyring"), b, 0o600))
		},
		"his slot for the new key's name": func(a *attacker, _ string) {
			ring := ringOf(a.t, a.path)
			_, err := ring.AddSlot(a.vk, numbered(a.t, 1)) // even under the user's own secret
			must(a.t, err)
			dir := store.At(vfs.OS(), a.path)
			must(a.t, errors.Join(dir.WriteKeyring(ring.Encode(), 101), dir.WriteKeyring(ring.Encode(), 102)))
			a.index(func(db *metadb.DB) {
				h := a.head(db, 1)
				h.VolumeKey = layout.KeyID(a.vk.ID())
				h.SlotsDigest = layout.Hash(ring.SlotsDigest(a.vk.ID()))
				bag, _ := ring.BagDigest(crypt.UUID(h.UUID))
				h.BagDigest = bag
				a.forge(db, h)
			})
		},
		"another map": func(a *attacker, _ string) {
			a.index(func(db *metadb.DB) {
				must(a.t, db.Scan([]byte("n"), func(key, val []byte) error {
					k, v := bytes.Clone(key), bytes.Clone(val)
					v[len(v)-1] ^= 1
					return db.Update(func(tx *metadb.Txn) error { return tx.Set(k, v) })
				}))
			})
		},
	}
	for name, attempt := range attempts {
		t.Run(name, func(t *testing.T) {
			a := newAttacker(t, before, secret(t))
			a.path = copyOf(t, made)
			attempt(a, copyOf(t, before))
			s, err := volume.Open(a.path, options(t))
			if err != nil {
				return
			}
			defer s.Close()
			if err := s.Unlock([]crypt.Secret{numbered(t, 1)}); err != nil {
				return
			}
			v, err := s.Volume("main")
			if err != nil {
				return
			}
			p := make([]byte, 4096, 4096+16)
			if err := v.ReadAt(p, 2*4096, false); err == nil && !bytes.Equal(p, block(2)) {
				t.Error("it was believed")
			}
		})
	}
}

// TestOldKeyAppendsNothing: a record that the old key authenticates, behind the
// last one under the new key, does not count.
func TestOldKeyAppendsNothing(t *testing.T) {
	made, before := rekeyed(t)
	for _, kind := range []layout.RecordType{layout.RecordCommit, layout.RecordContinue} {
		a := newAttacker(t, before, secret(t))
		a.path = copyOf(t, made)
		var h *layout.Head
		a.index(func(db *metadb.DB) { h = a.head(db, 1) })
		auth, err := crypt.NewAuthority(a.vk, crypt.UUID(h.Store), crypt.UUID(h.UUID))
		must(t, err)
		r := layout.Record{
			Type: kind, Volume: 1, Segment: h.Log.Segment, Start: h.Log.End, Block: h.Log.End, Seq: h.Log.Seq + 1, Synced: h.Log.Seq,
			PrevSegment: h.Log.Segment, PrevBlock: h.Log.Block, PrevMAC: h.Log.MAC, Size: h.Size,
			Ops: []layout.Op{{Code: layout.OpZero, Start: 0, Count: 8}},
		}
		if kind == layout.RecordContinue {
			r.Segment, r.Start, r.Block, r.Ops = h.NextSegment+5, 0, 0, nil
		}
		b := layout.AppendRecord(nil, &r, func(parts ...[]byte) [32]byte { return auth.MAC(crypt.PurposeRecord, parts...) })
		f, err := os.OpenFile(filepath.Join(a.path, "vol", "00000001", seglog.FileName(r.Segment)), os.O_RDWR|os.O_CREATE, 0o600)
		must(t, err)
		_, err = f.WriteAt(b, int64(r.Block)*4096)
		must(t, errors.Join(err, f.Close()))
		s := openAs(t, a.path, numbered(t, 1))
		expect(t, mainVolume(t, s), 1, 1)
		expect(t, mainVolume(t, s), 2, 2)
		put(t, mainVolume(t, s), 3, 3)
		closeStore(t, s)
		s = openAs(t, a.path, numbered(t, 1))
		expect(t, mainVolume(t, s), 3, 3)
		closeStore(t, s)
	}
}

// TestForeignExtents: who has a volume of his own in a store, and its files, points
// its map to another's blocks. The server has both keys, and decrypts nothing for
// him.
func TestForeignExtents(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.fsx")
	s := create(t, path, 1<<20)
	put(t, mainVolume(t, s), 1, 1)
	must(t, mainVolume(t, s).CreateSnapshot(ctx0, "base"))
	must(t, s.CreateVolume(ctx0, "his", 1<<20, volume.VolumeOptions{Secrets: []crypt.Secret{numbered(t, 1)}}))
	must(t, s.Clone(ctx0, "main", "base", "loan", volume.CloneOptions{Secrets: []crypt.Secret{numbered(t, 2)}, NoChain: true}))
	put(t, volumeOf(t, s, "his"), 5, 5)
	closeStore(t, s)
	a := newAttacker(t, path, numbered(t, 1))
	for name, change := range map[string]func(his, theirs, loan *layout.Head){
		"their map": func(his, theirs, _ *layout.Head) { his.Root = theirs.Root },
		"as a clone of theirs": func(his, theirs, _ *layout.Head) {
			his.Root, his.Parent, his.ParentSnapshot, his.ParentHash = theirs.Root, 1, theirs.NewestSnapshot, theirs.Root.Hash
		},
		"as what theirs is after a rollback": func(his, theirs, _ *layout.Head) {
			his.Root, his.Parent, his.ParentSnapshot, his.Continues = theirs.Root, 1, theirs.NewestSnapshot, true
		},
		"as what a clone that may read them is after a rollback": func(his, theirs, loan *layout.Head) {
			his.Root, his.Parent, his.ParentSnapshot, his.Continues = theirs.Root, loan.Volume, 1, true
		},
	} {
		t.Run(name, func(t *testing.T) {
			a := &attacker{t, copyOf(t, path), a.ring, a.vk}
			a.index(func(db *metadb.DB) {
				his := a.head(db, 2)
				change(his, a.head(db, 1), a.head(db, 3))
				a.forge(db, his)
			})
			s := openAs(t, a.path, secret(t), numbered(t, 1), numbered(t, 2))
			defer s.Close()
			expect(t, volumeOf(t, s, "loan"), 1, 1) // all keys are there
			his, err := s.Volume("his")
			if err != nil {
				return
			}
			p := make([]byte, 4096, 4096+16)
			if err := his.ReadAt(p, 4096, false); !errors.Is(err, volume.ErrKeyMissing) || bytes.Contains(p, block(1)[:64]) {
				t.Errorf("read: %v", err)
			}
		})
	}
}

// TestLoanIsNotInherited: who takes a clone without a chain over, with a head under a
// key of his own, does not read with what was lent to it.
func TestLoanIsNotInherited(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.fsx")
	s := create(t, path, 1<<20)
	put(t, mainVolume(t, s), 1, 1)
	must(t, mainVolume(t, s).CreateSnapshot(ctx0, "base"))
	must(t, s.Clone(ctx0, "main", "base", "loan", volume.CloneOptions{Secrets: []crypt.Secret{numbered(t, 2)}, NoChain: true}))
	must(t, s.CreateVolume(ctx0, "his", 1<<20, volume.VolumeOptions{Secrets: []crypt.Secret{numbered(t, 1)}}))
	closeStore(t, s)
	a := newAttacker(t, path, numbered(t, 1))
	a.index(func(db *metadb.DB) {
		h := a.head(db, 2)
		ring := ringOf(t, path)
		bag := crypt.NewBag()
		defer bag.Wipe()
		key, err := crypt.NewDataKey(crypt.AES256GCM)
		must(t, err)
		must(t, bag.Add(key, true))
		must(t, ring.SetBag(crypt.UUID(h.UUID), a.vk, bag))
		dir := store.At(vfs.OS(), path)
		must(t, errors.Join(dir.WriteKeyring(ring.Encode(), 101), dir.WriteKeyring(ring.Encode(), 102)))
		digest, _ := ring.BagDigest(crypt.UUID(h.UUID))
		h.VolumeKey, h.BagDigest, h.SlotsDigest = layout.KeyID(a.vk.ID()), digest, ring.SlotsDigest(a.vk.ID())
		a.forge(db, h)
	})
	s = openAs(t, path, secret(t), numbered(t, 1)) // the base's key, and his
	defer s.Close()
	expect(t, mainVolume(t, s), 1, 1)
	p := make([]byte, 4096, 4096+16)
	if err := volumeOf(t, s, "loan").ReadAt(p, 4096, false); !errors.Is(err, volume.ErrKeyMissing) || bytes.Contains(p, block(1)[:64]) {
		t.Errorf("read: %v", err)
	}
}

// TestReplacedKeyIsTrustedNoMore: after a rekeying the trust file is told that the old
// volume key counts no more.
func TestReplacedKeyIsTrustedNoMore(t *testing.T) {
	o := createOptions(t, 1<<20)
	var gone []crypt.ID
	o.Trust.Seen = func(s volume.Seen) { gone = append(gone, s.Gone...) }
	s, err := volume.Create(filepath.Join(t.TempDir(), "s.fsx"), o)
	must(t, err)
	r, err := s.Rekey(ctx0, "main", volume.RekeyOptions{Secrets: []crypt.Secret{numbered(t, 1)}})
	must(t, err)
	if len(gone) != 1 || gone[0] != r.Old {
		t.Errorf("gone: %v, want %v", gone, r.Old)
	}
	closeStore(t, s)
}
