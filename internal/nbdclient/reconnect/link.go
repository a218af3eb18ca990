package reconnect

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/pojntfx/go-nbd/pkg/protocol"

	"github.com/fsximg/fsx/internal/nbdclient"
	"github.com/fsximg/fsx/internal/nbdclient/unflushed"
)

// What go-nbd's protocol package lacks of the NBD protocol (doc/proto.md).
const (
	cmdFlush       = 3
	cmdWriteZeroes = 6
	flagNoHole     = 1 << 1

	errShutdown = 108 // NBD_ESHUTDOWN

	requestBytes = 28
	replyBytes   = 16
)

// errLeaving is why a connection ends whose server says that it shuts down: what was
// under way goes to the next one.
var errLeaving = errors.New("nbd server is shutting down")

// link is one connection, behind its negotiation. It is over when receive returns; to
// send on it then does nothing.
type link struct {
	conn net.Conn
	r    *bufio.Reader

	sending sync.Mutex
	header  [requestBytes]byte // guarded by sending, as are the two below
	parts   [2][]byte
	buffers net.Buffers
}

// newLink takes a duplicate of the socket.
func newLink(socket *os.File) (*link, error) {
	conn, err := net.FileConn(socket)
	if err != nil {
		return nil, err
	}
	return &link{conn: conn, r: bufio.NewReaderSize(conn, 64<<10)}, nil
}

// send sends a request. If it cannot, the connection is over, which receive finds out.
func (l *link) send(r *Request) {
	var data []byte
	if r.Op == Write {
		data = r.Data
	}
	command, flags := wire(kindOf(r.Op))
	switch r.Op {
	case Read:
		command = protocol.TRANSMISSION_TYPE_REQUEST_READ
	case Flush:
		command = cmdFlush
	}
	if err := l.write(command, flags, r.cookie, r.Off, r.Len, data); err != nil {
		l.conn.Close()
	}
}

// wire is the command for a kind of change, and its flags.
func wire(k unflushed.Kind) (command, flags uint16) {
	switch k {
	case unflushed.Zero:
		return cmdWriteZeroes, flagNoHole
	case unflushed.Discard:
		return cmdWriteZeroes, 0
	}
	return protocol.TRANSMISSION_TYPE_REQUEST_WRITE, 0
}

func (l *link) write(command, flags uint16, cookie uint64, off, n int64, data []byte) (err error) {
	l.sending.Lock()
	defer l.sending.Unlock()
	be, h := binary.BigEndian, l.header[:]
	be.PutUint32(h[0:], protocol.TRANSMISSION_MAGIC_REQUEST)
	be.PutUint16(h[4:], flags)
	be.PutUint16(h[6:], command)
	be.PutUint64(h[8:], cookie)
	be.PutUint64(h[16:], uint64(off))
	be.PutUint32(h[24:], uint32(n))
	if len(data) == 0 {
		_, err = l.conn.Write(h)
		return err
	}
	l.parts = [2][]byte{h, data}
	l.buffers = l.parts[:]
	_, err = l.buffers.WriteTo(l.conn)
	l.parts = [2][]byte{}
	return err
}

// reply reads the header of a simple reply.
func (l *link) reply() (cookie uint64, code uint32, err error) {
	h, err := l.r.Peek(replyBytes)
	if err != nil {
		return 0, 0, fmt.Errorf("nbd server closed the connection: %w", err)
	}
	be := binary.BigEndian
	if magic := be.Uint32(h); magic != protocol.TRANSMISSION_MAGIC_REPLY {
		return 0, 0, fmt.Errorf("%w: reply begins with %08x", nbdclient.ErrProtocol, magic)
	}
	code, cookie = be.Uint32(h[4:]), be.Uint64(h[8:])
	_, err = l.r.Discard(replyBytes)
	return cookie, code, err
}

// receive completes requests until the connection is over, and tells why.
func (l *link) receive(c *Client) error {
	for {
		cookie, code, err := l.reply()
		if err != nil {
			return err
		}
		r := c.lookup(cookie)
		switch {
		case r == nil:
			return fmt.Errorf("%w: reply to no request", nbdclient.ErrProtocol)
		case code == errShutdown:
			return errLeaving
		case code != 0:
			err = errno(code)
		case r.Op == Read:
			if _, err := io.ReadFull(l.r, r.Data); err != nil {
				return fmt.Errorf("nbd server closed the connection: %w", err)
			}
		}
		c.complete(r, err)
	}
}

// repeat carries out a kept change, and waits for it. Nothing else is under way.
func (l *link) repeat(k unflushed.Change) error {
	const cookie = 0 // of none of the slots: their upper half is not 0
	command, flags := wire(k.Kind)
	if err := l.write(command, flags, cookie, k.Off, k.Len, k.Data); err != nil {
		return err
	}
	got, code, err := l.reply()
	switch {
	case err != nil:
		return err
	case got != cookie:
		return fmt.Errorf("%w: reply to no request", nbdclient.ErrProtocol)
	case code != 0:
		return fmt.Errorf("repeat %d bytes at %d: %w", k.Len, k.Off, errno(code))
	}
	return nil
}

// goodbye ends the connection, politely if that is possible at once.
func (l *link) goodbye() {
	_ = l.conn.SetWriteDeadline(time.Now().Add(time.Second))
	_ = l.write(protocol.TRANSMISSION_TYPE_REQUEST_DISC, 0, 0, 0, 0, nil)
	l.conn.Close()
}

// errno makes an error of the protocol's ("Error values").
func errno(code uint32) error {
	switch e := syscall.Errno(code); e {
	case syscall.EPERM, syscall.EIO, syscall.ENOMEM, syscall.EINVAL, syscall.ENOSPC, syscall.EOVERFLOW, syscall.EOPNOTSUPP:
		return e
	}
	return fmt.Errorf("nbd error %d: %w", code, syscall.EIO)
}
