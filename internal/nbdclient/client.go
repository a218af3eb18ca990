package nbdclient

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"

	"github.com/pojntfx/go-nbd/pkg/protocol"
)

const (
	statusLength = 1 << 30 // bytes that one BLOCK_STATUS asks about
	zeroLength   = 1 << 30 // bytes of one WRITE_ZEROES
)

// Client is the client's side of one NBD connection. Requests of several
// goroutines are in flight at the same time; replies may come in any order. A
// server that breaks the protocol ends the connection: every request fails.
type Client struct {
	conn       net.Conn
	r          *bufio.Reader
	export     Export
	structured bool

	allocation    uint32 // metadata context of base:allocation
	hasAllocation bool

	send sync.Mutex // one request at a time on the wire

	mu struct {
		sync.Mutex
		calls map[uint64]*call
		next  uint64
		err   error // why the connection is over
	}
	over chan struct{} // the receiver has ended
}

// call is one request that waits for its reply.
type call struct {
	command uint16
	off     int64
	buf     []byte   // of a READ
	covered coverage // of buf
	status  []uint32 // of a BLOCK_STATUS: pairs of length and flags
	err     error    // that the server reported
	done    chan struct{}
}

func newClient(h *handshake, r *bufio.Reader) *Client {
	c := &Client{conn: h.conn, r: r, export: h.export, structured: h.structured, over: make(chan struct{})}
	c.allocation, c.hasAllocation = h.allocation, h.hasAllocation
	c.mu.calls = map[uint64]*call{}
	return c
}

// start begins to receive; the negotiation is over.
func (c *Client) start() {
	go func() {
		defer close(c.over)
		c.fail(c.receive())
	}()
}

// Size is the export's size in bytes.
func (c *Client) Size() int64 { return c.export.Size }

// ReadOnly is whether the server refuses changes.
func (c *Client) ReadOnly() bool { return c.export.ReadOnly() }

// Export is what the server tells about it.
func (c *Client) Export() Export { return c.export }

// fail ends every call that waits; only the receiver calls it.
func (c *Client) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.err == nil {
		c.mu.err = err
	}
	for _, k := range c.mu.calls {
		k.err = c.mu.err
		close(k.done)
	}
	clear(c.mu.calls)
	c.conn.Close()
}

// do sends one request and waits for its reply.
func (c *Client) do(command uint16, off, n int64, payload []byte, k *call) error {
	k.command, k.off, k.done = command, off, make(chan struct{})
	cookie, err := c.register(k)
	if err != nil {
		return err
	}
	be := binary.BigEndian
	var h [28]byte
	be.PutUint32(h[0:], protocol.TRANSMISSION_MAGIC_REQUEST)
	be.PutUint16(h[6:], command)
	be.PutUint64(h[8:], cookie)
	be.PutUint64(h[16:], uint64(off))
	be.PutUint32(h[24:], uint32(n))
	c.send.Lock()
	buffers := net.Buffers{h[:], payload}
	_, err = buffers.WriteTo(c.conn)
	c.send.Unlock()
	if err != nil {
		c.abandon(fmt.Errorf("send request: %w", err))
	}
	<-k.done
	return k.err
}

func (c *Client) register(k *call) (cookie uint64, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.err != nil {
		return 0, c.mu.err
	}
	c.mu.next++
	c.mu.calls[c.mu.next] = k
	return c.mu.next, nil
}

// ReadAt fills p from off. Any number of goroutines may call it.
func (c *Client) ReadAt(p []byte, off int64) error {
	for len(p) > 0 {
		n := min(int64(len(p)), c.export.MaxPayload)
		if err := c.do(cmdRead, off, n, nil, &call{buf: p[:n]}); err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

// WriteAt writes p at off.
func (c *Client) WriteAt(p []byte, off int64) error {
	for len(p) > 0 {
		n := min(int64(len(p)), c.export.MaxPayload)
		if err := c.do(cmdWrite, off, n, p[:n], &call{}); err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

// ZeroAt makes a range read as zeros, if need be by writing them.
func (c *Client) ZeroAt(off, n int64) error {
	if !c.export.Flags.Has(SendWriteZeroes) {
		return c.writeZeros(off, n)
	}
	for n > 0 {
		part := min(n, zeroLength)
		if err := c.do(cmdWriteZeroes, off, part, nil, &call{}); err != nil {
			return err
		}
		off, n = off+part, n-part
	}
	return nil
}

// Flush makes everything that was written durable, where the server can.
func (c *Client) Flush() error {
	if !c.export.Flags.Has(SendFlush) {
		return nil
	}
	return c.do(cmdFlush, 0, 0, nil, &call{})
}

// Close says goodbye; nothing may be in flight.
func (c *Client) Close() error {
	var h [28]byte
	binary.BigEndian.PutUint32(h[0:], protocol.TRANSMISSION_MAGIC_REQUEST)
	binary.BigEndian.PutUint16(h[6:], cmdDisconnect)
	c.send.Lock()
	c.conn.Write(h[:])
	c.send.Unlock()
	c.abandon(net.ErrClosed)
	<-c.over
	return nil
}

// abandon closes the connection; the receiver, whose buffers are the calls',
// then ends them.
func (c *Client) abandon(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.err == nil {
		c.mu.err = err
	}
	c.conn.Close()
}

// Extent is a range of an export and what base:allocation tells about it.
type Extent struct {
	Off, Len   int64
	Hole, Zero bool // takes no space; reads as zeros
}

// Extents tells of what lies from off on, in order and without gaps: as
// far as the server likes. Without
// base:allocation it is one extent of data.
func (c *Client) Extents(off int64) ([]Extent, error) {
	if !c.hasAllocation {
		return []Extent{{Off: off, Len: c.export.Size - off}}, nil
	}
	k := &call{}
	if err := c.do(cmdBlockStatus, off, min(statusLength, c.export.Size-off), nil, k); err != nil {
		return nil, err
	}
	var l []Extent
	for i := 0; i < len(k.status) && off < c.export.Size; i += 2 {
		n, flags := min(int64(k.status[i]), c.export.Size-off), k.status[i+1]
		if n == 0 {
			return nil, fmt.Errorf("%w: block status of no bytes", ErrProtocol)
		}
		l = append(l, Extent{Off: off, Len: n, Hole: flags&stateHole != 0, Zero: flags&stateZero != 0})
		off += n
	}
	if len(l) == 0 {
		return nil, fmt.Errorf("%w: block status without an answer", ErrProtocol)
	}
	return l, nil
}

// writeZeros writes zeros in pieces.
func (c *Client) writeZeros(off, n int64) error {
	for n > 0 {
		part := min(n, int64(len(zeros)))
		if err := c.WriteAt(zeros[:part], off); err != nil {
			return err
		}
		off, n = off+part, n-part
	}
	return nil
}

// zeros is never written to.
var zeros = make([]byte, 1<<20)

// errno makes an error of the eight that NBD knows ("Error values").
func errno(n uint32) error {
	switch n {
	case 1, 5, 12, 22, 28, 75, 95:
		return syscall.Errno(n)
	case 108:
		return errors.New("server is shutting down")
	}
	return fmt.Errorf("nbd error %d", n)
}
