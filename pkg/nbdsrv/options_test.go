package nbdsrv_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/fsximg/fsx/pkg/nbdsrv"
)

// The numbers in the names are those of the conformance checklist; see
// docs/nbd.md.

func TestItem01Greeting(t *testing.T) {
	s, _ := serveRAM(t, nbdsrv.Config{}, 1<<20)
	s.hello(t, 3) // hello compares the greeting byte for byte
}

func TestItem02UnknownClientFlags(t *testing.T) {
	s, _ := serveRAM(t, nbdsrv.Config{}, 1<<20)
	for _, flags := range []uint32{4, 7, 1 << 16, 1 << 31} {
		s.hello(t, flags).expectEnd()
	}
}

func TestItem03NoClientFlags(t *testing.T) {
	s, _ := serveRAM(t, nbdsrv.Config{}, 1<<20)
	c := s.hello(t, 0)
	c.option(oExportName, []byte("main"))
	head := c.read(10 + 124)
	if binary.BigEndian.Uint64(head) != 1<<20 {
		t.Fatalf("size %x", head[:8])
	}
	c.alive()
}

func TestItem04BadOptionMagic(t *testing.T) {
	s, _ := serveRAM(t, nbdsrv.Config{}, 1<<20)
	c := s.hello(t, 3)
	c.send(be64(magicOption+1), be32(oList), be32(0xffffffff))
	c.expectEnd()
}

func TestItem05UnknownOption(t *testing.T) {
	s, _ := serveRAM(t, nbdsrv.Config{}, 1<<20)
	c := s.hello(t, 3)
	for _, id := range []uint32{4, 12, 77, 1 << 31} {
		c.option(id, []byte("some data"))
		c.expectReply(id, rUnsup, nil)
	}
	c.enter("main")
	c.alive()
}

func TestItem06OptionLength(t *testing.T) {
	s, _ := serveRAM(t, nbdsrv.Config{}, 1<<20)
	c := s.hello(t, 3)
	for _, id := range []uint32{oInfo, oGo, oList, oListMeta, oSetMeta, oStructured, 99} {
		c.option(id, make([]byte, 1<<20))
		c.expectReply(id, rTooBig, nil)
	}
	c.enter("main")
	c.alive()

	c = s.hello(t, 3)
	c.send(be64(magicOption), be32(oGo), be32(0xffffffff))
	c.expectEnd()
}

func TestItem07HandshakeDeadline(t *testing.T) {
	s, _ := serveRAM(t, nbdsrv.Config{HandshakeTimeout: 100 * time.Millisecond}, 1<<20)
	begin := time.Now()
	c := s.hello(t, 3)
	c.expectEnd()
	if d := time.Since(begin); d > 5*time.Second {
		t.Fatalf("idle negotiation lived for %v", d)
	}
	// A client that keeps talking is bound all the same.
	c = s.hello(t, 3)
	for range 1000 {
		time.Sleep(5 * time.Millisecond)
		if _, err := c.Write(join(be64(magicOption), be32(99), be32(0))); err != nil {
			break
		}
	}
	if time.Since(begin) > 4*time.Second {
		t.Fatal("the deadline moves with each option")
	}
	// The transmission has none.
	c = s.connect(t, "main", false)
	time.Sleep(250 * time.Millisecond)
	c.alive()
}

func TestItem07OptionCount(t *testing.T) {
	s, _ := serveRAM(t, nbdsrv.Config{}, 1<<20)
	c := s.hello(t, 3)
	for i := range 4096 {
		c.option(uint32(100+i), nil)
		c.expectReply(uint32(100+i), rUnsup, nil)
	}
	c.expectEnd()
}

// TestItem07OptionBytes: many options, each of which is just worth skipping, are
// not.
func TestItem07OptionBytes(t *testing.T) {
	s, _ := serveRAM(t, nbdsrv.Config{}, 1<<20)
	c := s.hello(t, 3)
	for range 2 {
		c.option(99, make([]byte, 32<<20))
		c.expectReply(99, rTooBig, nil)
	}
	c.send(be64(magicOption), be32(99), be32(1))
	c.expectEnd()
}

func TestItem07HandshakeCount(t *testing.T) {
	s, _ := serveRAM(t, nbdsrv.Config{MaxHandshakes: 2, HandshakeTimeout: time.Minute}, 1<<20)
	first, _ := s.hello(t, 3), s.hello(t, 3)
	third := s.dial(t)
	_ = third.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if n, err := third.Read(make([]byte, 1)); n != 0 || !isTimeout(err) {
		t.Fatalf("a third negotiation began: %v", err)
	}
	first.enter("main")
	_ = third.SetReadDeadline(time.Now().Add(10 * time.Second))
	third.expect(be64(magicGreeting))
}

// TestItem07HandshakesOfOthers: negotiations that make no progress on one socket
// hold up no other, nor ServeConn.
func TestItem07HandshakesOfOthers(t *testing.T) {
	s, _ := serveRAM(t, nbdsrv.Config{MaxHandshakes: 2, HandshakeTimeout: time.Minute}, 1<<20)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = s.Serve(context.Background(), ln) }()
	onTCP := &server{Server: s.Server, addr: ln.Addr(), exports: s.exports}
	onTCP.hello(t, 3)
	onTCP.hello(t, 3)
	third := onTCP.dial(t)
	_ = third.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if n, err := third.Read(make([]byte, 1)); n != 0 || !isTimeout(err) {
		t.Fatalf("a third negotiation began: %v", err)
	}
	s.connect(t, "main", true).alive()
	near, far := net.Pipe()
	go func() { _ = s.ServeConn(far) }()
	_ = near.SetDeadline(time.Now().Add(10 * time.Second))
	defer near.Close()
	(&client{t: t, Conn: near}).expect(be64(magicGreeting))
}

func TestItem07ConnCount(t *testing.T) {
	s, _ := serveRAM(t, nbdsrv.Config{MaxConns: 2}, 1<<20)
	first, _ := s.connect(t, "main", false), s.connect(t, "main", false)
	s.dial(t).expectEnd()
	first.alive()
}

func TestItem08ServesTCP(t *testing.T) {
	exports := newExports().add(nbdsrv.Export{Name: "main", Device: newRAM(4 << 20)})
	s := serveOn(t, nbdsrv.Config{}, exports, "tcp", "127.0.0.1:0")
	c := s.connect(t, "main", true)
	want := pattern(3<<20, 9)
	c.must(cWrite, 0, 4096, uint32(len(want)), want)
	if a := c.must(cRead, 0, 4096, uint32(len(want)), nil); !bytes.Equal(a.data, want) {
		t.Fatal("other bytes came back")
	}
}

func TestItem09Strings(t *testing.T) {
	long := strings.Repeat("n", 4096)
	exports := newExports().add(nbdsrv.Export{Name: long, Device: newRAM(1 << 20)})
	s := serve(t, nbdsrv.Config{}, exports)
	c := s.hello(t, 3)
	for _, name := range []string{long + "n", "a\x00b", "\xff\xfe"} {
		c.option(oInfo, info(name))
		c.expectReply(oInfo, rInvalid, nil)
		c.option(oListMeta, meta(name))
		c.expectReply(oListMeta, rInvalid, nil)
	}
	c.enter(long)
	c.alive()
}

func TestItem09ErrorText(t *testing.T) {
	s, _ := serveRAM(t, nbdsrv.Config{}, 1<<20)
	s.exports.refuse = errors.New(strings.Repeat("long\x00\xff", 4000))
	c := s.hello(t, 3)
	c.option(oGo, info("main"))
	typ, p := c.reply(oGo)
	if typ != rUnknown || len(p) > 4096 || bytes.ContainsAny(p, "\x00\xff") {
		t.Fatalf("%#x with %d bytes", typ, len(p))
	}
}

func TestItem10ExportName(t *testing.T) {
	s, _ := serveRAM(t, nbdsrv.Config{}, 1<<20)
	const flags = 1<<0 | 1<<2 | 1<<3 | 1<<5 | 1<<6 | 1<<8 | 1<<10 | 1<<11
	for _, tt := range []struct {
		client uint32
		zeroes int
	}{{1, 124}, {3, 0}} {
		c := s.hello(t, tt.client)
		c.option(oExportName, []byte("main"))
		c.expect(be64(1<<20), be16(flags), make([]byte, tt.zeroes))
		c.alive() // any byte too many would be taken for a reply
	}
}

func TestItem11ExportNameUnknown(t *testing.T) {
	s, _ := serveRAM(t, nbdsrv.Config{}, 1<<20)
	for _, name := range []string{"other", "\xff", "a\x00"} {
		c := s.hello(t, 3)
		c.option(oExportName, []byte(name))
		c.expectEnd()
	}
}

func TestItem12DefaultExport(t *testing.T) {
	s, _ := serveRAM(t, nbdsrv.Config{}, 1<<20)
	c := s.connect(t, "", true)
	if c.size != 1<<20 {
		t.Fatalf("size %d", c.size)
	}
	c.alive()
	empty := serve(t, nbdsrv.Config{}, newExports())
	c = empty.hello(t, 3)
	c.option(oGo, info(""))
	c.expectReply(oGo, rUnknown, nil)
}

func TestItem13Abort(t *testing.T) {
	s, _ := serveRAM(t, nbdsrv.Config{}, 1<<20)
	for _, data := range []string{"", "bye"} {
		c := s.hello(t, 3)
		c.option(oAbort, []byte(data))
		c.expectReply(oAbort, rAck, nil)
		c.expectEnd()
	}
	c := s.hello(t, 3)
	c.option(oAbort, nil)
	_ = c.Close()
	s.hello(t, 3).enter("main")
}

func TestItem14List(t *testing.T) {
	exports := newExports()
	for _, name := range []string{"a", "b", "c"} {
		exports.add(nbdsrv.Export{Name: name, Description: "about " + name, Device: newRAM(1 << 20)})
	}
	s := serve(t, nbdsrv.Config{}, exports)
	c := s.hello(t, 3)
	c.option(oList, []byte{1})
	c.expectReply(oList, rInvalid, nil)
	c.option(oList, nil)
	for _, name := range []string{"a", "b", "c"} { // item 15: the description is the tail
		c.expectReply(oList, rServer, join(be32(1), []byte(name+"about "+name)))
	}
	c.expectReply(oList, rAck, nil)
	c.enter("b")
}

func TestItem16ListDisabled(t *testing.T) {
	s, _ := serveRAM(t, nbdsrv.Config{NoList: true}, 1<<20)
	c := s.hello(t, 3)
	c.option(oList, nil)
	c.expectReply(oList, rPolicy, nil)
	c.enter("main")
}

func TestItem17InfoGo(t *testing.T) {
	s, _ := serveRAM(t, nbdsrv.Config{}, 1<<20)
	c := s.hello(t, 1) // zeroes allowed: GO must send none all the same
	c.option(oInfo, info("main"))
	typ, first := c.reply(oInfo)
	if typ != rInfo || len(first) != 12 {
		t.Fatalf("%#x %x", typ, first)
	}
	c.expectReply(oInfo, rAck, nil)
	c.option(oGo, info("main"))
	c.expectReply(oGo, rInfo, first) // item 22: the same answer
	c.expectReply(oGo, rAck, nil)
	c.alive()
}

func TestItem18InfoUnknown(t *testing.T) {
	s, _ := serveRAM(t, nbdsrv.Config{}, 1<<20)
	c := s.hello(t, 3)
	for _, id := range []uint32{oInfo, oGo} {
		c.option(id, info("other"))
		c.expectReply(id, rUnknown, nil)
	}
	c.enter("main")
	c.alive()
}

func TestItem19InfoThenGoElsewhere(t *testing.T) {
	s, _ := serveRAM(t, nbdsrv.Config{}, 1<<20)
	c := s.hello(t, 3)
	c.option(oInfo, info("main"))
	c.expectReply(oInfo, rInfo, nil)
	c.expectReply(oInfo, rAck, nil)
	c.option(oGo, info("nonexistent"))
	c.expectReply(oGo, rUnknown, nil)
}

func TestItem20InfoLengths(t *testing.T) {
	s, _ := serveRAM(t, nbdsrv.Config{}, 1<<20)
	c := s.hello(t, 3)
	good := info("main", 3)
	for _, data := range [][]byte{
		nil, {0}, good[:5], good[:len(good)-1], append(bytes.Clone(good), 0),
		join(be32(0xffffffff), []byte("main"), be16(0)),
		join(be32(5), []byte("main"), be16(0)),
		join(be32(4), []byte("main"), be16(0xffff)),
		join(be32(4), []byte("main"), be16(1)),
		join(be32(4), []byte("main"), be16(0), be16(3)),
	} {
		for _, id := range []uint32{oInfo, oGo} {
			c.option(id, data)
			c.expectReply(id, rInvalid, nil)
		}
	}
	c.enter("main")
	c.alive()
}

func TestItem21InfoRequests(t *testing.T) {
	s, _ := serveRAM(t, nbdsrv.Config{}, 1<<20)
	c := s.hello(t, 3)
	c.option(oInfo, info("main", 1, 2, 3, 3, 77, 0, 0xffff))
	var got []uint16
	for {
		typ, p := c.reply(oInfo)
		if typ == rAck {
			break
		}
		kind := binary.BigEndian.Uint16(p)
		got = append(got, kind)
		switch kind { // items 23 and 24
		case 1:
			expectBytes(t, p[2:], []byte("main"))
		case 2:
			expectBytes(t, p[2:], []byte("a test device"))
		case 3:
			expectBytes(t, p[2:], join(be32(1), be32(4096), be32(32<<20)))
		}
	}
	if len(got) != 4 || got[0] != 0 {
		t.Fatalf("information types %v, want 0 and once 1, 2, 3", got)
	}
}

func TestItem25MinimumOne(t *testing.T) {
	s, _ := serveRAM(t, nbdsrv.Config{}, 1<<20)
	c := s.connect(t, "main", false) // without asking for the block size
	c.must(cWrite, 0, 4095, 3, []byte("xyz"))
	expectBytes(t, c.must(cRead, 0, 4094, 5, nil).data, []byte("\x00xyz\x00"))
}

func TestItem26StructuredReply(t *testing.T) {
	s, _ := serveRAM(t, nbdsrv.Config{}, 1<<20)
	c := s.hello(t, 3)
	c.option(oStructured, []byte{0})
	c.expectReply(oStructured, rInvalid, nil)
	c.structure()
	c.structure()
	c.enter("main")
	c.alive()
}

func TestItem28StartTLSWithoutTLS(t *testing.T) {
	s, _ := serveRAM(t, nbdsrv.Config{}, 1<<20)
	for _, flags := range []uint32{0, 3} {
		c := s.hello(t, flags)
		c.option(oStartTLS, nil)
		if typ, _ := c.reply(oStartTLS); typ != rUnsup && typ != rPolicy {
			t.Fatalf("STARTTLS: %#x", typ)
		}
		c.option(oExportName, []byte("main"))
		c.read(10 + 124*int(1-flags/3))
		c.alive()
	}
}

func TestItem32ListMetaContext(t *testing.T) {
	s, _ := serveRAM(t, nbdsrv.Config{}, 1<<20)
	c := s.hello(t, 3)
	c.structure()
	found := append(be32(0), "base:allocation"...)
	for _, tt := range []struct {
		queries []string
		found   bool
	}{
		{nil, true},
		{[]string{"base:"}, true},
		{[]string{"base:allocation"}, true},
		{[]string{"base:allocation", "base:", "base:allocation"}, true},
		{[]string{"base:other"}, false},
		{[]string{"qemu:", "x-y:z", "nonsense", ""}, false},
	} {
		c.option(oListMeta, meta("main", tt.queries...))
		if tt.found {
			c.expectReply(oListMeta, rMeta, found)
		}
		c.expectReply(oListMeta, rAck, nil)
	}
	c.option(oListMeta, meta("other"))
	c.expectReply(oListMeta, rUnknown, nil)
}

func TestItem33SetMetaNeedsStructured(t *testing.T) {
	s, _ := serveRAM(t, nbdsrv.Config{}, 1<<20)
	c := s.hello(t, 3)
	c.option(oSetMeta, meta("main", "base:allocation"))
	c.expectReply(oSetMeta, rInvalid, nil)
}

func TestItem34SetMetaUnique(t *testing.T) {
	s, _ := serveRAM(t, nbdsrv.Config{}, 1<<20)
	c := s.hello(t, 3)
	c.structure()
	for _, queries := range [][]string{nil, {"base:"}, {"qemu:dirty-bitmap:x"}} {
		c.option(oSetMeta, meta("main", queries...))
		c.expectReply(oSetMeta, rAck, nil)
	}
	c.option(oSetMeta, meta("main", "base:allocation", "base:allocation"))
	c.expectReply(oSetMeta, rMeta, nil)
	c.expectReply(oSetMeta, rAck, nil)
	c.enter("main")
	if a := c.must(cSta, 0, 0, 4096, nil); len(a.chunks) != 1 {
		t.Fatalf("%d chunks for one context", len(a.chunks))
	}
}

func TestItem35MetaHoldsForOneExport(t *testing.T) {
	exports := newExports().
		add(nbdsrv.Export{Name: "a", Device: newRAM(1 << 20)}).
		add(nbdsrv.Export{Name: "b", Device: newRAM(1 << 20)})
	s := serve(t, nbdsrv.Config{}, exports)
	selected := func() *client {
		c := s.hello(t, 3)
		c.structure()
		c.option(oSetMeta, meta("a", "base:allocation"))
		c.expectReply(oSetMeta, rMeta, nil)
		c.expectReply(oSetMeta, rAck, nil)
		return c
	}
	spoil := map[string]func(c *client) string{
		"another export": func(*client) string { return "b" },
		"unknown export": func(c *client) string {
			c.option(oSetMeta, meta("c", "base:allocation"))
			c.expectReply(oSetMeta, rUnknown, nil)
			return "a"
		},
		"malformed": func(c *client) string {
			c.option(oSetMeta, []byte{0, 0, 0, 9})
			c.expectReply(oSetMeta, rInvalid, nil)
			return "a"
		},
		"too long": func(c *client) string {
			c.option(oSetMeta, make([]byte, 1<<20))
			c.expectReply(oSetMeta, rTooBig, nil)
			return "a"
		},
		"nothing selected": func(c *client) string {
			c.option(oSetMeta, meta("a"))
			c.expectReply(oSetMeta, rAck, nil)
			return "a"
		},
	}
	for name, step := range spoil {
		t.Run(name, func(t *testing.T) {
			c := selected()
			c.enter(step(c))
			if a := c.do(cSta, 0, 0, 4096, nil); a.errno != eINVAL {
				t.Fatalf("BLOCK_STATUS: %d", a.errno)
			}
			c.alive()
		})
	}
	c := selected()
	c.enter("a")
	c.must(cSta, 0, 0, 4096, nil)
}

func TestItem36MetaLengths(t *testing.T) {
	s, _ := serveRAM(t, nbdsrv.Config{}, 1<<20)
	c := s.hello(t, 3)
	c.structure()
	good := meta("main", "base:allocation")
	for _, id := range []uint32{oListMeta, oSetMeta} {
		for _, data := range [][]byte{
			nil, good[:3], good[:8], good[:len(good)-1], append(bytes.Clone(good), 0),
			join(be32(0xffffffff), []byte("main"), be32(0)),
			join(be32(4), []byte("main"), be32(1), be32(0xffffffff), []byte("base:")),
			join(be32(4), []byte("main"), be32(2), be32(5), []byte("base:")),
			meta("main", strings.Repeat("q", 4097)),
		} {
			c.option(id, data)
			c.expectReply(id, rInvalid, nil)
		}
		c.option(id, join(be32(4), []byte("main"), be32(100000)))
		c.expectReply(id, rTooBig, nil)
	}
	c.enter("main")
	c.alive()
}

// expectBytes compares what came with what should have.
func expectBytes(t testing.TB, got, want []byte) {
	t.Helper()
	if !bytes.Equal(got, want) {
		t.Fatalf("got %.40q, want %.40q", got, want)
	}
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}
