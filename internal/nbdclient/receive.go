package nbdclient

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"io"
	"slices"

	"github.com/pojntfx/go-nbd/pkg/protocol"
)

const (
	maxStatusReply = 8 << 20 // bytes of a BLOCK_STATUS chunk
	maxErrorReply  = 8 << 10 // bytes of an error chunk: two numbers and a text of 4096
)

// coverage is which parts of a READ have arrived.
type coverage []part

// part is some bytes of the export.
type part struct{ off, n int64 }

// complete is whether the parts are exactly [off, off+n), once each.
func (c coverage) complete(off, n int64) bool {
	slices.SortFunc(c, func(a, b part) int { return cmp.Compare(a.off, b.off) })
	end := off + n
	for _, r := range c {
		if r.off != off {
			return false
		}
		off += r.n
	}
	return off == end
}

// receive hands replies to their calls until the connection ends.
func (c *Client) receive() error {
	for {
		var h [4]byte
		if _, err := io.ReadFull(c.r, h[:]); err != nil {
			return fmt.Errorf("nbd server closed the connection: %w", err)
		}
		var err error
		switch magic := binary.BigEndian.Uint32(h[:]); {
		case magic == protocol.TRANSMISSION_MAGIC_REPLY:
			err = c.simpleReply()
		case magic == magicStructuredReply && c.structured:
			err = c.chunk()
		default:
			err = fmt.Errorf("%w: reply begins with %08x", ErrProtocol, magic)
		}
		if err != nil {
			return err
		}
	}
}

func (c *Client) call(cookie uint64) (*call, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := c.mu.calls[cookie]
	if k == nil {
		return nil, fmt.Errorf("%w: reply to no request", ErrProtocol)
	}
	return k, nil
}

func (c *Client) finish(cookie uint64, k *call) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.calls[cookie] == k {
		delete(c.mu.calls, cookie)
		close(k.done)
	}
}

func (c *Client) simpleReply() error {
	var b [12]byte
	if _, err := io.ReadFull(c.r, b[:]); err != nil {
		return err
	}
	code, cookie := binary.BigEndian.Uint32(b[0:]), binary.BigEndian.Uint64(b[4:])
	k, err := c.call(cookie)
	if err != nil {
		return err
	}
	switch {
	case c.structured && (k.command == cmdRead || k.command == cmdBlockStatus):
		return fmt.Errorf("%w: simple reply to a read", ErrProtocol)
	case code != 0:
		k.err = errno(code)
	case k.command == cmdRead:
		if _, err := io.ReadFull(c.r, k.buf); err != nil {
			return err
		}
	}
	c.finish(cookie, k)
	return nil
}

// chunk takes one chunk of a structured reply.
func (c *Client) chunk() error {
	var b [16]byte
	if _, err := io.ReadFull(c.r, b[:]); err != nil {
		return err
	}
	be := binary.BigEndian
	flags, kind, cookie, n := be.Uint16(b[0:]), be.Uint16(b[2:]), be.Uint64(b[4:]), be.Uint32(b[12:])
	k, err := c.call(cookie)
	if err != nil {
		return err
	}
	switch {
	case kind == chunkNone:
		if n != 0 || flags&chunkDone == 0 {
			err = fmt.Errorf("%w: empty chunk that is not one", ErrProtocol)
		}
	case kind == chunkOffsetData && k.command == cmdRead:
		err = c.dataChunk(k, n)
	case kind == chunkOffsetHole && k.command == cmdRead:
		err = c.holeChunk(k, n)
	case kind == chunkBlockStatus && k.command == cmdBlockStatus:
		err = c.statusChunk(k, n)
	case kind&chunkErrorBit != 0:
		err = c.errorChunk(k, kind, n)
	default:
		err = fmt.Errorf("%w: chunk type %d for request type %d", ErrProtocol, kind, k.command)
	}
	if err != nil {
		return err
	}
	if flags&chunkDone == 0 {
		return nil
	}
	if k.command == cmdRead && k.err == nil && !k.covered.complete(k.off, int64(len(k.buf))) {
		return fmt.Errorf("%w: a read was answered in part", ErrProtocol)
	}
	c.finish(cookie, k)
	return nil
}

// place checks that a part of a READ lies inside the request and notes it.
func (k *call) place(off uint64, n int64) ([]byte, error) {
	at := int64(off) - k.off
	if off > 1<<63-1 || n <= 0 || at < 0 || at > int64(len(k.buf))-n {
		return nil, fmt.Errorf("%w: data outside of the request", ErrProtocol)
	}
	k.covered = append(k.covered, part{int64(off), n})
	return k.buf[at : at+n], nil
}

func (c *Client) dataChunk(k *call, n uint32) error {
	var b [8]byte
	if n < 8 {
		return fmt.Errorf("%w: data chunk of %d bytes", ErrProtocol, n)
	}
	if _, err := io.ReadFull(c.r, b[:]); err != nil {
		return err
	}
	p, err := k.place(binary.BigEndian.Uint64(b[:]), int64(n)-8)
	if err != nil {
		return err
	}
	_, err = io.ReadFull(c.r, p)
	return err
}

func (c *Client) holeChunk(k *call, n uint32) error {
	var b [12]byte
	if n != 12 {
		return fmt.Errorf("%w: hole chunk of %d bytes", ErrProtocol, n)
	}
	if _, err := io.ReadFull(c.r, b[:]); err != nil {
		return err
	}
	p, err := k.place(binary.BigEndian.Uint64(b[:]), int64(binary.BigEndian.Uint32(b[8:])))
	clear(p)
	return err
}

func (c *Client) statusChunk(k *call, n uint32) error {
	if n < 12 || n%8 != 4 || n > maxStatusReply || k.status != nil {
		return fmt.Errorf("%w: status chunk of %d bytes", ErrProtocol, n)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(c.r, b); err != nil {
		return err
	}
	be := binary.BigEndian
	if be.Uint32(b) != c.allocation {
		return fmt.Errorf("%w: status of a context that was not asked for", ErrProtocol)
	}
	for b = b[4:]; len(b) > 0; b = b[4:] {
		k.status = append(k.status, be.Uint32(b))
	}
	return nil
}

func (c *Client) errorChunk(k *call, kind uint16, n uint32) error {
	if n < 6 || n > maxErrorReply {
		return fmt.Errorf("%w: error chunk of %d bytes", ErrProtocol, n)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(c.r, b); err != nil {
		return err
	}
	be := binary.BigEndian
	text := b[6:]
	if length := int(be.Uint16(b[4:])); length > len(text) {
		return fmt.Errorf("%w: text of an error is cut off", ErrProtocol)
	} else {
		text = text[:length]
	}
	err := errno(be.Uint32(b))
	if s := printable(text); s != "" {
		err = fmt.Errorf("%w (%s)", err, s)
	}
	if k.err == nil {
		k.err = err
	}
	return nil
}
