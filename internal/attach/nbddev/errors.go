package nbddev

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

var (
	// ErrNoModule: the kernel has no network block devices, and they could not be loaded.
	ErrNoModule = errors.New("the kernel has no network block devices (modprobe nbd)")
	// ErrNoNetlink: there are network block devices, but no netlink family that this
	// process could see: an old kernel, or a network namespace of its own.
	ErrNoNetlink = errors.New("network block devices cannot be reached by netlink here")
	// ErrPermission: CAP_SYS_ADMIN in the machine's first user namespace is missing.
	ErrPermission = errors.New("network block devices need CAP_SYS_ADMIN outside of any container (root)")
	// ErrNoDevice: every device is taken, and the kernel makes no further one.
	ErrNoDevice = errors.New("no network block device is free")
	// ErrInUse: the device is connected already, or something has it open, mounted or claimed.
	ErrInUse = errors.New("the device is in use")
	// ErrNotConnected: no such device, or nothing is connected to it.
	ErrNotConnected = errors.New("the device is not connected")
	// ErrBackend: the device belongs to another backend than the one that was named.
	ErrBackend = errors.New("the device belongs to another backend")
	// ErrEventsLost: the kernel had more to tell than was read in time; any device's
	// link may have died.
	ErrEventsLost = errors.New("events of network block devices were lost")
)

// asOurs adds the error of ours to one of the kernel's where it has one meaning.
func asOurs(err error) error {
	for _, known := range []struct {
		errno unix.Errno
		ours  error
	}{
		{unix.EPERM, ErrPermission},
		{unix.EACCES, ErrPermission},
		{unix.EBUSY, ErrInUse},
		{unix.ENOSPC, ErrNoDevice},
		{unix.EEXIST, ErrNoDevice},
	} {
		if errors.Is(err, known.errno) {
			return fmt.Errorf("%w: %w", known.ours, err)
		}
	}
	return err
}
