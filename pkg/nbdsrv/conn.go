package nbdsrv

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// receiveSize and sendSize are the buffers of a connection that is busy;
	// an idle one on a plain socket holds none.
	receiveSize = 256 << 10
	sendSize    = 256 << 10
	// inlineMax is the largest payload that goes through them. Larger ones
	// have a buffer of their own.
	inlineMax = 64 << 10
	// scanSize is how much is read at once while large WRITEs come: enough
	// for some headers, and little payload that has to be copied out.
	scanSize = 8 << 10
	// lingerSize is how much is read at once from a client that was told goodbye.
	lingerSize = 4 << 10
	// unixSocketBuffer replaces the kernel's default of about 200 KiB.
	unixSocketBuffer = 1 << 20
)

// errDisconnect is the end of a transmission by NBD_CMD_DISC.
var errDisconnect = errors.New("client disconnected")

// conn is one connection. Requests enter through its receiving goroutine
// (transmit); replies leave under wmu, from that goroutine or from a worker.
type conn struct {
	srv  *Server
	sock net.Conn        // what was accepted
	raw  syscall.RawConn // of sock; nil if that is no plain socket
	nc   net.Conn        // where the protocol is spoken: sock, or TLS over it
	gate *socketGate     // below that TLS; nil without
	log  *slog.Logger

	id    uint64    // of this server's connections
	peer  string    // how it is named
	since time.Time // of the accept
	end   string    // why, for the log; the receiving goroutine's own

	transmitting bool // guarded by srv.mu
	// What Stats tells of a client, guarded by srv.mu; counts is nil until the
	// transmission begins.
	counts     *counters
	exportName string
	headers    replyMode
	isReadOnly bool

	// Frozen when the transmission begins.
	dev        Device
	shared     *served
	mode       replyMode
	requestLen int // of a request's header
	readOnly   bool
	contexts   []metaContext              // what BLOCK_STATUS tells of
	allowed    [cmdBlockStatus + 1]uint16 // flags that each command takes
	workFn     func()
	syncFn     func()

	// The receiving goroutine's own. in[r:w] was received and not yet
	// served, out[:pos] is to be sent.
	batch   *batch
	partial bool    // it is one of maxPartial
	stash   []byte  // in[r:w] while there is no batch
	first   [1]byte // what an idle connection that is no plain socket reads into
	r, w    int
	pos     int
	tally   tally
	arrived time.Time // when the last bytes of the requests at hand came
	large   bool      // the last request was a WRITE with a buffer of its own
	readFn  func(fd uintptr) bool
	readLen int
	readErr error
	spin    spinner

	joined bool // it is among shared.siblings; guarded by srv.mu

	ctx    context.Context // ends when the connection is cut
	cancel context.CancelFunc
	dead   atomic.Bool

	complained     bool         // of the client, by the goroutine that serves it
	deviceErrors   logLimit     // of its device, by any
	sendingSince   atomic.Int64 // Unix nanoseconds; 0 if nothing is being sent
	receivingSince atomic.Int64 // the same of a payload that has a buffer, or is skipped
	hasBatch       atomic.Bool  // tells others of batch

	received chan struct{} // closed when no request will be taken off the socket any more
	deserted atomic.Bool   // the client has a newer connection: what was not begun must not be

	wmu  sync.Mutex  // held while writing to nc
	iov  net.Buffers // guarded by wmu
	iovs [][]byte    // guarded by wmu: iov's memory

	mu       sync.Mutex // guards the following
	change   sync.Cond  // something below shrank, or the connection was cut
	cause    error      // why it was cut
	queue    taskList   // waiting for a worker
	syncing  taskList   // waiting for the next Flush
	done     taskList   // waiting to be sent
	workers  int
	flushing bool
	requests int   // tasks admitted and not yet sent
	bytes    int64 // their payload
	reserved int64 // the part of bytes that is not the server's budget's
}

func newConn(s *Server, nc net.Conn) *conn {
	c := &conn{
		srv: s, sock: nc, nc: nc, peer: peerName(nc), since: time.Now(), deviceErrors: logLimit{most: 1}, received: make(chan struct{}),
		spin: spinner{places: s.spinning},
	}
	c.log = s.cfg.Log.With("peer", c.peer)
	c.change.L = &c.mu
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.readFn, c.workFn, c.syncFn = c.readReady, c.work, c.sync
	switch nc := nc.(type) {
	case *net.TCPConn:
		c.raw, _ = nc.SyscallConn()
	case *net.UnixConn:
		c.raw, _ = nc.SyscallConn()
	}
	return c
}

// transmit serves requests until the client leaves, the connection breaks or
// the server shuts down, and returns once nothing of it is in flight.
func (c *conn) transmit(ses *session) error {
	c.dev = ses.open.export.Device
	c.shared = c.srv.acquire(c.dev)
	defer c.srv.release(c.shared)
	c.succeed()
	defer c.srv.leave(c)
	c.mode, c.contexts = ses.mode, ses.contexts
	c.requestLen = requestLen
	if c.mode == extendedHeaders {
		c.requestLen = extendedLen
	}
	c.readOnly = ses.open.export.ReadOnly || c.dev.ReadOnly()
	c.allowed = allowedFlags(c.mode)
	err := c.needBatch()
	if err == nil {
		c.w = copy(c.batch.in[:], ses.early)
		c.batch.received(c.w)
	}
	c.arrived = time.Now()
	for err == nil {
		if err = c.serveBatch(); err == nil {
			if err = c.flush(); err == nil {
				err = c.fill()
			}
		}
	}
	return c.finish(err)
}

// finish lets everything in flight complete and be sent, then ends the
// connection. Its result is nil for an orderly end.
func (c *conn) finish(err error) error {
	close(c.received)
	_ = c.flush()
	shutdown := errors.Is(err, os.ErrDeadlineExceeded) && c.srv.closing()
	orderly := shutdown || errors.Is(err, errDisconnect) || (errors.Is(err, io.EOF) && c.r == c.w)
	if !orderly {
		c.cut(err)
	}
	defer func() { c.end = c.endCause(err, shutdown) }()
	c.dropBatch()
	c.mu.Lock()
	for c.requests > 0 || c.workers > 0 || c.flushing {
		c.change.Wait()
	}
	cause := c.cause
	c.mu.Unlock()
	if shutdown || (orderly && c.gate != nil) {
		c.linger()
	}
	c.cancel()
	if cause != nil {
		return cause
	}
	return nil
}

// endCause says in the log's words why a connection ended.
func (c *conn) endCause(err error, shutdown bool) string {
	c.mu.Lock()
	cause := c.cause
	c.mu.Unlock()
	switch {
	case cause != nil:
		return cause.Error() // the first one: it was cut
	case shutdown:
		return "server shuts down"
	case errors.Is(err, io.EOF):
		return "client closed the connection"
	}
	return err.Error()
}

// linger keeps a connection that the server ends from being reset by bytes
// the client had under way, which would cost it replies it has not yet read, or
// the end of TLS, which CloseWrite sends and the client answers.
func (c *conn) linger() {
	half, ok := c.nc.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		return
	}
	_ = c.nc.SetReadDeadline(time.Now().Add(shutdownGrace))
	var dropped [lingerSize]byte
	for {
		if _, err := c.nc.Read(dropped[:]); err != nil {
			return
		}
	}
}

// sayGoodbye wakes the connection so that it notices the Shutdown. The caller
// holds srv.mu.
func (c *conn) sayGoodbye() {
	if c.transmitting {
		_ = c.sock.SetReadDeadline(time.Unix(1, 0))
		return
	}
	_ = c.sock.SetDeadline(time.Now().Add(shutdownGrace))
}

// cut ends the connection at once: nothing more is read or sent, and requests
// that have not begun are dropped. The first cause is kept. The caller does not hold
// srv.mu.
func (c *conn) cut(cause error) {
	c.mu.Lock()
	if c.cause == nil {
		c.cause = cause
	}
	c.dead.Store(true)
	c.change.Broadcast()
	c.mu.Unlock()
	c.cancel()
	c.srv.closes(c)
	_ = c.sock.Close()
}

// fill waits for bytes and reads what there is.
func (c *conn) fill() error {
	if c.r == c.w {
		c.r, c.w = 0, 0
	} else if receiveSize-c.w < inlineMax+extendedLen {
		c.w = copy(c.batch.in[:], c.batch.in[c.r:c.w])
		c.r = 0
	}
	if c.srv.batchWaiters.Load() > 0 {
		c.stashBatch() // it has had its turn
	}
	if c.raw == nil || c.gate != nil {
		return c.fillParked()
	}
	for {
		if err := c.raw.Read(c.readFn); err != nil {
			c.unpark()
			return err
		}
		if c.batch != nil {
			break
		}
		if err := c.awaitBatch(); err != nil {
			return err
		}
	}
	c.w += c.readLen
	c.batch.received(c.w)
	c.arrived = time.Now()
	return c.readErr
}

// free is the part of the receive buffer to read into next.
func (c *conn) free() []byte {
	if c.large {
		return c.batch.in[c.w:min(c.w+scanSize, receiveSize)]
	}
	return c.batch.in[c.w:]
}

// readReady reads once from the socket; false means that nothing was there. It
// reads nothing, and leaves c.batch nil, if there is no batch to read into.
func (c *conn) readReady(fd uintptr) bool {
	c.unpark()
	if !c.tryBatch() {
		return true
	}
	for {
		n, err := syscall.Read(int(fd), c.free())
		switch {
		case n > 0:
			c.readLen, c.readErr = n, nil
			c.spin.found()
			return true
		case err == syscall.EINTR:
			continue
		case err == syscall.EAGAIN:
			if c.spin.again() {
				continue
			}
			c.park()
			return false
		case err == nil:
			err = io.EOF
		}
		c.spin.stop()
		c.readLen, c.readErr = 0, err
		return true
	}
}

// receive fills p with the next bytes of the stream.
func (c *conn) receive(p []byte) error {
	n := copy(p, c.batch.in[c.r:c.w])
	c.r += n
	if n == len(p) {
		return nil
	}
	if err := c.flush(); err != nil {
		return err
	}
	defer c.receivingSince.Store(0)
	for p = p[n:]; len(p) > 0; {
		c.receivingSince.Store(time.Now().UnixNano())
		n, err := io.ReadFull(c.nc, p[:min(len(p), piece)])
		if err != nil {
			return fmt.Errorf("payload: %w", err)
		}
		p = p[n:]
	}
	c.arrived = time.Now()
	return nil
}

// skip drops the next n bytes of the stream.
func (c *conn) skip(n int64) error {
	have := min(n, int64(c.w-c.r))
	c.r += int(have)
	defer c.receivingSince.Store(0)
	for n -= have; n > 0; {
		if err := c.flush(); err != nil {
			return err
		}
		c.receivingSince.Store(time.Now().UnixNano())
		// All of in is free: what was received has been skipped.
		m, err := c.nc.Read(c.batch.in[:min(n, receiveSize)])
		c.batch.received(m)
		n -= int64(m)
		if err != nil && n > 0 {
			return fmt.Errorf("payload: %w", err)
		}
		c.r, c.w = 0, 0
	}
	return nil
}
