package nbdsrv

import (
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"
)

// statusReplyMax bounds the reply to a BLOCK_STATUS, all of its chunks and
// headers together: its buffer has inlineMax bytes, and the first header lies
// in front of them.
const statusReplyMax = chunkHeaderLen + inlineMax

var (
	errContextGone = fmt.Errorf("device has no such context: %w", syscall.EINVAL)
	errNoStatus    = errors.New("device said nothing of the range")
)

// blockStatusSize is the buffer for a BLOCK_STATUS reply.
func (c *conn) blockStatusSize(r request) int {
	if r.flags&cmdFlagReqOne != 0 {
		return len(c.contexts)*(statusChunkLen+blockStatusEntry) - chunkHeaderLen
	}
	return inlineMax
}

// statusReply is where in t's buffer the reply to a BLOCK_STATUS lies.
func statusReply(t *task) []byte {
	return t.buf.b[bufferFront-chunkHeaderLen:]
}

// extents writes the descriptors of a BLOCK_STATUS chunk: consecutive runs,
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
func (e *extents) add(length int64, state uint32) bool {
	length = min(length, e.left)
	if length <= 0 {
		return e.left > 0
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

// blockStatus writes the reply to a BLOCK_STATUS, one chunk for each selected
// context, and returns its length. A context may use its share of the room:
// what those before it left, divided among it and those that follow.
func (c *conn) blockStatus(t *task) (n int, err error) {
	p := statusReply(t)
	for i, m := range c.contexts {
		rest := len(c.contexts) - i
		room := ((statusReplyMax-n)/rest - statusChunkLen) / blockStatusEntry
		flags := uint16(0)
		if rest == 1 {
			flags = chunkFlagDone
		}
		if t.r.flags&cmdFlagReqOne != 0 {
			room = 1
		}
		size, err := c.statusChunk(p[n:], m, t.r, flags, room)
		if err != nil {
			return 0, fmt.Errorf("context %q: %w", m.name, err)
		}
		n += size
	}
	return n, nil
}

// statusChunk writes the chunk of one context, of at most room extents, to p
// and returns its length.
func (c *conn) statusChunk(p []byte, m metaContext, r request, flags uint16, room int) (n int, err error) {
	e := extents{p: p, n: statusChunkLen, room: room, left: int64(r.length)}
	if err := c.status(m, r, &e); err != nil {
		return 0, err
	}
	if e.run > 0 {
		e.put()
	}
	putChunkHeader(p, flags, chunkBlockStatus, r.cookie, uint32(e.n-chunkHeaderLen))
	binary.BigEndian.PutUint32(p[chunkHeaderLen:], m.id)
	return e.n, nil
}

// status asks the device for the runs of one context. Of base:allocation it
// may say nothing: then it is data, which is always safe to report. What is
// safe in other contexts only the device knows.
func (c *conn) status(m metaContext, r request, e *extents) error {
	off, length := int64(r.offset), int64(r.length)
	if m.name == baseAllocation {
		err := c.dev.Status(off, length, func(n int64, hole, zero bool) bool {
			return e.add(n, allocationState(hole, zero))
		})
		if e.left == length {
			e.add(length, 0)
		}
		return err
	}
	// The export may have been opened again since the context was selected.
	dev, ok := c.dev.(Contexts)
	if !ok {
		return errContextGone
	}
	err := dev.StatusIn(m.name, off, length, e.add)
	if err == nil && e.left == length {
		return errNoStatus
	}
	return err
}

// allocationState is a state of base:allocation.
func allocationState(hole, zero bool) (state uint32) {
	if hole {
		state |= stateHole
	}
	if zero {
		state |= stateZero
	}
	return state
}
