package interop_test

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"testing"
)

// The numbers of the NBD protocol that client uses (doc/proto.md of the NBD project).
const (
	nbdMagic      = 0x4e42444d41474943
	optionMagic   = 0x49484156454f5054
	replyMagic    = 0x3e889045565a9
	requestMagic  = 0x25609513
	responseMagic = 0x67446698

	optGo       = 7
	repAck      = 1
	repInfo     = 3
	cmdRead     = 0
	cmdWrite    = 1
	cmdDisc     = 2
	cmdFlush    = 3
	cmdTrim     = 4
	cmdZero     = 6
	flagFUA     = 1 << 0
	fixedNoZero = 3
)

// client is a small NBD client with simple replies. It is a test's own so that
// no library stands between the test and the acknowledgements it counts. Safe
// for concurrent use: requests of several goroutines are in flight together.
type client struct {
	conn net.Conn
	size int64

	send sync.Mutex // guards writes to conn

	mu      sync.Mutex
	cookie  uint64
	waiting map[uint64]*call
	dead    error // why no more replies will come
}

// call is a request that waits for its reply.
type call struct {
	data []byte // of a read
	done chan error
}

// dial connects to an export of a server; the test's end closes the connection.
func dial(t *testing.T, socket, export string) *client {
	t.Helper()
	c, err := connect(socket, export)
	if err != nil {
		t.Fatalf("connect to %s: %v", socket, err)
	}
	t.Cleanup(func() { c.conn.Close() })
	return c
}

func connect(socket, export string) (*client, error) {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return nil, err
	}
	c := &client{conn: conn, waiting: make(map[uint64]*call)}
	r := bufio.NewReaderSize(conn, 256<<10)
	if err := c.negotiate(r, export); err != nil {
		conn.Close()
		return nil, err
	}
	go c.receive(r)
	return c, nil
}

func (c *client) negotiate(r io.Reader, export string) error {
	var hello struct {
		Magic, Option uint64
		Flags         uint16
	}
	if err := binary.Read(r, binary.BigEndian, &hello); err != nil {
		return err
	}
	if hello.Magic != nbdMagic || hello.Option != optionMagic {
		return errors.New("not an NBD server")
	}
	p := binary.BigEndian.AppendUint32(nil, fixedNoZero)
	p = binary.BigEndian.AppendUint64(p, optionMagic)
	p = binary.BigEndian.AppendUint32(p, optGo)
	p = binary.BigEndian.AppendUint32(p, uint32(4+len(export)+2))
	p = binary.BigEndian.AppendUint32(p, uint32(len(export)))
	p = append(p, export...)
	p = binary.BigEndian.AppendUint16(p, 0)
	if _, err := c.conn.Write(p); err != nil {
		return err
	}
	for {
		done, err := c.optionReply(r)
		if done || err != nil {
			return err
		}
	}
}

// optionReply reads one reply to GO; done when it was the acknowledgement.
func (c *client) optionReply(r io.Reader) (done bool, err error) {
	var head struct {
		Magic             uint64
		Option, Type, Len uint32
	}
	if err := binary.Read(r, binary.BigEndian, &head); err != nil {
		return false, err
	}
	if head.Magic != replyMagic || head.Len > 8192 {
		return false, fmt.Errorf("bad option reply %+v", head)
	}
	body := make([]byte, head.Len)
	if _, err := io.ReadFull(r, body); err != nil {
		return false, err
	}
	switch {
	case head.Type == repAck:
		return true, nil
	case head.Type == repInfo && len(body) == 12 && binary.BigEndian.Uint16(body) == 0:
		c.size = int64(binary.BigEndian.Uint64(body[2:]))
		return false, nil
	case head.Type == repInfo:
		return false, nil
	}
	return false, fmt.Errorf("the server refuses: type %#x %q", head.Type, body)
}

// receive hands replies to their callers until the connection ends.
func (c *client) receive(r io.Reader) {
	var err error
	for err == nil {
		err = c.reply(r)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dead = err
	for cookie, call := range c.waiting {
		delete(c.waiting, cookie)
		call.done <- err
	}
}

func (c *client) reply(r io.Reader) error {
	var head struct {
		Magic, Errno uint32
		Cookie       uint64
	}
	if err := binary.Read(r, binary.BigEndian, &head); err != nil {
		return err
	}
	if head.Magic != responseMagic {
		return fmt.Errorf("bad reply magic %#x", head.Magic)
	}
	c.mu.Lock()
	call := c.waiting[head.Cookie]
	delete(c.waiting, head.Cookie)
	c.mu.Unlock()
	if call == nil {
		return fmt.Errorf("reply to unknown cookie %d", head.Cookie)
	}
	if head.Errno != 0 {
		call.done <- syscall.Errno(head.Errno)
		return nil
	}
	_, err := io.ReadFull(r, call.data)
	call.done <- err
	return err
}

// start sends a request and returns the call to wait for.
func (c *client) start(cmd, flags uint16, off int64, length int, payload, into []byte) *call {
	call := &call{data: into, done: make(chan error, 1)}
	c.mu.Lock()
	if c.dead != nil {
		c.mu.Unlock()
		call.done <- c.dead
		return call
	}
	c.cookie++
	cookie := c.cookie
	c.waiting[cookie] = call
	c.mu.Unlock()

	p := make([]byte, 0, 28+len(payload))
	p = binary.BigEndian.AppendUint32(p, requestMagic)
	p = binary.BigEndian.AppendUint16(p, flags)
	p = binary.BigEndian.AppendUint16(p, cmd)
	p = binary.BigEndian.AppendUint64(p, cookie)
	p = binary.BigEndian.AppendUint64(p, uint64(off))
	p = binary.BigEndian.AppendUint32(p, uint32(length))
	c.send.Lock()
	_, err := c.conn.Write(append(p, payload...))
	c.send.Unlock()
	if err != nil {
		c.conn.Close() // receive ends every waiting call, this one too
	}
	return call
}

func (c *client) readAt(p []byte, off int64) error {
	return <-c.start(cmdRead, 0, off, len(p), nil, p).done
}

func (c *client) writeAt(p []byte, off int64, flags uint16) error {
	return <-c.start(cmdWrite, flags, off, len(p), p, nil).done
}

func (c *client) zero(off int64, n int) error {
	return <-c.start(cmdZero, 0, off, n, nil, nil).done
}

func (c *client) trim(off int64, n int) error {
	return <-c.start(cmdTrim, 0, off, n, nil, nil).done
}

func (c *client) flush() error { return <-c.start(cmdFlush, 0, 0, 0, nil, nil).done }

// close disconnects politely.
func (c *client) close() {
	c.start(cmdDisc, 0, 0, 0, nil, nil)
	c.conn.Close()
}

// readAll reads n bytes from off in pieces of 1 MiB.
func (c *client) readAll(off, n int64) ([]byte, error) {
	p := make([]byte, n)
	for at := int64(0); at < n; at += 1 << 20 {
		if err := c.readAt(p[at:min(at+1<<20, n)], off+at); err != nil {
			return nil, fmt.Errorf("read at %d: %w", off+at, err)
		}
	}
	return p, nil
}
