package interop_test

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// server is a running `fsxnbd serve` of one store.
type server struct {
	t      *testing.T
	cmd    *exec.Cmd
	socket string
	uri    string
	ended  chan struct{} // closed when the process is gone
	log    *logBuffer

	mu       sync.Mutex
	expected bool // the test ended it
}

// logBuffer keeps what a server prints; safe for concurrent use.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// serve starts a server with the key file and waits for its URI.
func (s *store) serve(options ...string) *server {
	s.t.Helper()
	return s.serveWith(append([]string{"--key-file", s.key}, options...)...)
}

// serveWith starts a server and waits for its URI; the options name the key.
func (s *store) serveWith(options ...string) *server {
	s.t.Helper()
	srv, first := s.launch(options...)
	select {
	case srv.uri = <-first:
	case <-time.After(2 * time.Minute):
	}
	if !strings.HasPrefix(srv.uri, "nbd") {
		s.t.Fatalf("fsxnbd printed %q instead of its URI\n%s", srv.uri, srv.log)
	}
	return srv
}

// launch starts a server without waiting; its first line of output comes over
// the channel.
func (s *store) launch(options ...string) (*server, <-chan string) {
	s.t.Helper()
	// a socket's path is short: at most 107 bytes
	dir, err := os.MkdirTemp("", "fsx")
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { os.RemoveAll(dir) })
	srv := &server{t: s.t, socket: filepath.Join(dir, "s"), ended: make(chan struct{}), log: &logBuffer{}}
	args := append([]string{"serve", "--socket", srv.socket}, options...)
	srv.cmd = exec.Command(filepath.Join(programs, "fsxnbd"), append(args, s.path)...)
	srv.cmd.Stderr = srv.log
	stdout, err := srv.cmd.StdoutPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := srv.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(srv.cleanup)
	first := make(chan string, 1)
	go srv.watch(bufio.NewReader(stdout), first)
	return srv, first
}

// watch passes on the first line and waits for the end of the process.
func (srv *server) watch(stdout *bufio.Reader, first chan<- string) {
	line, _ := stdout.ReadString('\n')
	first <- strings.TrimSpace(line)
	stdout.WriteTo(srv.log)
	srv.cmd.Wait()
	close(srv.ended)
}

func (srv *server) pid() int { return srv.cmd.Process.Pid }

// stop ends the server with SIGTERM and requires a clean exit.
func (srv *server) stop() {
	srv.t.Helper()
	srv.end(syscall.SIGTERM, 2*time.Minute)
	if code := srv.cmd.ProcessState.ExitCode(); code != 0 {
		srv.t.Fatalf("fsxnbd: exit %d after SIGTERM\n%s", code, srv.log)
	}
}

// kill ends the server with SIGKILL.
func (srv *server) kill() {
	srv.t.Helper()
	srv.end(syscall.SIGKILL, 30*time.Second)
}

func (srv *server) end(sig syscall.Signal, limit time.Duration) {
	srv.t.Helper()
	srv.mu.Lock()
	srv.expected = true
	srv.mu.Unlock()
	select {
	case <-srv.ended:
		srv.t.Fatalf("fsxnbd had ended by itself: %v\n%s", srv.cmd.ProcessState, srv.log)
	default:
	}
	srv.cmd.Process.Signal(sig)
	select {
	case <-srv.ended:
	case <-time.After(limit):
		srv.cmd.Process.Kill()
		srv.t.Fatalf("fsxnbd did not end %v after %v\n%s", limit, sig, srv.log)
	}
}

// cleanup kills a server that the test left, and fails a test whose server crashed.
func (srv *server) cleanup() {
	srv.mu.Lock()
	expected := srv.expected
	srv.mu.Unlock()
	select {
	case <-srv.ended:
		if !expected {
			srv.t.Errorf("fsxnbd ended by itself: %v\n%s", srv.cmd.ProcessState, srv.log)
		}
	default:
		srv.cmd.Process.Kill()
		<-srv.ended
	}
	if srv.t.Failed() {
		srv.t.Logf("log of fsxnbd:\n%s", tail(srv.log.String(), 4000))
	}
}

// status reads a figure of /proc/PID/status, such as RssAnon, in bytes.
func (srv *server) status(field string) (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", srv.pid()))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, field+":"); ok {
			n, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			return n * 1024, err
		}
	}
	return 0, fmt.Errorf("no %s in the status of process %d", field, srv.pid())
}

func tail(s string, n int) string {
	if len(s) > n {
		return "…" + s[len(s)-n:]
	}
	return s
}
