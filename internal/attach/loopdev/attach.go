package loopdev

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	pollEvery  = 10 * time.Millisecond // while something in the kernel is awaited
	maxRetries = 100                   // devices that others took before we could
)

// Attach makes a device of the file at path. It is the first one that is free; if it
// is taken by somebody else meanwhile, the next one. The file must be open for as
// long as the device is there, so a FUSE file must be served; ctx bounds the search.
func Attach(ctx context.Context, path string, readOnly bool) (Device, error) {
	backing, err := openBacking(path, readOnly)
	if err != nil {
		return Device{}, err
	}
	defer backing.Close() // the kernel has its own reference
	ctl, err := openControl()
	if err != nil {
		return Device{}, err
	}
	defer ctl.Close()
	for range maxRetries {
		n, err := unix.IoctlRetInt(int(ctl.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return Device{}, hint(fmt.Errorf("%s: find a free loop device: %w", control, err))
		}
		err = configureDevice(ctx, n, backing, readOnly, configure)
		if errors.Is(err, unix.EBUSY) && ctx.Err() == nil {
			continue
		}
		if err != nil {
			return Device{}, err
		}
		return Find(n)
	}
	return Device{}, fmt.Errorf("%w: every free one was taken by somebody else", ErrBusy)
}

// openBacking opens the file without the runtime's poller, which would ask a FUSE file
// whether it is ready and must not wait for this process to answer.
func openBacking(path string, readOnly bool) (*os.File, error) {
	mode := unix.O_RDWR
	if readOnly {
		mode = unix.O_RDONLY
	}
	for {
		fd, err := unix.Open(path, mode|unix.O_CLOEXEC, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, &fs.PathError{Op: "open", Path: path, Err: err}
		}
		return os.NewFile(uintptr(fd), path), nil
	}
}

func openControl() (*os.File, error) {
	f, err := os.OpenFile(control, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO) {
		return nil, fmt.Errorf("%w (%w): load the driver with \"modprobe loop\", or give the container %s", ErrNoDriver, err, control)
	}
	return f, hint(err)
}

// hint adds what to do where permission is missing.
func hint(err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%w: attaching loop devices needs root", err)
	}
	return err
}

// configureDevice opens the device with the number and gives it to set.
func configureDevice(ctx context.Context, n int, backing *os.File, readOnly bool, set func(dev, backing int, flags uint32) error) error {
	dev, err := openNode(ctx, n)
	if err != nil {
		return hint(err)
	}
	defer dev.Close()
	flags := uint32(unix.LO_FLAGS_DIRECT_IO | unix.LO_FLAGS_PARTSCAN)
	if readOnly {
		flags |= unix.LO_FLAGS_READ_ONLY
	}
	if err := set(int(dev.Fd()), int(backing.Fd()), flags); err != nil {
		return hint(fmt.Errorf("attach %s to %s: %w", backing.Name(), dev.Name(), err))
	}
	return nil
}

// openNode waits for the device's node: udev may still have to make it.
func openNode(ctx context.Context, n int) (*os.File, error) {
	path := fmt.Sprintf("/dev/loop%d", n)
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	for {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if !errors.Is(err, fs.ErrNotExist) {
			return f, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w (%w): the kernel has made the device, nobody made its node; use \"mknod -m 660 %s b 7 %d\"", ErrNoDriver, err, path, n)
		case <-time.After(pollEvery):
		}
	}
}

// configure sets everything in one step, with LOOP_CONFIGURE of Linux 5.8.
func configure(dev, backing int, flags uint32) error {
	c := unix.LoopConfig{Fd: uint32(backing), Size: blockSize, Info: unix.LoopInfo64{Flags: flags}}
	err := unix.IoctlLoopConfigure(dev, &c)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOTTY) {
		return configureInSteps(dev, backing, flags)
	}
	return err
}

// configureInSteps is for kernels before 5.8. The device is without the flags for a
// moment.
func configureInSteps(dev, backing int, flags uint32) (err error) {
	if err := unix.IoctlSetInt(dev, unix.LOOP_SET_FD, backing); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = unix.IoctlSetInt(dev, unix.LOOP_CLR_FD, 0)
		}
	}()
	info := unix.LoopInfo64{Flags: flags &^ unix.LO_FLAGS_DIRECT_IO}
	for range maxRetries {
		if err = unix.IoctlLoopSetStatus64(dev, &info); !errors.Is(err, unix.EAGAIN) {
			break
		}
		time.Sleep(pollEvery) // pages were dirty
	}
	if err != nil {
		return err
	}
	if err := unix.IoctlSetInt(dev, unix.LOOP_SET_BLOCK_SIZE, blockSize); err != nil {
		return err
	}
	return unix.IoctlSetInt(dev, unix.LOOP_SET_DIRECT_IO, 1)
}

// Detach writes everything back and detaches the device with the number. One that is
// mounted, or has a partition that is, or is held by another driver is ErrBusy. It
// returns when the kernel has let go of the file, or, if others still have the device
// open, when ctx ends: it goes away with the last of them then.
//
// If data could not be written back, that is ErrNotFlushed and the device stays as it
// is, unless lossy is set: then it is detached, and the error is returned all the
// same.
func Detach(ctx context.Context, number int, lossy bool) error {
	d, err := Find(number)
	if err != nil {
		return err
	}
	// O_EXCL on a block device: nobody else may hold it, or one of its partitions.
	dev, err := os.OpenFile(d.Path, os.O_RDONLY|unix.O_EXCL, 0)
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("%s: %w: unmount it first", d.Path, ErrBusy)
	}
	if err != nil {
		return hint(err)
	}
	defer dev.Close()
	flushed := flush(dev)
	if flushed != nil {
		flushed = fmt.Errorf("%s: %w: %w", d.Path, ErrNotFlushed, flushed)
		if !lossy {
			return flushed
		}
	}
	err = unix.IoctlSetInt(int(dev.Fd()), unix.LOOP_CLR_FD, 0)
	if err != nil && !errors.Is(err, unix.ENXIO) { // ENXIO: somebody was faster
		return errors.Join(flushed, hint(fmt.Errorf("detach %s: %w", d.Path, err)))
	}
	dev.Close()
	return errors.Join(flushed, awaitGone(ctx, d))
}

// flush writes the device's pages back, flushes what is below it, and drops the pages.
func flush(dev *os.File) error {
	if err := dev.Sync(); err != nil && !errors.Is(err, unix.EROFS) {
		return err
	}
	return os.NewSyscallError("BLKFLSBUF", unix.IoctlSetInt(int(dev.Fd()), unix.BLKFLSBUF, 0))
}

// awaitGone waits until the device has no file any more, or another one.
func awaitGone(ctx context.Context, d Device) error {
	for {
		now, err := Find(d.Number)
		if errors.Is(err, ErrNotAttached) || err == nil && now.Backing != d.Backing {
			return nil
		}
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w: another program has it open, and it is detached when that closes it", d.Path, ErrBusy)
		case <-time.After(pollEvery):
		}
	}
}
