package nbdsrv

import (
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
	events := int16(0)
	if _, ok := c.sock.(*net.TCPConn); ok {
		events = unix.POLLRDHUP
	}
	gone := false
	err := c.raw.Control(func(fd uintptr) {
		fds := []unix.PollFd{{Fd: int32(fd), Events: events}}
		n, err := unix.Poll(fds, 0)
		gone = err == nil && n > 0
	})
	return err != nil || gone // an error: we have closed it
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

// join adds c to the connections of its device, and returns those before it.
func (s *Server) join(c *conn) (before []*conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before = slices.Clone(c.shared.conns)
	c.shared.conns = append(c.shared.conns, c)
	return before
}

// leave undoes join.
func (s *Server) leave(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := c.shared
	i := slices.Index(d.conns, c)
	d.conns = slices.Delete(d.conns, i, i+1)
}
