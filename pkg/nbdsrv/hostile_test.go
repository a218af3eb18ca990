package nbdsrv_test

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"math"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fsximg/fsx/pkg/nbdsrv"
)

// Clients that mean harm, or are broken enough to do it: they end or are
// bounded, they cost one line in the log, and others are served meanwhile.

// logbook collects what a server logs.
type logbook struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logbook) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logbook) lines() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Split(strings.TrimSuffix(l.text.String(), "\n"), "\n")
}

// logger logs warnings and errors.
func (l *logbook) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelWarn}))
}

// expectOne fails unless there is exactly one line, which contains what.
func (l *logbook) expectOne(t *testing.T, what string) {
	t.Helper()
	waitFor(t, "a line in the log", func() bool { return l.lines()[0] != "" })
	time.Sleep(20 * time.Millisecond) // for a second one
	if lines := l.lines(); len(lines) != 1 || !strings.Contains(lines[0], what) {
		t.Errorf("log, want one line with %q:\n%s", what, strings.Join(lines, "\n"))
	}
}

// bystander uses a connection of its own until stop is called, which fails if
// any request of it took longer than most.
func (s *server) bystander(t *testing.T, most time.Duration) (stop func()) {
	t.Helper()
	c := s.connectAs(t, "main", "extended")
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for i := 0; ; i++ {
			select {
			case <-end:
				return
			case <-time.After(time.Millisecond):
			}
			begin := time.Now()
			want := pattern(4096, byte(i))
			c.must(cWrite, fFUA, 0, 4096, want)
			expectBytes(t, c.must(cRead, 0, 0, 4096, nil).data, want)
			if d := time.Since(begin); d > most {
				t.Errorf("a bystander waited for %v", d)
			}
		}
	}()
	return func() { close(end); <-ended }
}

// TestHostileSlowNegotiation: one byte at a time gains no time.
func TestHostileSlowNegotiation(t *testing.T) {
	var log logbook
	s, _ := serveRAM(t, nbdsrv.Config{HandshakeTimeout: 300 * time.Millisecond, Log: log.logger()}, 1<<20)
	stop := s.bystander(t, 5*time.Second)
	c := s.hello(t, 3)
	begin := time.Now()
	for _, b := range join(be64(magicOption), be32(oInfo), be32(8000), make([]byte, 8000)) {
		if _, err := c.Write([]byte{b}); err != nil {
			break
		}
		time.Sleep(5 * time.Millisecond)
		if time.Since(begin) > 10*time.Second {
			t.Fatal("a slow negotiation goes on")
		}
	}
	stop()
	log.expectOne(t, "timeout")
}

// TestHostileSlowRequest: half a header, and half a payload in the receive
// buffer or in one of its own, hold up nobody and are never timed out while
// nobody needs the memory.
func TestHostileSlowRequest(t *testing.T) {
	s, d := serveRAM(t, nbdsrv.Config{}, 16<<20)
	before := d.snapshot()[:4<<20]
	stop := s.bystander(t, 5*time.Second)
	var slow []*client
	for _, headers := range []string{"simple", "extended"} {
		for _, n := range []uint32{4096, 1 << 20, 8 << 20} {
			c := s.connectAs(t, "main", headers)
			c.send(c.header(cWrite, 0, 1, 1<<20, n), make([]byte, n/2))
			slow = append(slow, c)
		}
		c := s.connectAs(t, "main", headers)
		c.send(c.header(cWrite, 0, 1, 0, 4096)[:17])
		slow = append(slow, c)
	}
	time.Sleep(300 * time.Millisecond)
	expectBytes(t, d.snapshot()[1<<20:4<<20], before[1<<20:]) // half a write is none
	for _, c := range slow {
		_ = c.SetReadDeadline(time.Now().Add(5 * time.Millisecond))
		if _, err := c.Read(make([]byte, 1)); !isTimeout(err) {
			t.Errorf("a slow client was cut: %v", err)
		}
		_ = c.Close()
	}
	stop()
	waitFor(t, "the slow clients to be forgotten", func() bool { return s.exports.inUse() <= 1 })
}

// TestHostileAnnouncedPayload: clients that announce data and never send it
// hold no memory that others need.
func TestHostileAnnouncedPayload(t *testing.T) {
	var log logbook
	s, _ := serveRAM(t, nbdsrv.Config{Memory: 65 << 20, ConnReserve: 1, StallTimeout: 200 * time.Millisecond, Log: log.logger()}, 80<<20)
	for _, headers := range []string{"structured", "extended"} {
		hog := s.connectAs(t, "main", headers)
		hog.send(hog.header(cWrite, 0, 1, 0, 64<<20), make([]byte, 1<<20))
		time.Sleep(500 * time.Millisecond)
		_ = hog.SetReadDeadline(time.Now().Add(5 * time.Millisecond))
		if _, err := hog.Read(make([]byte, 1)); !isTimeout(err) {
			t.Fatalf("cut without need: %v", err)
		}
		s.connectAs(t, "main", headers).must(cRead, 0, 0, 16<<20, nil)
		_ = hog.SetReadDeadline(time.Now().Add(10 * time.Second))
		hog.expectEnd()
	}
	if n := len(log.lines()); n != 2 {
		t.Errorf("%d lines for two clients:\n%s", n, strings.Join(log.lines(), "\n"))
	}
}

// TestHostileGarbage: bytes of no meaning end the connection in each phase.
func TestHostileGarbage(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	for _, phase := range []string{"client flags", "options", "simple", "structured", "extended"} {
		t.Run(phase, func(t *testing.T) {
			var log logbook
			s, d := serveRAM(t, nbdsrv.Config{Log: log.logger()}, 1<<20)
			var c *client
			switch phase {
			case "client flags":
				c = s.dial(t)
				c.expect(be64(magicGreeting), be64(magicOption), be16(3))
			case "options":
				c = s.hello(t, 3)
			default:
				c = s.connectAs(t, "main", phase)
			}
			p := make([]byte, 100_000)
			for i := range p {
				p[i] = byte(rnd.Uint32())
			}
			p[0] = 0xff // no magic, no flags
			_, _ = c.Write(p)
			c.expectReset()
			log.expectOne(t, "ended")
			if d.trims.Load()+d.zeroes.Load()+d.flushes.Load() != 0 {
				t.Error("garbage was carried out")
			}
		})
	}
}

// expectReset is expectEnd for a client that may have sent more than was read.
func (c *client) expectReset() {
	c.t.Helper()
	if n, err := io.Copy(io.Discard, c); n != 0 || isTimeout(err) {
		c.t.Fatalf("connection is alive: %d bytes, %v", n, err)
	}
}

// TestHostileOptionsOutOfPlace: requests before GO, options behind it.
func TestHostileOptionsOutOfPlace(t *testing.T) {
	for name, say := range map[string]func(t *testing.T, s *server) *client{
		"request before GO": func(t *testing.T, s *server) *client {
			c := s.hello(t, 3)
			c.send(header(cRead, 0, 1, 0, 512))
			return c
		},
		"request after INFO": func(t *testing.T, s *server) *client {
			c := s.hello(t, 3)
			c.tell(oInfo, "main")
			c.send(header(cRead, 0, 1, 0, 512))
			return c
		},
		"option behind GO": func(t *testing.T, s *server) *client {
			c := s.connect(t, "main", false)
			c.send(opt(oGo, info("main", 3))) // as long as a request
			return c
		},
		"long option behind GO": func(t *testing.T, s *server) *client {
			c := s.connect(t, "main", true)
			c.send(be64(magicOption), be32(oList), be32(0xffffffff), make([]byte, 100))
			return c
		},
		"client flags twice": func(t *testing.T, s *server) *client {
			c := s.hello(t, 3)
			c.send(be32(3), opt(oGo, info("main")))
			return c
		},
	} {
		t.Run(name, func(t *testing.T) {
			var log logbook
			s, _ := serveRAM(t, nbdsrv.Config{Log: log.logger()}, 1<<20)
			say(t, s).expectReset()
			log.expectOne(t, "bad")
		})
	}
}

// TestHostileLengths: the largest numbers in every command allocate nothing and
// leave the connection in order.
func TestHostileLengths(t *testing.T) {
	small, huge := newRAM(1<<20), &sparse{ramDevice: newRAM(1 << 20)}
	s := serve(t, nbdsrv.Config{}, newExports().
		add(nbdsrv.Export{Name: "small", Device: small}).add(nbdsrv.Export{Name: "huge", Device: huge}))
	for i := range 6 {
		headers, name := []string{"simple", "structured", "extended"}[i/2], []string{"small", "huge"}[i%2]
		c := s.connectAs(t, name, headers)
		c.alive()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for _, n := range []uint64{64<<20 + 1, 1 << 31, math.MaxUint32, 1 << 32, 1 << 63, math.MaxUint64} {
			if n > math.MaxUint32 && !c.extended {
				continue
			}
			for _, off := range []uint64{0, 1 << 19, 1 << 63, math.MaxUint64} {
				for _, cmd := range []uint16{cRead, cFlush, cTrim, cCache, cZero, cSta, 8, 0xffff} {
					if c.extended {
						c.send(extended(cmd, 0, 7, off, n))
					} else {
						c.send(header(cmd, 0, 7, off, uint32(n)))
					}
					ranged := cmd == cTrim || cmd == cCache || cmd == cZero || cmd == cSta && c.structured
					good := ranged && off <= c.size && n <= c.size-off
					if a := c.answer(0); (a.errno == 0) != good || a.cookie != 7 {
						t.Errorf("%s, %s: command %d at %#x+%#x: %+v", name, headers, cmd, off, n, a)
					}
				}
			}
		}
		runtime.ReadMemStats(&after)
		if grown := after.TotalAlloc - before.TotalAlloc; grown > 4<<20 && !raceEnabled { // which makes pools drop what they hold
			t.Errorf("%s: %d MiB were allocated", headers, grown>>20)
		}
		c.alive()
	}
}

// TestHostileManyRefusals: a client all of whose requests are refused, and that
// ends in garbage, is worth one line.
func TestHostileManyRefusals(t *testing.T) {
	for _, headers := range []string{"simple", "structured", "extended"} {
		var log logbook
		s, _ := serveRAM(t, nbdsrv.Config{Log: log.logger()}, 1<<20)
		c := s.connectAs(t, "main", headers)
		const count = 5000
		go func() {
			var all []byte
			for i := range uint64(count) {
				all = append(all, c.header([]uint16{cRead, cTrim, 99, cCache}[i%4], 0, i, 1<<20, 512)...)
			}
			_, _ = c.Write(append(all, make([]byte, 64)...))
		}()
		for range count {
			if a := c.answer(0); a.errno != eINVAL {
				t.Fatalf("%+v", a)
			}
		}
		c.expectReset()
		log.expectOne(t, "request refused")
	}
}

// TestHostileLogFlood: many misbehaving clients at once do not fill the log.
func TestHostileLogFlood(t *testing.T) {
	var log logbook
	s, _ := serveRAM(t, nbdsrv.Config{MaxConns: 150, Log: log.logger()}, 1<<20)
	begin := time.Now()
	for range 300 {
		s.hello(t, 1<<31).expectEnd()
	}
	seconds := int(time.Since(begin)/time.Second) + 1
	if n := len(log.lines()); n < 10 || n > 10*(seconds+1) {
		t.Errorf("%d lines for 300 clients in %d s", n, seconds)
	}
}

// TestHostileHalfClosed: a client that stops sending gets what it asked for, and
// is then forgotten.
func TestHostileHalfClosed(t *testing.T) {
	d := newRAM(4 << 20)
	exports := newExports().add(nbdsrv.Export{Name: "main", Device: d})
	s := serveOn(t, nbdsrv.Config{}, exports, "tcp", "127.0.0.1:0")
	d.cold.Store(true) // so that all are under way when it stops
	d.hook(func() { d.onRead = func(int64, int) error { time.Sleep(time.Millisecond); return nil } })
	for _, headers := range []string{"simple", "structured", "extended"} {
		c := s.connectAs(t, "main", headers)
		for i := range uint64(50) {
			c.request(cRead, 0, i, i*4096, 70_000, nil)
		}
		_ = c.Conn.(*net.TCPConn).CloseWrite()
		for range 50 {
			if a := c.answer(70_000); len(a.data) != 70_000 {
				t.Fatalf("%s: %d bytes", headers, len(a.data))
			}
		}
		c.expectEnd()
	}
	c := s.hello(t, 3)
	c.send(be64(magicOption)[:5])
	_ = c.Conn.(*net.TCPConn).CloseWrite()
	c.expectEnd()
	waitFor(t, "the exports to be released", func() bool { return exports.inUse() == 0 })
}

// descriptors is how many this process has open.
func descriptors(t *testing.T) int {
	t.Helper()
	l, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(l)
}

// TestHostileThousands: thousands of connections, silent, half negotiated, idle
// and half a request, are bounded in memory; who is being served notices
// nothing; and when they are gone, nothing of them is left.
func TestHostileThousands(t *testing.T) {
	conns := 5000
	if raceEnabled {
		conns = 500
	}
	var log logbook
	patience := 50 * time.Millisecond
	if raceEnabled {
		patience *= 10
	}
	s, _ := serveRAM(t, nbdsrv.Config{HandshakeTimeout: patience, MaxConns: conns * 3 / 4, Log: log.logger()}, 1<<20)
	heap := func() int64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc + m.StackInuse)
	}
	stop := s.bystander(t, 5*time.Second)
	goroutines, files, memory := runtime.NumGoroutine(), descriptors(t), heap()
	begin := time.Now()
	all := make([]net.Conn, 0, conns)
	for i := range conns {
		nc, err := net.Dial("unix", s.addr.String())
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		all = append(all, nc)
		switch {
		case i%20 == 0: // silent
		case i%20 == 1:
			_, _ = nc.Write(join(be32(3), be64(magicOption), be32(oInfo), be32(8192), make([]byte, 5000)))
		case i%2 == 0:
			_, _ = nc.Write(join(be32(3), opt(oGo, info("main"))))
		default:
			_, _ = nc.Write(join(be32(3), opt(oGo, info("main")), header(cWrite, 0, 1, 1<<19, 4096), make([]byte, 1000)))
		}
	}
	waitFor(t, "the server to be full", func() bool { return s.exports.inUse() > conns/2 })
	grown := heap() - memory
	// 64 of those amid a request keep their buffers of 512 KiB; the others cost
	// what they sent, and a few KiB.
	if most := 64<<20 + int64(conns)*(20<<10); grown > most {
		t.Errorf("%d connections cost %d MiB, want at most %d", conns, grown>>20, most>>20)
	}
	t.Logf("%d connections, %d in transmission: %d MiB in %v", conns, s.exports.inUse(), grown>>20, time.Since(begin))
	if n := len(log.lines()); n > 10*int(time.Since(begin)/time.Second+2) {
		t.Errorf("%d lines in the log", n)
	}
	for _, nc := range all {
		_ = nc.Close()
	}
	waitFor(t, "all of them to be forgotten", func() bool {
		return s.exports.inUse() == 1 && runtime.NumGoroutine() <= goroutines+2 && descriptors(t) <= files+2
	})
	stop()
	s.connectAs(t, "main", "extended").alive()
	if left := heap() - memory; left > 16<<20 {
		t.Errorf("%d MiB are left", left>>20)
	}
}

// TestItem81ReplayFenceOfRanges: a stuck TRIM or WRITE_ZEROES of everything must
// not come after a newer write either.
func TestItem81ReplayFenceOfRanges(t *testing.T) {
	for _, cmd := range []uint16{cTrim, cZero} {
		s, d := serveRAM(t, nbdsrv.Config{}, 1<<20)
		old, c := s.connectAs(t, "main", "extended"), s.connectAs(t, "main", "extended")
		g := newGate(t)
		d.hook(func() {
			d.onTrim = func(int64, int64) error { g.pass(); return nil }
			d.onZero = func(int64, int64, bool) error { g.pass(); return nil }
		})
		old.request(cmd, 0, 1, 0, 1<<20, nil)
		waitFor(t, "the change to get stuck", func() bool { return g.waiting.Load() == 1 })
		_ = old.Close()
		want := pattern(4096, 9)
		c.request(cWrite, 0, 2, 8192, 4096, want)
		_ = c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		if _, err := c.Read(make([]byte, 1)); !isTimeout(err) {
			t.Fatalf("command %d: an overlapping write was answered: %v", cmd, err)
		}
		_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
		g.release()
		if a := c.answer(0); a.cookie != 2 || a.errno != 0 {
			t.Fatalf("command %d: %+v", cmd, a)
		}
		expectBytes(t, c.must(cRead, 0, 8192, 4096, nil).data, want)
	}
}

// TestItem85MutatedStreams is what fuzzing finds in a second: good streams with
// some bytes changed, cut and doubled. The fuzz targets go on from there.
func TestItem85MutatedStreams(t *testing.T) {
	const seed = 85
	rnd := rand.New(rand.NewPCG(seed, 1))
	good := [][]byte{
		join(be32(3), opt(oList, nil), opt(oInfo, info("main", 1, 2, 3)), opt(oStructured, nil),
			opt(oSetMeta, meta("main", "base:allocation", "qemu:allocation-depth")), opt(oGo, info("main", 3)),
			header(cWrite, fFUA, 1, 0, 300), pattern(300, 1), header(cSta, 0, 2, 0, 1<<20), header(cRead, fDF, 3, 5, 70000)),
		join(be32(3), opt(oExtended, nil), opt(oSetMeta, meta("main", "base:allocation")), opt(oGo, info("main")),
			extended(cWrite, fPayload, 1, 0, 300), pattern(300, 1), extended(cZero, fNoHole, 2, 0, 1<<20),
			extended(cSta, fPayload, 3, 0, 12), be64(1<<20), be32(1), extended(cFlush, 0, 4, 0, 0), extended(cDisc, 0, 5, 0, 0)),
		join(be32(0), opt(oExportName, []byte("ro")), header(cRead, 0, 1, 0, 4096), header(cWrite, 0, 2, 0, 5), []byte("12345")),
	}
	rounds := 300
	if raceEnabled {
		rounds = 60
	}
	for i := range rounds {
		p := bytes.Clone(good[i%len(good)])
		for range 1 + rnd.IntN(4) {
			at := rnd.IntN(len(p))
			switch rnd.IntN(4) {
			case 0:
				p[at] = byte(rnd.Uint32())
			case 1:
				p[at] = []byte{0, 1, 0x7f, 0x80, 0xff}[rnd.IntN(5)]
			case 2:
				p = append(p[:at:at], p[min(at+rnd.IntN(9), len(p)-1):]...)
			default:
				p = append(p[:at:at], append(bytes.Clone(p[at:min(at+20, len(p))]), p[at:]...)...)
			}
		}
		fuzzServe(t, p)
		if t.Failed() {
			t.Fatalf("seed %d, round %d: %s", seed, i, fmt.Sprintf("%x", p))
		}
	}
}
