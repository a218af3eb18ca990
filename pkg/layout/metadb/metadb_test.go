package metadb_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/fsximg/fsx/pkg/layout/metadb"
)

func open(t testing.TB, dir string, o metadb.Options) *metadb.DB {
	t.Helper()
	db, err := metadb.Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	return db
}

func create(t testing.TB) *metadb.DB {
	db := open(t, t.TempDir(), metadb.Options{Create: true, MinFree: -1})
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

func key(i int) []byte { return binary.BigEndian.AppendUint64([]byte{'k'}, uint64(i)) }

func value(i int) []byte { return bytes.Repeat([]byte{byte(i), byte(i >> 8)}, 100+i%100) }

func get(t testing.TB, db *metadb.DB, k []byte) []byte {
	t.Helper()
	v, err := db.GetAppend(k, nil)
	if err != nil {
		t.Fatalf("get %x: %v", k, err)
	}
	return v
}

func TestOpenNeedsDatabase(t *testing.T) {
	if _, err := metadb.Open(t.TempDir(), metadb.Options{}); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("opening an empty directory: %v", err)
	}
}

func TestBatchReopen(t *testing.T) {
	const n = 20000 // several transactions
	dir := t.TempDir()
	db := open(t, dir, metadb.Options{Create: true, MinFree: -1})
	b := db.NewBatch()
	k, v := make([]byte, 0, 16), make([]byte, 0, 512)
	for i := range n {
		k, v = append(k[:0], key(i)...), append(v[:0], value(i)...)
		if err := b.Set(k, v); err != nil {
			t.Fatal(err)
		}
	}
	for i := 0; i < n; i += 10 {
		if err := b.Delete(key(i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := b.Set(key(1), nil); err == nil {
		t.Fatal("an ended batch takes writes")
	}
	check := func() {
		t.Helper()
		for i := range n {
			got, err := db.GetAppend(key(i), nil)
			if i%10 == 0 {
				if err != metadb.ErrNotFound {
					t.Fatalf("deleted key %d: %v", i, err)
				}
			} else if err != nil || !bytes.Equal(got, value(i)) {
				t.Fatalf("key %d: %v", i, err)
			}
		}
	}
	check()
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	db = open(t, dir, metadb.Options{})
	check()
	if err := db.Flatten(); err != nil {
		t.Fatal(err)
	}
	check()
	if size, err := db.Size(); err != nil || size < n*200 || size > 64<<20 {
		t.Fatalf("size %d, %v", size, err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := db.GetAppend(key(1), nil); !errors.Is(err, metadb.ErrClosed) {
		t.Fatalf("get after close: %v", err)
	}
}

// A power cut leaves empty logs: one that was created and not yet sized, one
// that was emptied and not yet removed. They must not keep the rest from being
// read.
func TestOpenDropsEmptyLogs(t *testing.T) {
	dir := t.TempDir()
	db := open(t, dir, metadb.Options{Create: true, MinFree: -1})
	if err := db.Update(func(txn *metadb.Txn) error { return txn.Set(key(1), value(1)) }); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	empty := []string{"00000.mem", "00007.mem", "000000.vlog", "000009.vlog"}
	for _, name := range empty {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	db = open(t, dir, metadb.Options{})
	defer db.Close()
	if !bytes.Equal(get(t, db, key(1)), value(1)) {
		t.Error("wrong value")
	}
	for _, name := range empty {
		if info, err := os.Stat(filepath.Join(dir, name)); err == nil && info.Size() == 0 {
			t.Errorf("%s is still there", name)
		}
	}
}

func TestBatchCancel(t *testing.T) {
	db := create(t)
	b := db.NewBatch()
	if err := b.Set(key(1), value(1)); err != nil {
		t.Fatal(err)
	}
	b.Cancel()
	if _, err := db.GetAppend(key(1), nil); err != metadb.ErrNotFound {
		t.Fatalf("cancelled write: %v", err)
	}
	// The cancelled batch holds nothing that would block another.
	if err := db.Update(func(txn *metadb.Txn) error { return txn.Set(key(1), value(2)) }); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(get(t, db, key(1)), value(2)) {
		t.Fatal("wrong value")
	}
	boom := errors.New("boom")
	if err := db.Get(key(1), func(v []byte) error {
		if !bytes.Equal(v, value(2)) {
			t.Error("wrong value")
		}
		return boom
	}); err != boom {
		t.Fatal(err)
	}
}

func TestUpdateIsAtomic(t *testing.T) {
	db := create(t)
	boom := errors.New("boom")
	err := db.Update(func(txn *metadb.Txn) error {
		if err := txn.Set(key(1), value(1)); err != nil {
			return err
		}
		if v, err := txn.GetAppend(key(1), nil); err != nil || !bytes.Equal(v, value(1)) {
			t.Fatalf("own write: %v", err)
		}
		return boom
	})
	if err != boom {
		t.Fatal(err)
	}
	if _, err := db.GetAppend(key(1), nil); err != metadb.ErrNotFound {
		t.Fatalf("aborted write: %v", err)
	}
	err = db.Update(func(txn *metadb.Txn) error {
		for i := 0; ; i++ {
			if err := txn.Set(key(i), value(i)); err != nil {
				return err
			}
		}
	})
	if !errors.Is(err, metadb.ErrTooLarge) {
		t.Fatalf("endless transaction: %v", err)
	}
	if _, err := db.GetAppend(key(1), nil); err != metadb.ErrNotFound {
		t.Fatalf("part of a refused transaction: %v", err)
	}
	if err := db.Update(func(txn *metadb.Txn) error { return txn.Set(key(1), make([]byte, metadb.MaxValue+1)) }); !errors.Is(err, metadb.ErrTooLarge) {
		t.Fatalf("huge value: %v", err)
	}
	if err := db.Update(func(txn *metadb.Txn) error { return txn.Set(key(1), make([]byte, metadb.MaxValue)) }); err != nil {
		t.Fatalf("largest value: %v", err)
	}
	if len(get(t, db, key(1))) != metadb.MaxValue {
		t.Fatal("largest value came back short")
	}
}

func TestNoSpace(t *testing.T) {
	free := int64(1 << 30)
	db := open(t, t.TempDir(), metadb.Options{Create: true, MinFree: 1 << 20, Free: func() (int64, error) { return free, nil }})
	defer db.Close()
	set := func(txn *metadb.Txn) error { return txn.Set(key(1), value(1)) }
	free = 1<<20 - 1
	if err := db.Update(set); !errors.Is(err, metadb.ErrNoSpace) {
		t.Fatalf("update on a full disk: %v", err)
	}
	b := db.NewBatch()
	if err := b.Set(key(1), value(1)); err != nil {
		t.Fatal(err)
	}
	if err := b.Flush(); !errors.Is(err, metadb.ErrNoSpace) {
		t.Fatalf("batch on a full disk: %v", err)
	}
	if _, err := db.GetAppend(key(1), nil); err != metadb.ErrNotFound {
		t.Fatalf("refused write: %v", err)
	}
	free = 1 << 20
	if err := db.Update(set); err != nil {
		t.Fatalf("space is back: %v", err)
	}
}

// TestFailedWriteIsFinal: after a write whose durability is unknown nothing is
// written any more, even if the reason is gone; reading goes on.
func TestFailedWriteIsFinal(t *testing.T) {
	dir := t.TempDir() + "/meta"
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	db := open(t, dir, metadb.Options{Create: true, MinFree: -1})
	set := func(i int) error {
		return db.Update(func(txn *metadb.Txn) error { return txn.Set(key(i), value(i)) })
	}
	if err := set(1); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(dir, dir+"-away"); err != nil { // no directory to sync
		t.Fatal(err)
	}
	if err := set(2); !errors.Is(err, metadb.ErrFailed) {
		t.Fatalf("an update without a directory sync: %v", err)
	}
	if err := os.Rename(dir+"-away", dir); err != nil {
		t.Fatal(err)
	}
	if err := set(3); !errors.Is(err, metadb.ErrFailed) {
		t.Fatalf("update after a failure: %v", err)
	}
	b := db.NewBatch()
	if err := b.Set(key(3), nil); err != nil {
		t.Fatal(err)
	}
	if err := b.Flush(); !errors.Is(err, metadb.ErrFailed) {
		t.Fatalf("batch after a failure: %v", err)
	}
	if !bytes.Equal(get(t, db, key(1)), value(1)) {
		t.Fatal("wrong value")
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestScan(t *testing.T) {
	db := create(t)
	b := db.NewBatch()
	for i := range 1000 {
		b.Set(key(i), value(i))
	}
	b.Set([]byte("j"), nil)
	b.Set([]byte("l"), nil)
	if err := b.Flush(); err != nil {
		t.Fatal(err)
	}
	next := 0
	err := db.Scan([]byte("k"), func(k, v []byte) error {
		if !bytes.Equal(k, key(next)) || !bytes.Equal(v, value(next)) {
			return fmt.Errorf("at %d: key %x", next, k)
		}
		next++
		return nil
	})
	if err != nil || next != 1000 {
		t.Fatalf("scan saw %d keys, %v", next, err)
	}
	next = 500
	stop := errors.New("stop")
	err = db.ScanKeys([]byte("k"), key(500), func(k []byte) error {
		if !bytes.Equal(k, key(next)) {
			return fmt.Errorf("at %d: key %x", next, k)
		}
		if next++; next == 510 {
			return stop
		}
		return nil
	})
	if err != stop {
		t.Fatal(err)
	}
}

// TestReadWhileWriting: a reader sees whole completed writes, also while a
// batch is under way.
func TestReadWhileWriting(t *testing.T) {
	db := create(t)
	if err := db.Update(func(txn *metadb.Txn) error { return txn.Set([]byte("n"), []byte{0, 0}) }); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			last := -1
			for {
				v, err := db.GetAppend([]byte("n"), nil)
				if err != nil {
					t.Error(err)
					return
				}
				n := int(binary.BigEndian.Uint16(v))
				if n < last {
					t.Errorf("%d after %d", n, last)
				}
				last = n
				if n > 0 {
					if _, err := db.GetAppend(key(n), nil); err != nil {
						t.Errorf("batch %d: %v", n, err)
					}
				}
				select {
				case <-done:
					return
				default:
				}
			}
		})
	}
	for n := 1; n < 20; n++ {
		b := db.NewBatch()
		for i := range 2000 {
			b.Set(key(100000+i), value(n))
		}
		b.Set(key(n), nil)
		if err := b.Flush(); err != nil {
			t.Error(err)
		}
		err := db.Update(func(txn *metadb.Txn) error {
			return txn.Set([]byte("n"), binary.BigEndian.AppendUint16(nil, uint16(n)))
		})
		if err != nil {
			t.Error(err)
		}
		if v := get(t, db, []byte("n")); int(binary.BigEndian.Uint16(v)) != n {
			t.Errorf("own update not seen: %x", v)
		}
	}
	close(done)
	wg.Wait()
}

func BenchmarkGet(b *testing.B) {
	db := create(b)
	batch := db.NewBatch()
	const n = 200000
	for i := range n {
		batch.Set(key(i), value(100))
	}
	if err := batch.Flush(); err != nil {
		b.Fatal(err)
	}
	buf := make([]byte, 0, 1024)
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		i = (i + 7919) % n
		if _, err := db.GetAppend(key(i), buf[:0]); err != nil {
			b.Fatal(err)
		}
	}
}

// Several callers flatten at once, and then close: no compactor is left behind
// that would work on unmapped tables.
func TestFlattenTogether(t *testing.T) {
	db := open(t, t.TempDir(), metadb.Options{Create: true, MinFree: -1})
	var g errgroup.Group
	for range 8 {
		g.Go(db.Flatten)
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	stacks := make([]byte, 1<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	if n := bytes.Count(stacks, []byte("levelsController).runCompactor(")); n != 0 {
		t.Errorf("%d compactors run after Close", n)
	}
}
