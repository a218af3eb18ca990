package nbdsrv_test

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/fsximg/fsx/pkg/nbdsrv"
)

// Numbers of the protocol, written out here so that the tests do not believe
// the server's own constants.
const (
	magicGreeting   = 0x4e42444d41474943
	magicOption     = 0x49484156454f5054
	magicOptReply   = 0x3e889045565a9
	magicRequest    = 0x25609513
	magicSimple     = 0x67446698
	magicStructured = 0x668e33ef
	magicExtRequest = 0x21e41c71
	magicExtReply   = 0x6e8a278c

	oExportName, oAbort, oList, oStartTLS, oInfo, oGo = 1, 2, 3, 5, 6, 7
	oStructured, oListMeta, oSetMeta, oExtended       = 8, 9, 10, 11

	rAck, rServer, rInfo, rMeta                              = 1, 2, 3, 4
	rUnsup, rPolicy, rInvalid, rTLSReqd, rExtended           = 1<<31 + 1, 1<<31 + 2, 1<<31 + 3, 1<<31 + 5, 1<<31 + 10
	rUnknown, rShutdown, rTooBig                             = 1<<31 + 6, 1<<31 + 7, 1<<31 + 9
	cRead, cWrite, cDisc, cFlush, cTrim, cCache, cZero, cSta = 0, 1, 2, 3, 4, 5, 6, 7
	fFUA, fNoHole, fDF, fReqOne, fFast, fPayload             = 1, 2, 4, 8, 16, 32

	eOK, ePERM, eIO, eINVAL, eNOSPC, eNOTSUP = 0, 1, 5, 22, 28, 95
)

// server is a running nbdsrv.Server with one socket.
type server struct {
	*nbdsrv.Server
	addr    net.Addr
	exports *exportMap
	tls     *tls.Config // what hello negotiates TLS with; nil: nothing
}

// serve runs a server for exports until the test ends, when nothing may be
// left open.
func serve(t testing.TB, cfg nbdsrv.Config, exports *exportMap) *server {
	t.Helper()
	return serveOn(t, cfg, exports, "unix", filepath.Join(t.TempDir(), "s"))
}

func serveOn(t testing.TB, cfg nbdsrv.Config, exports *exportMap, network, addr string) *server {
	t.Helper()
	ln, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Exports = exports
	s := &server{Server: nbdsrv.New(cfg), addr: ln.Addr(), exports: exports}
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(context.Background(), ln) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Errorf("shutdown: %v", err)
		}
		if err := <-ended; !errors.Is(err, nbdsrv.ErrServerClosed) {
			t.Errorf("serve: %v", err)
		}
		if n := exports.inUse(); n != 0 {
			t.Errorf("%d exports were not released", n)
		}
	})
	return s
}

// serveRAM serves one device as "main".
func serveRAM(t testing.TB, cfg nbdsrv.Config, size int64) (*server, *ramDevice) {
	t.Helper()
	d := newRAM(size)
	return serve(t, cfg, newExports().add(nbdsrv.Export{Name: "main", Description: "a test device", Device: d})), d
}

// client speaks the protocol by hand. Any surprise ends the test.
type client struct {
	t testing.TB
	net.Conn
	structured bool     // replies come in chunks
	extended   bool     // headers are extended ones
	contexts   []uint32 // the ids that a BLOCK_STATUS has to tell of
	flags      uint16
	size       uint64
}

// dial connects without saying anything.
func (s *server) dial(t testing.TB) *client {
	t.Helper()
	nc, err := net.Dial(s.addr.Network(), s.addr.String())
	if err != nil {
		t.Fatal(err)
	}
	_ = nc.SetDeadline(time.Now().Add(20 * time.Second))
	t.Cleanup(func() { _ = nc.Close() })
	return &client{t: t, Conn: nc, contexts: []uint32{1}}
}

// hello takes the greeting and answers with the flags.
func (s *server) hello(t testing.TB, flags uint32) *client {
	t.Helper()
	c := s.dial(t)
	c.expect(be64(magicGreeting), be64(magicOption), be16(3))
	c.send(be32(flags))
	if s.tls != nil {
		c.startTLS(s.tls)
	}
	return c
}

// connect negotiates up to the transmission of export name.
func (s *server) connect(t testing.TB, name string, structured bool) *client {
	t.Helper()
	return s.connectAs(t, name, map[bool]string{false: "simple", true: "structured"}[structured])
}

// connectAs is connect with simple, structured or extended headers.
func (s *server) connectAs(t testing.TB, name, headers string) *client {
	t.Helper()
	c := s.hello(t, 3)
	switch headers {
	case "structured":
		c.structure()
	case "extended":
		c.extend()
	}
	if c.structured {
		c.choose(name, "base:allocation")
	}
	c.enter(name)
	return c
}

// choose selects metadata contexts, all of which have to exist.
func (c *client) choose(name string, contexts ...string) {
	c.t.Helper()
	c.option(oSetMeta, meta(name, contexts...))
	c.contexts = nil
	next := uint32(2)
	for _, context := range contexts {
		id := next
		if context == "base:allocation" {
			id = 1
		} else {
			next++
		}
		c.expectReply(oSetMeta, rMeta, append(be32(id), context...))
		c.contexts = append(c.contexts, id)
	}
	c.expectReply(oSetMeta, rAck, nil)
}

func (c *client) structure() {
	c.t.Helper()
	c.option(oStructured, nil)
	c.expectReply(oStructured, rAck, nil)
	c.structured = true
}

func (c *client) extend() {
	c.t.Helper()
	c.option(oExtended, nil)
	c.expectReply(oExtended, rAck, nil)
	c.structured, c.extended = true, true
}

// enter sends GO and takes the answer apart.
func (c *client) enter(name string) {
	c.t.Helper()
	c.option(oGo, info(name))
	typ, p := c.reply(oGo)
	if typ != rInfo || len(p) != 12 || binary.BigEndian.Uint16(p) != 0 {
		c.t.Fatalf("GO was answered with %#x, %x", typ, p)
	}
	c.size, c.flags = binary.BigEndian.Uint64(p[2:]), binary.BigEndian.Uint16(p[10:])
	c.expectReply(oGo, rAck, nil)
}

func (c *client) send(parts ...[]byte) {
	c.t.Helper()
	if _, err := c.Write(join(parts...)); err != nil {
		c.t.Fatalf("send: %v", err)
	}
}

func (c *client) read(n int) []byte {
	c.t.Helper()
	p := make([]byte, n)
	if got, err := io.ReadFull(c.Conn, p); err != nil {
		c.t.Fatalf("read %d bytes, got %d: %v", n, got, err)
	}
	return p
}

func (c *client) expect(parts ...[]byte) {
	c.t.Helper()
	want := join(parts...)
	if got := c.read(len(want)); string(got) != string(want) {
		c.t.Fatalf("got %x, want %x", got, want)
	}
}

// expectEnd fails unless the server closed the connection without a word.
func (c *client) expectEnd() {
	c.t.Helper()
	var p [1]byte
	n, err := c.Read(p[:])
	var timeout net.Error
	if n != 0 || err == nil || (errors.As(err, &timeout) && timeout.Timeout()) {
		c.t.Fatalf("connection is alive: %d bytes %x, %v", n, p[:n], err)
	}
}

func (c *client) option(id uint32, data []byte) {
	c.t.Helper()
	c.send(be64(magicOption), be32(id), be32(uint32(len(data))), data)
}

func (c *client) reply(opt uint32) (typ uint32, data []byte) {
	c.t.Helper()
	c.expect(be64(magicOptReply), be32(opt))
	typ = binary.BigEndian.Uint32(c.read(4))
	n := binary.BigEndian.Uint32(c.read(4))
	if n > 1<<20 {
		c.t.Fatalf("option reply of %d bytes", n)
	}
	return typ, c.read(int(n))
}

// expectReply checks the type and, unless nil, the data of an option reply.
func (c *client) expectReply(opt, typ uint32, data []byte) {
	c.t.Helper()
	got, p := c.reply(opt)
	if got != typ || (data != nil && string(p) != string(data)) || (typ == rAck && len(p) != 0) {
		c.t.Fatalf("option %d: got %#x %q, want %#x %q", opt, got, p, typ, data)
	}
}

// request sends a request; payload only goes with WRITE.
func (c *client) request(cmd, flags uint16, cookie, off uint64, n uint32, payload []byte) {
	c.t.Helper()
	c.send(c.header(cmd, flags, cookie, off, n), payload)
}

// header is the header of a request in the kind that was negotiated.
func (c *client) header(cmd, flags uint16, cookie, off uint64, n uint32) []byte {
	if !c.extended {
		return header(cmd, flags, cookie, off, n)
	}
	if cmd == cWrite {
		flags |= fPayload
	}
	return extended(cmd, flags, cookie, off, uint64(n))
}

// answer is one whole reply, simple or structured.
type answer struct {
	cookie uint64
	errno  uint32
	data   []byte // of READ
	chunks []uint16
	text   string
	at     int64               // of ERROR_OFFSET, or -1
	status []uint64            // in context 1
	in     map[uint32][]uint64 // the same by context
	size   int                 // of all chunks with their headers
	offset uint64              // that extended headers repeat
	simple bool
}

// answer reads one reply. n is the length of the READ it belongs to, if any.
func (c *client) answer(n int) answer {
	c.t.Helper()
	a := answer{at: -1, in: map[uint32][]uint64{}}
	if magic := binary.BigEndian.Uint32(c.read(4)); magic == magicSimple {
		a.simple = true
		a.errno = binary.BigEndian.Uint32(c.read(4))
		a.cookie = binary.BigEndian.Uint64(c.read(8))
		if a.errno == 0 {
			a.data = c.read(n)
		}
		return a
	} else if magic != c.chunkMagic() || !c.structured {
		c.t.Fatalf("reply magic %#x", magic)
	}
	for {
		flags, typ, body := c.readChunk(&a)
		a.chunks = append(a.chunks, typ)
		c.chunk(&a, typ, body)
		if flags > 1 {
			c.t.Fatalf("chunk flags %#x", flags)
		}
		if flags == 1 {
			if typ == c.statusType() && len(a.in) != len(c.contexts) {
				c.t.Fatalf("status in %d contexts, want %d", len(a.in), len(c.contexts))
			}
			return a
		}
		c.expect(be32(c.chunkMagic()))
	}
}

func (c *client) chunkMagic() uint32 {
	if c.extended {
		return magicExtReply
	}
	return magicStructured
}

func (c *client) statusType() uint16 {
	if c.extended {
		return 6
	}
	return 5
}

// readChunk reads a chunk from behind its magic number.
func (c *client) readChunk(a *answer) (flags, typ uint16, body []byte) {
	c.t.Helper()
	p := c.read(12)
	flags, typ = binary.BigEndian.Uint16(p), binary.BigEndian.Uint16(p[2:])
	a.cookie = binary.BigEndian.Uint64(p[4:])
	head, n := uint64(20), uint64(0)
	if c.extended {
		head = 32
		at := binary.BigEndian.Uint64(c.read(8))
		if len(a.chunks) > 0 && at != a.offset {
			c.t.Fatalf("chunks of the requests at %#x and %#x in one reply", a.offset, at)
		}
		a.offset, n = at, binary.BigEndian.Uint64(c.read(8))
	} else {
		n = uint64(binary.BigEndian.Uint32(c.read(4)))
	}
	if n > 65<<20 {
		c.t.Fatalf("chunk with %d bytes", n)
	}
	a.size += int(head + n)
	return flags, typ, c.read(int(n))
}

func (c *client) chunk(a *answer, typ uint16, body []byte) {
	c.t.Helper()
	switch typ {
	case 0:
		if len(body) != 0 {
			c.t.Fatalf("NONE chunk with %x", body)
		}
	case 1:
		a.data = append(a.data, body[8:]...)
	case c.statusType():
		c.statusChunk(a, body)
	case 1<<15 + 1, 1<<15 + 2:
		a.errno = binary.BigEndian.Uint32(body)
		n := binary.BigEndian.Uint16(body[4:])
		a.text = string(body[6 : 6+n])
		if body = body[6+n:]; typ == 1<<15+2 {
			a.at, body = int64(binary.BigEndian.Uint64(body)), body[8:]
		}
		if len(body) != 0 || a.errno == 0 {
			c.t.Fatalf("error chunk: errno %d, %x left", a.errno, body)
		}
	default:
		c.t.Fatalf("chunk type %#x", typ)
	}
}

// statusChunk takes a BLOCK_STATUS chunk apart, or BLOCK_STATUS_EXT.
func (c *client) statusChunk(a *answer, body []byte) {
	c.t.Helper()
	head, entry := 4, 8
	if c.extended {
		head, entry = 8, 16
	}
	if (len(body)-head)%entry != 0 || len(body) < head+entry {
		c.t.Fatalf("BLOCK_STATUS chunk %x", body)
	}
	id := binary.BigEndian.Uint32(body)
	if !slices.Contains(c.contexts, id) || a.in[id] != nil {
		c.t.Fatalf("BLOCK_STATUS chunk of context %d", id)
	}
	if c.extended {
		if n := binary.BigEndian.Uint32(body[4:]); int(n) != (len(body)-head)/entry {
			c.t.Fatalf("%d descriptors in %d bytes", n, len(body))
		}
	}
	for body = body[head:]; len(body) > 0; body = body[entry/2:] {
		v := uint64(binary.BigEndian.Uint32(body))
		if c.extended {
			v = binary.BigEndian.Uint64(body)
		}
		a.in[id] = append(a.in[id], v)
	}
	a.status = a.in[1]
}

// do sends a request and returns the reply to it.
func (c *client) do(cmd, flags uint16, off uint64, n uint32, payload []byte) answer {
	c.t.Helper()
	cookie := off ^ uint64(cmd)<<56 ^ 0x5a
	c.request(cmd, flags, cookie, off, n, payload)
	want := 0
	if cmd == cRead {
		want = int(n)
	}
	a := c.answer(want)
	if a.cookie != cookie || (c.extended && a.offset != off) {
		c.t.Fatalf("cookie %#x, offset %#x, want %#x, %#x", a.cookie, a.offset, cookie, off)
	}
	return a
}

// must is do for requests that have to succeed.
func (c *client) must(cmd, flags uint16, off uint64, n uint32, payload []byte) answer {
	c.t.Helper()
	a := c.do(cmd, flags, off, n, payload)
	if a.errno != 0 {
		c.t.Fatalf("command %d at %d+%d: error %d %s", cmd, off, n, a.errno, a.text)
	}
	return a
}

// alive fails unless the connection still answers READ properly.
func (c *client) alive() {
	c.t.Helper()
	if a := c.must(cRead, 0, 0, 512, nil); len(a.data) != 512 {
		c.t.Fatalf("read %d bytes, want 512", len(a.data))
	}
}

func be16(v uint16) []byte { return binary.BigEndian.AppendUint16(nil, v) }
func be32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }
func be64(v uint64) []byte { return binary.BigEndian.AppendUint64(nil, v) }

func join(parts ...[]byte) (p []byte) {
	for _, part := range parts {
		p = append(p, part...)
	}
	return p
}

func header(cmd, flags uint16, cookie, off uint64, n uint32) []byte {
	return join(be32(magicRequest), be16(flags), be16(cmd), be64(cookie), be64(off), be32(n))
}

func extended(cmd, flags uint16, cookie, off, n uint64) []byte {
	return join(be32(magicExtRequest), be16(flags), be16(cmd), be64(cookie), be64(off), be64(n))
}

func info(name string, requests ...uint16) []byte {
	p := join(be32(uint32(len(name))), []byte(name), be16(uint16(len(requests))))
	for _, r := range requests {
		p = append(p, be16(r)...)
	}
	return p
}

func meta(name string, queries ...string) []byte {
	p := join(be32(uint32(len(name))), []byte(name), be32(uint32(len(queries))))
	for _, q := range queries {
		p = join(p, be32(uint32(len(q))), []byte(q))
	}
	return p
}

func pattern(n int, seed byte) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = seed + byte(i) + byte(i>>8)*7
	}
	return p
}
