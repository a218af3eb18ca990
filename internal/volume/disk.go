package volume

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/fsximg/fsx/internal/vfs"
)

// Space on the disk is kept for the index, which must be able to write when a
// segment can no longer be made: a checkpoint is what frees log space, and
// Badger dies of a full disk, being memory-mapped.
const (
	// ballastSize is allocated in a file that is given up when something else
	// has filled the disk.
	ballastSize = 32 << 20
	ballastName = "ballast"
)

// allow returns ENOSPC if a segment of size bytes would eat into the reserve.
func (s *Store) allow(size int64) error {
	free, err := s.fs.Free(s.dir.Path)
	if err != nil {
		return err
	}
	if free < size+s.limits.logReserve {
		return fmt.Errorf("the disk has %s free, of which %s are kept for the index: %w", mebibytes(free), mebibytes(s.limits.logReserve), syscall.ENOSPC)
	}
	return nil
}

func mebibytes(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

// needIndexSpace returns ENOSPC if the index cannot be opened: Badger writes
// into new mapped files as it opens, and a full disk would be a fatal SIGBUS.
func (s *Store) needIndexSpace(dir string) error {
	const least = 4 << 20
	free, err := s.fs.Free(dir)
	if err == nil && free < least {
		err = fmt.Errorf("%d bytes are free on the disk, and opening the index takes %d: %w", free, least, syscall.ENOSPC)
	}
	return err
}

// crowded says that the disk is short of space, so that dead segments are
// removed rather than kept for reuse.
func (s *Store) crowded() bool {
	free, err := s.fs.Free(s.dir.Path)
	return err == nil && free < s.limits.logReserve+(256<<20)
}

func (s *Store) ballastPath() string { return filepath.Join(s.dir.Path, ballastName) }

// makeBallast allocates the ballast file.
func (s *Store) makeBallast() error {
	f, err := s.fs.OpenFile(s.ballastPath(), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	err = f.Allocate(0, ballastSize)
	if err != nil && !errors.Is(err, vfs.ErrUnsupported) {
		return errors.Join(err, s.fs.Remove(s.ballastPath()))
	}
	return nil
}

// checkBallast makes the ballast anew when there is space, and gives it up
// when the index could not write otherwise.
func (s *Store) checkBallast() error {
	free, err := s.fs.Free(s.dir.Path)
	if err != nil {
		return err
	}
	_, err = s.fs.Stat(s.ballastPath())
	switch {
	case err == nil && free < 2*s.limits.indexReserve:
		return s.fs.Remove(s.ballastPath())
	case errors.Is(err, fs.ErrNotExist) && free > ballastSize+s.limits.logReserve+s.limits.indexReserve:
		return s.makeBallast()
	case errors.Is(err, fs.ErrNotExist):
		return nil
	}
	return err
}

// freeForIndex is the free space that the index may count on; it gives up the
// ballast when that is needed.
func (s *Store) freeForIndex() (int64, error) {
	if s.scratch != "" {
		return s.fs.Free(s.scratch)
	}
	free, err := s.fs.Free(s.dir.Path)
	if err != nil || free >= s.limits.indexReserve {
		return free, err
	}
	if err := s.fs.Remove(s.ballastPath()); err != nil {
		return free, nil // gone already
	}
	s.log.Warn("the disk is full: gave up the reserve for the index", "store", s.dir.Path)
	return s.fs.Free(s.dir.Path)
}

// copyIndex copies the index's files, which are large and sparse.
func copyIndex(to, from string) error {
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.Type().IsRegular() || e.Name() == "LOCK" {
			continue
		}
		if err := copySparse(filepath.Join(to, e.Name()), filepath.Join(from, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

func copySparse(to, from string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer dst.Close()
	info, err := src.Stat()
	if err != nil {
		return err
	}
	for off := int64(0); ; {
		data, err := unix.Seek(int(src.Fd()), off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return dst.Truncate(info.Size())
		}
		if err != nil {
			return err
		}
		hole, err := unix.Seek(int(src.Fd()), data, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		if _, err := dst.Seek(data, io.SeekStart); err != nil {
			return err
		}
		if _, err := io.Copy(dst, io.NewSectionReader(src, data, hole-data)); err != nil {
			return err
		}
		off = hole
	}
}
