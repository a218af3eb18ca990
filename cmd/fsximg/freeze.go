package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"

	"github.com/fsximg/fsx/internal/cliutil"
	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"
)

// freezeLimit is how long a file system may stay frozen: whatever becomes of us,
// it is thawed then.
const freezeLimit = 30 * time.Second

// freezeMargin is how long before that a snapshot is given up.
const freezeMargin = 5 * time.Second

// The ioctls of linux/fs.h.
const (
	fiFreeze = 0xc0045877
	fiThaw   = 0xc0045878
)

// thawName is the command of the process that thaws if we cannot.
const thawName = "thaw-after"

// whileFrozen calls fn while the file system at mountpoint is frozen: everything
// that was written to it has reached its device, and nothing more does. It is
// thawed when fn returns, when the context ends, and by a process of its own
// when this one dies. An empty mountpoint freezes nothing.
func whileFrozen(ctx context.Context, mountpoint, store string, fn func(context.Context) error) (err error) {
	if mountpoint == "" {
		return fn(ctx)
	}
	dir, err := os.Open(mountpoint)
	if err != nil {
		return fmt.Errorf("--freeze: %w", err)
	}
	defer dir.Close()
	if err := notBelow(dir, store); err != nil {
		return err
	}
	release, err := startThawer(dir)
	if err != nil {
		return fmt.Errorf("--freeze: %w", err)
	}
	defer release() // after the thaw
	if err := freeze(dir, mountpoint); err != nil {
		return err
	}
	defer func() {
		// EINVAL: it was thawed already.
		if thawErr := unix.IoctlSetInt(int(dir.Fd()), fiThaw, 0); thawErr != nil && !errors.Is(thawErr, unix.EINVAL) {
			err = errors.Join(err, fmt.Errorf("thaw %s: %w", mountpoint, thawErr))
		} else if thawErr != nil && err == nil {
			err = fmt.Errorf("%s was thawed before the snapshot was made; it may not be whole in it", mountpoint)
		}
	}()
	limited, cancel := context.WithTimeout(ctx, freezeLimit-freezeMargin)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- fn(limited) }()
	select {
	case err = <-done:
		return err
	case <-limited.Done():
	}
	// What is under way may wait for the file system: thaw it first.
	thawErr := unix.IoctlSetInt(int(dir.Fd()), fiThaw, 0)
	err = <-done
	if ctx.Err() == nil && err != nil {
		return fmt.Errorf("%s was frozen for %v, and the snapshot was not made: %w", mountpoint, freezeLimit-freezeMargin, err)
	}
	if err == nil {
		err = thawErr
	}
	return err
}

func freeze(dir *os.File, mountpoint string) error {
	err := unix.IoctlSetInt(int(dir.Fd()), fiFreeze, 0)
	switch {
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOTTY):
		return cliutil.UsageErrorf("--freeze %s: this kind of file system cannot be frozen", mountpoint)
	case errors.Is(err, unix.EBUSY):
		return cliutil.Errorf(cliutil.ErrInUse, "--freeze %s: it is frozen already", mountpoint)
	case errors.Is(err, unix.EPERM):
		return cliutil.WithHint(fmt.Errorf("--freeze %s: %w", mountpoint, err), "freezing a file system takes root")
	case err != nil:
		return fmt.Errorf("--freeze %s: %w", mountpoint, err)
	}
	return nil
}

// notBelow refuses to freeze the file system that the store itself is on: the
// snapshot could not be written.
func notBelow(dir *os.File, store string) error {
	var frozen, ours unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &frozen); err != nil {
		return fmt.Errorf("--freeze: %w", err)
	}
	if err := unix.Stat(store, &ours); err != nil {
		return err
	}
	if frozen.Dev == ours.Dev {
		return cliutil.UsageErrorf("--freeze %s: the store is on that file system, and could not be written", dir.Name())
	}
	return nil
}

// startThawer starts a process that thaws dir when we are gone, or after
// freezeLimit, whatever comes first. It is ready when startThawer returns. release
// ends it, and is called when we have thawed dir, or have not frozen it: it may be
// frozen by somebody else then, who is left alone.
func startThawer(dir *os.File) (release func(), err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, thawName)
	cmd.Args[0] = os.Args[0]
	cmd.ExtraFiles = []*os.File{dir} // descriptor 3
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	alive, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	ready, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	release = func() {
		_, _ = io.WriteString(alive, "done\n")
		alive.Close()
		_ = cmd.Wait()
	}
	if _, err := bufio.NewReader(ready).ReadString('\n'); err != nil {
		release()
		return nil, fmt.Errorf("start the process that thaws: %w", err)
	}
	return release, nil
}

// thawCommand is what startThawer runs.
func thawCommand() *cli.Command {
	return &cli.Command{
		Name: thawName, Hidden: true, Usage: "thaw the file system of descriptor 3 when stdin ends without a word",
		Action: cliutil.Action(0, 0, cliutil.NoObject, func(_ context.Context, env *cliutil.Env, _ *cli.Context) error {
			signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
			fmt.Fprintln(env.Stdout, "ready")
			told := make(chan int, 1)
			go func() {
				n, _ := env.Stdin.Read(make([]byte, 1))
				told <- n
			}()
			select {
			case n := <-told:
				if n > 0 {
					return nil // it is thawed
				}
			case <-time.After(freezeLimit):
			}
			err := unix.IoctlSetInt(3, fiThaw, 0)
			if errors.Is(err, unix.EINVAL) {
				return nil // it is not frozen
			}
			return err
		}),
	}
}
