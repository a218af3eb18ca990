package nbdsrv

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"
	"golang.org/x/sys/unix"
)

const (
	// shutdownGrace is how long a connection that is still negotiating, or
	// that has been told goodbye, may live on once Shutdown began.
	shutdownGrace = time.Second
	// acceptBackoff is the longest pause after a failed accept.
	acceptBackoff = time.Second
)

// Server serves exports to NBD clients. Its methods are safe for concurrent
// use. It owns the goroutines of all its connections; Shutdown waits for them.
type Server struct {
	cfg        Config
	buffers    bufferPool
	batches    sync.Pool // of *batch
	tasks      sync.Pool // of *task
	slots      chan struct{}
	handshakes chan struct{} // slots of ServeConn
	complaints logLimit
	spinning   *spinPlaces
	partial    atomic.Int64 // connections that keep a batch while they wait
	memory     *semaphore.Weighted
	batchRoom  *semaphore.Weighted // how many batches may be held
	// Connections that wait for one. Who holds one gives it up then before
	// it reads on.
	batchWaiters atomic.Int64
	stop         chan struct{} // closed when Shutdown begins
	empty        chan struct{} // closed when, after that, no connection is left

	mu        sync.Mutex // guards the following
	closed    bool
	listeners map[net.Listener]struct{}
	conns     map[*conn]struct{}
	devices   map[Device]*served
	exports   map[string]*exportTotals
	accepted  uint64 // connections
	tooMany   uint64

	failed atomic.Uint64 // negotiations that the client is to blame for
}

// New makes a server. Nothing runs until Serve or ServeConn.
func New(cfg Config) *Server {
	cfg = cfg.withDefaults()
	if cfg.RequireTLS != nil && cfg.TLS == nil {
		panic("nbdsrv: RequireTLS without TLS")
	}
	return &Server{
		cfg:        cfg,
		slots:      make(chan struct{}, cfg.Workers),
		handshakes: make(chan struct{}, cfg.MaxHandshakes),
		complaints: logLimit{most: complaintsPerSecond},
		spinning:   newSpinPlaces(),
		memory:     semaphore.NewWeighted(cfg.Memory),
		batchRoom:  newBatchRoom(cfg.Memory),
		stop:       make(chan struct{}),
		empty:      make(chan struct{}),
		listeners:  map[net.Listener]struct{}{},
		conns:      map[*conn]struct{}{},
		devices:    map[Device]*served{},
		exports:    map[string]*exportTotals{},
	}
}

// Serve accepts connections on ln until ctx is done (it then returns nil),
// Shutdown begins (ErrServerClosed) or accepting fails for good. It closes ln.
// Connections outlive it: end them with Shutdown. Connections that negotiate
// are bounded for each listener, so that none holds up the others.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	if !s.addListener(ln) {
		_ = ln.Close()
		return ErrServerClosed
	}
	defer s.removeListener(ln)
	defer context.AfterFunc(ctx, func() { _ = ln.Close() })()
	handshakes := make(chan struct{}, s.cfg.MaxHandshakes)
	pause := time.Duration(0)
	for {
		select {
		case handshakes <- struct{}{}:
		case <-ctx.Done():
			return nil
		case <-s.stop:
			return ErrServerClosed
		}
		nc, err := ln.Accept()
		if err == nil {
			pause = 0
			s.start(nc, handshakes)
			continue
		}
		<-handshakes
		switch {
		case ctx.Err() != nil:
			return nil
		case s.closing():
			return ErrServerClosed
		case errors.Is(err, net.ErrClosed):
			return err
		}
		// Out of descriptors, or a client that went away: others may come.
		pause = min(max(2*pause, 5*time.Millisecond), acceptBackoff)
		s.cfg.Log.Warn("accept failed", "error", err, "pause", pause)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		case <-s.stop:
		}
	}
}

// start runs a connection in its own goroutine. The caller has taken a
// slot of handshakes for it.
func (s *Server) start(nc net.Conn, handshakes <-chan struct{}) {
	c, err := s.addConn(nc)
	if err != nil {
		_ = nc.Close()
		go s.refuse(err, handshakes)
		return
	}
	go func() { _ = s.run(c, handshakes) }()
}

// ServeConn serves one connection that was made elsewhere (a socket pair, an
// inherited descriptor) and returns when it has ended. It closes nc. The error
// is nil if the client took its leave properly.
func (s *Server) ServeConn(nc net.Conn) error {
	select {
	case s.handshakes <- struct{}{}:
	case <-s.stop:
		_ = nc.Close()
		return ErrServerClosed
	}
	c, err := s.addConn(nc)
	if err != nil {
		_ = nc.Close()
		s.refuse(err, s.handshakes)
		return err
	}
	return s.run(c, s.handshakes)
}

var errTooMany = errors.New("nbdsrv: too many connections")

// refuse logs that a connection was not taken, without any lock and in no
// listener's goroutine: a log may stand still. It gives back the slot of handshakes
// first.
func (s *Server) refuse(err error, handshakes <-chan struct{}) {
	<-handshakes
	if err != errTooMany {
		return
	}
	if unlogged, ok := s.complaints.admit(); ok {
		s.cfg.Log.Warn("too many connections", "limit", s.cfg.MaxConns, "unlogged", unlogged)
	}
}

// run is a connection's life: negotiation, transmission, end. It gives back
// the slot of handshakes.
func (s *Server) run(c *conn, handshakes <-chan struct{}) error {
	defer s.removeConn(c)
	defer func() { _ = c.nc.Close() }()
	ses, err := s.negotiate(c)
	<-handshakes
	if err != nil {
		return c.logRefused(err)
	}
	defer ses.open.release()
	c.logTLS(&ses.client)
	c.log = c.log.With("export", ses.open.export.Name)
	if !s.beginTransmission(c, ses) {
		return ErrServerClosed
	}
	c.log.Debug("client connected", "headers", ses.mode.String(), "read_only", c.isReadOnly)
	err = c.transmit(ses)
	c.transmissionEnded(err)
	return err
}

// Shutdown stops accepting, lets every connection finish the requests it has
// received, and disconnects. When ctx ends first, the rest is cut off and
// Shutdown returns ctx's error; a device call that never returns then still
// holds its goroutine.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.stop)
		for ln := range s.listeners {
			_ = ln.Close()
		}
		for c := range s.conns {
			c.sayGoodbye()
		}
		s.checkEmptyLocked()
	}
	s.mu.Unlock()
	select {
	case <-s.empty:
		return nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	left := slices.Collect(maps.Keys(s.conns))
	s.mu.Unlock()
	for _, c := range left {
		c.cut(ErrServerClosed)
	}
	return ctx.Err()
}

// closing says whether Shutdown began.
func (s *Server) closing() bool {
	select {
	case <-s.stop:
		return true
	default:
		return false
	}
}

func (s *Server) addListener(ln net.Listener) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.listeners[ln] = struct{}{}
	return true
}

func (s *Server) removeListener(ln net.Listener) {
	_ = ln.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.listeners, ln)
}

// addConn makes nc known and starts its negotiation's clock.
func (s *Server) addConn(nc net.Conn) (*conn, error) {
	tune(nc)
	c := newConn(s, nc)
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return nil, ErrServerClosed
	case len(s.conns) >= s.cfg.MaxConns:
		s.accepted++
		s.tooMany++
		return nil, errTooMany
	}
	if err := nc.SetDeadline(time.Now().Add(s.cfg.HandshakeTimeout)); err != nil {
		return nil, err
	}
	s.accepted++
	c.id = s.accepted
	s.conns[c] = struct{}{}
	return c, nil
}

func (s *Server) removeConn(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.countOutLocked(c)
	delete(s.conns, c)
	s.checkEmptyLocked()
}

func (s *Server) checkEmptyLocked() {
	if s.closed && len(s.conns) == 0 {
		select {
		case <-s.empty:
		default:
			close(s.empty)
		}
	}
}

// beginTransmission lifts the negotiation's deadline; an idle client may stay
// for ever. It fails if Shutdown was quicker.
func (s *Server) beginTransmission(c *conn, ses *session) bool {
	readOnly := ses.open.export.ReadOnly || ses.open.export.Device.ReadOnly()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	c.transmitting = true
	s.countInLocked(c, ses, readOnly)
	return c.sock.SetDeadline(time.Time{}) == nil
}

// tune sets what a request-reply protocol wants of a socket ("Protocol
// phases": TCP_NODELAY).
func tune(nc net.Conn) {
	switch nc := nc.(type) {
	case *net.TCPConn:
		_ = nc.SetNoDelay(true)
	case *net.UnixConn:
		// The sender's buffer is the only one that counts here.
		_ = nc.SetWriteBuffer(unixSocketBuffer)
	}
}

// peerName is how the log and Stats name the other side: its address, or on a
// Unix socket the process that connected.
func peerName(nc net.Conn) string {
	if u, ok := nc.(*net.UnixConn); ok {
		if raw, err := u.SyscallConn(); err == nil {
			var cred *unix.Ucred
			_ = raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
			if err == nil && cred != nil {
				return fmt.Sprintf("pid %d uid %d", cred.Pid, cred.Uid)
			}
		}
	}
	if a := nc.RemoteAddr(); a != nil && a.String() != "" {
		return a.String()
	}
	return "local"
}
