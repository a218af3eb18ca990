package metadb

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Sync makes all completed writes durable. Flush and Update have done so
// already; Sync is for the moment before something else relies on the files.
func (d *DB) Sync() error {
	if err := d.db.Sync(); err != nil {
		return d.fail(fmt.Errorf("sync metadata: %w", err))
	}
	if err := syncDir(d.dir); err != nil {
		return d.fail(err)
	}
	return nil
}

// syncDir makes the entries of new files durable. It is done after every write
// instead of only when files appeared: a rotation in the background cannot be
// told from outside, and the fsync of an unchanged directory is cheap.
func syncDir(dir string) error {
	if err := syncFile(dir); err != nil {
		return fmt.Errorf("sync metadata directory: %w", err)
	}
	return nil
}

func syncFile(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func (d *DB) statfs() (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(d.dir, &st); err != nil {
		return 0, err
	}
	return int64(st.Bavail) * st.Bsize, nil
}

// Flatten merges all tables into one level, which drops deleted and replaced
// values. It rewrites the database once and needs as much free space.
func (d *DB) Flatten() error {
	// Badger stops its compactors for this, and starts them afterwards: two at
	// once start them twice, and Close stops only one of the sets.
	d.flatten.Lock()
	defer d.flatten.Unlock()
	if err := d.writable(); err != nil {
		return err
	}
	if err := d.db.Flatten(1); err != nil {
		return fmt.Errorf("flatten metadata: %w", err)
	}
	return d.Sync()
}

// Size is the space the database takes on disk, in bytes.
func (d *DB) Size() (int64, error) {
	entries, err := os.ReadDir(d.dir)
	if err != nil {
		return 0, fmt.Errorf("size of metadata: %w", err)
	}
	var total int64
	for _, e := range entries {
		var st unix.Stat_t
		err := unix.Lstat(d.dir+"/"+e.Name(), &st)
		if errors.Is(err, unix.ENOENT) {
			continue // a compaction removed it meanwhile
		}
		if err != nil {
			return 0, fmt.Errorf("size of metadata: %w", err)
		}
		total += st.Blocks * 512
	}
	return total, nil
}
