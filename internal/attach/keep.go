package attach

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"time"

	"github.com/fsximg/fsx/internal/cliutil"
	"github.com/fsximg/fsx/internal/ioflusher"
	"golang.org/x/sys/unix"
)

const (
	// lookEvery is how often a keeper looks whether its device is still there. A
	// command that has detached it has the keeper look at once, with lookSignal.
	lookEvery  = 200 * time.Millisecond
	lookSignal = unix.SIGUSR1
	// retryEvery is how often a keeper tries to detach a device that is not mounted
	// any more and still in use: it was unmounted lazily, or is mounted where the
	// keeper does not see it.
	retryEvery = 2 * time.Second
	// detachLimit is how long a keeper waits for its device to be flushed.
	detachLimit = 5 * time.Minute
)

// KeepOptions say what a keeper makes and keeps.
type KeepOptions struct {
	Path     string // of the store, absolute
	Identity Identity
	Choice
	ReadOnly       bool
	Timeout        time.Duration // how long requests wait for a server
	UntilUnmounted bool          // detach when the last mount has gone
	Adopt          string        // the device that a keeper left which was killed; empty: make one
}

// Choice says which device is wanted. Its zero value is the best that there is.
type Choice struct {
	Kind        Kind   // empty: network block device, or else a loop device
	Device      string // the network block device, /dev/nbdN; empty: one that is free
	Connections int    // to the server, for a network block device; 0: one
}

// device is a block device that a keeper has made. Its methods are for one goroutine.
type device interface {
	path() string
	kind() Kind
	// there says whether the kernel still has it.
	there() bool
	// detach flushes it and ends it. It is refused (cliutil.ErrInUse) while something
	// uses it.
	detach(ctx context.Context) error
	// link tells how the way to the server is, and if it is not connected, why.
	link() (Link, string)
	// close gives back what this process has for it, when it is not there any more.
	close() error
}

// keeper is the process of a device.
type keeper struct {
	host   *Host
	opt    KeepOptions
	log    *slog.Logger
	dev    device
	record Record
	folder string
	// leash ends when the command that wants the device mounted has ended; nil without
	// UntilUnmounted. Until then the device stays without a mount.
	leash <-chan struct{}
}

// Keep makes a device and keeps it until it is gone. What went well or wrong is told
// to ready, once (see started). leash, when the options say UntilUnmounted, is a file
// that ends when the command has mounted the device or given that up.
//
// SIGTERM detaches the device, if it is not in use.
func (h *Host) Keep(ctx context.Context, o KeepOptions, ready io.WriteCloser, leash io.Reader) error {
	k := &keeper{host: h, opt: o, log: h.log(), folder: h.folder(o.Identity)}
	// The device outlives what ends this process's work otherwise.
	ctx = context.WithoutCancel(ctx)
	term, look := make(chan os.Signal, 1), make(chan os.Signal, 1)
	signal.Notify(term, unix.SIGTERM, unix.SIGINT)
	signal.Notify(look, lookSignal)
	signal.Ignore(unix.SIGHUP, unix.SIGPIPE)
	release, err := k.begin(ctx)
	if tellErr := tell(ready, started{Device: k.record.Device}, err); err == nil && tellErr != nil {
		k.log.Warn("nobody waits for the device", "err", tellErr)
	}
	if err != nil {
		return err
	}
	defer release()
	if o.UntilUnmounted {
		k.leash = endOf(leash)
	}
	k.log.Info("attached", "device", k.record.Device, "volume", o.Identity.Export(), "store", o.Path)
	err = k.watch(ctx, term, look)
	return errors.Join(err, k.end())
}

// begin takes the identity's lock, makes the device and the record.
func (k *keeper) begin(ctx context.Context) (release func(), err error) {
	lock, err := k.host.lockKeeper(k.opt.Identity)
	if errors.Is(err, errKept) {
		return nil, cliutil.Errorf(cliutil.ErrInUse, "%s is being attached or detached by another process", k.opt.Identity)
	}
	if err != nil {
		return nil, err
	}
	if err := ioflusher.Become(); err != nil {
		k.log.Warn("not an IO flusher: when memory is short, a file system on the device may hang", "err", err)
	}
	dev, err := k.host.open(ctx, k.opt)
	if err != nil {
		return nil, errors.Join(err, k.host.removeFolder(k.opt.Identity), lock.Close())
	}
	k.dev = dev
	now := time.Now().UTC()
	k.record = Record{
		Identity: k.opt.Identity, Path: k.opt.Path, Device: dev.path(), Kind: dev.kind(), ReadOnly: k.opt.ReadOnly,
		Connections: max(k.opt.Connections, 1), Timeout: k.opt.Timeout, UntilUnmounted: k.opt.UntilUnmounted,
		Since: now, Keeper: os.Getpid(), Link: Connected, LinkSince: now,
	}
	k.save()
	return func() { lock.Close() }, nil
}

// save writes the record. Without it the device works as well.
func (k *keeper) save() {
	if err := writeRecord(k.folder, &k.record); err != nil {
		k.log.Error("the device's state is not recorded", "err", err)
	}
}

// watch returns when the device is gone.
func (k *keeper) watch(ctx context.Context, term, look <-chan os.Signal) error {
	mounts := newMountState(k.log, k.opt.UntilUnmounted)
	defer mounts.close()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	retry := time.NewTicker(retryEvery)
	defer retry.Stop()
	for k.dev.there() {
		k.noteLink()
		select {
		case <-tick.C:
		case <-look:
		case <-term:
			k.tryDetach(ctx, "told to end")
		case <-k.leash:
			k.leash = nil
			k.detachUnmounted(ctx)
		case <-mounts.changed():
			k.detachUnmounted(ctx)
		case <-retry.C:
			k.detachUnmounted(ctx)
		}
	}
	return nil
}

// noteLink notes how the way to the server is, if that is another than before.
func (k *keeper) noteLink() {
	link, reason := k.dev.link()
	if link == k.record.Link {
		return
	}
	if link == Connected {
		k.log.Info("connected to the server again")
	} else {
		k.log.Warn("the server is gone", "requests", map[Link]string{Waiting: "wait", Failed: "fail"}[link], "err", reason)
	}
	k.record.Link, k.record.LinkSince, k.record.Reason = link, time.Now().UTC(), reason
	k.save()
}

// detachUnmounted detaches a device that was to be detached with its last mount, if
// it is not mounted.
func (k *keeper) detachUnmounted(ctx context.Context) {
	if !k.opt.UntilUnmounted || k.leash != nil || k.record.Link != Connected {
		return
	}
	if dirs, err := mountedDirs(k.record.Device); err != nil || len(dirs) > 0 {
		return
	}
	k.tryDetach(ctx, "unmounted")
}

func (k *keeper) tryDetach(ctx context.Context, why string) {
	ctx, cancel := context.WithTimeout(ctx, detachLimit)
	defer cancel()
	err := k.dev.detach(ctx)
	switch {
	case err == nil:
		k.log.Info("detached", "device", k.record.Device, "why", why)
	case errors.Is(err, cliutil.ErrInUse):
		k.log.Info("not detached", "device", k.record.Device, "why", why, "err", err)
	default:
		k.log.Error("not detached", "device", k.record.Device, "why", why, "err", err)
	}
}

// end gives everything back. The lock is still ours.
func (k *keeper) end() error {
	k.log.Info("the device is gone", "device", k.record.Device)
	return errors.Join(k.dev.close(), k.host.removeFolder(k.opt.Identity))
}

// mountState tells when mounts change, for a keeper that wants to know.
type mountState struct{ watch *mountWatch }

// newMountState begins to watch. Where that fails, the keeper looks now and then.
func newMountState(log *slog.Logger, wanted bool) *mountState {
	if !wanted {
		return &mountState{}
	}
	w, err := watchMounts()
	if err != nil {
		log.Warn("mounts cannot be watched", "err", err)
	}
	return &mountState{w}
}

func (m *mountState) changed() <-chan struct{} {
	if m.watch == nil {
		return nil
	}
	return m.watch.C
}

func (m *mountState) close() {
	if m.watch != nil {
		m.watch.close()
	}
}

// endOf tells when a reader has come to its end.
func endOf(r io.Reader) <-chan struct{} {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = io.Copy(io.Discard, r)
	}()
	return ended
}

// started is what a keeper tells whoever started it: the device, or what went wrong.
type started struct {
	Device  string `json:"device,omitempty"`
	Code    int    `json:"code,omitempty"` // exit code of docs/cli.md
	Message string `json:"message,omitempty"`
	Hint    string `json:"hint,omitempty"`
}

// tell writes one line and closes w.
func tell(w io.WriteCloser, s started, err error) error {
	if err != nil {
		s = started{Code: cliutil.ExitCode(err), Message: err.Error(), Hint: cliutil.HintOf(err)}
	}
	return errors.Join(json.NewEncoder(w).Encode(s), w.Close())
}

// err is what went wrong, again.
func (s started) err() error {
	if s.Message == "" {
		return nil
	}
	err := errors.New(s.Message)
	for _, sentinel := range []error{cliutil.ErrUsage, cliutil.ErrNotFound, cliutil.ErrNoSecret, cliutil.ErrInUse, cliutil.ErrDamaged} {
		if cliutil.ExitCode(sentinel) == s.Code {
			err = cliutil.Errorf(sentinel, "%s", s.Message)
		}
	}
	return cliutil.WithHint(err, "%s", s.Hint)
}

// hear reads what a keeper tells.
func hear(r io.Reader) (started, error) {
	var s started
	if err := json.NewDecoder(r).Decode(&s); err != nil {
		return s, fmt.Errorf("the device's keeper ended before it had one: %w", err)
	}
	return s, s.err()
}
