package attach

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/fsximg/fsx/internal/attach/bridge"
	"github.com/fsximg/fsx/internal/attach/loopdev"
	"github.com/fsximg/fsx/internal/attach/nbddev"
	"github.com/fsximg/fsx/internal/cliutil"
	"github.com/fsximg/fsx/internal/volume"
)

const (
	// keeperEnds is how long a keeper may take to end when its device is gone.
	keeperEnds = 20 * time.Second
	// rebindLimit is how long a keeper may take to connect to a server that is there.
	rebindLimit = 30 * time.Second
)

// Request is what is to be attached, and how.
type Request struct {
	Ref      cliutil.Ref
	ReadOnly bool
	Timeout  time.Duration // how long requests wait for a server; 0: fail at once
	Choice
	Server ServerOptions
	// untilUnmounted has the device detached with its last mount.
	untilUnmounted bool
}

// Attached is what Attach did.
type Attached struct {
	Record
	Server  int  // process of the store's server
	Started bool // the server was started
	Rebound bool // the device was there already, and has its server again

	leash *leash
}

// Attach makes a block device of a volume or a snapshot. One that has a device whose
// server was killed gets its server again: the device is the same. The error is
// cliutil.ErrInUse if it is attached already, and works.
func (h *Host) Attach(ctx context.Context, q Request) (*Attached, error) {
	path, id, err := h.prepare(q)
	if err != nil {
		return nil, err
	}
	release, err := lockStore(ctx, path)
	if err != nil {
		return nil, err
	}
	defer release()
	a, err := h.attachLocked(ctx, path, id, q)
	if a != nil {
		a.leash.release() // of one that mount had attached: it is mounted, or was
	}
	return a, err
}

// prepare checks what can be checked before anything is done.
func (h *Host) prepare(q Request) (path string, id Identity, err error) {
	if err := needRoot(); err != nil { // who may not even see whether there is a store
		return "", id, err
	}
	if !volume.IsStore(q.Ref.Store) {
		return "", id, cliutil.Errorf(cliutil.ErrNotFound, "no such store")
	}
	if path, err = filepath.Abs(q.Ref.Store); err == nil {
		path, err = filepath.EvalSymlinks(path)
	}
	if err != nil {
		return "", id, err
	}
	uuid, err := volume.Identify(path)
	if err != nil {
		return "", id, err
	}
	return path, Identity{uuid.String(), q.Ref.VolumeOrDefault(), q.Ref.Snapshot}, nil
}

// attachLocked is Attach with the store's lock. A server that was found, and has ended
// before this client came, since it had no other, is followed by another.
func (h *Host) attachLocked(ctx context.Context, path string, id Identity, q Request) (*Attached, error) {
	for first := true; ; first = false {
		old, err := h.settled(ctx, id)
		if err != nil {
			return nil, err
		}
		s, err := h.server(ctx, path, q.Server)
		if err != nil {
			return nil, err
		}
		out, err := h.attachTo(ctx, s, path, id, old, q)
		if err == nil || s.ours || !first || ctx.Err() != nil || !s.hasEnded(ctx) {
			s.Close()
			return out, err
		}
		s.Close()
		h.log().Info("the server ended meanwhile", "pid", s.Server().PID, "err", err)
	}
}

// attachTo makes a device of an export of the server, or has the one that is there
// connected to it.
func (h *Host) attachTo(ctx context.Context, s *server, path string, id Identity, old *Attachment, q Request) (_ *Attached, err error) {
	defer func() {
		if err != nil {
			s.abandon(h.log())
		}
	}()
	if _, err := s.URI(ctx, id.Volume, id.Snapshot); err != nil {
		return nil, keyHint(err, s.ours, q.Ref.Store)
	}
	out := &Attached{Server: s.Server().PID, Started: s.ours}
	if old != nil && old.State != StateAbandoned {
		out.Record, err = h.rebind(ctx, old, s)
		if out.Rebound = true; err != nil || !old.ending() {
			return out, err
		}
		if old, err = h.settled(ctx, id); err != nil { // with its server it ends
			return nil, err
		}
		out.Rebound = false
	}
	o := KeepOptions{
		Path: path, Identity: id, Choice: q.Choice, ReadOnly: q.ReadOnly || id.Snapshot != "",
		Timeout: q.Timeout, UntilUnmounted: q.untilUnmounted,
	}
	if old != nil {
		o.Adopt, o.Connections, o.ReadOnly, out.Rebound = old.Device, max(old.Connections, 1), old.ReadOnly, true
		o.UntilUnmounted = q.untilUnmounted || old.UntilUnmounted && !old.ending()
	}
	return out, h.keep(ctx, o, out)
}

// keep starts a keeper and tells of its device.
func (h *Host) keep(ctx context.Context, o KeepOptions, out *Attached) (err error) {
	if _, out.leash, err = h.spawn(ctx, o); err != nil {
		h.sweep(o.Identity)
		return err
	}
	var ok bool
	if out.Record, ok = readRecord(h.folder(o.Identity)); !ok {
		return fmt.Errorf("%s was attached, and is gone again", o.Identity)
	}
	return nil
}

// ending says whether a keeper detaches the device as soon as it can.
func (a *Attachment) ending() bool { return a.UntilUnmounted && len(a.Dirs) == 0 }

// keyHint says what to do about a key that a server lacks.
func keyHint(err error, ours bool, store string) error {
	if errors.Is(err, volume.ErrKeyMissing) && !ours {
		return cliutil.ReplaceHint(err, "give the store's server the key: fsxnbd key add %s", store)
	}
	return err
}

// settled is the attachment of an identity, after what is ending has ended and what a
// dead keeper left was cleaned up. An attachment that it returns has a living keeper,
// or is a network block device that a new one can take over.
func (h *Host) settled(ctx context.Context, id Identity) (*Attachment, error) {
	// A device of mount that is not mounted is about to be detached: whoever mounts
	// one has the store's lock, as we have.
	var old *Attachment
	var failed error
	settled, err := await(ctx, keeperEnds, func() bool {
		old, failed = h.find(id)
		if failed != nil || old == nil {
			return failed != nil || !h.isKept(id)
		}
		return !old.ending() || old.State != StateAttached
	})
	switch {
	case failed != nil || err != nil:
		return nil, errors.Join(failed, err)
	case !settled && old == nil:
		return nil, cliutil.Errorf(cliutil.ErrInUse, "%s is being attached or detached by another process", id)
	case !settled:
		return nil, busyError(old)
	case old == nil:
		h.sweep(id)
		return nil, nil
	case old.State == StateAbandoned && old.Kind == Loop:
		return nil, h.clearLoop(ctx, old)
	}
	return old, nil
}

// busyError names the device that an identity has.
func busyError(a *Attachment) error {
	err := cliutil.Errorf(cliutil.ErrInUse, "%s is attached as %s", a.Identity, a.Device)
	if users := usersOf(a.Device); len(users) > 0 {
		return cliutil.WithHint(cliutil.Errorf(cliutil.ErrInUse, "%v, %s", err, users[0]), "use that device, or detach it first: fsximg detach %s", a.Device)
	}
	return cliutil.WithHint(err, "use that device, or detach it first: fsximg detach %s", a.Device)
}

// rebind waits until a keeper has found the server. With a server that was there all
// the time, and a device that has it, there is nothing to do: the volume is attached.
func (h *Host) rebind(ctx context.Context, a *Attachment, s *server) (Record, error) {
	if a.State == StateAttached && !s.ours {
		return Record{}, busyError(a)
	}
	var r Record
	ok, err := await(ctx, rebindLimit, func() bool {
		now := *a
		now.askServer(ctx)
		r, _ = readRecord(h.folder(a.Identity))
		return now.Clients > 0 && r.Link == Connected
	})
	if err == nil && !ok {
		err = cliutil.WithHint(fmt.Errorf("%s does not connect to the server: %s", a.Device, r.Reason), "its log: %s", filepath.Join(h.folder(a.Identity), logName))
	}
	return r, err
}

// clearLoop detaches the loop device of a keeper that was killed: its file died with
// it.
func (h *Host) clearLoop(ctx context.Context, a *Attachment) error {
	if users := usersOf(a.Device); len(users) > 0 {
		err := cliutil.Errorf(cliutil.ErrInUse, "%s had %s, and its keeper was killed: the device fails, and is %s", a.Identity, a.Device, users[0])
		return cliutil.WithHint(err, "%s", howToFree(a))
	}
	h.log().Warn("its keeper was killed: what was written last and not flushed is lost", "device", a.Device, "volume", a.Export())
	return h.endLoop(ctx, a, true)
}

// howToFree says what to do about a device that fails and is in use.
func howToFree(a *Attachment) string {
	if len(a.Dirs) > 0 {
		return "umount " + a.Dirs[0] + ", or umount -l if that fails, and end the programs that use it; what was written last and not synced is lost. Then attach it again"
	}
	return "end that first; what was written last and not flushed is lost. Then attach it again"
}

// endLoop detaches a loop device; lossy does it though its data cannot be flushed.
func (h *Host) endLoop(ctx context.Context, a *Attachment, lossy bool) error {
	number, ok := loopdev.Number(a.Device)
	if !ok {
		return fmt.Errorf("%s is no loop device", a.Device)
	}
	err := loopdev.Detach(ctx, number, lossy)
	switch {
	case errors.Is(err, loopdev.ErrNotAttached), lossy && errors.Is(err, loopdev.ErrNotFlushed) && !errors.Is(err, loopdev.ErrBusy):
		err = nil
	case errors.Is(err, loopdev.ErrBusy):
		err = inUse(a)
	}
	if err == nil && !h.isKept(a.Identity) {
		h.sweep(a.Identity)
	}
	return err
}

// endNBD is endLoop of a network block device.
func (h *Host) endNBD(ctx context.Context, a *Attachment, lossy bool) error {
	index, ok := nbddev.IndexOf(a.Device)
	if !ok {
		return fmt.Errorf("%s is no network block device", a.Device)
	}
	end := nbddev.This().Disconnect
	if lossy {
		if users := usersOf(a.Device); len(users) > 0 {
			return inUse(a)
		}
		end = nbddev.This().Abandon
	}
	err := end(ctx, index)
	switch {
	case errors.Is(err, nbddev.ErrNotConnected):
		err = nil
	case errors.Is(err, nbddev.ErrInUse):
		err = inUse(a)
	}
	return err
}

// inUse says what keeps a device from being detached.
func inUse(a *Attachment) error {
	users := usersOf(a.Device)
	switch {
	case len(a.Dirs) > 0:
		return cliutil.WithHint(cliutil.Errorf(cliutil.ErrInUse, "%s is mounted on %s", a.Device, a.Dirs[0]), "fsximg unmount %s", a.Dirs[0])
	case len(users) > 0:
		return cliutil.WithHint(cliutil.Errorf(cliutil.ErrInUse, "%s is %s", a.Device, users[0]), "end that first")
	}
	return cliutil.WithHint(cliutil.Errorf(cliutil.ErrInUse, "%s is in use", a.Device), "it is mounted where this process does not see it, or was unmounted lazily; lsof and fuser may tell")
}

// sweep removes what a keeper left that was killed, when its device is gone.
func (h *Host) sweep(id Identity) {
	if h.isKept(id) {
		return
	}
	if err := bridge.Unmount(h.mountpoint(id)); err != nil {
		h.log().Warn("what a keeper left stays", "err", err)
	}
	if err := h.removeFolder(id); err != nil {
		h.log().Warn("what a keeper left stays", "err", err)
	}
}
