package vfs

import (
	"io"
	"io/fs"
	"math"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// OS is the operating system's file system.
//
// Errors are *fs.PathError (Rename: *os.LinkError) around a syscall.Errno or
// one of this package's sentinels, so errors.Is(err, syscall.ENOSPC) works.
// Interrupted calls are repeated. Files have no finalizer: Close them.
func OS() FS { return osFS{} }

type osFS struct{}

func (osFS) OpenFile(name string, flag int, perm os.FileMode) (File, error) {
	var fd int
	err := retry(func() (err error) {
		fd, err = unix.Open(name, flag|unix.O_CLOEXEC|unix.O_LARGEFILE, uint32(perm.Perm()))
		return err
	})
	if err != nil {
		return nil, pathError("open", name, err)
	}
	return &osFile{fd: fd, name: name}, nil
}

func (osFS) Mkdir(name string, perm os.FileMode) error { return os.Mkdir(name, perm) }
func (osFS) Remove(name string) error                  { return os.Remove(name) }
func (osFS) Rename(oldname, newname string) error      { return os.Rename(oldname, newname) }
func (osFS) Stat(name string) (os.FileInfo, error)     { return os.Stat(name) }

func (osFS) ReadDir(name string) ([]string, error) {
	entries, err := os.ReadDir(name)
	if err != nil {
		return nil, err
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names, nil
}

func (osFS) SyncDir(name string) error {
	var fd int
	err := retry(func() (err error) {
		fd, err = unix.Open(name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return pathError("open", name, err)
	}
	err = retry(func() error { return unix.Fsync(fd) })
	if cerr := unix.Close(fd); err == nil && cerr != unix.EINTR {
		err = cerr
	}
	return pathError("sync", name, err)
}

func (osFS) Free(name string) (int64, error) {
	var st unix.Statfs_t
	if err := retry(func() error { return unix.Statfs(name, &st) }); err != nil {
		return 0, pathError("statfs", name, err)
	}
	unit := uint64(st.Frsize)
	if unit == 0 {
		unit = uint64(st.Bsize)
	}
	if unit != 0 && st.Bavail > math.MaxInt64/unit {
		return math.MaxInt64, nil
	}
	return int64(st.Bavail * unit), nil
}

// osFile holds a bare descriptor: the read and write paths must not allocate,
// and Close is excluded from concurrent use by contract.
type osFile struct {
	fd   int
	name string
	// waits is set once the file system has refused RWF_NOWAIT.
	waits atomic.Bool
}

func (f *osFile) ReadAt(p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		n, err := unix.Pread(f.fd, p[done:], off+int64(done))
		switch {
		case err == unix.EINTR:
		case err != nil:
			return done, f.fail("read", err)
		case n == 0:
			return done, io.EOF
		default:
			done += n
		}
	}
	return done, nil
}

// ReadAtNoWait tells a cold page from the end of the file by asking again at
// the place where a short read stopped.
func (f *osFile) ReadAtNoWait(p []byte, off int64) (int, error) {
	if off < 0 { // preadv2 takes -1 for the descriptor's own position
		return 0, f.fail("read", unix.EINVAL)
	}
	done := 0
	for done < len(p) {
		if f.waits.Load() {
			n, err := f.ReadAt(p[done:], off+int64(done))
			return done + n, err
		}
		n, err := preadNoWait(f.fd, p[done:], off+int64(done))
		switch err {
		case 0:
			if n == 0 {
				return done, io.EOF
			}
			done += n
		case unix.EINTR:
		case unix.EAGAIN:
			return done, ErrWouldBlock
		case unix.EOPNOTSUPP, unix.ENOSYS:
			f.waits.Store(true)
		default:
			return done, f.fail("read", err)
		}
	}
	return done, nil
}

// preadNoWait is preadv2(2) with one buffer and RWF_NOWAIT. The wrapper in
// x/sys takes slices of slices, which would be allocated on every call.
// p is not empty.
func preadNoWait(fd int, p []byte, off int64) (int, unix.Errno) {
	iov := unix.Iovec{Base: &p[0]}
	iov.SetLen(len(p))
	const longBits = 8 * unsafe.Sizeof(uintptr(0))
	lo, hi := uintptr(off), uintptr(uint64(off)>>(longBits-1)>>1)
	n, _, errno := unix.Syscall6(unix.SYS_PREADV2, uintptr(fd),
		uintptr(unsafe.Pointer(&iov)), 1, lo, hi, unix.RWF_NOWAIT)
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}

func (f *osFile) WriteAt(p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		n, err := unix.Pwrite(f.fd, p[done:], off+int64(done))
		switch {
		case err == unix.EINTR:
		case err != nil:
			return done, f.fail("write", err)
		case n == 0:
			return done, f.fail("write", io.ErrShortWrite)
		default:
			done += n
		}
	}
	return done, nil
}

func (f *osFile) Datasync() error {
	return f.fail("fdatasync", retry(func() error { return unix.Fdatasync(f.fd) }))
}

func (f *osFile) Truncate(size int64) error {
	return f.fail("truncate", retry(func() error { return unix.Ftruncate(f.fd, size) }))
}

func (f *osFile) Allocate(off, n int64) error {
	return f.fallocate("fallocate", 0, off, n)
}

func (f *osFile) PunchHole(off, n int64) error {
	return f.fallocate("punch hole", unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
}

func (f *osFile) fallocate(op string, mode uint32, off, n int64) error {
	if n == 0 {
		return nil
	}
	err := retry(func() error { return unix.Fallocate(f.fd, mode, off, n) })
	if err == unix.EOPNOTSUPP || err == unix.ENOSYS {
		err = ErrUnsupported
	}
	return f.fail(op, err)
}

func (f *osFile) Size() (int64, error) {
	st, err := f.stat()
	return st.Size, err
}

func (f *osFile) Allocated() (int64, error) {
	st, err := f.stat()
	return st.Blocks * 512, err // st_blocks counts 512-byte units on Linux
}

func (f *osFile) stat() (st unix.Stat_t, err error) {
	err = retry(func() error { return unix.Fstat(f.fd, &st) })
	return st, f.fail("stat", err)
}

func (f *osFile) TryLock() error {
	err := retry(func() error { return unix.Flock(f.fd, unix.LOCK_EX|unix.LOCK_NB) })
	if err == unix.EWOULDBLOCK {
		err = ErrLocked
	}
	return f.fail("flock", err)
}

func (f *osFile) Close() error {
	if f.fd < 0 {
		return f.fail("close", fs.ErrClosed)
	}
	err := unix.Close(f.fd)
	f.fd = -1
	if err == unix.EINTR {
		err = nil // Linux has released the descriptor
	}
	return f.fail("close", err)
}

func (f *osFile) fail(op string, err error) error { return pathError(op, f.name, err) }

func pathError(op, name string, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: op, Path: name, Err: err}
}

func retry(call func() error) error {
	for {
		if err := call(); err != unix.EINTR {
			return err
		}
	}
}
