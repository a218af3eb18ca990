package nbdsrv_test

import (
	"crypto/tls"
	"io"
	"net"
	"runtime"
	"testing"
	"time"

	"github.com/fsximg/fsx/pkg/nbdsrv"
)

// fuzzServe feeds raw bytes to a server and fails if the connection outlives
// them, an export stays open, or more memory was allocated than the limits
// allow. A panic of the server is a panic of the test.
func fuzzServe(t *testing.T, stream []byte) { fuzzThrough(t, nbdsrv.Config{}, nil, stream) }

// fuzzThrough is fuzzServe with a configuration and, unless nil, over TLS.
func fuzzThrough(t *testing.T, cfg nbdsrv.Config, overTLS *tls.Config, stream []byte) {
	d := newRAM(1 << 20)
	d.offer(everyNth("qemu:allocation-depth", 3), everyNth("x-fsx:dirty:a", 1))
	exports := newExports().
		add(nbdsrv.Export{Name: "main", Description: "d", Device: d}).
		add(nbdsrv.Export{Name: "ro", ReadOnly: true, Device: newRAM(1 << 20)})
	cfg.Exports, cfg.HandshakeTimeout = exports, 5*time.Second
	s := nbdsrv.New(cfg)
	near, far := net.Pipe()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	ended := make(chan struct{})
	go func() { _ = s.ServeConn(far); close(ended) }()
	if overTLS != nil {
		c := &client{t: t, Conn: near}
		c.expect(be64(magicGreeting), be64(magicOption), be16(3))
		c.send(be32(3))
		c.startTLS(overTLS)
		near = c.Conn
	}
	drained := make(chan struct{})
	go func() { _, _ = io.Copy(io.Discard, near); close(drained) }()
	_ = near.SetWriteDeadline(time.Now().Add(5 * time.Second))
	_, _ = near.Write(stream)
	_ = near.Close()
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		t.Fatal("the connection does not end")
	}
	<-drained
	runtime.ReadMemStats(&after)
	// One payload of the largest size, rounded up, and the fixed buffers.
	if grown := after.TotalAlloc - before.TotalAlloc; grown > 2*nbdsrv.MaxPayload+8<<20 {
		t.Fatalf("%d bytes of input made the server allocate %d MiB", len(stream), grown>>20)
	}
	if n := exports.inUse(); n != 0 {
		t.Fatalf("%d exports were not released", n)
	}
}

// opt is the wire form of an option.
func opt(id uint32, data []byte) []byte {
	return join(be64(magicOption), be32(id), be32(uint32(len(data))), data)
}

func FuzzNegotiation(f *testing.F) {
	flags := be32(3)
	for _, seed := range [][]byte{
		nil, {0}, flags, be32(7),
		join(flags, opt(oAbort, nil)),
		join(flags, opt(oList, nil), opt(oList, []byte{1})),
		join(flags, opt(oExportName, []byte("main"))),
		join(be32(0), opt(oExportName, []byte("ro"))),
		join(flags, opt(oInfo, info("main", 0, 1, 2, 3)), opt(oGo, info("none"))),
		join(flags, opt(oStructured, nil), opt(oListMeta, meta("main")), opt(oSetMeta, meta("main", "base:allocation", "base:")), opt(oGo, info("main", 3))),
		join(flags, opt(oListMeta, meta("main", "qemu:", "x-fsx:dirty:", ":", "")), opt(oStructured, nil),
			opt(oSetMeta, meta("main", "x-fsx:dirty:a", "x-fsx:dirty:b", "qemu:", "base:allocation")), opt(oGo, info("main"))),
		join(flags, opt(oStartTLS, nil), []byte{22, 3, 1, 0, 5, 1, 0, 0, 1, 3}),
		join(flags, opt(oStartTLS, nil), opt(oExtended, nil), opt(99, []byte("x"))),
		join(flags, opt(oExtended, []byte{1}), opt(oExtended, nil), opt(oStructured, nil), opt(oExportName, []byte("main"))),
		join(flags, opt(oExtended, nil), opt(oSetMeta, meta("main", "base:allocation")), opt(oInfo, info("main")), opt(oGo, info("ro"))),
		join(flags, be64(magicOption), be32(oGo), be32(0xffffffff)),
		join(flags, be64(magicOption), be32(oSetMeta), be32(1<<20)),
		join(flags, opt(oInfo, join(be32(0xffffffff), []byte("main"), be16(0xffff)))),
		join(flags, opt(oSetMeta, join(be32(4), []byte("main"), be32(0xffffffff)))),
	} {
		f.Add(seed)
	}
	cfg := newAuthority(f).config()
	f.Fuzz(func(t *testing.T, stream []byte) { fuzzThrough(t, cfg, nil, stream) })
}

// FuzzTLS feeds both parsers through TLS.
func FuzzTLS(f *testing.F) {
	for _, seed := range [][]byte{
		nil,
		opt(oStartTLS, nil),
		join(opt(oGo, info("main")), header(cRead, 0, 1, 0, 200<<10), header(cDisc, 0, 2, 0, 0)),
		join(opt(oGo, info("main")), header(cWrite, fFUA, 1, 0, 4), []byte("data"), header(cFlush, 0, 2, 0, 0)),
		join(opt(oGo, info("ro")), header(cWrite, 0, 1, 0, 100<<10), make([]byte, 90<<10)),
		join(opt(oStructured, nil), opt(oGo, info("main")), header(cRead, 0, 1, 5, 3)[:20]),
	} {
		f.Add(seed)
	}
	ca := newAuthority(f)
	cfg, client := ca.forced(), ca.client("")
	f.Fuzz(func(t *testing.T, stream []byte) { fuzzThrough(t, cfg, client, stream) })
}

func FuzzTransmission(f *testing.F) {
	for _, seed := range [][]byte{
		nil,
		header(cRead, 0, 1, 0, 4096),
		join(header(cWrite, fFUA, 1, 0, 4), []byte("data"), header(cFlush, 0, 2, 0, 0)),
		join(header(cTrim, 0, 1, 5, 70000), header(cZero, fNoHole, 1, 0, 4096), header(cCache, 0, 1, 0, 1<<20)),
		join(header(cSta, fReqOne, 1, 0, 1<<20), header(cSta, 0, 1, 4096, 100)),
		join(header(cRead, fDF, 1, 0, 1<<20), header(cDisc, 0, 2, 0, 0)),
		header(cWrite, 0, 1, 0, 0xffffffff),
		header(cRead, 0, 1, 1<<64-512, 512),
		header(cRead, 0, 1, 0, 64<<20),
		join(header(cWrite, 0, 1, 1<<20, 8), []byte("refused!"), header(cRead, 0, 1, 0, 1)),
		header(0xffff, 0xffff, 0, 0, 0),
	} {
		f.Add(false, false, seed)
		f.Add(true, true, seed)
	}
	f.Fuzz(func(t *testing.T, structured, readOnly bool, stream []byte) {
		name := "main"
		if readOnly {
			name = "ro"
		}
		hello := be32(3)
		if structured {
			hello = join(hello, opt(oStructured, nil), opt(oSetMeta, meta(name, "x-fsx:dirty:a", "base:allocation", "qemu:allocation-depth")))
		}
		fuzzServe(t, join(hello, opt(oGo, info(name)), stream))
	})
}

// FuzzExtended is FuzzTransmission with extended headers.
func FuzzExtended(f *testing.F) {
	for _, seed := range [][]byte{
		nil,
		extended(cRead, 0, 1, 0, 4096),
		join(extended(cWrite, fFUA|fPayload, 1, 0, 4), []byte("data"), extended(cFlush, 0, 2, 0, 0)),
		join(extended(cWrite, 0, 1, 0, 4), extended(cWrite, fPayload, 1, 0, 0), extended(cDisc, 0, 2, 0, 0)),
		join(extended(cTrim, 0, 1, 5, 70000), extended(cZero, fNoHole, 1, 0, 1<<63), extended(cCache, 0, 1, 0, 1<<64-1)),
		join(extended(cTrim, fPayload, 1, 5, 3), []byte("abc"), extended(cSta, 0, 1, 0, 1<<20)),
		join(extended(cSta, fPayload, 1, 0, 12), be64(1<<20), be32(1), extended(cSta, fReqOne|fPayload, 1, 0, 16), be64(100), be32(3), be32(2)),
		join(extended(cSta, fPayload, 1, 0, 16), be64(1<<63), be32(2), be32(2), extended(cSta, fPayload, 1, 0, 5), be32(0), []byte{0}),
		extended(cWrite, fPayload, 1, 0, 1<<63),
		extended(cRead, fPayload, 1, 0, 64<<20),
		extended(cRead, 0, 1, 1<<64-512, 1<<63),
		header(cRead, 0, 1, 0, 4096),
		extended(0xffff, 0xffff, 0, 0, 0),
	} {
		f.Add(false, seed)
		f.Add(true, seed)
	}
	f.Fuzz(func(t *testing.T, readOnly bool, stream []byte) {
		name := "main"
		if readOnly {
			name = "ro"
		}
		fuzzServe(t, join(be32(3), opt(oExtended, nil),
			opt(oSetMeta, meta(name, "x-fsx:dirty:a", "base:allocation", "qemu:allocation-depth")), opt(oGo, info(name)), stream))
	})
}
