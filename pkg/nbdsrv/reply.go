package nbdsrv

import (
	"encoding/binary"
	"errors"
	"net"
	"time"
)

// wouldBlock says whether a device asks for a worker.
func wouldBlock(err error) bool {
	return err == ErrWouldBlock || (err != nil && errors.Is(err, ErrWouldBlock))
}

// readHeaderLen is what stands before a READ's payload.
func (c *conn) readHeaderLen() int {
	if c.mode == simpleReplies {
		return simpleReplyLen
	}
	return c.mode.chunkLen() + 8
}

// putReadHeader writes the header of a successful READ to p. It is called
// only once the payload is certain: nothing can be taken back.
func (c *conn) putReadHeader(p []byte, r request) {
	if c.mode == simpleReplies {
		putSimpleReply(p, r.cookie, 0)
		return
	}
	n := c.mode.putChunk(p, chunkFlagDone, chunkOffsetData, r, int(r.length)+8)
	binary.BigEndian.PutUint64(p[n:], r.offset)
}

// putEmpty writes a success without payload to p and returns its length. Once
// structured replies are negotiated a READ has no other kind, whatever its
// length, and with extended headers nothing has.
func (c *conn) putEmpty(p []byte, r request) int {
	if c.mode == extendedHeaders || (c.mode == structuredReplies && r.cmd == cmdRead) {
		return c.mode.putChunk(p, chunkFlagDone, chunkNone, r, 0)
	}
	return putSimpleReply(p, r.cookie, 0)
}

// putFailure writes a failure to p and returns its length.
func (c *conn) putFailure(p []byte, r request, f *failure) int {
	if c.mode != simpleReplies {
		return c.mode.putErrorChunk(p, r, f.errno, f.text, f.offset)
	}
	return putSimpleReply(p, r.cookie, f.errno)
}

// replyEmpty queues a success without payload.
func (c *conn) replyEmpty(r request) error {
	if err := c.makeRoom(extendedLen); err != nil {
		return err
	}
	c.pos += c.putEmpty(c.batch.out[c.pos:], r)
	c.tally.add(r, uint64(r.length))
	return nil
}

// replyFailure queues a failure.
func (c *conn) replyFailure(r request, f *failure) error {
	if err := c.makeRoom(taskReplyLen); err != nil {
		return err
	}
	c.pos += c.putFailure(c.batch.out[c.pos:c.pos+taskReplyLen], r, f)
	c.tally.add(r, 0)
	c.counts.failed(r, f.errno)
	return nil
}

// makeRoom sees to n free bytes in the send buffer (and the slack behind).
func (c *conn) makeRoom(n int) error {
	if c.pos+n > sendSize {
		if err := c.flush(); err != nil {
			return err
		}
	}
	c.batch.queued(c.pos + n)
	return nil
}

// flush sends the queued replies, and what workers have completed.
func (c *conn) flush() error {
	if c.pos == 0 {
		return nil
	}
	return c.flushWith(nil)
}

// flushWith sends the queued replies and then t, if there is one.
func (c *conn) flushWith(t *task) error {
	begin := time.Now()
	c.wmu.Lock()
	list := c.takeDone(t)
	c.send(c.batch.out[:c.pos], list)
	c.wmu.Unlock()
	c.pos = 0
	now := time.Now()
	c.pump()
	if c.dead.Load() {
		return net.ErrClosed
	}
	c.tally.moveTo(c.counts, now.Sub(c.arrived))
	return c.recheckAfter(now.Sub(begin))
}

// pump sends what workers have completed, unless somebody is sending already:
// that one looks again after unlocking, so nothing is left behind.
func (c *conn) pump() {
	for c.hasDone() && c.wmu.TryLock() {
		c.send(nil, c.takeDone(nil))
		c.wmu.Unlock()
	}
}

// send writes first and the replies of list to the socket and forgets the
// list's tasks. The caller holds wmu. A failure cuts the connection.
func (c *conn) send(first []byte, list taskList) {
	if !c.dead.Load() {
		if err := c.write(first, list); err != nil {
			c.cut(err)
		} else {
			c.countSent(list)
		}
	}
	c.forget(list)
}
