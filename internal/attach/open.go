package attach

import (
	"context"
	"errors"
	"fmt"

	"github.com/fsximg/fsx/internal/attach/bridge"
	"github.com/fsximg/fsx/internal/attach/loopdev"
	"github.com/fsximg/fsx/internal/attach/nbddev"
	"github.com/fsximg/fsx/internal/cliutil"
)

// open makes the device that is wanted, or the best one that this machine has: a
// network block device, else a loop device, else a network block device by ioctl,
// which dies with its keeper.
func (h *Host) open(ctx context.Context, o KeepOptions) (device, error) {
	switch {
	case o.Kind == Loop:
		return h.openLoop(ctx, &o)
	case o.Kind == NBD || o.Adopt != "":
		return h.openNBD(ctx, &o, nbddev.Automatic)
	}
	d, nbdErr := h.openNBD(ctx, &o, nbddev.Netlink)
	if !missing(nbdErr) {
		return d, nbdErr
	}
	d, loopErr := h.openLoop(ctx, &o)
	if !missing(loopErr) {
		return d, loopErr
	}
	if errors.Is(nbdErr, nbddev.ErrNoNetlink) {
		return h.openNBD(ctx, &o, nbddev.Ioctl)
	}
	err := fmt.Errorf("this machine can make no block device: %w; %w", nbdErr, loopErr)
	return nil, cliutil.WithHint(err, "modprobe nbd, or modprobe loop and fuse; a container must be given the devices. Without: fsxnbd serve, and qemu-img, nbdcopy, libguestfs")
}

// missing says that a kind of device is not to be had here.
func missing(err error) bool {
	for _, m := range []error{nbddev.ErrNoModule, nbddev.ErrNoNetlink, nbddev.ErrPermission, loopdev.ErrNoDriver, bridge.ErrNoFUSE} {
		if errors.Is(err, m) {
			return true
		}
	}
	return false
}
