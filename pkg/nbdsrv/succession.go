package nbdsrv

import (
	"maps"
	"net"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// gone says whether the client has closed the connection, whatever it has sent
// before that and we have not yet read. On TCP a client that is gone looks like
// one that has only said its last word; a Unix socket can tell. Where the
// transport is no plain socket it is false.
func (c *conn) gone() bool {
	if c.raw == nil {
		return false
	}
	gone := false
	err := c.raw.Control(func(fd uintptr) {
		fds := []unix.PollFd{{Fd: int32(fd), Events: c.hangup()}}
		n, err := unix.Poll(fds, 0)
		gone = err == nil && n > 0
	})
	return err != nil || gone // an error: we have closed it
}

// hangup is what to ask poll(2) or epoll(7) for, beside what they always report,
// to be told that the client closed the connection.
func (c *conn) hangup() int16 {
	if _, ok := c.sock.(*net.TCPConn); ok {
		return unix.POLLRDHUP
	}
	return 0
}

// siblings are the connections to one device that transmit. The kernel tells which
// of them were closed by their clients, so that a new connection need not look at
// thousands. Server.mu guards them.
type siblings struct {
	conns map[uint64]*conn // by id
	cut   map[uint64]*conn // of these, those whose sockets we closed: epoll has forgotten them
	poll  int              // epoll instance that reports hang-ups; -1: there is none
}

func newSiblings() siblings {
	poll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		poll = -1 // out of descriptors
	}
	return siblings{conns: map[uint64]*conn{}, cut: map[uint64]*conn{}, poll: poll}
}

func (b *siblings) close() {
	if b.poll >= 0 {
		_ = unix.Close(b.poll)
	}
}

func (b *siblings) add(c *conn) {
	b.conns[c.id] = c
	if c.raw == nil || b.poll < 0 {
		return
	}
	e := unix.EpollEvent{Events: uint32(c.hangup()), Fd: int32(c.id), Pad: int32(c.id >> 32)}
	ctlErr := unix.EBADF
	err := c.raw.Control(func(fd uintptr) {
		ctlErr, _ = unix.EpollCtl(b.poll, unix.EPOLL_CTL_ADD, int(fd), &e).(unix.Errno)
	})
	if err != nil || ctlErr != 0 {
		b.close() // whom it does not know it cannot report: look at all, from now on
		b.poll = -1
	}
}

// remove undoes add. A socket that is closed has left the epoll instance by itself.
func (b *siblings) remove(c *conn) {
	delete(b.conns, c.id)
	delete(b.cut, c.id)
	if c.raw != nil && b.poll >= 0 {
		_ = c.raw.Control(func(fd uintptr) { _ = unix.EpollCtl(b.poll, unix.EPOLL_CTL_DEL, int(fd), nil) })
	}
}

// suspects are connections among which are all whose client is gone.
func (b *siblings) suspects() (l []*conn) {
	if b.poll < 0 {
		return slices.Collect(maps.Values(b.conns))
	}
	l = slices.Collect(maps.Values(b.cut))
	for room := 16; ; room = len(b.conns) + 1 {
		events := make([]unix.EpollEvent, room)
		n, err := unix.EpollWait(b.poll, events, 0)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return slices.Collect(maps.Values(b.conns))
		case n == room && room <= len(b.conns):
			continue // there may be more
		}
		for _, e := range events[:n] {
			if c := b.conns[uint64(uint32(e.Fd))|uint64(uint32(e.Pad))<<32]; c != nil {
				l = append(l, c)
			}
		}
		return l
	}
}

// succeed is called before c serves its first request. A client that closed one
// connection and opened another may send on the new one what the old one left
// unanswered, and something newer after it. What still lies in the old socket
// must not come after that, so c waits until each connection to its device whose
// client is gone has taken all of it off the socket: it is carried out then, or
// stands before c's changes in the fence. One that takes longer than staleAfter
// carries out no more of it.
func (c *conn) succeed() {
	timer := time.NewTimer(staleAfter)
	defer timer.Stop()
	for _, old := range c.srv.join(c) {
		if !old.gone() {
			continue
		}
		select {
		case <-old.received:
			continue
		case <-timer.C:
			timer.Reset(0) // for those that follow
		case <-c.ctx.Done():
			return
		}
		old.deserted.Store(true)
	}
}

// join adds c to the connections of its device, and returns those before it whose
// client may be gone.
func (s *Server) join(c *conn) []*conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := c.shared.siblings.suspects()
	c.shared.siblings.add(c)
	c.joined = true
	return before
}

// closes is called before the socket of c is closed: what was read from it may still
// be carried out.
func (s *Server) closes(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.joined {
		c.shared.siblings.cut[c.id] = c
	}
}

// leave undoes join.
func (s *Server) leave(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.shared.siblings.remove(c)
	c.joined = false
}
