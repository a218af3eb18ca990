package crash_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"

	"github.com/fsximg/fsx/internal/vfs"
	"github.com/fsximg/fsx/internal/vfs/trace"
	"github.com/fsximg/fsx/test/crash"
)

const badgerKeys = 1000

// badgerOptions make memtables rotate and tables appear within 1000 keys.
func badgerOptions(dir string) badger.Options {
	return badger.DefaultOptions(dir).WithSyncWrites(true).WithDetectConflicts(false).
		WithCompression(options.None).WithLogger(nil).WithMemTableSize(1 << 20).WithNumMemtables(2).
		WithNumCompactors(2).WithValueThreshold(64 << 10).WithValueLogFileSize(8 << 20)
}

func badgerKey(i int) []byte   { return fmt.Appendf(nil, "key%04d", i) }
func badgerValue(i int) []byte { return bytes.Repeat(fmt.Appendf(nil, "%04d", i), 750) }

// recordBadger writes keys one by one, each followed by a mark with how many
// are acknowledged. With help, the directory is synced before each mark.
func recordBadger(t *testing.T, help bool) *crash.Recorder {
	t.Helper()
	rec := crash.Mount(t, crash.Options{})
	dir := filepath.Join(rec.Dir(), "meta")
	db, err := badger.Open(badgerOptions(dir))
	must(t, err)
	must(t, vfs.OS().SyncDir(rec.Dir()))
	must(t, vfs.OS().SyncDir(dir))
	for i := range badgerKeys {
		must(t, db.Update(func(txn *badger.Txn) error { return txn.Set(badgerKey(i), badgerValue(i)) }))
		if help {
			must(t, vfs.OS().SyncDir(dir))
		}
		rec.Mark(strconv.Itoa(i + 1))
	}
	must(t, db.Close())
	rec.Unmount()
	return rec
}

// acknowledged is how many keys were, before the cut.
func acknowledged(t *testing.T, tr *trace.Trace, cut int) int {
	t.Helper()
	marks := tr.Marks(cut)
	if len(marks) == 0 {
		return -1
	}
	n, err := strconv.Atoi(marks[len(marks)-1])
	must(t, err)
	return n
}

// errMissing says that acknowledged keys are gone without an error from Badger.
var errMissing = errors.New("keys are missing")

// readBadger opens a database and reads the first n keys.
func readBadger(dir string, n int) error {
	db, err := badger.Open(badgerOptions(dir))
	if err != nil {
		return err
	}
	defer db.Close()
	return db.View(func(txn *badger.Txn) error {
		for i := range n {
			item, err := txn.Get(badgerKey(i))
			if errors.Is(err, badger.ErrKeyNotFound) {
				return fmt.Errorf("%w: %d of %d", errMissing, i, n)
			} else if err != nil {
				return err
			}
			if v, err := item.ValueCopy(nil); err != nil || !bytes.Equal(v, badgerValue(i)) {
				return fmt.Errorf("key %d has another value, %v", i, err)
			}
		}
		return nil
	})
}

// dropEmptyLogs removes the files on which Badger's Open fails after a crash: a
// log that was created and not yet sized, or emptied and not yet unlinked.
func dropEmptyLogs(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	for _, e := range entries {
		st, err := e.Info()
		must(t, err)
		if ext := filepath.Ext(e.Name()); st.Size() == 0 && (ext == ".mem" || ext == ".vlog") {
			must(t, os.Remove(filepath.Join(dir, e.Name())))
		}
	}
}

// Badger keeps what it acknowledged if its user syncs the directory after each
// write and drops empty logs before opening, on a file system where the fsync
// of a new file carries its name.
func TestBadgerKeepsAcknowledgedKeys(t *testing.T) {
	rec := recordBadger(t, true)
	tr := rec.Trace()
	cuts := trace.SampleCuts(tr.SyncCuts(), 40, 1)
	for i, op := range tr.Ops {
		if op.Kind == trace.Rename || op.Kind == trace.Unlink || op.Kind == trace.Truncate {
			cuts = append(cuts, i, i+1)
		}
	}
	tested := 0
	for _, cut := range trace.MergeCuts(cuts) {
		acked := acknowledged(t, tr, cut)
		if acked < 0 {
			continue
		}
		tested++
		for seed, p := range []trace.Policy{trace.DropUnsynced, trace.RandomMixed, trace.RandomNames} {
			p.Journaled = "meta"
			img := rec.Image(cut, uint64(seed), p)
			dropEmptyLogs(t, filepath.Join(img, "meta"))
			if err := readBadger(filepath.Join(img, "meta"), acked); err != nil {
				t.Errorf("cut %d, policy %d, %d acknowledged: %v", cut, seed, acked, err)
			}
			os.RemoveAll(img)
		}
	}
	t.Logf("%d cuts, %d operations", tested, len(tr.Ops))
	if tested < 40 {
		t.Errorf("only %d cuts were tested", tested)
	}
}

// What Badger 4.9.6 does without that help. When one of these passes, the help
// for it may go.
func TestBadgerNeedsHelp(t *testing.T) {
	rec := recordBadger(t, false)
	tr := rec.Trace()
	find := func(kind trace.Kind, name string, from int) int {
		for i, op := range tr.Ops[from:] {
			if op.Kind == kind && (op.Name == name || kind == trace.Mark) {
				return from + i
			}
		}
		t.Fatalf("Badger did no %v of %s", kind, name)
		return 0
	}
	open := func(cut int, seed uint64, p trace.Policy) error {
		img := rec.Image(cut, seed, p)
		defer os.RemoveAll(img)
		return readBadger(filepath.Join(img, "meta"), acknowledged(t, tr, cut))
	}

	// A new memtable's log gets no directory fsync: keys in it are acknowledged
	// and gone, and Open says nothing. Nor do new tables, although the manifest,
	// which is synced, names them.
	second := find(trace.Create, "00002.mem", 0)
	beforeFlush := find(trace.Create, "000001.sst", 0)
	cut := find(trace.Mark, "", max(second, beforeFlush)) + 1
	if err := open(cut, 0, trace.DropUnsynced); !errors.Is(err, errMissing) {
		t.Errorf("an unsynced log name: %v, want missing keys", err)
	}
	gone := find(trace.Unlink, "00001.mem", 0)
	if err := open(gone, 0, trace.DropUnsynced); err == nil || !strings.Contains(err.Error(), "does not exist for table 1") {
		t.Errorf("an unsynced table name: %v", err)
	}

	// A log is emptied before it is unlinked. If only the first is on disk, the
	// database does not open, even where names are journaled.
	emptied := trace.Policy{Data: trace.All, Journaled: "meta"}
	if err := open(gone, 0, emptied); err == nil || !strings.Contains(err.Error(), "while opening memtables") {
		t.Errorf("an empty log: %v", err)
	}
}
