package nbddev

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Reconnect gives a device a new socket for a dead one, negotiated like Connect's.
// backend is what Connect got. Size, flags and block size stay: the caller makes
// sure that the new server has the same. Success does not tell that a socket was
// dead: if none was, the kernel has closed this one again.
//
// Errors: ErrNotConnected, ErrBackend, ErrPermission; a device made by ioctl cannot
// be reconnected (ErrNotConnected).
func (k *Kernel) Reconnect(index int, socket *os.File, backend string) error {
	d, err := k.connected(index)
	if err != nil {
		return err
	}
	if d.Backend != "" && d.Backend != backend {
		return fmt.Errorf("%s: %w: %q, not %q", d.Path, ErrBackend, d.Backend, backend)
	}
	device := uint32(index)
	err = withDescriptors([]*os.File{socket}, func(fds []uint32) error {
		return k.configure(cmdReconfigure, configuration{index: &device, sockets: fds, backend: backend})
	})
	if errors.Is(err, unix.EINVAL) { // the only remaining reasons
		err = fmt.Errorf("%w by netlink: %w", ErrNotConnected, err)
	}
	if err != nil {
		return fmt.Errorf("%s: give it a new socket: %w", d.Path, err)
	}
	return nil
}

// Fail makes requests that were sent and not answered fail, when the device's
// sockets are dead and DeadTimeout has passed since; within ResendInterval. New
// ones fail by themselves. Reconnect still revives the device, but a server that
// does not answer for a second then loses its connection, until Reconnect is called
// with the next one: only for devices that are given up.
func (k *Kernel) Fail(index int, backend string) error {
	d, err := k.connected(index)
	if err != nil {
		return err
	}
	device, second := uint32(index), uint64(1)
	if err := k.configure(cmdReconfigure, configuration{index: &device, timeout: &second, backend: backend}); err != nil {
		return fmt.Errorf("%s: fail its requests: %w", d.Path, err)
	}
	return nil
}

// Disconnect flushes a device and ends it, and returns when it is gone: the number
// is free, the server's connection is closed. It is refused with ErrInUse while
// anything has the device or a partition of it mounted or claimed. A write that
// fails meanwhile is an error, and the device stays.
func (k *Kernel) Disconnect(ctx context.Context, index int) error {
	d, err := k.connected(index)
	if err != nil {
		return err
	}
	flags := os.O_RDWR
	if d.ReadOnly {
		flags = os.O_RDONLY
	}
	f, err := os.OpenFile(d.Path, flags|unix.O_EXCL, 0)
	if err != nil {
		return asOurs(err)
	}
	// The claim is kept until the kernel has let the sockets go: nobody mounts it in between.
	err = flush(f)
	if err == nil {
		err = k.end(index)
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("disconnect %s: %w", d.Path, err)
	}
	return k.gone(ctx, index)
}

// Abandon ends a device without looking at who uses it and without flushing: what
// was not written is lost, and who has it open gets EIO. For a device whose server
// does not come back.
func (k *Kernel) Abandon(ctx context.Context, index int) error {
	d, err := k.connected(index)
	if err != nil {
		return err
	}
	if err := k.end(index); err != nil {
		return fmt.Errorf("disconnect %s: %w", d.Path, err)
	}
	if err := k.gone(ctx, index); errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%w: %s is disconnected, but still open", ErrInUse, d.Path)
	} else if err != nil {
		return err
	}
	return nil
}

func (k *Kernel) connected(index int) (Device, error) {
	d, err := k.Get(index)
	switch {
	case errors.Is(err, fs.ErrNotExist), err == nil && !d.Connected:
		return d, fmt.Errorf("%s: %w", k.path(index), ErrNotConnected)
	case err != nil:
		return d, err
	}
	return d, nil
}

// flush writes back what the page cache has of the device and waits for the
// server's flush; BLKFLSBUF drops the cache, so that whoever connects this number
// next does not see it.
func flush(f *os.File) error {
	if err := f.Sync(); err != nil {
		return fmt.Errorf("flush: %w", err)
	}
	return ioctl(f, unix.BLKFLSBUF, 0)
}

func (k *Kernel) configure(command uint8, cfg configuration) error {
	data, err := cfg.encode()
	if err != nil {
		return err
	}
	_, err = k.ask(command, data, netlink.Acknowledge)
	return err
}

// end has the kernel let the sockets of a device go.
func (k *Kernel) end(index int) error {
	device := uint32(index)
	err := k.configure(cmdDisconnect, configuration{index: &device})
	if errors.Is(err, ErrNoNetlink) {
		return k.endIoctl(index)
	}
	return err
}

// gone waits until a device that was told to end has ended. The partitions'
// nodes of an ended device stay until somebody opens it; so that is done here.
func (k *Kernel) gone(ctx context.Context, index int) error {
	return poll(ctx, func() (bool, error) {
		d, err := k.Get(index)
		if errors.Is(err, fs.ErrNotExist) {
			return true, nil
		}
		if err != nil || d.Connected || d.Size != 0 {
			return false, err
		}
		if len(k.partitions(index)) > 0 {
			if f, err := os.Open(d.Path); err == nil {
				f.Close()
			}
		}
		return len(k.partitions(index)) == 0, nil
	})
}
