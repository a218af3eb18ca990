package attach

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"

	"github.com/fsximg/fsx/internal/cliutil"
	"golang.org/x/sys/unix"
)

// KeepName is the hidden command of fsximg that is a keeper.
const KeepName = "keep"

// ReadyDescriptor is where a keeper tells that it has its device.
const ReadyDescriptor = 3

// Arguments are the command line of a keeper, behind KeepName. No secret is in it, nor
// does a keeper ever have one.
func (o KeepOptions) Arguments() []string {
	args := []string{
		"--kind", string(o.Kind), "--device", o.Device, "--connections", strconv.Itoa(o.Connections),
		"--timeout", o.Timeout.String(), "--adopt", o.Adopt,
	}
	if o.ReadOnly {
		args = append(args, "--read-only")
	}
	if o.UntilUnmounted {
		args = append(args, "--until-unmounted")
	}
	return append(args, "--", o.Path, o.Identity.Store, o.Identity.Export())
}

// ParseKept is the identity that two of a keeper's arguments name.
func ParseKept(store, export string) (Identity, error) {
	id, ok := parseIdentity(store, export)
	if !ok {
		return id, cliutil.UsageErrorf("%s, %s: no volume of a store", store, export)
	}
	return id, nil
}

// startLimit is how long a keeper may take to make its device.
const startLimit = time.Minute

var errSlowStart = fmt.Errorf("the device's keeper had no device within %v, and was ended", startLimit)

// leash keeps a device that was attached for a mount, until there is that mount.
type leash struct{ file *os.File }

// release says that the device is mounted, or will not be.
func (l *leash) release() {
	if l != nil {
		l.file.Close()
	}
}

// spawn starts a keeper in a session of its own and waits until it has the device.
// The leash is nil without UntilUnmounted. The keeper goes on when the context ends,
// but then its device is not told.
func (h *Host) spawn(ctx context.Context, o KeepOptions) (device string, l *leash, err error) {
	log, err := h.openIn(o.Identity, logName, os.O_WRONLY|os.O_APPEND)
	if err != nil {
		return "", nil, err
	}
	defer log.Close()
	hearing, ready, err := os.Pipe()
	if err != nil {
		return "", nil, err
	}
	defer hearing.Close()
	defer ready.Close()
	stdin, held, err := os.Pipe()
	if err != nil {
		return "", nil, err
	}
	defer stdin.Close()
	cmd, err := h.keeperCommand(o)
	if err != nil {
		held.Close()
		return "", nil, err
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = stdin, log, log, []*os.File{ready}
	if err := cmd.Start(); err != nil {
		held.Close()
		return "", nil, fmt.Errorf("start the device's keeper: %w", err)
	}
	ready.Close()
	ctx, cancel := context.WithTimeoutCause(ctx, startLimit, errSlowStart)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { hearing.Close() })
	defer stop()
	s, err := hear(hearing)
	if err != nil || !o.UntilUnmounted {
		held.Close()
		held = nil
	}
	if err != nil {
		if ctx.Err() != nil {
			_ = cmd.Process.Kill() // a device that it has is not in use yet
			_ = cmd.Wait()
			err = context.Cause(ctx)
		}
		return "", nil, err
	}
	// From now on it is on its own.
	err = cmd.Process.Release()
	if held != nil {
		l = &leash{held}
	}
	return s.Device, l, err
}

// keeperCommand is this program again, as a keeper. It inherits nothing but what it is
// given: descriptors that lead to keys were for the server.
func (h *Host) keeperCommand(o KeepOptions) (*exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	if err := unix.CloseRange(3, ^uint(0)>>33, unix.CLOSE_RANGE_CLOEXEC); err != nil && !errors.Is(err, unix.ENOSYS) {
		return nil, fmt.Errorf("start the device's keeper: %w", err)
	}
	cmd := exec.Command(self, append([]string{KeepName}, o.Arguments()...)...)
	cmd.Args[0] = h.Program
	cmd.Dir = "/" // it keeps no file system from being unmounted
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return cmd, nil
}
