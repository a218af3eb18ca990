package reconnect

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"

	"github.com/pojntfx/go-nbd/pkg/protocol"
	"golang.org/x/sys/unix"

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

// link is one connection, behind its negotiation. Its socket is used with plain system
// calls that block: a thread that waits in one is woken by the kernel, without the
// detour over the runtime's poller, which would be a third of a request's cost here.
//
// It is over when receive or repeat fails. From hangUp on, sending does nothing.
type link struct {
	file *os.File
	fd   int // of file; valid until close

	in         [64 << 10]byte // replies that were read and not yet looked at:
	start, end int            // in[start:end]

	sending sync.Mutex
	header  [requestBytes]byte // guarded by sending, as is the next
	parts   [2][]byte
}

// newLink takes over the socket.
func newLink(socket *os.File) *link {
	return &link{file: socket, fd: int(socket.Fd())} // Fd has it block
}

// hangUp ends the connection; whoever is in the middle of a system call on it returns.
func (l *link) hangUp() {
	conn, err := l.file.SyscallConn()
	if err == nil {
		_ = conn.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_RDWR) })
	}
}

// close frees the socket. Nobody may be using it.
func (l *link) close() { l.file.Close() }

// goodbye is hangUp, politely if that is possible at once.
func (l *link) goodbye() {
	if l.sending.TryLock() {
		conn, err := l.file.SyscallConn()
		if err == nil {
			h := l.header[:]
			fillHeader(h, protocol.TRANSMISSION_TYPE_REQUEST_DISC, 0, 0, 0, 0)
			_ = conn.Control(func(fd uintptr) { _ = unix.Send(int(fd), h, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL) })
		}
		l.sending.Unlock()
	}
	l.hangUp()
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
		l.hangUp()
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

func fillHeader(h []byte, command, flags uint16, cookie uint64, off, n int64) {
	be := binary.BigEndian
	be.PutUint32(h[0:], protocol.TRANSMISSION_MAGIC_REQUEST)
	be.PutUint16(h[4:], flags)
	be.PutUint16(h[6:], command)
	be.PutUint64(h[8:], cookie)
	be.PutUint64(h[16:], uint64(off))
	be.PutUint32(h[24:], uint32(n))
}

func (l *link) write(command, flags uint16, cookie uint64, off, n int64, data []byte) error {
	l.sending.Lock()
	defer l.sending.Unlock()
	fillHeader(l.header[:], command, flags, cookie, off, n)
	l.parts = [2][]byte{l.header[:], data}
	defer func() { l.parts[1] = nil }()
	parts := l.parts[:]
	if len(data) == 0 {
		parts = parts[:1]
	}
	for len(parts) > 0 {
		n, err := unix.Writev(l.fd, parts)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		for len(parts) > 0 && n >= len(parts[0]) {
			n -= len(parts[0])
			parts = parts[1:]
		}
		if n > 0 {
			parts[0] = parts[0][n:]
		}
	}
	return nil
}

// read is one read(2) that was not interrupted.
func (l *link) read(p []byte) (int, error) {
	for {
		n, err := unix.Read(l.fd, p)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return 0, fmt.Errorf("nbd server closed the connection: %w", err)
		case n == 0:
			return 0, fmt.Errorf("nbd server closed the connection: %w", io.EOF)
		default:
			return n, nil
		}
	}
}

// fill fills p with what comes next.
func (l *link) fill(p []byte) error {
	n := copy(p, l.in[l.start:l.end])
	l.start += n
	for p = p[n:]; len(p) > 0; p = p[n:] {
		var err error
		if n, err = l.read(p); err != nil {
			return err
		}
	}
	return nil
}

// reply reads the header of a simple reply.
func (l *link) reply() (cookie uint64, code uint32, err error) {
	for l.end-l.start < replyBytes {
		if l.start > len(l.in)-replyBytes || l.start == l.end {
			l.end = copy(l.in[:], l.in[l.start:l.end])
			l.start = 0
		}
		n, err := l.read(l.in[l.end:])
		if err != nil {
			return 0, 0, err
		}
		l.end += n
	}
	h := l.in[l.start:l.end]
	l.start += replyBytes
	be := binary.BigEndian
	if magic := be.Uint32(h); magic != protocol.TRANSMISSION_MAGIC_REPLY {
		return 0, 0, fmt.Errorf("%w: reply begins with %08x", nbdclient.ErrProtocol, magic)
	}
	return be.Uint64(h[8:]), be.Uint32(h[4:]), nil
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
			if err := l.fill(r.Data); err != nil {
				return err
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

// errno makes an error of the protocol's ("Error values").
func errno(code uint32) error {
	switch e := syscall.Errno(code); e {
	case syscall.EPERM, syscall.EIO, syscall.ENOMEM, syscall.EINVAL, syscall.ENOSPC, syscall.EOVERFLOW, syscall.EOPNOTSUPP:
		return e
	}
	return fmt.Errorf("nbd error %d: %w", code, syscall.EIO)
}
