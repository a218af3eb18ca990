package powercut_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/dgraph-io/badger/v4"

	"github.com/fsximg/fsx/internal/vfs/trace"
	"github.com/fsximg/fsx/pkg/layout/metadb"
	"github.com/fsximg/fsx/test/crash"
)

// indexEnv is the directory of an index that a process writes to before it
// kills itself.
const indexEnv = "FSX_POWERCUT_INDEX"

func indexKey(i int) []byte { return fmt.Appendf(nil, "key %d", i) }

const indexKeys = 100

// spoilIndex leaves in the index what a process leaves that is killed between
// a write and its sync: everything, but in the page cache only.
func spoilIndex(dir string) error {
	db, err := badger.Open(badger.DefaultOptions(dir).WithSyncWrites(false).WithLogger(nil).WithMemTableSize(3 << 20).WithValueThreshold(300 << 10))
	if err != nil {
		return err
	}
	for i := range indexKeys {
		if err := db.Update(func(tx *badger.Txn) error { return tx.Set(indexKey(i), indexKey(i)) }); err != nil {
			return err
		}
	}
	return syscall.Kill(os.Getpid(), syscall.SIGKILL)
}

// What an index has after a kill is on disk when Open returns: a checkpoint
// that is believed from then on must not be gone after a power cut.
func TestIndexIsDurableOnceOpened(t *testing.T) {
	rec := crash.Mount(t, crash.Options{})
	dir := filepath.Join(rec.Dir(), "meta")
	must(t, os.Mkdir(dir, 0o700))
	must(t, openIndex(t, dir, true).Close())
	w := exec.Command("/proc/self/exe", "-test.run=^$")
	w.Env = append(os.Environ(), indexEnv+"="+dir)
	if out, err := w.CombinedOutput(); w.ProcessState.ExitCode() >= 0 {
		t.Fatalf("the process was not killed: %v, %s", err, out)
	}
	openAndCut(t, rec)
}

// The same for the manifest: a process was killed after it wrote there which
// tables a merge had replaced, and before it synced that. Opening removes the
// replaced tables, so what it went by must be durable.
func TestManifestIsDurableOnceOpened(t *testing.T) {
	first := crash.Mount(t, crash.Options{})
	dir := filepath.Join(first.Dir(), "meta")
	must(t, os.Mkdir(dir, 0o700))
	const tables = 16 // enough for a merge
	for i := range tables {
		db := openIndex(t, dir, true)
		must(t, db.Update(func(tx *metadb.Txn) error {
			for k := i; k < indexKeys; k += tables {
				if err := tx.Set(indexKey(k), indexKey(k)); err != nil {
					return err
				}
			}
			return nil
		}))
		must(t, db.Close())
	}
	db := openIndex(t, dir, false)
	for end := time.Now().Add(20 * time.Second); exists(filepath.Join(dir, "000001.sst")); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("there is no merge")
		}
	}
	must(t, db.Close())
	first.Unmount()

	tr := first.Trace()
	merge := manifestWrite(t, tr)
	base := first.Image(merge, 0, trace.KeepAll)
	tail, err := tr.Payload(merge)
	must(t, err)
	rec := crash.Mount(t, crash.Options{Base: base})
	f, err := os.OpenFile(filepath.Join(rec.Dir(), "meta", "MANIFEST"), os.O_WRONLY|os.O_APPEND, 0)
	must(t, err)
	_, err = f.Write(tail)
	must(t, err)
	must(t, f.Close())
	openAndCut(t, rec)
}

// manifestWrite is the last write to the manifest before a table was removed.
func manifestWrite(t *testing.T, tr *trace.Trace) int {
	t.Helper()
	var manifest trace.ID
	write := -1
	for i, op := range tr.Ops {
		switch {
		case op.Kind == trace.Rename && op.Name2 == "MANIFEST":
			manifest = op.File
		case op.Kind == trace.Write && op.File == manifest:
			write = i
		case op.Kind == trace.Unlink && strings.HasSuffix(op.Name, ".sst"):
			return write
		}
	}
	t.Fatal("no table was removed")
	return 0
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// openAndCut opens the recorded index, in which all keys are, and cuts the
// power.
func openAndCut(t *testing.T, rec *crash.Recorder) {
	t.Helper()
	db := openIndex(t, filepath.Join(rec.Dir(), "meta"), false)
	rec.Mark("opened")
	if n := count(db); n != indexKeys {
		t.Fatalf("%d of %d keys are there after the kill", n, indexKeys)
	}
	must(t, db.Close())
	rec.Unmount()
	for _, p := range policies {
		img := rec.Image(rec.Trace().MarkAt("opened"), 1, p.Policy)
		db := openIndex(t, filepath.Join(img, "meta"), false)
		if n := count(db); n != indexKeys {
			t.Errorf("%s: %d of %d keys are there after the power cut", p.name, n, indexKeys)
		}
		must(t, db.Close())
	}
}

func openIndex(t *testing.T, dir string, create bool) *metadb.DB {
	t.Helper()
	db, err := metadb.Open(dir, metadb.Options{Create: create, MinFree: -1})
	must(t, err)
	return db
}

func count(db *metadb.DB) (n int) {
	for i := range indexKeys {
		if _, err := db.GetAppend(indexKey(i), nil); err == nil {
			n++
		}
	}
	return n
}
