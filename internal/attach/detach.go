package attach

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/fsximg/fsx/internal/cliutil"
	"github.com/fsximg/fsx/internal/volume"
	"golang.org/x/sys/unix"
)

// Find is the attachment that a command line names: a device, or
// STORE[:VOLUME][@SNAPSHOT]. The error is cliutil.ErrNotFound if there is none.
func (h *Host) Find(name string) (*Attachment, error) {
	var st unix.Stat_t
	if unix.Stat(name, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK {
		return h.findDevice(name)
	}
	ref, err := cliutil.ParseRef(name)
	if err != nil {
		return nil, err
	}
	if !volume.IsStore(ref.Store) {
		return nil, cliutil.Errorf(cliutil.ErrNotFound, "no such device or store")
	}
	uuid, err := volume.Identify(ref.Store)
	if err != nil {
		return nil, err
	}
	id := Identity{uuid.String(), ref.VolumeOrDefault(), ref.Snapshot}
	a, err := h.find(id)
	if err == nil && a == nil {
		err = cliutil.WithHint(cliutil.Errorf(cliutil.ErrNotFound, "%s is not attached", id), "fsximg attached lists what is")
	}
	if a != nil && a.Path == "" { // its keeper was killed, and has left no record
		a.Path, err = filepath.Abs(ref.Store)
	}
	return a, err
}

// Detach flushes a device and ends it. It waits until nothing of it is left: the
// device, its keeper, and the server if it was started for devices and this was the
// last. The error is cliutil.ErrInUse while something uses the device.
//
// force ends one whose server is gone; what was not flushed is lost then. It does not
// end one that is in use.
func (h *Host) Detach(ctx context.Context, name string, force bool) (*Attachment, error) {
	if err := needRoot(); err != nil {
		return nil, err
	}
	a, err := h.Find(name)
	if err != nil {
		return nil, err
	}
	return a, h.detach(ctx, a, force)
}

func (h *Host) detach(ctx context.Context, a *Attachment, force bool) error {
	if volume.IsStore(a.Path) {
		release, err := lockStore(ctx, a.Path)
		if err != nil {
			return err
		}
		defer release()
	}
	if len(usersOf(a.Device)) > 0 {
		return inUse(a)
	}
	last := lastClientOf(ctx, a.Path, a.Identity)
	lossy, err := h.loses(ctx, a, force)
	if err != nil {
		return err
	}
	if err := h.endDevice(ctx, a, lossy); err != nil {
		return err
	}
	if err := h.awaitKeeper(ctx, a); err != nil {
		return err
	}
	if last != nil {
		return last.await(ctx)
	}
	h.sweepServer(a.Path, a.Identity)
	return nil
}

// loses decides whether a device is ended without a flush: one that nothing answers
// for any more. It ends a keeper that waits for a server.
func (h *Host) loses(ctx context.Context, a *Attachment, force bool) (bool, error) {
	switch {
	case a.State == StateAttached:
		return false, nil
	case a.State == StateAbandoned && a.Kind == NBD && !force:
		return false, nil // its server may answer
	case a.State == StateAbandoned:
		return true, nil
	case !force:
		err := fmt.Errorf("the server of %s is gone: %s cannot be flushed", a.Path, a.Device)
		return false, cliutil.WithHint(err, "fsximg attach starts it again; --force detaches, and what was not flushed is lost")
	}
	if a.Kind == Loop {
		return true, h.killKeeper(ctx, a)
	}
	return true, nil
}

// killKeeper ends a keeper so that what waits for it fails.
func (h *Host) killKeeper(ctx context.Context, a *Attachment) error {
	p, err := h.keeperOf(a)
	if err != nil || p == nil {
		return err
	}
	defer p.close()
	if err := p.signal(unix.SIGKILL); err != nil {
		return fmt.Errorf("end the keeper of %s: %w", a.Device, err)
	}
	_, err = p.await(ctx, keeperEnds)
	return err
}

// keeperOf is the process of a device's keeper; nil without one.
func (h *Host) keeperOf(a *Attachment) (*process, error) {
	if a.Keeper == 0 || !h.isKept(a.Identity) {
		return nil, nil
	}
	p, err := openProcess(a.Keeper)
	if err != nil {
		return nil, nil // it has just ended
	}
	if !h.isKept(a.Identity) { // the number may be another's by now
		p.close()
		return nil, nil
	}
	return p, nil
}

func (h *Host) endDevice(ctx context.Context, a *Attachment, lossy bool) error {
	if a.Kind == Loop {
		return h.endLoop(ctx, a, lossy)
	}
	return h.endNBD(ctx, a, lossy)
}

// awaitKeeper waits until the keeper of a device that is gone has ended, and removes
// what one left that was killed.
func (h *Host) awaitKeeper(ctx context.Context, a *Attachment) error {
	if p, err := h.keeperOf(a); err != nil {
		return err
	} else if p != nil {
		defer p.close()
		if err := p.signal(lookSignal); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("keeper of %s: %w", a.Device, err)
		}
		if gone, err := p.await(ctx, keeperEnds); err != nil || !gone {
			return errors.Join(err, cliutil.WithHint(fmt.Errorf("%s is detached, and its keeper (pid %d) does not end", a.Device, a.Keeper),
				"its log: %s", filepath.Join(h.folder(a.Identity), logName)))
		}
	}
	h.sweep(a.Identity)
	return nil
}
