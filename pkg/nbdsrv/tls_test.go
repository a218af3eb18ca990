package nbdsrv_test

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fsximg/fsx/pkg/nbdsrv"
)

// mainAndSecret are two exports; secret asks for TLS.
func mainAndSecret() *exportMap {
	exports := newExports().
		add(nbdsrv.Export{Name: "main", Device: newRAM(1 << 20)}).
		add(nbdsrv.Export{Name: "secret", Device: newRAM(2 << 20)})
	exports.allow = func(name string, client *nbdsrv.Client) error {
		if name == "secret" && client.TLS == nil {
			return nbdsrv.ErrTLSRequired
		}
		return nil
	}
	return exports
}

// TestItem03NoFixedNewstyleNoTLS: without fixed newstyle there is no TLS, and
// nobody is asked for it.
func TestItem03NoFixedNewstyleNoTLS(t *testing.T) {
	ca := newAuthority(t)
	s := serve(t, ca.config(), mainAndSecret())
	c := s.hello(t, 0)
	c.option(oStartTLS, nil)
	c.expectReply(oStartTLS, rPolicy, nil)
	c.option(oGo, info("secret"))
	c.expectReply(oGo, rPolicy, nil)
	c.option(oExportName, []byte("main"))
	c.read(10 + 124)
	c.alive()

	s = serve(t, ca.forced(), mainAndSecret())
	c = s.hello(t, 0)
	for _, id := range []uint32{oStartTLS, oGo, oList} {
		c.option(id, nil)
		c.expectReply(id, rPolicy, nil)
	}
	c.option(oExportName, []byte("main"))
	c.expectEnd()
}

// TestItem27StartTLSDropsState: nothing that was said in plaintext counts.
func TestItem27StartTLSDropsState(t *testing.T) {
	ca := newAuthority(t)
	var opened []bool // whether through TLS
	exports := mainAndSecret()
	exports.allow = func(name string, client *nbdsrv.Client) error {
		opened = append(opened, client.TLS != nil)
		return nil
	}
	s := serve(t, ca.config(), exports)
	c := s.hello(t, 3)
	c.structure()
	c.choose("main", "base:allocation")
	c.startTLS(ca.client("alice"))
	c.structured = false
	c.option(oSetMeta, meta("main", "base:allocation"))
	c.expectReply(oSetMeta, rInvalid, nil)
	c.enter("main")
	if c.flags&(1<<7) != 0 {
		t.Error("SEND_DF is left of a STRUCTURED_REPLY in plaintext")
	}
	if a := c.must(cRead, 0, 0, 512, nil); !a.simple {
		t.Error("replies are structured")
	}
	if !slices.Equal(opened, []bool{false, true}) {
		t.Errorf("exports were opened through TLS: %v", opened)
	}

	// The selection is not found again when structured replies are.
	c = s.hello(t, 3)
	c.structure()
	c.choose("main", "base:allocation")
	c.startTLS(ca.client("alice"))
	c.structure()
	c.enter("main")
	if a := c.do(cSta, 0, 0, 4096, nil); a.errno != eINVAL {
		t.Errorf("BLOCK_STATUS: %+v", a)
	}
}

func TestItem28StartTLSTwice(t *testing.T) {
	ca := newAuthority(t)
	for _, cfg := range []nbdsrv.Config{ca.config(), ca.forced()} {
		s := serve(t, cfg, mainAndSecret())
		c := s.hello(t, 3)
		c.option(oStartTLS, []byte("data"))
		c.expectReply(oStartTLS, rInvalid, nil)
		c.startTLS(ca.client(""))
		for range 2 {
			c.option(oStartTLS, nil)
			c.expectReply(oStartTLS, rInvalid, nil)
		}
		c.enter("main")
		c.alive()
	}
}

// TestItem29PlaintextBehindStartTLS: bytes that were sent in plaintext are never
// taken for the client's from inside TLS.
func TestItem29PlaintextBehindStartTLS(t *testing.T) {
	ca := newAuthority(t)
	exports := mainAndSecret()
	var looked atomic.Int64
	exports.allow = func(string, *nbdsrv.Client) error { looked.Add(1); return nil }
	s := serve(t, ca.config(), exports)
	start := opt(oStartTLS, nil)
	for _, injected := range [][]byte{
		opt(oList, nil), opt(oGo, info("main")), opt(oExportName, []byte("main")), start,
		opt(oList, nil)[:7], {0x16}, make([]byte, 5000),
	} {
		// In one segment nothing is answered.
		c := s.hello(t, 3)
		c.send(start, injected)
		c.expectEnd()

		// Behind the acknowledgement they are no TLS record, or the beginning
		// of one that does not fit what follows.
		c = s.hello(t, 3)
		c.beginTLS()
		c.send(injected)
		over := tls.Client(c.Conn, ca.client(""))
		if over.Handshake() == nil {
			t.Fatalf("TLS began behind %x", injected[:min(len(injected), 40)])
		}
		_ = c.Close()
	}
	if looked.Load() != 0 {
		t.Errorf("%d exports were looked at", looked.Load())
	}
}

func TestItem30ForcedTLS(t *testing.T) {
	ca := newAuthority(t)
	s := serve(t, ca.forced(), mainAndSecret())
	c := s.hello(t, 3)
	for _, id := range []uint32{oList, oInfo, oGo, oStructured, oListMeta, oSetMeta, 4, oExtended, 77} {
		for _, data := range [][]byte{nil, info("main"), meta("main"), make([]byte, 100<<10)} {
			c.option(id, data)
			c.expectReply(id, rTLSReqd, nil)
		}
		c = s.hello(t, 3) // the number of options is bounded
	}
	c.option(oAbort, nil)
	c.expectReply(oAbort, rAck, nil)
	c.expectEnd()
	c = s.hello(t, 3)
	c.option(oExportName, []byte("main"))
	c.expectEnd()

	c = s.hello(t, 3)
	c.option(oGo, info("main"))
	c.expectReply(oGo, rTLSReqd, nil)
	c.startTLS(ca.client(""))
	c.option(oList, nil)
	c.expectReply(oList, rServer, append(be32(4), "main"...))
	c.expectReply(oList, rServer, append(be32(6), "secret"...))
	c.expectReply(oList, rAck, nil)
	c.option(oExportName, []byte("main"))
	c.expect(be64(1 << 20))
	c.read(2)
	c.alive()
}

func TestItem30SelectiveTLS(t *testing.T) {
	ca := newAuthority(t)
	s := serve(t, ca.config(), mainAndSecret())
	c := s.hello(t, 3)
	c.option(oList, nil)
	c.expectReply(oList, rServer, append(be32(4), "main"...))
	c.expectReply(oList, rAck, nil)
	c.structure()
	for id, data := range map[uint32][]byte{oInfo: info("secret"), oGo: info("secret"),
		oListMeta: meta("secret"), oSetMeta: meta("secret", "base:allocation")} {
		c.option(id, data)
		c.expectReply(id, rTLSReqd, nil)
	}
	c.enter("main")
	c.alive()
	c = s.hello(t, 3)
	c.option(oExportName, []byte("secret"))
	c.expectEnd()

	c = s.hello(t, 3)
	c.startTLS(ca.client(""))
	c.enter("secret")
	if c.size != 2<<20 {
		t.Errorf("size %d", c.size)
	}
	c.alive()
}

// TestItem30NoTLSRequiredInVain: without TLS, or inside it, nobody is told to
// negotiate it, whatever the exports say.
func TestItem30NoTLSRequiredInVain(t *testing.T) {
	exports := mainAndSecret()
	exports.allow = func(string, *nbdsrv.Client) error { return nbdsrv.ErrTLSRequired }
	c := serve(t, nbdsrv.Config{}, exports).hello(t, 3)
	c.option(oGo, info("main"))
	c.expectReply(oGo, rPolicy, nil)
	ca := newAuthority(t)
	c = serve(t, ca.forced(), exports).hello(t, 3)
	c.startTLS(ca.client(""))
	c.option(oGo, info("main"))
	c.expectReply(oGo, rPolicy, nil)
}

func TestItem31Versions(t *testing.T) {
	ca := newAuthority(t)
	cfg := ca.forced()
	inner := cfg.TLS()
	inner.MinVersion = tls.VersionTLS10 // is raised
	s := serve(t, cfg, mainAndSecret())
	for version, ok := range map[uint16]bool{
		tls.VersionTLS10: false, tls.VersionTLS11: false, tls.VersionTLS12: true, tls.VersionTLS13: true,
	} {
		c := s.hello(t, 3)
		c.beginTLS()
		client := ca.client("")
		client.MinVersion, client.MaxVersion = version, version
		over := tls.Client(c.Conn, client)
		if err := over.Handshake(); (err == nil) != ok {
			t.Errorf("%s: %v", tls.VersionName(version), err)
		}
		if !ok {
			continue
		}
		if got := over.ConnectionState().Version; got != version {
			t.Errorf("%s became %s", tls.VersionName(version), tls.VersionName(got))
		}
		c.Conn = over
		c.enter("main")
		c.alive()
	}
	if inner.MinVersion != tls.VersionTLS10 {
		t.Error("the configuration was changed")
	}
}

// TestItem31FailedHandshake: it ends the session, with one line in the log.
func TestItem31FailedHandshake(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	var log logbook
	cfg := ca.forced()
	cfg.TLS().ClientAuth = tls.RequireAndVerifyClientCert
	cfg.Log = slog.New(slog.NewTextHandler(&log, nil))
	s := serve(t, cfg, mainAndSecret())
	stranger := other.client("alice")
	stranger.RootCAs = ca.pool
	for i, client := range []*tls.Config{ca.client(""), stranger, other.client("")} {
		c := s.hello(t, 3)
		c.beginTLS()
		over := tls.Client(c.Conn, client)
		// With TLS 1.3 the client is done before the server looks at it.
		_ = over.Handshake()
		_, _ = over.Write(opt(oList, nil))
		if n, err := over.Read(make([]byte, 1)); n != 0 || err == nil || isTimeout(err) {
			t.Fatalf("client %d: %d, %v", i, n, err)
		}
		waitFor(t, "the log", func() bool { return len(log.lines()) == i+1 && log.lines()[i] != "" })
	}
	c := s.hello(t, 3)
	c.beginTLS()
	c.send(opt(oList, nil))
	waitFor(t, "the log", func() bool { return len(log.lines()) == 4 })
	for _, line := range log.lines() {
		if !strings.Contains(line, "level=WARN") || !strings.Contains(line, "TLS handshake failed") {
			t.Errorf("log: %s", line)
		}
	}
	c = s.hello(t, 3)
	c.startTLS(ca.client("alice"))
	c.enter("main")
	c.alive()
}

// TestItem31HandshakeDeadline: the negotiation's deadline is that of TLS, too.
func TestItem31HandshakeDeadline(t *testing.T) {
	ca := newAuthority(t)
	cfg := ca.config()
	cfg.HandshakeTimeout = 100 * time.Millisecond
	s := serve(t, cfg, mainAndSecret())
	begin := time.Now()
	c := s.hello(t, 3)
	c.beginTLS()
	c.expectEnd()
	c = s.hello(t, 3)
	c.startTLS(ca.client(""))
	c.expectEnd()
	if d := time.Since(begin); d > 5*time.Second {
		t.Errorf("two idle negotiations lived for %v", d)
	}
	s.tls = ca.client("")
	c = s.connect(t, "main", true)
	time.Sleep(250 * time.Millisecond)
	c.alive()
}

// recordTap keeps the types and lengths of the TLS records that came in.
type recordTap struct {
	net.Conn
	mu  sync.Mutex
	raw []byte
}

func (r *recordTap) Read(p []byte) (int, error) {
	n, err := r.Conn.Read(p)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.raw = append(r.raw, p[:n]...)
	return n, err
}

// last returns type and length of the last record; the stream has to end with it.
func (r *recordTap) last(t *testing.T) (typ byte, length int) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.raw
	for len(p) > 0 {
		if len(p) < 5 {
			t.Fatalf("the stream ends in a record's header: %x", p)
		}
		typ, length = p[0], int(binary.BigEndian.Uint16(p[3:]))
		if len(p) < 5+length {
			t.Fatalf("the stream ends in a record of %d bytes", length)
		}
		p = p[5+length:]
	}
	return typ, length
}

// TestItem31CloseNotify: whoever ends the session in order, TLS is ended before
// the socket is closed.
func TestItem31CloseNotify(t *testing.T) {
	ca := newAuthority(t)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		for name, end := range map[string]func(s *server, c *client){
			"abort": func(s *server, c *client) { c.option(oAbort, nil); c.expectReply(oAbort, rAck, nil) },
			"disconnect": func(s *server, c *client) {
				c.enter("main")
				c.request(cRead, 0, 1, 0, 100<<10, nil)
				c.request(cDisc, 0, 2, 0, 0, nil)
				if a := c.answer(100 << 10); a.errno != 0 {
					t.Errorf("%+v", a)
				}
			},
			"shutdown": func(s *server, c *client) {
				c.enter("main")
				c.alive()
				go func() { _ = s.Shutdown(context.Background()) }()
			},
		} {
			t.Run(name+"/"+tls.VersionName(version), func(t *testing.T) {
				exports := mainAndSecret()
				s := serveOn(t, ca.config(), exports, "tcp", "127.0.0.1:0")
				c := s.hello(t, 3)
				c.beginTLS()
				tap := &recordTap{Conn: c.Conn}
				client := ca.client("")
				client.MaxVersion = version
				c.Conn = tls.Client(tap, client)
				end(s, c)
				c.expectEnd()
				typ, length := tap.last(t)
				want, wantLength := byte(21), 0 // alert
				if version == tls.VersionTLS13 {
					want, wantLength = 23, 2+1+16 // the same, encrypted
				}
				if typ != want || (wantLength != 0 && length != wantLength) {
					t.Errorf("the last record has type %d, %d bytes", typ, length)
				}
			})
		}
	}
}
