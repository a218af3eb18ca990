package relay

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/pojntfx/go-nbd/pkg/protocol"
	"golang.org/x/sys/unix"
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

	bufferSize = 128 << 10
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

// socket is a stream socket with buffers. Its calls block in the kernel, in a
// thread: that answers sooner than going through the poller, and there are two of
// them for each device. One goroutine may read and one may write at a time.
type socket struct {
	file *os.File
	fd   int
	in   *bufio.Reader
	out  *bufio.Writer
}

// newSocket takes the file over.
func newSocket(f *os.File) (*socket, error) {
	s := &socket{file: f, fd: int(f.Fd())}
	if err := unix.SetNonblock(s.fd, false); err != nil {
		return nil, errors.Join(fmt.Errorf("socket of a device: %w", err), f.Close())
	}
	s.in = bufio.NewReaderSize(readerFunc(s.read), bufferSize)
	s.out = bufio.NewWriterSize(writerFunc(s.write), bufferSize)
	return s, nil
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func (s *socket) read(p []byte) (int, error) {
	for {
		n, err := unix.Read(s.fd, p)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, err
		case n == 0:
			return 0, io.EOF
		default:
			return n, nil
		}
	}
}

func (s *socket) write(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		n, err := unix.Write(s.fd, p[done:]) // EPIPE for who has gone: Go ignores the signal
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return done, err
		}
		done += n
	}
	return done, nil
}

// shutdown wakes who reads or writes; the descriptor stays.
func (s *socket) shutdown() { _ = unix.Shutdown(s.fd, unix.SHUT_RDWR) }
