// Package vfs is the file-system interface under fsx's own I/O. The product
// runs on [OS]; tests run on implementations that forget, tear, fail and fill
// up.
package vfs

import (
	"errors"
	"io"
	"os"
)

var (
	// ErrWouldBlock is returned by [File.ReadAtNoWait] when the data is not in
	// memory; the caller repeats the read where it may wait.
	ErrWouldBlock = errors.New("read would block")
	// ErrLocked is returned by [File.TryLock] when another process holds the lock.
	ErrLocked = errors.New("locked by another process")
	// ErrUnsupported is returned where the file system lacks an operation
	// (hole punching, preallocation).
	ErrUnsupported = errors.New("not supported by the file system")
)

// FS is the part of a file system that fsx uses. Names are ordinary paths.
// All methods are safe for concurrent use.
type FS interface {
	// OpenFile is os.OpenFile; a new file's directory entry is durable only
	// after SyncDir.
	OpenFile(name string, flag int, perm os.FileMode) (File, error)
	Mkdir(name string, perm os.FileMode) error
	Remove(name string) error
	Rename(oldname, newname string) error
	// ReadDir returns the sorted names in a directory.
	ReadDir(name string) ([]string, error)
	Stat(name string) (os.FileInfo, error)
	// SyncDir makes the entries of a directory durable.
	SyncDir(name string) error
	// Free is the number of bytes an unprivileged writer can still allocate on
	// the file system that holds name.
	Free(name string) (int64, error)
}

// File is an open file. All methods but Close are safe for concurrent use.
type File interface {
	io.ReaderAt
	io.WriterAt
	// ReadAtNoWait is ReadAt, but returns ErrWouldBlock instead of waiting for
	// the disk. Where the file system cannot tell, it reads.
	ReadAtNoWait(p []byte, off int64) (int, error)
	// Datasync makes written data, and the size needed to read it, durable
	// (fdatasync). After an error the state of unsynced data is unknown and a
	// retry proves nothing.
	Datasync() error
	Truncate(size int64) error
	// Allocate reserves space for [off, off+n), extending the file; it never
	// changes data. ENOSPC comes from here and not from a later write.
	Allocate(off, n int64) error
	// PunchHole frees [off, off+n), which then reads as zeros.
	PunchHole(off, n int64) error
	// Size is the file's length in bytes.
	Size() (int64, error)
	// Allocated is the space the file takes on disk, in bytes.
	Allocated() (int64, error)
	// TryLock takes an exclusive flock, or returns ErrLocked.
	TryLock() error
	Close() error
}
