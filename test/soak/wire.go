package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
)

// The numbers of the NBD protocol (doc/proto.md of the NBD project) that this
// client uses. It shares no code with the server, so that a mistake is not made
// twice.
const (
	nbdMagic        = 0x4e42444d41474943
	optionMagic     = 0x49484156454f5054
	optionReply     = 0x3e889045565a9
	requestMagic    = 0x25609513
	simpleMagic     = 0x67446698
	structuredMagic = 0x668e33ef

	optGo         = 7
	optStructured = 8
	optSetMeta    = 10
	repAck        = 1
	repInfo       = 3
	repMeta       = 4

	flagReadOnly = 1 << 1

	cmdRead   = 0
	cmdWrite  = 1
	cmdDisc   = 2
	cmdFlush  = 3
	cmdTrim   = 4
	cmdCache  = 5
	cmdZero   = 6
	cmdStatus = 7

	flagFUA    = 1 << 0
	flagNoHole = 1 << 1
	flagDF     = 1 << 2
	flagOne    = 1 << 3
	flagFast   = 1 << 4

	chunkDone   = 1 << 0
	chunkNone   = 0
	chunkData   = 1
	chunkHole   = 2
	chunkStatus = 5
	chunkError  = 1 << 15

	stateZero = 1 << 1

	errNotSupported = 95

	requestLen = 28
)

var be = binary.BigEndian

// dial connects and negotiates. With structured, replies are structured and
// base:allocation is selected; context is its id.
func dial(socket, export string, structured bool) (conn net.Conn, size int64, context uint32, err error) {
	conn, err = net.Dial("unix", socket)
	if err != nil {
		return nil, 0, 0, err
	}
	n := &negotiation{conn: conn}
	if err = n.run(export, structured); err != nil {
		conn.Close()
		return nil, 0, 0, fmt.Errorf("negotiate: %w", err)
	}
	return conn, n.size, n.context, nil
}

type negotiation struct {
	conn    net.Conn
	size    int64
	context uint32
}

func (n *negotiation) run(export string, structured bool) error {
	var hello [18]byte
	if _, err := io.ReadFull(n.conn, hello[:]); err != nil {
		return err
	}
	if be.Uint64(hello[:]) != nbdMagic || be.Uint64(hello[8:]) != optionMagic || be.Uint16(hello[16:])&3 != 3 {
		return fmt.Errorf("greeting %x", hello)
	}
	if _, err := n.conn.Write(be.AppendUint32(nil, 3)); err != nil {
		return err
	}
	name := append(be.AppendUint32(nil, uint32(len(export))), export...)
	if structured {
		if err := n.option(optStructured, nil); err != nil {
			return err
		}
		const allocation = "base:allocation"
		query := be.AppendUint32(append([]byte{}, name...), 1)
		query = append(be.AppendUint32(query, uint32(len(allocation))), allocation...)
		if err := n.option(optSetMeta, query); err != nil {
			return err
		}
	}
	return n.option(optGo, be.AppendUint16(name, 0))
}

// option sends one option and reads its replies up to the acknowledgement.
func (n *negotiation) option(number uint32, data []byte) error {
	p := be.AppendUint64(nil, optionMagic)
	p = be.AppendUint32(be.AppendUint32(p, number), uint32(len(data)))
	if _, err := n.conn.Write(append(p, data...)); err != nil {
		return err
	}
	for {
		var head [20]byte
		if _, err := io.ReadFull(n.conn, head[:]); err != nil {
			return err
		}
		kind, length := be.Uint32(head[12:]), be.Uint32(head[16:])
		if be.Uint64(head[:]) != optionReply || be.Uint32(head[8:]) != number || length > 8192 {
			return fmt.Errorf("reply %x to option %d", head, number)
		}
		body := make([]byte, length)
		if _, err := io.ReadFull(n.conn, body); err != nil {
			return err
		}
		switch {
		case kind == repAck:
			return nil
		case kind == repInfo && len(body) == 12 && be.Uint16(body) == 0:
			n.size = int64(be.Uint64(body[2:]))
			if be.Uint16(body[10:])&flagReadOnly != 0 {
				return errors.New("the export is read-only")
			}
		case kind == repMeta && len(body) > 4:
			n.context = be.Uint32(body)
		case kind&(1<<31) != 0:
			return fmt.Errorf("option %d is refused: type %#x %q", number, kind, body)
		}
	}
}

func appendRequest(p []byte, cmd, flags uint16, cookie uint64, off int64, n int) []byte {
	p = be.AppendUint32(p, requestMagic)
	p = be.AppendUint16(p, flags)
	p = be.AppendUint16(p, cmd)
	p = be.AppendUint64(p, cookie)
	p = be.AppendUint64(p, uint64(off))
	return be.AppendUint32(p, uint32(n))
}

// inbox is a receive buffer from which whole messages are taken in place.
type inbox struct {
	conn     net.Conn
	buf      []byte
	from, to int
	idle     func() // called before it waits for more
	woke     func() // called after that
}

// next returns the following n bytes, which stay valid until the next call.
func (b *inbox) next(n int) ([]byte, error) {
	if b.from+n > len(b.buf) {
		copy(b.buf, b.buf[b.from:b.to])
		b.to -= b.from
		b.from = 0
	}
	for b.to-b.from < n {
		b.idle()
		k, err := b.conn.Read(b.buf[b.to:])
		b.woke()
		b.to += k
		if err != nil && b.to-b.from < n {
			if err == io.EOF && b.to > b.from {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
	p := b.buf[b.from : b.from+n]
	b.from += n
	return p, nil
}
