package attach

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"

	"github.com/fsximg/fsx/internal/attach/loopdev"
	"github.com/fsximg/fsx/internal/attach/nbddev"
	"github.com/fsximg/fsx/internal/cliutil"
	"github.com/fsximg/fsx/internal/control"
)

// Host is this machine, on which volumes are attached.
type Host struct {
	Run     string // the folder of run directories, cliutil.RunRoot
	Program string // what this program is called
	Log     *slog.Logger
}

func (h *Host) log() *slog.Logger {
	if h.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return h.Log
}

// KeeperLog is the log of a keeper: what happens to its device.
func KeeperLog(w io.Writer) *slog.Logger {
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelInfo}))
}

// State is how an attachment is.
type State string

const (
	// StateAttached: it works.
	StateAttached State = "attached"
	// StateWaiting: its server is gone, and requests wait for another.
	StateWaiting State = "waiting"
	// StateFailed: its server is gone for too long, and requests fail.
	StateFailed State = "failed"
	// StateAbandoned: its keeper is gone. A network block device works as long as its
	// server does; a loop device fails.
	StateAbandoned State = "abandoned"
)

// Attachment is a device that shows a volume.
type Attachment struct {
	Record
	State State
	Dirs  []string // where it is mounted, as far as this process sees
	// Of the server; 0 without one.
	Server  int // process
	Clients int // of the volume, this device among them
}

// attached finds what this kernel has of ours, with what keepers tell of it.
func (h *Host) attached() (out []Attachment, err error) {
	loops, err := loopdev.List()
	if err != nil && !errors.Is(err, loopdev.ErrNoDriver) {
		return nil, fmt.Errorf("list loop devices: %w", err)
	}
	for _, d := range loops {
		if id, ok := h.parseDisk(d.Backing); ok {
			out = append(out, h.describe(Record{Identity: id, Device: d.Path, Kind: Loop, ReadOnly: d.ReadOnly}))
		}
	}
	nbds, err := nbddev.This().List()
	if err != nil && !errors.Is(err, nbddev.ErrPermission) {
		return nil, fmt.Errorf("list network block devices: %w", err)
	}
	for _, d := range nbds {
		if id, ok := ParseBackend(d.Backend); ok && d.Connected {
			out = append(out, h.describe(Record{Identity: id, Device: d.Path, Kind: NBD, ReadOnly: d.ReadOnly}))
		}
	}
	out = append(out, h.unlisted(out)...)
	slices.SortFunc(out, func(a, b Attachment) int { return cmp.Compare(a.Device, b.Device) })
	return out, nil
}

// describe adds what the keeper tells to what the kernel does.
func (h *Host) describe(r Record) Attachment {
	a := Attachment{Record: r, State: StateAbandoned}
	if told, ok := readRecord(h.folder(r.Identity)); ok && told.Device == r.Device && told.Identity == r.Identity {
		a.Record = told
		a.ReadOnly = r.ReadOnly
	}
	if h.isKept(r.Identity) {
		a.State = stateOf(a.Link)
	}
	a.Dirs, _ = mountedDirs(a.Device)
	return a
}

func stateOf(l Link) State {
	switch l {
	case Waiting:
		return StateWaiting
	case Failed:
		return StateFailed
	}
	return StateAttached
}

// unlisted are devices that only their keepers tell of: the kernel has no backend
// identifiers before Linux 5.14, and none for a device that was made by ioctl.
func (h *Host) unlisted(listed []Attachment) (out []Attachment) {
	folders, _ := filepath.Glob(filepath.Join(h.Run, "*", keeperFolder, "*"))
	for _, folder := range folders {
		id, ok := parseIdentity(filepath.Base(filepath.Dir(filepath.Dir(folder))), filepath.Base(folder))
		known := slices.ContainsFunc(listed, func(a Attachment) bool { return a.Identity == id })
		if r, found := readRecord(folder); ok && !known && found && r.Identity == id && r.Kind == NBD && h.isKept(id) && hasSize(r.Device) {
			out = append(out, h.describe(r))
		}
	}
	return out
}

// hasSize says whether a network block device is connected, for kernels that do not
// tell more.
func hasSize(device string) bool {
	index, ok := nbddev.IndexOf(device)
	if !ok {
		return false
	}
	d, err := nbddev.This().Get(index)
	return err == nil && d.Connected
}

// find is the attachment of an identity, if there is one.
func (h *Host) find(id Identity) (*Attachment, error) {
	all, err := h.attached()
	if err != nil {
		return nil, err
	}
	for i := range all {
		if all[i].Identity == id {
			return &all[i], nil
		}
	}
	return nil, nil
}

// findDevice is the attachment of a device, by its path or a link to it.
func (h *Host) findDevice(path string) (*Attachment, error) {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil, err
	}
	all, err := h.attached()
	if err != nil {
		return nil, err
	}
	for i := range all {
		if all[i].Device == real {
			return &all[i], nil
		}
	}
	return nil, cliutil.WithHint(cliutil.Errorf(cliutil.ErrNotFound, "no volume of a store is attached as %s", path), "fsximg attached lists those that are")
}

// List tells what is attached, and by which servers.
func (h *Host) List(ctx context.Context) ([]Attachment, error) {
	all, err := h.attached()
	if err != nil {
		return nil, err
	}
	for i := range all {
		if a := &all[i]; a.Path != "" {
			a.askServer(ctx)
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
	}
	return all, nil
}

// askServer finds out who serves the store, and to how many clients.
func (a *Attachment) askServer(ctx context.Context) {
	client, err := control.Dial(ctx, a.Path)
	if err != nil {
		return
	}
	defer client.Close()
	if client.Server().Store != a.Store {
		return // another store lies there now
	}
	a.Server = client.Server().PID
	status, err := client.ServerStatus(ctx)
	if err != nil {
		return
	}
	for _, c := range status.Clients {
		if c.Export == exportOf(status, a.Identity) {
			a.Clients++
		}
	}
}

// needRoot refuses to attach for users, who could not.
func needRoot() error {
	if os.Geteuid() == 0 {
		return nil
	}
	return cliutil.WithHint(errors.New("block devices are attached by root alone"), "sudo; or use the volume without a device: fsxnbd serve, and qemu-img, nbdcopy, nbdfuse, libguestfs")
}
