package nbdsrv

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"unicode/utf8"

	"github.com/pojntfx/go-nbd/pkg/protocol"
)

// Bounds of a negotiation.
const (
	// maxOptions is how many options a client may send. One that looks at
	// every export sends two for each; the deadline ends it all the same.
	maxOptions = 4096
	// maxOptionBytes is how much data all of them together may have.
	maxOptionBytes = 64 << 20
	// maxOptionLen is the longest data of an option that is looked at, except
	// the meta context options'.
	maxOptionLen = 8 << 10
	// maxMetaLen is the same for LIST_META_CONTEXT and SET_META_CONTEXT.
	maxMetaLen = 64 << 10
	// maxDrain is the longest data that is skipped; beyond, we hang up.
	maxDrain = 32 << 20
	// maxQueries is how many meta context queries an option may hold.
	maxQueries = 256
)

// errEnd ends a negotiation that needs no word in the log: ABORT, or a
// refusal that the protocol expresses by closing.
var errEnd = errors.New("negotiation ended")

// option is one option as it came; data is valid until the next one.
type option struct {
	id   uint32
	data []byte
}

// handshake is the negotiation of one connection. It belongs to one goroutine.
type handshake struct {
	srv      *Server
	conn     *conn
	client   Client
	forced   bool // the client has to negotiate TLS ("FORCEDTLS mode")
	br       *bufio.Reader
	bw       *bufio.Writer
	fixed    bool // the client negotiated fixed newstyle
	noZeroes bool
	buf      []byte
	received int64 // bytes of options' data

	agreed

	// The export opened last. INFO, SET_META_CONTEXT and GO mostly name the
	// same one, and opening may be work.
	open    *openExport
	payload [20]byte
}

// agreed is all that options have changed. STARTTLS drops it: what a man in
// the middle may have put there must not count inside TLS.
type agreed struct {
	mode replyMode
	meta metaState
}

// openExport is an export in use.
type openExport struct {
	name    string // as the client asked
	export  Export
	release func()
}

// session is the result of a negotiation.
type session struct {
	open     *openExport
	client   Client
	mode     replyMode
	contexts []metaContext
	early    []byte // what the client sent behind its last option
}

// negotiate runs the handshake on c. Its deadline is the caller's affair.
func (s *Server) negotiate(c *conn) (*session, error) {
	h := &handshake{
		srv: s, conn: c, client: clientOf(c.sock), forced: s.cfg.RequireTLS != nil && s.cfg.RequireTLS(c.sock),
		br: bufio.NewReaderSize(c.sock, 4096), bw: bufio.NewWriterSize(c.sock, 4096),
	}
	open, err := h.run()
	if open == nil || h.open != open {
		h.closeExport()
	}
	if ferr := h.bw.Flush(); ferr != nil && err == nil {
		err = ferr
	}
	if err != nil {
		if open != nil {
			open.release()
		}
		return nil, err
	}
	early := make([]byte, h.br.Buffered())
	_, _ = io.ReadFull(h.br, early)
	ses := &session{open: open, client: h.client, mode: h.mode, early: early}
	if h.meta.export == open.name {
		ses.contexts = h.meta.contexts
	}
	return ses, nil
}

// run greets and answers options until one of them starts the transmission.
func (h *handshake) run() (*openExport, error) {
	if err := h.greet(); err != nil {
		return nil, err
	}
	for range maxOptions {
		opt, refusal, err := h.readOption()
		if err != nil {
			return nil, err
		}
		if refusal != 0 {
			if opt.id == optSetMeta {
				h.meta = metaState{}
			}
			if h.lacksTLS() && opt.id != optStartTLS {
				h.demandTLS(opt.id)
				continue
			}
			h.replyError(opt.id, refusal, "option data is too long")
			continue
		}
		open, err := h.answer(opt)
		if open != nil || err != nil {
			return open, err
		}
	}
	return nil, violated("too many options")
}

func (h *handshake) greet() error {
	var p [18]byte
	binary.BigEndian.PutUint64(p[:], protocol.NEGOTIATION_MAGIC_OLDSTYLE)
	binary.BigEndian.PutUint64(p[8:], protocol.NEGOTIATION_MAGIC_OPTION)
	binary.BigEndian.PutUint16(p[16:], handshakeFixedNewstyle|handshakeNoZeroes)
	if _, err := h.bw.Write(p[:]); err != nil {
		return err
	}
	if err := h.bw.Flush(); err != nil {
		return err
	}
	if _, err := io.ReadFull(h.br, p[:4]); err != nil {
		return err
	}
	flags := binary.BigEndian.Uint32(p[:])
	const known = uint32(handshakeFixedNewstyle | handshakeNoZeroes)
	if flags&^known != 0 {
		return violated("unknown client flags %#x", flags)
	}
	h.fixed = flags&uint32(handshakeFixedNewstyle) != 0
	h.noZeroes = flags&uint32(handshakeNoZeroes) != 0
	return nil
}

// readOption reads one option. Data over its cap is skipped, never stored;
// refusal is then the reply it gets.
func (h *handshake) readOption() (opt option, refusal uint32, err error) {
	if h.br.Buffered() == 0 {
		if err := h.bw.Flush(); err != nil {
			return opt, 0, err
		}
	}
	var p [optionHeaderLen]byte
	if _, err := io.ReadFull(h.br, p[:]); err != nil {
		return opt, 0, err
	}
	if magic := binary.BigEndian.Uint64(p[:]); magic != protocol.NEGOTIATION_MAGIC_OPTION {
		return opt, 0, violated("bad option magic %#x", magic)
	}
	opt.id = binary.BigEndian.Uint32(p[8:])
	n := binary.BigEndian.Uint32(p[12:])
	limit := uint32(maxOptionLen)
	if opt.id == optListMeta || opt.id == optSetMeta {
		limit = maxMetaLen
	}
	h.received += int64(n)
	switch {
	case n > maxDrain:
		return opt, 0, violated("option %d with %d bytes of data", opt.id, n)
	case h.received > maxOptionBytes:
		return opt, 0, violated("options with %d bytes of data", h.received)
	case n > limit:
		_, err = h.br.Discard(int(n))
		return opt, repErrTooBig, err
	}
	if uint32(cap(h.buf)) < n {
		h.buf = make([]byte, n)
	}
	opt.data = h.buf[:n]
	_, err = io.ReadFull(h.br, opt.data)
	return opt, 0, err
}

// reply queues one option reply. A write error shows at the next flush.
func (h *handshake) reply(opt, typ uint32, parts ...[]byte) {
	n := 0
	for _, part := range parts {
		n += len(part)
	}
	p := h.payload[:]
	binary.BigEndian.PutUint64(p, protocol.NEGOTIATION_MAGIC_REPLY)
	binary.BigEndian.PutUint32(p[8:], opt)
	binary.BigEndian.PutUint32(p[12:], typ)
	binary.BigEndian.PutUint32(p[16:], uint32(n))
	_, _ = h.bw.Write(p)
	for _, part := range parts {
		_, _ = h.bw.Write(part)
	}
}

// replyError refuses an option; the text is for humans.
func (h *handshake) replyError(opt, typ uint32, text string) {
	h.reply(opt, typ, []byte(wireText(text)))
}

// openExport returns the export called name, or why the client cannot have it.
func (h *handshake) openExport(name string) (*openExport, error) {
	if h.open != nil && h.open.name == name {
		return h.open, nil
	}
	h.closeExport()
	export, release, err := h.srv.cfg.Exports.Open(name, &h.client)
	if err != nil {
		return nil, err
	}
	h.open = &openExport{name: name, export: export, release: release}
	return h.open, nil
}

func (h *handshake) closeExport() {
	if h.open != nil {
		h.open.release()
		h.open = nil
	}
}

// validName says whether name may stand in a message ("Conventions").
func validName(name []byte) bool {
	if len(name) > maxString || !utf8.Valid(name) {
		return false
	}
	for _, c := range name {
		if c == 0 {
			return false
		}
	}
	return true
}
