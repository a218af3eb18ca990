package nbdsrv

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

var (
	// ErrTLSRequired is returned by Exports.Open for an export that only
	// clients with TLS may have; others are told to negotiate it.
	ErrTLSRequired = errors.New("nbdsrv: export requires TLS")
	// ErrNotAllowed is returned by Exports.Open for an export that this client
	// may not have, whatever else it says.
	ErrNotAllowed = errors.New("nbdsrv: export is not for this client")
)

// Client is who asks for an export. It does not change while an Exports looks
// at it.
type Client struct {
	// Addr is the address of the other side; nil if the transport has none.
	Addr net.Addr
	// UID is the user at the other end of a unix socket, as the kernel knows
	// it; -1 on any other transport.
	UID int
	// TLS is the state of the encrypted connection; nil without TLS.
	TLS *tls.ConnectionState
}

// Names are the common name and the DNS names of the client's certificate, each
// once. There are none unless the certificate was verified.
func (c *Client) Names() (names []string) {
	if c.TLS == nil || len(c.TLS.VerifiedChains) == 0 || len(c.TLS.PeerCertificates) == 0 {
		return nil
	}
	leaf := c.TLS.PeerCertificates[0]
	for _, name := range append([]string{leaf.Subject.CommonName}, leaf.DNSNames...) {
		if name != "" && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

// clientOf is the client behind a new connection.
func clientOf(nc net.Conn) Client {
	client := Client{Addr: nc.RemoteAddr(), UID: -1}
	unixConn, ok := nc.(*net.UnixConn)
	if !ok {
		return client
	}
	raw, err := unixConn.SyscallConn()
	if err != nil {
		return client
	}
	_ = raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			client.UID = int(cred.Uid)
		}
	})
	return client
}

// tlsFailure is a TLS handshake that did not succeed. The session is over then:
// the client was told that TLS begins ("TLS support").
type tlsFailure struct{ err error }

func (e *tlsFailure) Error() string { return "TLS handshake: " + e.err.Error() }
func (e *tlsFailure) Unwrap() error { return e.err }

// lacksTLS says whether the client has to negotiate TLS before anything else.
func (h *handshake) lacksTLS() bool { return h.forced && h.client.TLS == nil }

// demandTLS refuses an option of a client that lacksTLS. One that did not
// negotiate fixed newstyle cannot be asked for TLS ("Server-side requirements").
func (h *handshake) demandTLS(opt uint32) {
	if h.fixed {
		h.replyError(opt, repErrTLSReqd, "TLS is required")
		return
	}
	h.replyError(opt, repErrPolicy, "TLS is required, and needs fixed newstyle negotiation")
}

// startTLS answers NBD_OPT_STARTTLS. Its error ends the session.
func (h *handshake) startTLS(opt option) error {
	switch {
	case h.client.TLS != nil:
		h.replyError(opt.id, repErrInvalid, "TLS was negotiated already")
		return nil
	case h.srv.cfg.TLS == nil:
		h.replyError(opt.id, repErrPolicy, "TLS is not configured")
		return nil
	case !h.fixed:
		h.replyError(opt.id, repErrPolicy, "TLS needs fixed newstyle negotiation")
		return nil
	case len(opt.data) != 0:
		h.replyError(opt.id, repErrInvalid, "option takes no data")
		return nil
	case h.br.Buffered() != 0:
		// Nobody may speak before our ACK. Whoever put these bytes there
		// wants them taken for the client's, from inside TLS.
		return &tlsFailure{errors.New("plaintext behind STARTTLS")}
	}
	h.reply(opt.id, repAck)
	if err := h.bw.Flush(); err != nil {
		return err
	}
	return h.upgrade()
}

// upgrade makes TLS of the connection, within the negotiation's deadline, and
// forgets what was agreed in plaintext.
func (h *handshake) upgrade() error {
	over, err := h.conn.upgrade(h.srv.cfg.TLS())
	if err != nil {
		return &tlsFailure{err}
	}
	state := over.ConnectionState()
	h.client.TLS = &state
	h.closeExport()
	h.agreed = agreed{}
	h.br.Reset(over)
	h.bw.Reset(over)
	return nil
}

// serverTLS is cfg with what a server of ours insists on. Sessions are not
// resumed: that would let a client in whose certificate was not looked at, or
// which a newer configuration does not trust.
func serverTLS(cfg *tls.Config) *tls.Config {
	cfg = cfg.Clone()
	cfg.MinVersion = max(cfg.MinVersion, tls.VersionTLS12)
	cfg.SessionTicketsDisabled = true
	cfg.DynamicRecordSizingDisabled = true // this is bulk data
	return cfg
}

// upgrade runs the TLS handshake over the connection's socket. From then on
// everything is read and written through the result, which is c.nc.
func (c *conn) upgrade(cfg *tls.Config) (*tls.Conn, error) {
	c.gate = newSocketGate(c.sock, c.raw)
	over := tls.Server(c.gate, serverTLS(cfg))
	if err := over.HandshakeContext(c.ctx); err != nil {
		return nil, err
	}
	c.nc = over
	return over, nil
}

// errNothingYet is what socketGate's Read returns instead of waiting. That it
// is temporary makes crypto/tls go on from where it was at the next Read.
var errNothingYet net.Error = nothingYet{}

type nothingYet struct{}

func (nothingYet) Error() string   { return "nothing was received yet" }
func (nothingYet) Timeout() bool   { return true }
func (nothingYet) Temporary() bool { return true }

// socketGate is the socket below TLS. With eager set, which is the receiving
// goroutine's, it does not wait for bytes.
type socketGate struct {
	net.Conn
	raw   syscall.RawConn // nil if Conn is no plain socket
	eager bool

	// What take works on, here because a closure would be allocated.
	takeFn func(fd uintptr) bool
	into   []byte
	n      int
	err    error
}

func newSocketGate(sock net.Conn, raw syscall.RawConn) *socketGate {
	g := &socketGate{Conn: sock, raw: raw}
	g.takeFn = g.take
	return g
}

// take reads once from the socket, whether there is something or not.
func (g *socketGate) take(fd uintptr) bool {
	for {
		if g.n, g.err = syscall.Read(int(fd), g.into); g.err != syscall.EINTR {
			return true
		}
	}
}

// Read implements net.Conn.
func (g *socketGate) Read(p []byte) (n int, err error) {
	if !g.eager {
		return g.Conn.Read(p)
	}
	if g.raw == nil {
		return 0, errNothingYet
	}
	g.into = p
	err = g.raw.Read(g.takeFn)
	g.into = nil
	switch {
	case err != nil:
		return 0, err
	case g.err == syscall.EAGAIN:
		return 0, errNothingYet
	case g.err != nil:
		return 0, g.err
	case g.n == 0 && len(p) > 0:
		return 0, io.EOF
	}
	return g.n, nil
}

// fillParked is fill over TLS, and over what is no plain socket: it waits for
// bytes and then takes, record by record, what the socket has. A connection that
// is parked waits with one byte of its own instead of a batch.
func (c *conn) fillParked() error {
	c.park()
	into, parked := c.first[:], c.batch == nil
	if !parked {
		into = c.free()
	}
	n, err := c.nc.Read(into)
	c.unpark()
	if n == 0 && err != nil {
		return err
	}
	if err := c.needBatch(); err != nil {
		return err
	}
	if parked {
		copy(c.free(), into[:n])
	}
	c.w += n
	c.batch.received(c.w)
	c.arrived = time.Now()
	if c.gate == nil || n == 0 {
		return err
	}
	// An error beside bytes, or behind them, comes again at the next Read;
	// what was received is served before it.
	c.gate.eager = true
	for err == nil && !c.large && len(c.free()) > 0 {
		n, err = c.nc.Read(c.free())
		c.w += n
	}
	c.gate.eager = false
	c.batch.received(c.w)
	c.arrived = time.Now()
	return nil
}

// writeRecords sends the parts of first and list over TLS, small ones together:
// each Write is at least a record of its own.
func (c *conn) writeRecords(first []byte, list taskList) error {
	gather := c.srv.buffers.get(inlineMax)
	defer c.srv.buffers.put(gather)
	room := gather.b[:inlineMax]
	n := 0
	put := func(p []byte) error {
		if n > 0 && len(p) > len(room)-n {
			if _, err := c.nc.Write(room[:n]); err != nil {
				return err
			}
			n = 0
		}
		if len(p) > len(room) {
			_, err := c.nc.Write(p)
			return err
		}
		n += copy(room[n:], p)
		return nil
	}
	err := put(first)
	for t := list.head; t != nil && err == nil; t = t.next {
		err = put(t.reply)
	}
	if err == nil && n > 0 {
		_, err = c.nc.Write(room[:n])
	}
	return err
}

// logRefused tells the log why a negotiation came to nothing, counts it if the
// client broke the protocol, and returns the error that ServeConn has for it.
func (c *conn) logRefused(err error) error {
	if errors.Is(err, errEnd) {
		return nil
	}
	var failure *tlsFailure
	blamed := true
	if errors.As(err, &failure) {
		c.complain("TLS handshake failed", failure.err)
	} else {
		blamed = c.negotiationFailed(err)
	}
	if blamed {
		c.srv.failed.Add(1)
	}
	return err
}

// logTLS tells the log who came through TLS.
func (c *conn) logTLS(client *Client) {
	if client.TLS == nil {
		return
	}
	c.log = c.log.With("client", client.Names())
	c.log.Debug("TLS begins", "version", tls.VersionName(client.TLS.Version),
		"cipher", tls.CipherSuiteName(client.TLS.CipherSuite))
}
