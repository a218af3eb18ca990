// Package metadb is a store's index: opaque keys and values in Badger, set up
// for a server that has little memory and must not lose what it acknowledged.
//
// Nothing in it is authentic. A damaged write-ahead log or table makes Badger
// answer [ErrNotFound] for keys that were durable, without any sign of it, so
// whoever stores here must be able to tell a missing or altered value from a
// true one (hashes in the map tree, a MAC on heads, tags on blocks).
//
// What Badger leaves to its user, and this package does:
//
//   - New files get no directory fsync. [Open] and every [Batch.Flush],
//     [DB.Update] and [DB.Sync] ends with one.
//   - A log that is empty makes it refuse to open, and a power cut leaves one:
//     between the creation of a log and its sizing, and between the emptying of
//     one and its removal. [Open] removes them first.
//   - It believes what a killed process had written and not synced, and removes
//     the tables that this replaces. [Open] syncs it first.
//   - A full disk is a SIGBUS in a memory-mapped log. Every write is preceded
//     by a check of the free space ([Options.Free], [Options.MinFree]).
//   - A write that failed to sync may or may not be there. After one the
//     database refuses all writes with [ErrFailed].
//   - A read transaction waits for every commit that has begun. Readers here
//     share a transaction that is renewed when a write is complete, so that a
//     checkpoint does not hold up lookups.
//
// Values are at most [MaxValue] bytes, so Badger's value log stays empty.
package metadb

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
)

var (
	// ErrNotFound says that a key has no value.
	ErrNotFound = errors.New("key not found")
	// ErrTooLarge says that a transaction, or one value, exceeds what can be
	// written atomically. Nothing was written.
	ErrTooLarge = errors.New("transaction too large")
	// ErrNoSpace says that the file system has less than Options.MinFree left.
	// Nothing of the refused batch part or transaction was written.
	ErrNoSpace = errors.New("no space left for metadata")
	// ErrFailed says that this write or an earlier one failed; the database takes no
	// more. Of the write that failed it is not known whether it is durable.
	ErrFailed = errors.New("metadata database failed")
	// ErrClosed says that the database is closed.
	ErrClosed = errors.New("metadata database closed")
)

const (
	// MaxValue is the size of the largest value, in bytes.
	MaxValue = 256 << 10

	manifestFile = "MANIFEST"

	// Badger keeps up to eight table builders for reuse, each as large as the
	// largest table it ever built, and a memtable takes 1.3 times its size. With
	// memtables of 16 MiB that was 290 MB of live heap during a checkpoint; with
	// these it is 65 MB at the same speed, because there are fewer merges into
	// level 1 when more tables gather in level 0.
	memTableSize   = 3 << 20
	numMemtables   = 3
	tableSize      = 2 << 20 // of every level
	levelZero      = 12      // tables that start a merge into level 1
	levelZeroStall = 30      // tables that stop writers
	valueThreshold = MaxValue + 4<<10
	valueLogSize   = 1 << 20 // stays empty: every value is below the threshold
)

// Options configure a database. The zero value opens an existing one.
type Options struct {
	// Create makes the database if the directory has none.
	Create bool
	// MinFree is the number of bytes that must stay free on the file system for
	// a write to begin; 0 is DefaultMinFree. Negative is no check.
	MinFree int64
	// Free tells how many bytes are free; nil asks the file system.
	Free func() (int64, error)
	// Log gets Badger's warnings and errors, and its chatter at debug level.
	// Nil is none.
	Log *slog.Logger
}

// DefaultMinFree covers the logs and tables that Badger may be writing when the
// check passes: memtables with their logs, and two merges.
const DefaultMinFree = 128 << 20

// DB is an open database. All methods are safe for concurrent use.
type DB struct {
	db   *badger.DB
	dir  string
	free func() (int64, error)
	min  int64

	failed  atomic.Pointer[error]
	flatten sync.Mutex

	view struct {
		sync.Mutex
		current *view
		closed  bool
	}
}

// Open opens the database in dir, which must exist, for reading and writing.
// After a crash it replays its logs.
func Open(dir string, o Options) (*DB, error) {
	if _, err := os.Stat(filepath.Join(dir, manifestFile)); err != nil && !(o.Create && errors.Is(err, os.ErrNotExist)) {
		return nil, fmt.Errorf("open metadata database: %w", err)
	}
	if err := errors.Join(dropEmptyLogs(dir), settle(dir)); err != nil {
		return nil, fmt.Errorf("open metadata database: %w", err)
	}
	options := badgerOptions(dir, o.Log)
	if err := checkTables(dir, options); err != nil {
		return nil, fmt.Errorf("open metadata database: %w", err)
	}
	bdb, err := badger.Open(options)
	if err != nil {
		return nil, fmt.Errorf("open metadata database: %w", err)
	}
	// Badger has made its first logs, and relies on a later sync for their names.
	if err := errors.Join(syncDir(dir), syncDir(filepath.Dir(filepath.Clean(dir)))); err != nil {
		return nil, errors.Join(fmt.Errorf("open metadata database: %w", err), bdb.Close())
	}
	d := &DB{db: bdb, dir: dir, free: o.Free, min: o.MinFree}
	if d.free == nil {
		d.free = d.statfs
	}
	if d.min == 0 {
		d.min = DefaultMinFree
	}
	d.renewView()
	return d, nil
}

// dropEmptyLogs removes the logs without content, which have nothing to replay:
// a memtable's log is sized before it is written, and emptied when its table is
// durable; no value is in a value log.
func dropEmptyLogs(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if ext := filepath.Ext(e.Name()); ext != ".mem" && ext != ".vlog" {
			continue
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		if info.Size() != 0 {
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// settle makes durable what opening is going to rely on. After a kill the
// manifest and the logs may have more in the page cache than on disk; a table is
// synced before the manifest names it.
func settle(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.Type().IsRegular() || filepath.Ext(e.Name()) == ".sst" {
			continue
		}
		if err := syncFile(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return syncDir(dir)
}

// badgerOptions are the settings measured for this use; see the package
// comment. Both caches are off: without compression blocks and table indexes
// are read in place from the mapped file.
func badgerOptions(dir string, log *slog.Logger) badger.Options {
	o := badger.DefaultOptions(dir)
	o.SyncWrites = true
	o.DetectConflicts = false
	o.Compression = options.None
	o.MemTableSize = memTableSize
	o.NumMemtables = numMemtables
	o.BaseTableSize = tableSize
	o.TableSizeMultiplier = 1
	o.NumLevelZeroTables = levelZero
	o.NumLevelZeroTablesStall = levelZeroStall
	o.ValueThreshold = valueThreshold
	o.ValueLogFileSize = valueLogSize
	o.BlockCacheSize = 0
	o.IndexCacheSize = 0
	o.NumCompactors = 2
	o.NumGoroutines = 1
	o.MetricsEnabled = false
	o.Logger = nil
	if log != nil {
		o.Logger = badgerLog{log}
	}
	return o
}

// Close flushes and closes the database. Batches and scans must have ended.
func (d *DB) Close() error {
	d.view.Lock()
	old := d.view.current
	d.view.current, d.view.closed = nil, true
	d.view.Unlock()
	if old != nil {
		old.release()
	}
	if err := d.db.Close(); err != nil {
		return fmt.Errorf("close metadata database: %w", err)
	}
	return syncDir(d.dir)
}

// fail makes err the reason for refusing every later write.
func (d *DB) fail(err error) error {
	d.failed.CompareAndSwap(nil, &err)
	return fmt.Errorf("%w: %w", ErrFailed, err)
}

// writable says why a write may not begin.
func (d *DB) writable() error {
	if p := d.failed.Load(); p != nil {
		return fmt.Errorf("%w: %w", ErrFailed, *p)
	}
	if d.min < 0 {
		return nil
	}
	free, err := d.free()
	if err != nil {
		return fmt.Errorf("check free space for metadata: %w", err)
	}
	if free < d.min {
		return fmt.Errorf("%w: %d bytes free, %d wanted", ErrNoSpace, free, d.min)
	}
	return nil
}
