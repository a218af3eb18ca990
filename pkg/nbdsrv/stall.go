package nbdsrv

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"
)

const (
	// staleAfter is how long the receiving goroutine may be held up before
	// it asks whether its client is still there.
	staleAfter = time.Second
	// piece is how much is sent, or received of a payload, before the clock
	// that tells a stall is set back.
	piece = 4 << 20
)

var (
	errGone    = errors.New("client went away while its requests waited")
	errStalled = errors.New("client neither takes replies nor sends its data while others wait for memory")
)

// recheck is called after the receiving goroutine was held up since begin.
// What it still holds may be old: if the client has closed the connection
// meanwhile, it has perhaps sent the same requests elsewhere, and newer ones
// after them. They must not be carried out then.
func (c *conn) recheck(begin time.Time) error { return c.recheckAfter(time.Since(begin)) }

// recheckAfter is recheck of a goroutine that was held up for so long.
func (c *conn) recheckAfter(held time.Duration) error {
	if c.deserted.Load() || held >= staleAfter && c.gone() {
		return errGone
	}
	return nil
}

// borrow takes size bytes of the server's budget, and waits for them if need
// be. Memory that only waits for a client to take its replies, or to send what
// it has announced, is then taken back after StallTimeout, by cutting that
// client off.
func (c *conn) borrow(size int64) error { return c.await(c.srv.memory, size, (*conn).borrows) }

// await takes size of what the connections that hold some of it share, and cuts
// those of them that stall.
func (c *conn) await(shared *semaphore.Weighted, size int64, holds func(*conn) bool) error {
	for {
		ctx, cancel := context.WithTimeout(c.ctx, c.srv.cfg.StallTimeout)
		err := shared.Acquire(ctx, size)
		cancel()
		if err == nil || c.ctx.Err() != nil {
			return err
		}
		c.srv.cutStalled(holds)
	}
}

// cutStalled cuts the connections that hold what others wait for and whose
// current send, or payload, has made no progress for StallTimeout.
func (s *Server) cutStalled(holds func(*conn) bool) {
	limit := time.Now().Add(-s.cfg.StallTimeout).UnixNano()
	var stalled []*conn
	s.mu.Lock()
	for c := range s.conns {
		if (before(&c.sendingSince, limit) || before(&c.receivingSince, limit)) && holds(c) {
			stalled = append(stalled, c)
		}
	}
	s.mu.Unlock()
	for _, c := range stalled {
		c.cut(errStalled)
	}
	for _, c := range stalled { // now that others get on, whatever the log does
		if unlogged, ok := s.complaints.admit(); ok {
			c.log.Warn("connection cut", "error", errStalled, "unlogged", unlogged)
		}
	}
}

// before says whether something is under way since before limit.
func before(since *atomic.Int64, limit int64) bool {
	at := since.Load()
	return at != 0 && at < limit
}

// borrows says whether the connection holds some of the server's budget.
func (c *conn) borrows() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.bytes > c.reserved
}

// write sends the replies of list behind first: in one call if they are few
// bytes, in pieces if they are many, so that progress can be told from a
// stall. The caller holds wmu.
func (c *conn) write(first []byte, list taskList) error {
	total := len(first)
	for t := list.head; t != nil; t = t.next {
		total += len(t.reply)
	}
	if total == 0 {
		return nil
	}
	defer c.sendingSince.Store(0)
	c.sendingSince.Store(time.Now().UnixNano())
	if total == len(first) {
		_, err := c.nc.Write(first)
		return err
	}
	if total <= piece && c.gate != nil {
		return c.writeRecords(first, list)
	}
	if total <= piece {
		return c.writeVector(first, list)
	}
	err := c.writePieces(first)
	for t := list.head; t != nil && err == nil; t = t.next {
		err = c.writePieces(t.reply)
	}
	return err
}

func (c *conn) writeVector(first []byte, list taskList) error {
	c.iovs = c.iovs[:0]
	if len(first) > 0 {
		c.iovs = append(c.iovs, first)
	}
	for t := list.head; t != nil; t = t.next {
		if len(t.reply) > 0 {
			c.iovs = append(c.iovs, t.reply)
		}
	}
	if len(c.iovs) == 1 {
		_, err := c.nc.Write(c.iovs[0])
		return err
	}
	c.iov = c.iovs
	_, err := c.iov.WriteTo(c.nc)
	return err
}

func (c *conn) writePieces(p []byte) error {
	for len(p) > 0 {
		n, err := c.nc.Write(p[:min(len(p), piece)])
		if err != nil {
			return err
		}
		c.sendingSince.Store(time.Now().UnixNano())
		p = p[n:]
	}
	return nil
}
