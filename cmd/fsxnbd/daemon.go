package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/fsximg/fsx/internal/cliutil"
	"golang.org/x/sys/unix"
)

// daemonVariable marks the process that --daemon leaves in the background. It
// holds no secret.
const daemonVariable = "FSXNBD_DAEMON"

func isDaemon() bool { return os.Getenv(daemonVariable) != "" }

// startDaemon runs this program again, which stays in the foreground, and may
// ask for a passphrase, until it is ready; then it detaches and we end. What it
// prints on stdout is the URI; the end of that is the sign that it is ready, if
// it still lives.
func startDaemon(env *cliutil.Env) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("--daemon: %w", err)
	}
	cmd := exec.Command(self, os.Args[1:]...)
	cmd.Env = append(os.Environ(), daemonVariable+"=1")
	cmd.Stdin, cmd.Stderr = os.Stdin, os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return fmt.Errorf("--daemon: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("--daemon: %w", err)
	}
	words, err := io.ReadAll(out)
	if err != nil {
		return fmt.Errorf("--daemon: %w", err)
	}
	if len(words) == 0 { // it has failed, and has said why
		err := cmd.Wait()
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			return cliutil.ExitStatus(exit.ExitCode())
		}
		return fmt.Errorf("--daemon: server ended before it was ready: %v", err)
	}
	_, err = env.Stdout.Write(words)
	return err
}

// detach leaves the terminal and closes stdin, stdout and stderr; what is said
// from now on goes to the log in the run directory, or nowhere without one.
func detach(uuid string) error {
	if _, err := unix.Setsid(); err != nil {
		return fmt.Errorf("--daemon: new session: %w", err)
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("--daemon: %w", err)
	}
	defer null.Close()
	if err := openLog(uuid); err != nil {
		return fmt.Errorf("--daemon: %w", err)
	}
	for fd := range 2 { // stdout last: its end says that all went well
		if err := unix.Dup3(int(null.Fd()), fd, 0); err != nil {
			return fmt.Errorf("--daemon: %w", err)
		}
	}
	return nil
}

// openLog makes stderr the log in the run directory, which somebody may have moved
// away since it was opened last. Without a run directory nothing is logged.
func openLog(uuid string) error {
	file := os.DevNull
	if dir, err := makeRunDirectory(uuid); err == nil {
		file = filepath.Join(dir, logName)
	}
	log, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	return unix.Dup3(int(log.Fd()), int(os.Stderr.Fd()), 0)
}
