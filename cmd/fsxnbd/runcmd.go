package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/fsximg/fsx/internal/cliutil"
)

// commandGrace is how long a command of --run has to end after SIGTERM.
const commandGrace = 10 * time.Second

// runCommand runs CMD with sh while the server runs. As with nbdkit, $uri is
// the server's URI, $nbd the same in QEMU's old form, $unixsocket the socket's
// path and $port the TCP port. CMD's exit code becomes ours.
func runCommand(ctx context.Context, l net.Listener, uri, export, script string) error {
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", script)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = commandGrace
	cmd.Env = append(os.Environ(), "uri="+uri, "exportname="+export)
	if host, port, err := net.SplitHostPort(l.Addr().String()); err == nil && l.Addr().Network() == "tcp" {
		cmd.Env = append(cmd.Env, "nbd=nbd:"+net.JoinHostPort(host, port), "port="+port, "unixsocket=")
	} else if socket, err := filepath.Abs(l.Addr().String()); err == nil {
		cmd.Env = append(cmd.Env, "nbd=nbd:unix:"+socket, "unixsocket="+socket, "port=")
	}
	err := startOrdinary(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	var exit *exec.ExitError
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.As(err, &exit) && exit.ExitCode() >= 0:
		return cliutil.ExitStatus(exit.ExitCode())
	}
	return fmt.Errorf("--run: %w", err)
}
