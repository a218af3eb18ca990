package nbdsrv

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"syscall"
)

// statusReplyMax bounds the reply to a BLOCK_STATUS, all of its chunks and
// headers together: its buffer has inlineMax bytes, and the first header lies
// in front of them.
func (m replyMode) statusReplyMax() int { return m.chunkLen() + inlineMax }

// statusHead is what stands before the descriptors of a chunk: its header, the
// context's id, and with extended headers their count.
func (m replyMode) statusHead() int {
	if m == extendedHeaders {
		return extendedLen + 8
	}
	return chunkHeaderLen + 4
}

// statusEntry is the length of a descriptor.
func (m replyMode) statusEntry() int {
	if m == extendedHeaders {
		return 16
	}
	return 8
}

var (
	errContextGone = fmt.Errorf("device has no such context: %w", syscall.EINVAL)
	errNoStatus    = errors.New("device said nothing of the range")
)

// blockStatusSize is the buffer for a BLOCK_STATUS reply.
func (c *conn) blockStatusSize(r request) int {
	if r.flags&cmdFlagReqOne != 0 {
		return len(c.contexts)*(c.mode.statusHead()+c.mode.statusEntry()) - c.mode.chunkLen()
	}
	return inlineMax
}

// statusReply is where in t's buffer the reply to a BLOCK_STATUS lies.
func (m replyMode) statusReply(t *task) []byte {
	return t.buf.b[bufferFront-m.chunkLen():]
}

// extents writes the descriptors of a BLOCK_STATUS chunk: consecutive runs,
// neighbours of the same state in one, none past the request.
type extents struct {
	p     []byte
	wide  bool   // lengths and flags have 64 bits
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
	if e.wide {
		binary.BigEndian.PutUint64(e.p[e.n:], uint64(e.run))
		binary.BigEndian.PutUint64(e.p[e.n+8:], uint64(e.state))
		e.n += 16
	} else {
		binary.BigEndian.PutUint32(e.p[e.n:], uint32(e.run))
		binary.BigEndian.PutUint32(e.p[e.n+4:], e.state)
		e.n += 8
	}
	e.room--
	e.run = 0
}

// narrow takes the payload of a BLOCK_STATUS: the effect length, and the ids of
// the contexts to tell of, each selected and none twice
// ("NBD_FLAG_BLOCK_STATUS_PAYLOAD"). What it has not consumed is left in
// r.payload.
func (c *conn) narrow(r request) (request, *failure) {
	n := int(r.payload)
	if n < 12 || n > 8+4*maxContexts || n%4 != 0 {
		return r, failSubset
	}
	p := c.batch.in[c.r : c.r+n] // No longer than inlineMax, so it is all there.
	c.r += n
	r.payload, r.length = 0, binary.BigEndian.Uint64(p)
	for p = p[8:]; len(p) > 0; p = p[4:] {
		bit := c.contextBit(binary.BigEndian.Uint32(p))
		if bit == 0 || r.subset&bit != 0 {
			return r, failSubset
		}
		r.subset |= bit
	}
	return r, nil
}

// contextBit is the bit of the selected context with that id, or 0.
func (c *conn) contextBit(id uint32) uint16 {
	for i, m := range c.contexts {
		if m.id == id {
			return 1 << i
		}
	}
	return 0
}

// blockStatus writes the reply to a BLOCK_STATUS, one chunk for each context
// asked for, and returns its length. A context may use its share of the room:
// what those before it left, divided among it and those that follow.
func (c *conn) blockStatus(t *task) (n int, err error) {
	p := c.mode.statusReply(t)
	subset := t.r.subset
	if subset == 0 {
		subset = 1<<len(c.contexts) - 1
	}
	for i, m := range c.contexts {
		if subset&(1<<i) == 0 {
			continue
		}
		rest := bits.OnesCount16(subset >> i)
		room := ((c.mode.statusReplyMax()-n)/rest - c.mode.statusHead()) / c.mode.statusEntry()
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
	extended := c.mode == extendedHeaders
	head := c.mode.statusHead()
	e := extents{p: p, wide: extended, n: head, room: room, left: int64(r.length)}
	if err := c.status(m, r, &e); err != nil {
		return 0, err
	}
	if e.run > 0 {
		e.put()
	}
	typ := chunkBlockStatus
	if extended {
		typ = chunkBlockStatusExt
		binary.BigEndian.PutUint32(p[head-4:], uint32((e.n-head)/c.mode.statusEntry()))
	}
	header := c.mode.putChunk(p, flags, typ, r, e.n-c.mode.chunkLen())
	binary.BigEndian.PutUint32(p[header:], m.id)
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
