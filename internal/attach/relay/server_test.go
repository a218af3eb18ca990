package relay_test

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/fsximg/fsx/internal/nbdclient"
	"golang.org/x/sys/unix"
)

// What is on the wire, once more.
const (
	requestMagic = 0x25609513
	replyMagic   = 0x67446698

	read, write, leave, flush, trim, zeroes = 0, 1, 2, 3, 4, 6

	flags = 1 | nbdclient.SendFlush | nbdclient.SendFUA | nbdclient.SendTrim | nbdclient.SendWriteZeroes
)

var errAway = errors.New("no server")

// killable is a server that loses what was not flushed when it is killed.
type killable struct {
	mu      sync.Mutex
	durable []byte
	memory  []byte
	conns   map[net.Conn]bool
	away    bool
	flushes int
	left    int                                  // clients that said goodbye
	errno   func(kind uint16, off uint64) uint32 // what a request is answered; nil: 0
	flags   nbdclient.Flags
}

func newKillable(size int) *killable {
	return &killable{durable: make([]byte, size), memory: make([]byte, size), conns: map[net.Conn]bool{}, flags: flags}
}

// dial is a connection as Negotiate gives it.
func (s *killable) dial(context.Context) (*nbdclient.Socket, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.away {
		return nil, errAway
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fds[0]), "server")
	conn, err := net.FileConn(f)
	f.Close()
	if err != nil {
		return nil, err
	}
	s.conns[conn] = true
	go s.serve(conn)
	export := nbdclient.Export{Size: int64(len(s.durable)), Flags: s.flags, MinBlock: 1, PreferredBlock: 4096, MaxPayload: 32 << 20}
	return &nbdclient.Socket{Export: export, File: os.NewFile(uintptr(fds[1]), "client")}, nil
}

// kill ends the server as kill -9 does; start begins a new one.
func (s *killable) kill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.away = true
	for c := range s.conns {
		c.Close()
		delete(s.conns, c)
	}
	copy(s.memory, s.durable)
}

func (s *killable) start() {
	s.mu.Lock()
	s.away = false
	s.mu.Unlock()
}

func (s *killable) serve(conn net.Conn) {
	defer conn.Close()
	r := bufio.NewReader(conn)
	be := binary.BigEndian
	var h [28]byte
	for {
		if _, err := io.ReadFull(r, h[:]); err != nil || be.Uint32(h[:]) != requestMagic {
			return
		}
		kind, off, n := be.Uint16(h[6:]), be.Uint64(h[16:]), uint64(be.Uint32(h[24:]))
		var payload []byte
		if kind == write {
			payload = make([]byte, n)
			if _, err := io.ReadFull(r, payload); err != nil {
				return
			}
		}
		reply, ok := s.carryOut(conn, kind, off, n, payload)
		if !ok {
			return
		}
		be.PutUint32(reply, replyMagic)
		copy(reply[8:], h[8:16])
		if _, err := conn.Write(reply); err != nil {
			return
		}
	}
}

func (s *killable) carryOut(conn net.Conn, kind uint16, off, n uint64, payload []byte) ([]byte, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.conns[conn] {
		return nil, false // killed: nothing of this client comes in any more
	}
	reply := make([]byte, 16)
	if s.errno != nil {
		if errno := s.errno(kind, off); errno != 0 {
			binary.BigEndian.PutUint32(reply[4:], errno)
			return reply, true
		}
	}
	switch kind {
	case read:
		reply = append(reply, s.memory[off:off+n]...)
	case write:
		copy(s.memory[off:], payload)
	case trim, zeroes:
		clear(s.memory[off : off+n])
	case flush:
		s.flushes++
		copy(s.durable, s.memory)
	case leave:
		s.left++
		return nil, false
	}
	return reply, true
}

func (s *killable) set(f func(kind uint16, off uint64) uint32) {
	s.mu.Lock()
	s.errno = f
	s.mu.Unlock()
}

// kernel is the kernel's end of a lane.
type kernel struct {
	t    testing.TB
	conn net.Conn
	send sync.Mutex
	mu   sync.Mutex
	next uint64
	wait map[uint64]*answer
}

type answer struct {
	into  []byte
	errno uint32
	done  chan struct{}
}

func newKernel(t testing.TB, f *os.File) *kernel {
	conn, err := net.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	k := &kernel{t: t, conn: conn, wait: map[uint64]*answer{}}
	t.Cleanup(func() { conn.Close() })
	go k.receive()
	return k
}

func (k *kernel) receive() {
	r := bufio.NewReader(k.conn)
	var h [16]byte
	for {
		if _, err := io.ReadFull(r, h[:]); err != nil {
			return
		}
		k.mu.Lock()
		a := k.wait[binary.BigEndian.Uint64(h[8:])]
		delete(k.wait, binary.BigEndian.Uint64(h[8:]))
		k.mu.Unlock()
		if a == nil || binary.BigEndian.Uint32(h[:]) != replyMagic {
			k.t.Errorf("an answer to nothing: % x", h)
			return
		}
		a.errno = binary.BigEndian.Uint32(h[4:])
		if a.errno == 0 {
			if _, err := io.ReadFull(r, a.into); err != nil {
				return
			}
		}
		close(a.done)
	}
}

// begin sends a request. into is filled by a read, payload is of a write.
func (k *kernel) begin(kind uint16, off, n int, into, payload []byte) *answer {
	a := &answer{into: into, done: make(chan struct{})}
	k.mu.Lock()
	k.next++
	cookie := k.next
	k.wait[cookie] = a
	k.mu.Unlock()
	b := make([]byte, 28, 28+len(payload))
	be := binary.BigEndian
	be.PutUint32(b, requestMagic)
	be.PutUint16(b[6:], kind)
	be.PutUint64(b[8:], cookie)
	be.PutUint64(b[16:], uint64(off))
	be.PutUint32(b[24:], uint32(n))
	k.send.Lock()
	defer k.send.Unlock()
	if _, err := k.conn.Write(append(b, payload...)); err != nil {
		k.t.Errorf("write to the relay: %v", err)
	}
	return a
}

func (k *kernel) do(kind uint16, off, n int, into, payload []byte) uint32 {
	a := k.begin(kind, off, n, into, payload)
	select {
	case <-a.done:
		return a.errno
	case <-time.After(30 * time.Second):
		k.t.Errorf("request %d at %d: no answer", kind, off)
		return ^uint32(0)
	}
}
