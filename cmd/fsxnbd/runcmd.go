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
	"github.com/fsximg/fsx/internal/ioflusher"
)

// commandGrace is how long a command of --run has to end after SIGTERM.
const commandGrace = 10 * time.Second

// runCommand runs CMD with sh while the server runs. As with nbdkit, $uri is
// the server's URI, $nbd the same in QEMU's old form, $unixsocket the socket's
// path and $port the TCP port; what there is not is empty. CMD's exit code becomes
// ours.
func runCommand(ctx context.Context, listeners []net.Listener, uri, export, script string) error {
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", script)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = commandGrace
	cmd.Env = append(os.Environ(), places(listeners, export)...)
	cmd.Env = append(cmd.Env, "uri="+uri, "exportname="+export)
	err := ioflusher.Start(cmd)
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

// places are $nbd, $unixsocket and $port: $nbd is the export at the first listener,
// the others are the first of their kind.
func places(listeners []net.Listener, export string) []string {
	var nbd, socket, port string
	for _, l := range listeners {
		at := ""
		if _, p, err := net.SplitHostPort(l.Addr().String()); err == nil && l.Addr().Network() == "tcp" {
			at = "nbd:" + l.Addr().String()
			if port == "" {
				port = p
			}
		} else if path, err := filepath.Abs(l.Addr().String()); err == nil {
			at = "nbd:unix:" + path
			if socket == "" {
				socket = path
			}
		}
		if nbd == "" {
			nbd = at
		}
	}
	if nbd != "" && export != "" {
		nbd += ":exportname=" + export
	}
	return []string{"nbd=" + nbd, "unixsocket=" + socket, "port=" + port}
}
