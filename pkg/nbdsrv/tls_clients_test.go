package nbdsrv_test

import (
	"bytes"
	"crypto/tls"
	"errors"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/fsximg/fsx/pkg/nbdsrv"
)

// TestClientNames: exports see who the verified client is, and decide by it.
func TestClientNames(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	hers := func() *exportMap {
		exports := newExports().
			add(nbdsrv.Export{Name: "main", Device: newRAM(1 << 20)}).
			add(nbdsrv.Export{Name: "hers", Device: newRAM(2 << 20)})
		exports.allow = func(name string, client *nbdsrv.Client) error {
			if name == "hers" && !slices.Contains(client.Names(), "alice") {
				return nbdsrv.ErrNotAllowed
			}
			return nil
		}
		return exports
	}
	cfg := ca.config()
	s := serve(t, cfg, hers())
	for _, tt := range []struct {
		name    string
		client  *tls.Config
		allowed bool
	}{
		{"plaintext", nil, false},
		{"no certificate", ca.client(""), false},
		{"another name", ca.client("bob", "alice.example"), false},
		{"common name", ca.client("alice"), true},
		{"DNS name", ca.client("host", "other", "alice"), true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s.tls = tt.client
			c := s.hello(t, 3)
			c.option(oList, nil)
			c.expectReply(oList, rServer, append(be32(4), "main"...))
			if tt.allowed {
				c.expectReply(oList, rServer, append(be32(4), "hers"...))
			}
			c.expectReply(oList, rAck, nil)
			if tt.allowed {
				c.enter("hers")
				c.alive()
				return
			}
			c.option(oInfo, info("hers"))
			c.expectReply(oInfo, rPolicy, nil)
			c.option(oGo, info("hers"))
			c.expectReply(oGo, rPolicy, nil)
			c.option(oExportName, []byte("hers"))
			c.expectEnd()
		})
	}
	// A certificate that was not verified has no names.
	cfg.TLS().ClientAuth = tls.RequestClientCert
	s = serve(t, cfg, hers())
	for _, client := range []*tls.Config{ca.client("alice"), other.client("alice")} {
		client.RootCAs = ca.pool
		s.tls = client
		c := s.hello(t, 3)
		c.option(oGo, info("hers"))
		c.expectReply(oGo, rPolicy, nil)
	}
}

// TestClientUID: the user at the other end of a unix socket is known.
func TestClientUID(t *testing.T) {
	var seen atomic.Int64
	for network, want := range map[string]int64{"unix": int64(os.Getuid()), "tcp": -1} {
		exports := newExports().add(nbdsrv.Export{Name: "main", Device: newRAM(1 << 20)})
		exports.allow = func(_ string, client *nbdsrv.Client) error {
			seen.Store(int64(client.UID))
			return nil
		}
		addr := t.TempDir() + "/s"
		if network == "tcp" {
			addr = "127.0.0.1:0"
		}
		s := serveOn(t, nbdsrv.Config{}, exports, network, addr)
		s.connect(t, "main", false)
		if seen.Load() != want {
			t.Errorf("%s: user %d, want %d", network, seen.Load(), want)
		}
	}
}

// TestTLSCertificatesChange: each connection gets the configuration of its time.
func TestTLSCertificatesChange(t *testing.T) {
	old, next := newAuthority(t), newAuthority(t)
	var now atomic.Pointer[tls.Config]
	now.Store(old.config().TLS())
	s := serve(t, nbdsrv.Config{TLS: now.Load}, mainAndSecret())
	s.tls = old.client("alice")
	s.tls.ClientSessionCache = tls.NewLRUClientSessionCache(4)
	first := s.connect(t, "main", true)
	now.Store(next.config().TLS())
	c := s.dial(t)
	c.expect(be64(magicGreeting), be64(magicOption), be16(3))
	c.send(be32(3))
	c.beginTLS()
	if err := tls.Client(c.Conn, s.tls).Handshake(); err == nil {
		t.Error("the old certificate is still in use")
	}
	s.tls = next.client("alice")
	s.connect(t, "main", true).alive()
	first.alive()
}

// TestTLSNoResumption: a certificate is looked at each time.
func TestTLSNoResumption(t *testing.T) {
	ca := newAuthority(t)
	cfg := ca.config()
	cfg.TLS().SetSessionTicketKeys([][32]byte{{1}}) // the same for every connection
	s := serve(t, cfg, mainAndSecret())
	s.tls = ca.client("alice")
	s.tls.ClientSessionCache = tls.NewLRUClientSessionCache(4)
	for range 3 {
		c := s.connect(t, "main", true)
		c.alive()
		if c.Conn.(*tls.Conn).ConnectionState().DidResume {
			t.Fatal("session was resumed")
		}
	}
}

// TestTLSIdleConnectionsHoldNoBuffers is TestIdleConnectionsHoldNoBuffers with
// what crypto/tls keeps for itself.
func TestTLSIdleConnectionsHoldNoBuffers(t *testing.T) {
	const conns = 50
	ca := newAuthority(t)
	s, _ := serveRAM(t, ca.config(), 1<<20)
	s.tls = ca.client("")
	// Both ends are here: twice crypto/tls' buffers and certificates.
	if per := idleCost(t, s, conns); per > 128<<10 {
		t.Errorf("%d bytes for an idle connection", per)
	}
}

// TestTLSManyAtOnce: requests of several connections, from memory and from
// workers, in batches, each reply with its own bytes.
func TestTLSManyAtOnce(t *testing.T) {
	ca := newAuthority(t)
	s, d := serveRAM(t, ca.config(), 16<<20)
	s.tls = ca.client("")
	copy(d.data, pattern(16<<20, 5))
	var wg sync.WaitGroup
	for i := range 4 {
		c := s.connect(t, "main", true)
		wg.Go(func() {
			for round := range 4 {
				d.cold.Store((round+i)%2 == 0)
				var all []byte
				sizes := map[uint64]uint32{}
				for k := range uint64(48) {
					n := []uint32{512, 4096, 60 << 10, 200 << 10}[k%4]
					off := k * 300 << 10
					sizes[off] = n
					all = append(all, header(cRead, 0, off, off, n)...)
				}
				if _, err := c.Write(all); err != nil {
					t.Error(err)
					return
				}
				for range len(sizes) {
					a := c.answer(0)
					n := sizes[a.cookie]
					if a.errno != 0 || !bytes.Equal(a.data, d.data[a.cookie:a.cookie+uint64(n)]) {
						t.Errorf("read at %d: errno %d, %d bytes", a.cookie, a.errno, len(a.data))
						return
					}
				}
			}
		})
	}
	wg.Wait()
}

// TestTLSAbruptEnd: a client that vanishes in the middle of a record costs
// nobody anything.
func TestTLSAbruptEnd(t *testing.T) {
	ca := newAuthority(t)
	s, _ := serveRAM(t, ca.config(), 4<<20)
	s.tls = ca.client("")
	alive := s.connect(t, "main", true)
	for range 20 {
		c := s.connect(t, "main", true)
		for i := range uint64(64) {
			c.request(cRead, 0, i, 0, 64<<10, nil)
		}
		raw := c.Conn.(*tls.Conn).NetConn()
		_, _ = raw.Write([]byte{23, 3, 3, 0x10, 0, 1, 2, 3})
		_ = raw.Close()
	}
	waitFor(t, "the connections to end", func() bool { return s.exports.inUse() == 1 })
	alive.alive()
	// A record that does not authenticate ends the connection.
	c := s.connect(t, "main", true)
	_, _ = c.Conn.(*tls.Conn).NetConn().Write(append([]byte{23, 3, 3, 0, 40}, make([]byte, 40)...))
	_, err := c.Read(make([]byte, 1))
	var alert tls.AlertError
	if !errors.As(err, &alert) && err == nil {
		t.Errorf("a forged record: %v", err)
	}
	waitFor(t, "the connection to end", func() bool { return s.exports.inUse() == 1 })
	alive.alive()
}
