package main

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/fsximg/fsx/internal/cliutil"
	"golang.org/x/sys/unix"
)

// maxSocketPath is sockaddr_un's sun_path without its terminating zero.
const maxSocketPath = 107

// runDirectory is where a store's server keeps its socket and log; empty if
// this user has no such place.
func runDirectory(uuid string) string {
	base := cliutil.RunRoot()
	if base == "" {
		return ""
	}
	return filepath.Join(base, uuid)
}

// makeRunDirectory makes it, for this user alone.
func makeRunDirectory(uuid string) (string, error) {
	dir := runDirectory(uuid)
	if dir == "" {
		return "", cliutil.WithHint(cliutil.UsageErrorf("there is no run directory for the socket: XDG_RUNTIME_DIR is not set"),
			"name a socket with --socket")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("make run directory: %w", err)
	}
	return dir, nil
}

// socketName is the default socket, in the run directory.
const socketName = "nbd.sock"

// logName is the log of a server in the background, in the run directory.
const logName = "log"

// tidyRunDirectory removes a store's run directory, and a log in which nothing
// was said; what else is there stays.
func tidyRunDirectory(uuid string) {
	dir := runDirectory(uuid)
	if dir == "" {
		return
	}
	log := filepath.Join(dir, logName)
	if st, err := os.Stat(log); err == nil && st.Size() == 0 {
		os.Remove(log)
	}
	os.Remove(dir)
}

// listenUnix listens on the socket of an option: one that only this user can connect to. A socket
// that a dead server left is removed; one that somebody listens on is ErrInUse.
func listenUnix(option, path string) (net.Listener, error) {
	if len(path) > maxSocketPath {
		return nil, cliutil.UsageErrorf("%s: %s is longer than the %d bytes of a socket's path", option, path, maxSocketPath)
	}
	if err := removeStale(path); err != nil {
		return nil, fmt.Errorf("%s: %w", option, err)
	}
	old := unix.Umask(0o177)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	unix.Umask(old)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%s %s: there is no folder %s", option, path, filepath.Dir(path))
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", option, err)
	}
	l.SetUnlinkOnClose(false)
	made, err := os.Lstat(path)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen: %w", err), l.Close())
	}
	return &socketListener{UnixListener: l, path: path, made: made}, nil
}

// socketListener removes its socket when it is closed, unless another server has
// put its own there meanwhile.
type socketListener struct {
	*net.UnixListener
	path string
	made os.FileInfo
}

// Close stops listening. It may be called again.
func (l *socketListener) Close() error {
	err := l.UnixListener.Close()
	if err != nil {
		return err
	}
	if now, statErr := os.Lstat(l.path); statErr == nil && os.SameFile(now, l.made) {
		return os.Remove(l.path)
	}
	return nil
}

func removeStale(path string) error {
	st, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if st.Mode()&os.ModeSocket == 0 {
		return fmt.Errorf("%s exists and is not a socket", path)
	}
	conn, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		conn.Close()
		return cliutil.Errorf(cliutil.ErrInUse, "another server listens on %s", path)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("look at %s: %w", path, err)
	}
	return os.Remove(path)
}

// tcpListener remembers how its host was called, which is what a certificate is for.
type tcpListener struct {
	*net.TCPListener
	host string
}

// listenTCP listens on HOST:PORT. Without TLS it must be this machine's loopback:
// what is served is not encrypted.
func listenTCP(address string, secure *tlsServing) (net.Listener, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, cliutil.UsageErrorf("--listen %s: use HOST:PORT", address)
	}
	a, err := net.ResolveTCPAddr("tcp", address)
	if err != nil {
		return nil, cliutil.UsageErrorf("--listen %s: %v", address, err)
	}
	if secure == nil && (host == "" || !a.IP.IsLoopback()) {
		return nil, cliutil.WithHint(cliutil.UsageErrorf("--listen %s: only loopback addresses without TLS: what is served is not encrypted", address),
			"use --tls-cert, --tls-key and --tls-ca; or --listen 127.0.0.1:10809, or a unix socket, and forward it with ssh")
	}
	l, err := net.ListenTCP("tcp", a)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, cliutil.Errorf(cliutil.ErrInUse, "another server listens on %s", address)
	}
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	return &tcpListener{l, host}, nil
}

// hostPort is where clients of TLS find l: a certificate has the name that was
// asked for, or this machine's, and seldom an address.
func hostPort(l net.Listener) string {
	t, ok := l.(*tcpListener)
	if !ok {
		return l.Addr().String()
	}
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		return l.Addr().String()
	}
	if ip := net.ParseIP(t.host); t.host != "" && (ip == nil || !ip.IsUnspecified()) {
		return net.JoinHostPort(t.host, port)
	}
	if name, err := os.Hostname(); err == nil {
		return net.JoinHostPort(name, port)
	}
	return l.Addr().String()
}

// uri is the NBD URI of an export behind a listener, secure if clients must use TLS.
func uri(l net.Listener, export string, secure bool) string {
	path := (&url.URL{Path: "/" + export}).EscapedPath()
	path = strings.ReplaceAll(path, ":", "%3A")
	tcp, socketed := "nbd://"+l.Addr().String(), "nbd+unix://"
	if secure {
		tcp, socketed = "nbds://"+hostPort(l), "nbds+unix://"
	}
	if l.Addr().Network() != "unix" {
		return tcp + path
	}
	socket := l.Addr().String()
	if abs, err := filepath.Abs(socket); err == nil {
		socket = abs
	}
	// Only what would end the parameter: other programs do not all decode.
	socket = strings.NewReplacer("%", "%25", "&", "%26", "#", "%23", "+", "%2B", " ", "%20").Replace(socket)
	return socketed + path + "?socket=" + socket
}
