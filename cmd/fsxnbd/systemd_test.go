package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/fsximg/fsx/internal/volume"
	"github.com/fsximg/fsx/pkg/crypt"
)

// manager is systemd, as far as notifications go.
type manager struct {
	t    *testing.T
	conn *net.UnixConn
	path string
}

func newManager(t *testing.T) *manager {
	t.Helper()
	m := &manager{t: t, path: filepath.Join(t.TempDir(), "notify")}
	var err error
	if m.conn, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: m.path, Net: "unixgram"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.conn.Close() })
	return m
}

// hear returns the next message in time, or nothing.
func (m *manager) hear(within time.Duration) string {
	b := make([]byte, 4096)
	_ = m.conn.SetReadDeadline(time.Now().Add(within))
	n, err := m.conn.Read(b)
	if err != nil {
		return ""
	}
	return string(b[:n])
}

// expect skips messages until one that begins with a text, and returns it.
func (m *manager) expect(prefix string) string {
	m.t.Helper()
	var others []string
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); {
		msg := m.hear(time.Until(end))
		if strings.HasPrefix(msg, prefix) {
			return msg
		}
		others = append(others, msg)
	}
	m.t.Fatalf("systemd is not told %s, but %q", prefix, others)
	return ""
}

// newStore makes a store and its key file.
func newStore(t *testing.T) (path, key string) {
	t.Helper()
	dir := t.TempDir()
	path, key = filepath.Join(dir, "a.fsx"), filepath.Join(dir, "key")
	raw := bytes.Repeat([]byte{0xff, 1}, 16)
	secret, err := crypt.NewKeyFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(key, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	st, err := volume.Create(path, volume.CreateOptions{Size: 1 << 20, Secrets: []crypt.Secret{secret}})
	if err != nil {
		t.Fatal(err)
	}
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
	return path, key
}

// service is the program as systemd would start it, with its sockets.
func service(t *testing.T, sockets []net.Listener, names string, args ...string) (*exec.Cmd, *bytes.Buffer) {
	t.Helper()
	cmd := exec.Command("sh", append([]string{"-c", `LISTEN_PID=$$ exec fsxnbd "$@"`, "sh"}, args...)...)
	for _, l := range sockets {
		f, err := l.(interface{ File() (*os.File, error) }).File()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	cmd.Env = append(os.Environ(), "LISTEN_FDS="+string(rune('0'+len(sockets))), "LISTEN_FDNAMES="+names)
	return cmd, &stderr
}

func TestSystemdService(t *testing.T) {
	path, key := newStore(t)
	m := newManager(t)
	dir := t.TempDir()
	var sockets []net.Listener
	for _, name := range []string{"nbd", "metrics"} {
		l, err := net.Listen("unix", filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		sockets = append(sockets, l)
	}
	cmd, stderr := service(t, sockets, "nbd:metrics", "-v", "--log-format", "json", "serve", "--key-file", key, path)
	cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+m.path, "WATCHDOG_USEC=300000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	if msg := m.expect("READY=1"); !strings.Contains(msg, "STATUS=serving nbd+unix:///?socket="+dir+"/nbd") {
		t.Errorf("ready: %q", msg)
	}
	for range 3 {
		m.expect("WATCHDOG=1")
	}
	if got := greeting(t, filepath.Join(dir, "nbd")); got != "NBDMAGIC" {
		t.Errorf("a client is greeted with %q", got)
	}
	web := &http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
		return net.Dial("unix", filepath.Join(dir, "metrics"))
	}}}
	res, err := web.Get("http://fsx/healthz")
	if err != nil || res.StatusCode != http.StatusOK {
		t.Errorf("metrics socket: %v, %v", res, err)
	}
	web.CloseIdleConnections()

	_ = cmd.Process.Signal(syscall.SIGHUP)
	if msg := m.expect("RELOADING=1"); !strings.Contains(msg, "MONOTONIC_USEC=") {
		t.Errorf("reload: %q", msg)
	}
	m.expect("READY=1")
	_ = cmd.Process.Signal(syscall.SIGTERM)
	m.expect("STOPPING=1")
	if err := cmd.Wait(); err != nil {
		t.Errorf("the service ended with %v\n%s", err, stderr)
	}
	if _, err := os.Stat(filepath.Join(dir, "nbd")); err != nil {
		t.Errorf("systemd's socket: %v", err)
	}
	for line := range strings.Lines(stderr.String()) {
		if !json.Valid([]byte(line)) || strings.Contains(line, `"level":"ERROR"`) {
			t.Errorf("log: %s", line)
		}
	}
}

func greeting(t *testing.T, socket string) string {
	t.Helper()
	c, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	b := make([]byte, 8)
	if _, err := io.ReadFull(c, b); err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestSocketsThatAreRefused(t *testing.T) {
	path, key := newStore(t)
	open, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	loop, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer loop.Close()
	for _, tt := range []struct {
		sockets []net.Listener
		names   string
		args    []string
		says    string
	}{
		{[]net.Listener{open}, "nbd", nil, "no loopback address"},
		{[]net.Listener{open}, "metrics", nil, "no loopback address"},
		{[]net.Listener{loop, loop}, "metrics:metrics", nil, "two sockets"},
		{[]net.Listener{loop, loop}, "nbd:metrics", []string{"--metrics", "127.0.0.1:0"}, "exclude each other"},
		{[]net.Listener{loop}, "nbd", []string{"--daemon"}, "Type=notify"},
	} {
		args := append([]string{"serve", "--key-file", key, path}, tt.args...)
		cmd, stderr := service(t, tt.sockets, tt.names, args...)
		err := cmd.Run()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 2 || !strings.Contains(stderr.String(), tt.says) {
			t.Errorf("%s %v: %v\n%s", tt.names, tt.args, err, stderr)
		}
	}
}

// TestWatchdogOfAServerThatHangs looks for pats while nothing returns, and once the
// server has begun to end.
func TestWatchdogOfAServerThatHangs(t *testing.T) {
	m := newManager(t)
	t.Setenv("NOTIFY_SOCKET", m.path)
	t.Setenv("WATCHDOG_USEC", "60000")
	var log bytes.Buffer
	hold := make(chan struct{})
	var closing atomic.Bool
	w := startWatchdog(slog.New(slog.NewTextHandler(&log, nil)), func() {
		<-hold
		if closing.Load() {
			t.Error("the stores are looked at while they are closed")
		}
	})
	if msg := m.hear(200 * time.Millisecond); msg != "" {
		t.Errorf("a server that hangs says %q", msg)
	}
	close(hold)
	m.expect("WATCHDOG=1")
	w.stop()
	m.expect("STOPPING=1")
	time.Sleep(50 * time.Millisecond) // a look may have begun before
	closing.Store(true)
	for range 2 {
		m.expect("WATCHDOG=1")
	}
	w.close()
	if !strings.Contains(log.String(), "hangs") {
		t.Errorf("log: %s", log.String())
	}
}
