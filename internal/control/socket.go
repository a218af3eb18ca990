package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxSocketPath is sockaddr_un's sun_path without its terminating zero.
const maxSocketPath = 107

// Peer is the process at the other end of a connection, as the kernel knows it.
type Peer struct {
	PID int32
	UID uint32
}

func peerOf(c *net.UnixConn) (Peer, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return Peer{}, err
	}
	var cred *unix.Ucred
	ctlErr := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err := errors.Join(ctlErr, err); err != nil {
		return Peer{}, err
	}
	return Peer{cred.Pid, cred.Uid}, nil
}

// socketPath is a path of the control socket in dir that fits into an address; it
// is good until release. A longer one leads through a descriptor of dir.
func socketPath(dir string) (path string, release func(), err error) {
	if path = filepath.Join(dir, SocketName); len(path) <= maxSocketPath {
		return path, func() {}, nil
	}
	f, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", nil, err
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", f.Fd(), SocketName), func() { f.Close() }, nil
}

// listener lets in the server's own user and root, a few at a time.
type listener struct {
	*net.UnixListener
	cfg   Config
	path  string
	made  os.FileInfo
	slots chan struct{}
	ends  chan struct{}
	once  sync.Once
}

// listen makes the socket of a store whose lock the caller holds.
func listen(cfg Config) (*listener, error) {
	path := filepath.Join(cfg.Path, SocketName)
	switch st, err := os.Lstat(path); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	case st.Mode()&os.ModeSocket == 0:
		return nil, fmt.Errorf("%s exists and is not a socket", path)
	default: // of a server that was killed: a living one would have the lock
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	short, release, err := socketPath(cfg.Path)
	if err != nil {
		return nil, err
	}
	defer release()
	private := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		// bind gives the file the mode of the socket, so that there is no moment
		// when others could connect.
		ctlErr := c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) })
		return errors.Join(ctlErr, err)
	}}
	l, err := private.Listen(context.Background(), "unix", short)
	if err != nil {
		return nil, err
	}
	u := l.(*net.UnixListener)
	u.SetUnlinkOnClose(false)
	made, err := os.Lstat(path)
	if err != nil {
		return nil, errors.Join(err, u.Close())
	}
	return &listener{UnixListener: u, cfg: cfg, path: path, made: made,
		slots: make(chan struct{}, maxConnections), ends: make(chan struct{})}, nil
}

// remove takes the socket away, unless another has taken its place.
func (l *listener) remove() error {
	now, err := os.Lstat(l.path)
	if err == nil && os.SameFile(now, l.made) {
		err = os.Remove(l.path)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Close implements net.Listener.
func (l *listener) Close() error {
	l.once.Do(func() { close(l.ends) })
	return l.UnixListener.Close()
}

// Accept implements net.Listener: it waits while there are too many connections,
// and closes those of strangers.
func (l *listener) Accept() (net.Conn, error) {
	select {
	case l.slots <- struct{}{}:
	case <-l.ends:
		return nil, net.ErrClosed
	}
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			<-l.slots
			return nil, err
		}
		peer, err := l.cfg.credentials(c)
		if err == nil && (peer.UID == uint32(os.Geteuid()) || peer.UID == 0) {
			return &peerConn{UnixConn: c, peer: peer, leave: sync.OnceFunc(func() { <-l.slots })}, nil
		}
		l.cfg.Log.Warn("control connection refused", "store", l.cfg.Path, "uid", peer.UID, "pid", peer.PID, "err", err)
		c.Close()
	}
}

// peerConn is a connection that was let in.
type peerConn struct {
	*net.UnixConn
	peer  Peer
	leave func()
}

// Close implements net.Conn.
func (c *peerConn) Close() error {
	defer c.leave()
	return c.UnixConn.Close()
}
