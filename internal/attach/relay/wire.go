package relay

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/pojntfx/go-nbd/pkg/protocol"
)

// What is on the wire (doc/proto.md, "Transmission phase").
const (
	requestSize = 28
	replySize   = 16

	cmdRead   = protocol.TRANSMISSION_TYPE_REQUEST_READ
	cmdWrite  = protocol.TRANSMISSION_TYPE_REQUEST_WRITE
	cmdLeave  = protocol.TRANSMISSION_TYPE_REQUEST_DISC
	cmdFlush  = 3
	cmdTrim   = 4
	cmdZeroes = 6

	// Errors.
	errIO       = 5
	errInvalid  = 22
	errShutdown = 108

	bufferSize = 64 << 10
)

var errMagic = errors.New("wrong magic")

// header is that of a request.
type header struct {
	flags, kind uint16
	cookie      uint64
	off         uint64
	length      uint32
}

func parseHeader(b []byte) (header, error) {
	be := binary.BigEndian
	if be.Uint32(b) != protocol.TRANSMISSION_MAGIC_REQUEST {
		return header{}, fmt.Errorf("%w of a request: %#x", errMagic, be.Uint32(b))
	}
	return header{be.Uint16(b[4:]), be.Uint16(b[6:]), be.Uint64(b[8:]), be.Uint64(b[16:]), be.Uint32(b[24:])}, nil
}

func (h header) put(b []byte) {
	be := binary.BigEndian
	be.PutUint32(b, protocol.TRANSMISSION_MAGIC_REQUEST)
	be.PutUint16(b[4:], h.flags)
	be.PutUint16(b[6:], h.kind)
	be.PutUint64(b[8:], h.cookie)
	be.PutUint64(b[16:], h.off)
	be.PutUint32(b[24:], h.length)
}

func parseReply(b []byte) (errno uint32, cookie uint64, err error) {
	be := binary.BigEndian
	if be.Uint32(b) != protocol.TRANSMISSION_MAGIC_REPLY {
		return 0, 0, fmt.Errorf("%w of a reply: %#x", errMagic, be.Uint32(b))
	}
	return be.Uint32(b[4:]), be.Uint64(b[8:]), nil
}

func putReply(b []byte, errno uint32, cookie uint64) {
	be := binary.BigEndian
	be.PutUint32(b, protocol.TRANSMISSION_MAGIC_REPLY)
	be.PutUint32(b[4:], errno)
	be.PutUint64(b[8:], cookie)
}

// socket is a stream socket with buffers. One goroutine may read and one may write at
// a time, and any may close it, which wakes them.
type socket struct {
	conn net.Conn
	in   *bufio.Reader
	out  *bufio.Writer
}

// newSocket takes the file over. Go's poller serves it: threads that block in read
// and write cost three times as much when the machine is busy.
func newSocket(f *os.File) (*socket, error) {
	conn, err := net.FileConn(f)
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("socket of a device: %w", err)
	}
	return &socket{conn: conn, in: bufio.NewReaderSize(conn, bufferSize), out: bufio.NewWriterSize(conn, bufferSize)}, nil
}

// write writes a header and its payload, a large one without copying it.
func (s *socket) write(header, payload []byte) error {
	if len(payload) < bufferSize/4 {
		_, err := s.out.Write(header)
		if err == nil && len(payload) > 0 {
			_, err = s.out.Write(payload)
		}
		return err
	}
	if err := s.out.Flush(); err != nil {
		return err
	}
	whole := net.Buffers{header, payload}
	_, err := whole.WriteTo(s.conn)
	return err
}

// close ends the connection. It may be called again.
func (s *socket) close() { _ = s.conn.Close() }
