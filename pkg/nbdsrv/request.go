package nbdsrv

import (
	"math"

	"github.com/pojntfx/go-nbd/pkg/protocol"
)

// allowedFlags is the table of the flags each command takes. FUA is accepted
// by all ("Command flags"); where nothing is written it says nothing.
func allowedFlags(mode replyMode) (t [cmdBlockStatus + 1]uint16) {
	for i := range t {
		t[i] = cmdFlagFUA
	}
	if mode != simpleReplies {
		t[cmdRead] |= cmdFlagDF
	}
	if mode == extendedHeaders {
		t[cmdWrite] |= cmdFlagPayloadLen
		t[cmdBlockStatus] |= cmdFlagPayloadLen
	}
	t[cmdWriteZeroes] |= cmdFlagNoHole | cmdFlagFastZero
	t[cmdBlockStatus] |= cmdFlagReqOne
	return t
}

// check validates a request whose length is its effect length. It is the one
// place that does: behind it, ranges lie inside the device and flags fit their
// command.
func (c *conn) check(r request) *failure {
	if r.cmd > cmdBlockStatus || r.cmd == cmdDisc {
		return failCommand
	}
	if r.changes() && c.readOnly {
		return failReadOnly
	}
	if r.flags&^c.allowed[r.cmd] != 0 {
		return failFlags
	}
	if c.mode == extendedHeaders && r.cmd == cmdWrite && r.flags&cmdFlagPayloadLen == 0 {
		return failNoPayload
	}
	if r.cmd == cmdFlush {
		if r.offset != 0 || r.length != 0 {
			return failNonZero
		}
		return nil
	}
	if (r.cmd == cmdRead || r.cmd == cmdWrite) && r.length > MaxPayload {
		return failTooLarge
	}
	// No sum of wire values is formed, so nothing can wrap.
	size := uint64(max(c.dev.Size(), 0))
	if r.offset > size || r.length > size-r.offset || r.offset > math.MaxInt64 {
		if r.cmd == cmdWrite || r.cmd == cmdWriteZeroes {
			return failNoSpace
		}
		return failPastEnd
	}
	if r.cmd == cmdBlockStatus {
		if len(c.contexts) == 0 {
			return failNoContext
		}
		if r.length == 0 {
			return failZeroLength
		}
	}
	return nil
}

// serveBatch serves every request that was received whole. What it leaves
// behind is the beginning of one.
func (c *conn) serveBatch() error {
	for c.w-c.r >= c.requestLen {
		r, err := c.decode(c.batch.in[c.r:])
		if err != nil {
			return err
		}
		if r.payload <= inlineMax && c.w-c.r < c.requestLen+int(r.payload) {
			return nil
		}
		if c.deserted.Load() || c.dead.Load() {
			return errGone
		}
		c.r += c.requestLen
		c.spin.requests++
		if r.cmd == cmdDisc {
			return errDisconnect
		}
		c.large = r.payload > inlineMax
		if err := c.serve(r); err != nil {
			return err
		}
	}
	return nil
}

// decode reads the header of a request. A compact one has at most 4 GiB of
// payload, which is skipped if it is refused; an extended one could announce
// more than any time can skip, so the limit is also the connection's
// ("Request message": hard disconnect).
func (c *conn) decode(p []byte) (r request, err error) {
	if c.mode != extendedHeaders {
		r, ok := decodeRequest(p)
		if !ok {
			err = violated("bad request magic, want %#x", protocol.TRANSMISSION_MAGIC_REQUEST)
		}
		return r, err
	}
	r, ok := decodeExtended(p)
	switch {
	case !ok:
		err = violated("bad request magic, want %#x", extendedRequestMagic)
	case r.payload > MaxPayload:
		err = violated("request with %d bytes of payload", r.payload)
	}
	return r, err
}

// serve carries out one request, or hands it on. Its error ends the
// connection. The payload of a refused request is skipped.
func (c *conn) serve(r request) error {
	var f *failure
	if r.cmd == cmdBlockStatus && r.flags&cmdFlagPayloadLen != 0 && c.mode == extendedHeaders {
		r, f = c.narrow(r)
	}
	if f == nil {
		f = c.check(r)
	}
	if f != nil {
		if err := c.skip(int64(r.payload)); err != nil {
			return err
		}
		c.refused(r, f)
		return c.replyFailure(r, f)
	}
	if r.length == 0 && r.cmd != cmdFlush {
		return c.replyEmpty(r)
	}
	switch r.cmd {
	case cmdRead:
		if r.length <= inlineMax {
			return c.readInline(r)
		}
		return c.readLarge(r)
	case cmdWrite:
		if r.length <= inlineMax {
			return c.writeInline(r)
		}
		return c.writeLarge(r)
	case cmdBlockStatus:
		return c.dispatch(r, c.blockStatusSize(r))
	default:
		return c.dispatch(r, 0)
	}
}

// readInline serves a READ into the send buffer.
func (c *conn) readInline(r request) error {
	n, hdr := int(r.length), c.readHeaderLen()
	if err := c.makeRoom(hdr + n); err != nil {
		return err
	}
	out := c.batch.out[c.pos:]
	// The slack behind the payload is not in use yet, or is out's own.
	err := c.dev.ReadAt(out[hdr:hdr+n:hdr+n+ReadSlack], int64(r.offset), true)
	switch {
	case err == nil:
		c.putReadHeader(out, r)
		c.pos += hdr + n
		c.tally.add(r, uint64(n))
		return nil
	case wouldBlock(err):
		return c.dispatch(r, n)
	default:
		return c.replyFailure(r, c.deviceFailed(err, r))
	}
}

// readLarge serves a READ into a buffer of its own, which is sent from there.
func (c *conn) readLarge(r request) error {
	t, err := c.admit(r, int(r.length))
	if err != nil {
		return err
	}
	p := t.buf.payload(int(r.length))
	if err := c.dev.ReadAt(p, int64(r.offset), true); wouldBlock(err) {
		c.enqueue(t)
		return nil
	} else {
		c.settle(t, err)
	}
	return c.flushWith(t)
}

// writeNow writes if that takes no waiting, neither for the device nor for a
// change of the same bytes that another connection has under way.
func (c *conn) writeNow(p []byte, r request) error {
	if c.shared.contested(c, r) {
		return ErrWouldBlock
	}
	return c.dev.WriteAt(p, int64(r.offset), true)
}

// writeInline serves a WRITE whose payload lies in the receive buffer.
func (c *conn) writeInline(r request) error {
	p := c.batch.in[c.r : c.r+int(r.length)]
	c.r += len(p)
	err := c.writeNow(p, r)
	switch {
	case err == nil && r.flags&cmdFlagFUA == 0:
		return c.replyEmpty(r)
	case err == nil:
		return c.dispatchSync(r)
	case wouldBlock(err):
		t, err := c.admit(r, len(p))
		if err != nil {
			return err
		}
		copy(t.buf.payload(len(p)), p)
		c.enqueue(t)
		return nil
	default:
		return c.replyFailure(r, c.deviceFailed(err, r))
	}
}

// writeLarge serves a WRITE whose payload is received into its own buffer.
func (c *conn) writeLarge(r request) error {
	t, err := c.admit(r, int(r.length))
	if err != nil {
		return err
	}
	p := t.buf.payload(int(r.length))
	if err := c.receive(p); err != nil {
		c.drop(t)
		return err
	}
	err = c.writeNow(p, r)
	switch {
	case wouldBlock(err):
		c.enqueue(t)
		return nil
	case err == nil && r.flags&cmdFlagFUA != 0:
		c.enqueueSync(t)
		return nil
	case err != nil:
		err = c.replyFailure(r, c.deviceFailed(err, r))
	default:
		err = c.replyEmpty(r)
	}
	c.drop(t)
	return err
}
