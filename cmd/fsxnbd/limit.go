package main

import (
	"log/slog"
	"net"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// limitConns makes l accept another connection only while fewer than most are open.
func limitConns(l net.Listener, most int) net.Listener {
	return &limited{Listener: l, places: make(chan struct{}, most), closed: make(chan struct{})}
}

type limited struct {
	net.Listener
	places chan struct{}
	once   sync.Once
	closed chan struct{}
}

func (l *limited) Accept() (net.Conn, error) {
	select {
	case l.places <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.places
		return nil, err
	}
	return &limitedConn{Conn: c, leave: sync.OnceFunc(func() { <-l.places })}, nil
}

func (l *limited) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

type limitedConn struct {
	net.Conn
	leave func()
}

func (c *limitedConn) Close() error {
	defer c.leave()
	return c.Conn.Close()
}

const (
	// mostClients is nbdsrv's default bound of connections.
	mostClients = 4096
	// storeFiles are the descriptors that stores, their index and sockets may need.
	storeFiles = 512
)

// clientLimit is how many clients there may be: their descriptors must not be those
// that the stores need for what is written.
func clientLimit(log *slog.Logger) int {
	var r unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &r); err != nil || r.Cur >= mostClients+storeFiles {
		return mostClients
	}
	n := max(int(r.Cur)-storeFiles, int(r.Cur)/4, 1)
	log.Warn("few descriptors may be open, so there are fewer clients", "descriptors", r.Cur, "clients", n)
	return n
}

// logLimit bounds the lines that clients can make the log have: most in a second.
type logLimit struct {
	mu    sync.Mutex // guards the following
	since time.Time
	lines int
	most  int
}

func (l *logLimit) admit() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now := time.Now(); now.Sub(l.since) >= time.Second {
		l.since, l.lines = now, 0
	}
	l.lines++
	return l.lines <= l.most
}

// sharedBy says who may connect to a unix socket beside the user it belongs to.
type sharedBy int

const (
	nobody sharedBy = iota
	aGroup
	everybody
)

// sharing looks at a socket that somebody else made. One in the abstract namespace
// has no mode: unix(7).
func sharing(l net.Listener) sharedBy {
	name := l.Addr().String()
	if l.Addr().Network() != "unix" {
		return everybody
	}
	var st syscall.Stat_t
	if name == "" || name[0] == '@' || syscall.Stat(name, &st) != nil {
		return everybody
	}
	switch {
	case st.Mode&0o002 != 0:
		return everybody
	case st.Mode&0o020 != 0:
		return aGroup
	}
	return nobody
}
