package nbdsrv

import "encoding/binary"

// maxExtents is how many runs a BLOCK_STATUS reply tells of at most.
const maxExtents = (inlineMax - 4) / blockStatusEntry

// blockStatusSize is the buffer for a BLOCK_STATUS reply.
func blockStatusSize(r request) int {
	if r.flags&cmdFlagReqOne != 0 {
		return 4 + blockStatusEntry
	}
	return inlineMax
}

// extents writes the payload of a BLOCK_STATUS chunk: consecutive runs,
// neighbours of the same state in one, none past the request.
type extents struct {
	p     []byte
	n     int    // bytes of p in use
	room  int    // how many entries may follow
	left  int64  // bytes of the request that no run covers yet
	run   int64  // length of the run that may still grow
	state uint32 // its state
}

// add takes the device's next run and says whether it wants another.
func (e *extents) add(length int64, hole, zero bool) bool {
	length = min(length, e.left)
	if length <= 0 {
		return e.left > 0
	}
	state := uint32(0)
	if hole {
		state |= stateHole
	}
	if zero {
		state |= stateZero
	}
	if e.run > 0 && state != e.state {
		if e.put(); e.room == 0 {
			return false
		}
	}
	e.state = state
	e.run += length
	e.left -= length
	return e.left > 0
}

// put writes the current run, which ends.
func (e *extents) put() {
	binary.BigEndian.PutUint32(e.p[e.n:], uint32(e.run))
	binary.BigEndian.PutUint32(e.p[e.n+4:], e.state)
	e.n += blockStatusEntry
	e.room--
	e.run = 0
}

// blockStatus fills t's buffer with the payload of a BLOCK_STATUS chunk and
// returns its length.
func (c *conn) blockStatus(t *task) (n int, err error) {
	e := extents{p: t.buf.b[bufferFront:], n: 4, room: maxExtents, left: int64(t.r.length)}
	if t.r.flags&cmdFlagReqOne != 0 {
		e.room = 1
	}
	binary.BigEndian.PutUint32(e.p, baseAllocationID)
	err = c.dev.Status(int64(t.r.offset), e.left, e.add)
	switch {
	case err != nil:
		return 0, err
	case e.run > 0:
		e.put()
	case e.n == 4: // The device said nothing: then it is data.
		e.run = e.left
		e.put()
	}
	return e.n, nil
}

// settleStatus makes t's reply of the n bytes that blockStatus left.
func (c *conn) settleStatus(t *task, n int) {
	t.reply = t.buf.b[bufferFront-chunkHeaderLen : bufferFront+n]
	putChunkHeader(t.reply, chunkBlockStatus, t.r.cookie, uint32(n))
}
