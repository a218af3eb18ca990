package volume_test

import (
	"bytes"
	"context"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"github.com/fsximg/fsx/internal/volume"
	"github.com/fsximg/fsx/pkg/layout"
	"github.com/fsximg/fsx/pkg/layout/metadb"
)

// accounts are the keys and values of every account in a closed store's index.
func accounts(t *testing.T, db *metadb.DB) (keys, vals [][]byte) {
	t.Helper()
	err := db.Scan(layout.SegmentPrefix(1), func(key, val []byte) error {
		keys, vals = append(keys, bytes.Clone(key)), append(vals, bytes.Clone(val))
		return nil
	})
	if err != nil || len(keys) == 0 {
		t.Fatal(len(keys), err)
	}
	return keys, vals
}

// TestLostAccount spoils or deletes all accounts of segments: what lies in them
// stays readable, whatever is written, checkpointed and compacted later, and
// check says what is wrong.
func TestLostAccount(t *testing.T) {
	for name, spoil := range map[string]func(tx *metadb.Txn, key, val []byte) error{
		"altered": func(tx *metadb.Txn, key, val []byte) error {
			val[len(val)-5] ^= 0xff // live blocks become dead ones
			return tx.Set(key, val)
		},
		"deleted": func(tx *metadb.Txn, key, _ []byte) error { return tx.Delete(key) },
	} {
		t.Run(name, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seedOf(t), 4))
			path, data := tamperStore(t, rng)
			db, err := metadb.Open(filepath.Join(path, "meta"), metadb.Options{})
			if err != nil {
				t.Fatal(err)
			}
			keys, vals := accounts(t, db)
			err = db.Update(func(tx *metadb.Txn) error {
				for i := range keys {
					if err := spoil(tx, keys[i], vals[i]); err != nil {
						return err
					}
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
			for round := range 3 {
				s := open(t, path)
				v := mainVolume(t, s)
				for range 20 {
					off := rng.Int64N(tamperSize/4096) * 4096
					p := data[off : off+4096]
					for i := range p {
						p[i] = byte(rng.Uint32())
					}
					if err := v.WriteAt(p, off, false); err != nil {
						t.Fatal(err)
					}
				}
				if err := v.Checkpoint(ctx0); err != nil {
					t.Fatal(err)
				}
				if err := v.CompactAll(ctx0); err != nil {
					t.Fatal(err)
				}
				rep, err := s.Check(context.Background(), volume.CheckOptions{})
				if err != nil || rep.Clean() {
					t.Errorf("round %d: check found nothing, %v", round, err)
				}
				closeStore(t, s)
				if o := readTampered(t, path, data); o.refused != nil || o.broken > 0 || !o.found {
					t.Fatalf("round %d: %+v", round, o)
				}
			}
		})
	}
}
