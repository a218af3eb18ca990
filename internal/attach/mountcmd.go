package attach

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/fsximg/fsx/internal/cliutil"
)

// MountRequest is what is to be mounted, and how.
type MountRequest struct {
	Request
	Dir     string
	Type    string   // of the file system; empty: mount(8) finds it out
	Options []string // of mount(8), one each
	Flags   []string // further arguments of mount(8)
	Mkfs    string   // make a file system of this type, if there is nothing on the volume
	Talk    io.Writer
}

// Mount attaches a volume and mounts it. It is detached when its last mount has gone,
// by whomever. If it cannot be mounted it is detached again. A volume that is mounted
// on the folder already, and whose server was killed, gets its server again.
func (h *Host) Mount(ctx context.Context, q MountRequest) (*Attached, error) {
	if st, err := os.Stat(q.Dir); err != nil {
		return nil, err
	} else if !st.IsDir() {
		return nil, cliutil.UsageErrorf("%s is not a folder", q.Dir)
	}
	if slices.Contains(q.Options, "ro") {
		q.ReadOnly = true
	}
	path, id, err := h.prepare(q.Request)
	if err != nil {
		return nil, err
	}
	// Until it is mounted nobody else attaches a volume of this store: see settled.
	release, err := lockStore(ctx, path)
	if err != nil {
		return nil, err
	}
	defer release()
	q.untilUnmounted = true
	a, err := h.attachLocked(ctx, path, id, q.Request)
	if err != nil {
		return nil, err
	}
	defer a.leash.release()
	if dirs, err := mountedDirs(a.Device); err != nil || len(dirs) > 0 {
		return a, errors.Join(err, mountedThere(a, dirs, q.Dir))
	}
	if err := q.mount(ctx, &a.Record); err != nil {
		if !a.Rebound {
			err = errors.Join(err, h.undo(path, a))
		}
		return nil, err
	}
	return a, nil
}

// mountedThere is nil if a device that was there before is mounted on the folder.
func mountedThere(a *Attached, dirs []string, dir string) error {
	if real, err := filepath.Abs(dir); err == nil && slices.Contains(dirs, real) {
		return nil
	}
	return busyError(&Attachment{Record: a.Record, Dirs: dirs})
}

// undo detaches what was not mounted. The store's lock is ours.
func (h *Host) undo(path string, attached *Attached) error {
	ctx := context.Background() // also when the command was interrupted
	a := &Attachment{Record: attached.Record, State: StateAttached}
	last := lastClientOf(ctx, path, a.Identity)
	err := h.endDevice(ctx, a, false)
	if err == nil {
		err = h.awaitKeeper(ctx, a)
	}
	if err == nil && last != nil {
		err = last.await(ctx)
	}
	if err != nil {
		return fmt.Errorf("detach %s again: %w", a.Device, err)
	}
	return nil
}

// mount makes a file system, if one is wanted, and mounts it.
func (q *MountRequest) mount(ctx context.Context, r *Record) error {
	if q.Mkfs != "" {
		if err := makeFileSystem(ctx, r, q.Mkfs, q.Talk); err != nil {
			return err
		}
	}
	options := slices.Clone(q.Options)
	if r.ReadOnly {
		fstype := q.Type
		if fstype == "" {
			c, err := probe(ctx, r.Device)
			if err != nil {
				return err
			}
			fstype = c.Type
		}
		options = addOptions(options, readOnlyOptions(fstype))
	}
	args := slices.Clone(q.Flags)
	if q.Type != "" {
		args = append(args, "-t", q.Type)
	}
	if len(options) > 0 {
		args = append(args, "-o", strings.Join(options, ","))
	}
	err := run(ctx, q.Talk, "mount", append(args, "--", r.Device, q.Dir)...)
	if err != nil && q.Mkfs == "" {
		if c, probeErr := probe(ctx, r.Device); probeErr == nil && c == (content{}) {
			err = cliutil.WithHint(err, "there is nothing on %s yet: --mkfs ext4 makes a file system", r.Identity)
		} else if probeErr == nil && c.Partitions != "" {
			err = cliutil.WithHint(err, "%s has partitions: fsximg attach, and mount one of them", r.Identity)
		}
	}
	return err
}

// readOnlyOptions are what a file system needs that is on a device which cannot be
// written: it must not replay its journal. xfs also refuses a second file system with
// the same UUID, which a snapshot of a mounted one is.
func readOnlyOptions(fstype string) []string {
	switch fstype {
	case "ext3", "ext4":
		return []string{"ro", "noload"}
	case "xfs":
		return []string{"ro", "norecovery", "nouuid"}
	case "btrfs":
		return []string{"ro", "rescue=nologreplay"}
	case "f2fs":
		return []string{"ro", "norecovery"}
	case "nilfs2":
		return []string{"ro", "norecovery"}
	}
	return []string{"ro"}
}

// addOptions adds those that are not there yet.
func addOptions(options, more []string) []string {
	for _, o := range more {
		if !slices.Contains(options, o) {
			options = append(options, o)
		}
	}
	return slices.DeleteFunc(options, func(o string) bool { return o == "rw" })
}

// content is what is on a device, as blkid(8) recognises it. Its zero value is
// nothing.
type content struct {
	Type       string // of a file system, or of another use of the whole device
	Partitions string // type of the partition table
}

// probe looks at a device's content, without a cache.
func probe(ctx context.Context, device string) (content, error) {
	var c content
	cmd := exec.CommandContext(ctx, "blkid", "-p", "-o", "export", device)
	out, err := cmd.Output()
	var exit *exec.ExitError
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return c, fmt.Errorf("blkid(8) of util-linux is missing: %w", err)
	case errors.As(err, &exit) && exit.ExitCode() == 2 && len(bytes.TrimSpace(exit.Stderr)) == 0:
		return c, nil // nothing
	case err != nil:
		return c, fmt.Errorf("blkid %s: %w", device, err)
	}
	for line := range strings.Lines(string(out)) {
		switch key, value, _ := strings.Cut(strings.TrimSpace(line), "="); key {
		case "TYPE":
			c.Type = value
		case "PTTYPE":
			c.Partitions = value
		}
	}
	if c == (content{}) {
		c.Type = "something" // ambivalent, or known by a tag alone
	}
	return c, nil
}

// makeFileSystem runs mkfs.TYPE on a device with nothing on it.
func makeFileSystem(ctx context.Context, r *Record, fstype string, talk io.Writer) error {
	if r.ReadOnly {
		return cliutil.UsageErrorf("--mkfs: %s is attached read-only", r.Identity)
	}
	program := "mkfs." + fstype
	if strings.ContainsAny(fstype, "/ ") {
		return cliutil.UsageErrorf("--mkfs %s: no type of a file system", fstype)
	}
	if _, err := exec.LookPath(program); err != nil {
		return cliutil.WithHint(fmt.Errorf("--mkfs: %w", err), "install it, e.g. e2fsprogs for ext4, xfsprogs, btrfs-progs")
	}
	c, err := probe(ctx, r.Device)
	if err != nil {
		return err
	}
	if c != (content{}) {
		what := c.Type
		if what == "" {
			what = "a partition table (" + c.Partitions + ")"
		}
		return cliutil.WithHint(fmt.Errorf("--mkfs: there is %s on %s, which would be lost", what, r.Identity),
			"leave --mkfs out to mount it; to make it anew, attach it and run wipefs -a and %s", program)
	}
	return run(ctx, talk, program, append(quietMkfs[fstype], r.Device)...)
}

// quietMkfs are the options by which an mkfs talks of problems alone.
var quietMkfs = map[string][]string{"ext2": {"-q"}, "ext3": {"-q"}, "ext4": {"-q"}, "xfs": {"-q"}, "btrfs": {"-q"}, "f2fs": {"-q"}}

// run runs a program, whose talk is passed on; the error has the last line of it.
func run(ctx context.Context, talk io.Writer, name string, args ...string) error {
	var said bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout = io.MultiWriter(talk, &said)
	cmd.Stderr = cmd.Stdout
	err := cmd.Run()
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	lines := strings.FieldsFunc(said.String(), func(r rune) bool { return r == '\n' })
	if len(lines) == 0 {
		return fmt.Errorf("%s: %w", name, err)
	}
	return fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(lines[0]))
}

// Unmounted is what Unmount did.
type Unmounted struct {
	Device   string
	Detached bool // false: it is mounted elsewhere, or was attached apart from a mount
}

// Unmount unmounts the folder, which writes everything back, and detaches the device
// if that was its last mount and Mount had attached it.
func (h *Host) Unmount(ctx context.Context, dir string, flags []string, talk io.Writer) (*Unmounted, error) {
	if err := needRoot(); err != nil {
		return nil, err
	}
	a, err := h.mountedOn(dir)
	if err != nil {
		return nil, err
	}
	if a.State != StateAttached && !slices.Contains(flags, "-l") {
		err := fmt.Errorf("the server of %s is gone, and what was written last cannot be written back", a.Path)
		if a.State == StateAbandoned && a.Kind == Loop {
			return nil, cliutil.WithHint(fmt.Errorf("the keeper of %s was killed: %s fails", a.Device, dir), "umount -l %s, then fsximg detach %s; what was written last and not synced is lost", dir, a.Device)
		}
		if a.State != StateAbandoned {
			return nil, cliutil.WithHint(err, "fsximg attach starts it again; umount -l gives it up")
		}
	}
	if err := run(ctx, talk, "umount", append(slices.Clone(flags), "--", dir)...); err != nil {
		return nil, busyMount(dir, err)
	}
	u := &Unmounted{Device: a.Device}
	if dirs, err := mountedDirs(a.Device); err != nil || len(dirs) > 0 || !a.UntilUnmounted {
		return u, err
	}
	u.Detached = true
	return u, h.awaitUnmounted(ctx, a)
}

// busyMount makes umount's error, when the folder is in use, an ErrInUse.
func busyMount(dir string, err error) error {
	if strings.Contains(err.Error(), "busy") {
		return cliutil.WithHint(cliutil.Errorf(cliutil.ErrInUse, "%v", err), "fuser -vm %s and lsof %s tell who uses it", dir, dir)
	}
	return err
}

// awaitUnmounted waits until the keeper has detached the device, which it does by
// itself, or else does it.
func (h *Host) awaitUnmounted(ctx context.Context, a *Attachment) error {
	last := lastClientOf(ctx, a.Path, a.Identity)
	ended, err := await(ctx, keeperEnds, func() bool { return !h.isKept(a.Identity) })
	if err != nil {
		return err
	}
	if !ended {
		return h.detach(ctx, a, false) // it says why it cannot be
	}
	if last != nil {
		return last.await(ctx)
	}
	return nil
}

// mountedOn is our device that is mounted on a folder.
func (h *Host) mountedOn(dir string) (*Attachment, error) {
	real, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	// Not EvalSymlinks alone: it would look into a file system that may not answer.
	if parent, err := filepath.EvalSymlinks(filepath.Dir(real)); err == nil {
		real = filepath.Join(parent, filepath.Base(real))
	}
	all, err := h.attached()
	if err != nil {
		return nil, err
	}
	for i := range all {
		if slices.Contains(all[i].Dirs, real) {
			return &all[i], nil
		}
	}
	return nil, cliutil.WithHint(cliutil.Errorf(cliutil.ErrNotFound, "no volume of a store is mounted on %s", dir), "umount(8) unmounts others")
}
