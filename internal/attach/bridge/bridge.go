// Package bridge shows the export of an NBD server as a file, through FUSE, so that a
// loop device can be made of it where the kernel has no NBD client.
//
// The mount has one file, disk, of the export's size. Every request goes to the server
// at once and many are under way together; nothing is cached here, as the loop device
// above has the page cache. What the kernel asks for, and what becomes of it:
//
//	READ, WRITE              READ, WRITE
//	FSYNC                    FLUSH
//	FALLOCATE, PUNCH_HOLE    WRITE_ZEROES: the range must read as zeros, and TRIM
//	                         promises no such thing. fsxnbd gives the space back.
//	FALLOCATE, ZERO_RANGE    WRITE_ZEROES with NO_HOLE
//
// Errors come back as they are: ENOSPC, EPERM and so on. While the server is away
// requests wait (package reconnect); the metadata of the mount answers all the same.
//
// The process that has the mount should be an IO flusher (internal/ioflusher): the
// kernel may need it to write back dirty pages when memory is short. It must not leave
// core dumps (crypt.HardenProcess): plaintext passes through it. If it dies, the mount
// and a loop device on it fail every request with ENOTCONN or EIO until they are
// removed: Unmount does the former.
//
// That process should not use the file, or a device on it, itself, apart from a moment
// like attaching it: if it is killed while one of its threads waits for its own answer,
// it cannot die until somebody calls Unmount. So another process detaches the loop
// device.
//
// The wire structures are those of go-fuse; its server is not used: docs/adr/0016.
package bridge

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fsximg/fsx/internal/nbdclient/reconnect"
)

// FileName is the name of the file in the mount.
const FileName = "disk"

// device is FUSE's.
const device = "/dev/fuse"

const (
	unmountTries = 10
	unmountPause = 10 * time.Millisecond
)

var (
	// ErrNoFUSE is returned where the kernel has no FUSE, or the container lacks it.
	ErrNoFUSE = errors.New("no FUSE")
	// ErrBusy is returned by Close while the file is in use.
	ErrBusy = errors.New("the file is in use")
)

// Bridge is a mount of one export.
type Bridge struct {
	dir     string
	client  *reconnect.Client
	log     *slog.Logger
	channel *channel
	serving sync.WaitGroup
	ended   chan struct{}
}

// Mount mounts the export of client on the folder dir. The caller closes the client
// behind the bridge. The mount is seen by root, or whoever mounts it, alone.
func Mount(dir string, client *reconnect.Client, log *slog.Logger) (*Bridge, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO) {
		return nil, fmt.Errorf("%w (%w): load the module with \"modprobe fuse\", or give the container %s", ErrNoFUSE, err, device)
	}
	if err != nil {
		return nil, err
	}
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=%d,group_id=%d", f.Fd(), os.Geteuid(), os.Getegid())
	err = unix.Mount("fsx", dir, "fuse.fsx", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, options)
	if err != nil {
		f.Close()
		return nil, mountError(dir, err)
	}
	b := &Bridge{dir: dir, client: client, log: log, ended: make(chan struct{})}
	b.channel = newChannel(f, client, log)
	for range readers {
		b.serving.Go(b.channel.serve)
	}
	go func() {
		defer close(b.ended)
		b.serving.Wait()
		b.channel.close()
	}()
	if err := b.firstLook(); err != nil {
		return nil, errors.Join(fmt.Errorf("open %s: %w", b.File(), err), Unmount(dir))
	}
	return b, nil
}

// firstLook opens the file, which fails if the kernel could not agree with us, and
// polls it. That is FUSE's POLL, which is answered with ENOSYS, so that the kernel
// never asks again. Without it, the first os.Open of the file in this process would
// hang it for good: the runtime enters the file into its poller, with a system call of
// which its scheduler does not know that it waits, for an answer of this process.
func (b *Bridge) firstLook() error {
	fd, err := unix.Open(b.File(), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for {
		_, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		if err != unix.EINTR {
			return err
		}
	}
}

func mountError(dir string, err error) error {
	switch {
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("mount on %s: %w: this needs root", dir, err)
	case errors.Is(err, unix.ENODEV):
		return fmt.Errorf("mount on %s: %w (%w): load the module with \"modprobe fuse\"", dir, ErrNoFUSE, err)
	}
	return fmt.Errorf("mount on %s: %w", dir, err)
}

// File is the path of the file.
func (b *Bridge) File() string { return filepath.Join(b.dir, FileName) }

// Ended is closed when the mount is gone and nothing of it is under way.
func (b *Bridge) Ended() <-chan struct{} { return b.ended }

// Close unmounts, unless the file is in use: that is ErrBusy, and the bridge goes on.
// It waits until what is under way has ended, or ctx does.
func (b *Bridge) Close(ctx context.Context) error {
	err := unix.Unmount(b.dir, 0)
	for range unmountTries {
		if !errors.Is(err, unix.EBUSY) {
			break
		}
		time.Sleep(unmountPause) // who has just closed the file may not be quite through
		err = unix.Unmount(b.dir, 0)
	}
	switch {
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%s: %w", b.File(), ErrBusy)
	case errors.Is(err, unix.EINVAL): // somebody else has unmounted it
	case err != nil:
		return fmt.Errorf("unmount %s: %w", b.dir, err)
	}
	select {
	case <-b.ended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s: %w", b.File(), context.Cause(ctx))
	}
}

// Unmount removes what is left of a bridge whose process died, or cannot die because it
// waits for itself: the mount on the folder dir. What is under way fails, and who still
// has the file open keeps a file that fails. A folder on which nothing is mounted is
// fine.
func Unmount(dir string) error {
	err := unix.Unmount(dir, unix.MNT_FORCE|unix.MNT_DETACH)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	return nil
}

// errnoOf is what the kernel is told.
func errnoOf(err error) syscall.Errno {
	var e syscall.Errno
	switch {
	case err == nil:
		return 0
	case errors.As(err, &e):
		return e
	}
	return syscall.EIO
}
