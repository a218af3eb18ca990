package nbdclient

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"

	"github.com/pojntfx/go-nbd/pkg/protocol"
)

const (
	maxOptionReply = 64 << 10 // bytes of one reply to an option
	maxReplies     = 1024     // replies to one option
	defaultMax     = 32 << 20 // largest payload, if the server says nothing
)

// handshake is the negotiation of one connection.
type handshake struct {
	conn net.Conn
	r    io.Reader

	export        Export
	structured    bool   // replies are structured
	allocation    uint32 // metadata context of base:allocation
	hasAllocation bool
}

// initialExport holds for a server that tells no sizes of requests ("Size
// constraints").
func initialExport() Export {
	return Export{MinBlock: 1, PreferredBlock: 4096, MaxPayload: defaultMax}
}

// optionReply is one reply to an option.
type optionReply struct {
	kind uint32
	data []byte
}

// Dial connects to the export that an NBD URI names. ctx bounds the
// negotiation.
func Dial(ctx context.Context, name string) (*Client, error) {
	u, err := parseURI(name)
	if err != nil {
		return nil, err
	}
	return dialURI(ctx, u)
}

func dialURI(ctx context.Context, u uri) (c *Client, err error) {
	err = connect(ctx, u, func(conn net.Conn) error {
		r := bufio.NewReaderSize(conn, 256<<10)
		h := &handshake{conn: conn, r: r, export: initialExport()}
		if err := h.run(u.export); err != nil {
			return err
		}
		c = newClient(h, r)
		return nil
	})
	if err != nil {
		return nil, err
	}
	c.start()
	return c, nil
}

// connect dials and negotiates. If ctx ends before that is done, or the negotiation
// fails, the connection is closed.
func connect(ctx context.Context, u uri, negotiate func(net.Conn) error) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, u.network, u.address)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	err = negotiate(conn)
	if !stop() {
		err = context.Cause(ctx)
	}
	if err != nil {
		conn.Close()
		return fmt.Errorf("negotiate with nbd server: %w", err)
	}
	return nil
}

// run negotiates fixed newstyle, structured replies and base:allocation where
// the server has them, and enters the transmission phase with GO.
func (h *handshake) run(export string) error {
	if err := h.greet(); err != nil {
		return err
	}
	reply, err := h.option(optStructuredReply, nil, nil)
	if err != nil {
		return err
	}
	if h.structured = reply.kind == repAck; h.structured {
		if err := h.setMetaContext(export); err != nil {
			return err
		}
	}
	return h.goExport(export)
}

func (h *handshake) greet() error {
	var b [18]byte
	if _, err := io.ReadFull(h.r, b[:]); err != nil {
		return err
	}
	be := binary.BigEndian
	if be.Uint64(b[0:]) != protocol.NEGOTIATION_MAGIC_OLDSTYLE || be.Uint64(b[8:]) != protocol.NEGOTIATION_MAGIC_OPTION {
		return fmt.Errorf("%w: not a newstyle server", ErrProtocol)
	}
	flags := be.Uint16(b[16:])
	if flags&protocol.NEGOTIATION_HANDSHAKE_FLAG_FIXED_NEWSTYLE == 0 {
		return fmt.Errorf("%w: server without fixed newstyle negotiation", ErrProtocol)
	}
	answer := uint32(protocol.NEGOTIATION_HANDSHAKE_FLAG_FIXED_NEWSTYLE) | uint32(flags&flagNoZeroes)
	_, err := h.conn.Write(be.AppendUint32(nil, answer))
	return err
}

// option sends an option and hands each informational reply to info; the last
// one, an ACK or an error, is returned.
func (h *handshake) option(id uint32, data []byte, info func(optionReply) error) (optionReply, error) {
	be := binary.BigEndian
	b := be.AppendUint64(nil, protocol.NEGOTIATION_MAGIC_OPTION)
	b = be.AppendUint32(b, id)
	b = be.AppendUint32(b, uint32(len(data)))
	if _, err := h.conn.Write(append(b, data...)); err != nil {
		return optionReply{}, err
	}
	for range maxReplies {
		reply, err := h.reply(id)
		if err != nil || reply.kind == repAck || reply.kind&repError != 0 {
			return reply, err
		}
		if info == nil {
			return reply, fmt.Errorf("%w: unexpected reply %d to option %d", ErrProtocol, reply.kind, id)
		}
		if err := info(reply); err != nil {
			return reply, err
		}
	}
	return optionReply{}, fmt.Errorf("%w: option %d has no end of replies", ErrProtocol, id)
}

func (h *handshake) reply(id uint32) (optionReply, error) {
	var b [20]byte
	if _, err := io.ReadFull(h.r, b[:]); err != nil {
		return optionReply{}, err
	}
	be := binary.BigEndian
	if be.Uint64(b[0:]) != protocol.NEGOTIATION_MAGIC_REPLY || be.Uint32(b[8:]) != id {
		return optionReply{}, fmt.Errorf("%w: reply to option %d expected", ErrProtocol, id)
	}
	n := be.Uint32(b[16:])
	if n > maxOptionReply {
		return optionReply{}, fmt.Errorf("%w: option reply of %d bytes", ErrProtocol, n)
	}
	r := optionReply{be.Uint32(b[12:]), make([]byte, n)}
	_, err := io.ReadFull(h.r, r.data)
	return r, err
}

// setMetaContext asks for base:allocation. A server without it is fine.
func (h *handshake) setMetaContext(export string) error {
	be := binary.BigEndian
	b := be.AppendUint32(nil, uint32(len(export)))
	b = append(b, export...)
	b = be.AppendUint32(b, 1)
	b = be.AppendUint32(b, uint32(len(contextAllocation)))
	b = append(b, contextAllocation...)
	_, err := h.option(optSetMetaContext, b, func(r optionReply) error {
		if r.kind != repMetaContext || len(r.data) != 4+len(contextAllocation) || string(r.data[4:]) != contextAllocation {
			return fmt.Errorf("%w: metadata context that was not asked for", ErrProtocol)
		}
		h.allocation, h.hasAllocation = be.Uint32(r.data), true
		return nil
	})
	return err
}

// goExport ends the negotiation.
func (h *handshake) goExport(export string) error {
	be := binary.BigEndian
	b := be.AppendUint32(nil, uint32(len(export)))
	b = append(b, export...)
	b = be.AppendUint16(b, 1)
	b = be.AppendUint16(b, protocol.NEGOTIATION_TYPE_INFO_BLOCKSIZE)
	known := false
	reply, err := h.option(optGo, b, func(r optionReply) error {
		if r.kind != repInfo || len(r.data) < 2 {
			return fmt.Errorf("%w: malformed information about the export", ErrProtocol)
		}
		return h.info(be.Uint16(r.data), r.data[2:], &known)
	})
	switch {
	case err != nil:
		return err
	case reply.kind&repError != 0:
		return optionError(export, reply)
	case !known:
		return fmt.Errorf("%w: server did not tell the size of the export", ErrProtocol)
	}
	return nil
}

func (h *handshake) info(kind uint16, b []byte, known *bool) error {
	be := binary.BigEndian
	switch kind {
	case protocol.NEGOTIATION_TYPE_INFO_EXPORT:
		if len(b) != 10 || be.Uint64(b) > 1<<63-1 {
			return fmt.Errorf("%w: malformed size of the export", ErrProtocol)
		}
		h.export.Size, h.export.Flags, *known = int64(be.Uint64(b)), Flags(be.Uint16(b[8:])), true
	case protocol.NEGOTIATION_TYPE_INFO_BLOCKSIZE:
		if len(b) != 12 {
			return fmt.Errorf("%w: malformed block size", ErrProtocol)
		}
		return h.blockSizes(be.Uint32(b), be.Uint32(b[4:]), be.Uint32(b[8:]))
	}
	return nil
}

func (h *handshake) blockSizes(smallest, preferred, largest uint32) error {
	if smallest == 0 || smallest&(smallest-1) != 0 || smallest > 64<<10 || largest < smallest {
		return fmt.Errorf("%w: block sizes %d to %d", ErrProtocol, smallest, largest)
	}
	h.export.MinBlock, h.export.PreferredBlock = int64(smallest), int64(preferred)
	h.export.MaxPayload = min(int64(largest), defaultMax) &^ (h.export.MinBlock - 1)
	return nil
}

// optionError words the refusal of an export.
func optionError(export string, r optionReply) error {
	why := map[uint32]string{
		1: "server does not support GO", 2: "refused by the server's policy", 3: "invalid request",
		5: "server requires TLS, which is not supported", 6: "no such export", 7: "server is shutting down",
		8: "server requires a block size",
	}[r.kind&^repError]
	if why == "" {
		why = fmt.Sprintf("error %d", r.kind&^repError)
	}
	if text := printable(r.data); text != "" {
		why += " (" + text + ")"
	}
	return fmt.Errorf("%w: export %q: %s", ErrProtocol, export, why)
}

// printable makes a server's text safe to show.
func printable(b []byte) string {
	b = b[:min(len(b), 200)]
	out := make([]rune, 0, len(b))
	for _, r := range string(b) {
		if r < ' ' || r == 0x7f || r == 0xfffd {
			r = '?'
		}
		out = append(out, r)
	}
	return string(out)
}
