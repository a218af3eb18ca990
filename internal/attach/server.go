package attach

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/fsximg/fsx/internal/cliutil"
	"github.com/fsximg/fsx/internal/control"
	"github.com/fsximg/fsx/internal/volume"
	"golang.org/x/sys/unix"
)

const (
	// endLimit is how long a server may take to end, once it has begun to: it
	// finishes requests and writes what it has.
	endLimit = 60 * time.Second
	// serverProgram is the server's program.
	serverProgram = "fsxnbd"
)

// server is the server of a store.
type server struct {
	*control.Client
	ours bool // it was started here, by this command
}

// server finds the server of the store at path, or starts one.
func (h *Host) server(ctx context.Context, path string, start ServerOptions) (*server, error) {
	for deadline := time.Now().Add(endLimit); ; {
		client, err := control.Dial(ctx, path)
		if err == nil {
			return &server{Client: client}, nil
		}
		if !control.NoServer(err) {
			return nil, err
		}
		// One that is ending has no socket any more, and still has the store.
		holder, held := volume.HolderOf(path)
		if !held || holder.Program != serverProgram || time.Now().After(deadline) {
			break
		}
		if err := pause(ctx, lockPause); err != nil {
			return nil, err
		}
	}
	return h.startServer(ctx, path, start)
}

// hasEnded says whether the server is gone, or takes nobody any more.
func (s *server) hasEnded(ctx context.Context) bool {
	_, err := s.ServerStatus(ctx)
	return err != nil
}

// ServerOptions are how a server is started. Secrets are not among them: the server
// reads them itself.
type ServerOptions struct {
	// Arguments are the options of keys and of talk, as they were given.
	Arguments []string
	// Stdin is what '-' in them, and the terminal, stand for.
	Stdin *os.File
	// Stderr takes what the server says until it is ready.
	Stderr io.Writer
}

// startServer starts fsxnbd in the background. It asks for a passphrase if it has to,
// and it says itself what goes wrong: the error is then its exit code.
func (h *Host) startServer(ctx context.Context, path string, o ServerOptions) (*server, error) {
	program, err := findProgram(serverProgram)
	if err != nil {
		return nil, err
	}
	id, err := volume.Identify(path)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(h.Run, 0o700); err != nil {
		return nil, fmt.Errorf("make run directory: %w", err)
	}
	args := []string{"serve", "--daemon", "--exit-with-last-client", "--pid-file", h.pidFile(id.String())}
	if unix.Access(path, unix.W_OK) != nil {
		args = append(args, "--read-only")
	}
	cmd := exec.CommandContext(ctx, program, append(append(args, o.Arguments...), "--", path)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	cmd.WaitDelay = endLimit
	cmd.Stdin, cmd.Stderr = o.Stdin, o.Stderr
	h.log().Info("starting the server", "program", program, "arguments", cmd.Args[1:])
	if _, err := cmd.Output(); err != nil { // its URI, which is asked for later
		var exit *exec.ExitError
		switch {
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case errors.As(err, &exit) && exit.ExitCode() > 0:
			return nil, cliutil.ExitStatus(exit.ExitCode())
		}
		return nil, fmt.Errorf("start %s: %w", serverProgram, err)
	}
	client, err := control.Dial(ctx, path)
	if control.NoServer(err) {
		err = cliutil.WithHint(errors.New("the server that was started does not answer"), "its log: %s", filepath.Join(h.Run, id.String(), "log"))
	}
	if err != nil {
		return nil, err
	}
	return &server{client, true}, nil
}

// sweepServer removes what a server left that was killed, if nobody has the store now.
// The caller has the store's lock, so that none is being started for a device.
func (h *Host) sweepServer(path string, id Identity) {
	if _, held := volume.HolderOf(path); held || !volume.IsStore(path) {
		return
	}
	// The kernel's list of locks names files of btrfs and overlayfs otherwise than
	// stat(2), and has none of another container: a server that answers is alive.
	ctx, cancel := context.WithTimeout(context.Background(), endLimit)
	defer cancel()
	client, err := control.Dial(ctx, path)
	if err == nil {
		client.Close()
	}
	if !control.NoServer(err) {
		return
	}
	run := filepath.Join(h.Run, id.Store)
	if log, err := os.Stat(filepath.Join(run, "log")); err == nil && log.Size() == 0 {
		_ = os.Remove(filepath.Join(run, "log"))
	}
	for _, file := range []string{h.pidFile(id.Store), filepath.Join(run, "nbd.sock"), filepath.Join(run, "store"), filepath.Join(path, control.SocketName)} {
		_ = os.Remove(file)
	}
	_ = os.Remove(run)
}

// pidFile is that of a server which is started here. It is beside the store's run
// directory, which a server removes while it still has the store.
func (h *Host) pidFile(uuid string) string { return filepath.Join(h.Run, uuid+".pid") }

// findProgram is a program of the folder that this one is in, or else of PATH.
func findProgram(name string) (string, error) {
	if self, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(self), name)
		if st, err := os.Stat(beside); err == nil && st.Mode().IsRegular() && st.Mode().Perm()&0o111 != 0 {
			return beside, nil
		}
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", cliutil.WithHint(fmt.Errorf("%s is neither beside this program nor in PATH", name), "install it in the same folder")
	}
	return path, nil
}

// abandon ends a server that was started for something that then failed. It may have
// found other clients meanwhile; those it keeps.
func (s *server) abandon(log *slog.Logger) {
	if !s.ours {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), endLimit)
	defer cancel()
	status, err := s.ServerStatus(ctx)
	if err != nil || len(status.Clients) > 0 {
		return
	}
	p, err := openProcess(status.PID)
	if err != nil {
		return
	}
	defer p.close()
	if err := p.signal(unix.SIGTERM); err != nil {
		return
	}
	if gone, _ := p.await(ctx, endLimit); !gone {
		log.Warn("the server that was started does not end", "pid", status.PID)
	}
}

// lastClient is a server that may end when a device is detached.
type lastClient struct {
	client  *control.Client
	process *process
	export  string // of the device
}

// lastClientOf looks at the server of a store, before a device is detached. It is nil
// for one that stays.
func lastClientOf(ctx context.Context, path string, id Identity) *lastClient {
	client, err := control.Dial(ctx, path)
	if err != nil {
		return nil
	}
	status, err := client.ServerStatus(ctx)
	if err == nil && status.EndsWithClients {
		if p, err := openProcess(status.PID); err == nil {
			return &lastClient{client, p, exportOf(status, id)}
		}
	}
	client.Close()
	return nil
}

// exportOf is what a server calls an identity's export: with several stores there is
// the store's name before it.
func exportOf(s control.ServerStatus, id Identity) string {
	if len(s.Stores) < 2 {
		return id.Export()
	}
	for _, st := range s.Stores {
		if st.UUID == id.Store {
			return cliutil.StoreBase(st.Path) + ":" + id.Export()
		}
	}
	return id.Export()
}

// await waits until the server has ended, or has other clients.
func (l *lastClient) await(ctx context.Context) error {
	defer l.client.Close()
	defer l.process.close()
	for deadline := time.Now().Add(endLimit); time.Now().Before(deadline); {
		if gone, err := l.process.await(ctx, 200*time.Millisecond); gone || err != nil {
			return err
		}
		status, err := l.client.ServerStatus(ctx)
		if err != nil {
			continue // it is ending
		}
		for _, c := range status.Clients {
			if c.Export != l.export || time.Until(deadline) < endLimit-5*time.Second {
				return nil
			}
		}
	}
	return fmt.Errorf("the server (pid %d) does not end", l.process.pid)
}

// process is another process, which cannot be mistaken for a later one with its
// number: pidfd_open(2).
type process struct {
	pid int
	fd  int
}

func openProcess(pid int) (*process, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, err
	}
	return &process{pid, fd}, nil
}

func (p *process) signal(s unix.Signal) error { return unix.PidfdSendSignal(p.fd, s, nil, 0) }

// await waits until the process has ended; false: the time is over.
func (p *process) await(ctx context.Context, limit time.Duration) (bool, error) {
	return await(ctx, limit, func() bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}}, 0)
		return err == nil && n > 0
	})
}

func (p *process) close() { unix.Close(p.fd) }
