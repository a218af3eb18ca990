package attach

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// lockPause is how often a lock that another process has is tried.
const lockPause = 20 * time.Millisecond

// lockStore has the commands that attach and detach volumes of one store come one
// after the other, until release. The lock is one of the store's folder, which
// nothing else locks; it leaves nothing behind.
func lockStore(ctx context.Context, path string) (release func(), err error) {
	f, err := os.OpenFile(path, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return func() { f.Close() }, nil
		case errors.Is(err, unix.EINTR):
			continue
		case !errors.Is(err, unix.EWOULDBLOCK):
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		if err := pause(ctx, lockPause); err != nil {
			f.Close()
			return nil, err
		}
	}
}

// errKept says that a keeper has the volume already.
var errKept = errors.New("another keeper has it")

// lockKeeper makes a keeper's folder and takes its lock, for as long as the file is
// open: of each identity there is one keeper. The error is errKept if there is one.
func (h *Host) lockKeeper(id Identity) (*os.File, error) {
	for range raceTries {
		f, err := h.openIn(id, lockName, os.O_RDWR)
		if err != nil {
			return nil, err
		}
		// A lock of the open file, which another process can ask for without taking it.
		err = unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
			f.Close()
			return nil, errKept
		}
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
		}
		ours, err := f.Stat()
		if now, nowErr := os.Stat(f.Name()); err == nil && nowErr == nil && os.SameFile(ours, now) {
			return f, nil
		}
		f.Close() // somebody has removed it meanwhile
	}
	return nil, fmt.Errorf("lock of %s: it is removed again and again", h.folder(id))
}

// raceTries is how often something is tried that a keeper which ends may undo.
const raceTries = 1000

// openIn opens a file in a keeper's folder, and makes both if they are not there. A
// keeper that ends may remove the folder, or one above it, at any moment.
func (h *Host) openIn(id Identity, name string, flags int) (*os.File, error) {
	folder := h.folder(id)
	var err error
	for range raceTries {
		if err = os.MkdirAll(folder, 0o700); err == nil {
			var f *os.File
			if f, err = os.OpenFile(filepath.Join(folder, name), flags|os.O_CREATE, 0o600); err == nil {
				return f, nil
			}
		}
		// ErrExist is MkdirAll's for a folder that goes while it looks what it is.
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrExist) {
			break
		}
	}
	return nil, fmt.Errorf("run directory: %w", err)
}

// isKept says whether an identity has a keeper.
func (h *Host) isKept(id Identity) bool {
	f, err := os.OpenFile(filepath.Join(h.folder(id), lockName), os.O_RDWR, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	probe := unix.Flock_t{Type: unix.F_WRLCK}
	err = unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &probe)
	return err == nil && probe.Type != unix.F_UNLCK
}

// pause waits, unless the context ends.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// await polls until the condition holds; false: the time is over.
func await(ctx context.Context, limit time.Duration, condition func() bool) (bool, error) {
	for end := time.Now().Add(limit); ; {
		if condition() {
			return true, nil
		}
		if time.Now().After(end) {
			return false, nil
		}
		if err := pause(ctx, lockPause); err != nil {
			return false, err
		}
	}
}
