package nbdsrv_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/fsximg/fsx/pkg/nbdsrv"
)

// waitFor fails if cond does not come true soon.
func waitFor(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// gate is a hook that holds calls up until it is opened.
type gate struct {
	waiting atomic.Int64
	open    chan struct{}
	once    sync.Once
}

func newGate(t testing.TB) *gate {
	g := &gate{open: make(chan struct{})}
	t.Cleanup(g.release)
	return g
}

func (g *gate) pass()    { g.waiting.Add(1); <-g.open; g.waiting.Add(-1) }
func (g *gate) release() { g.once.Do(func() { close(g.open) }) }

func TestItem39Shutdown(t *testing.T) {
	s, _ := serveRAM(t, nbdsrv.Config{}, 1<<20)
	c := s.hello(t, 3)
	c.option(99, nil)
	c.expectReply(99, rUnsup, nil)
	ended := make(chan error, 1)
	go func() { ended <- s.Shutdown(context.Background()) }()
	waitFor(t, "the listener to close", func() bool {
		nc, err := net.Dial("unix", s.addr.String())
		if err == nil {
			_ = nc.Close()
		}
		return err != nil
	})
	for _, id := range []uint32{oGo, oList, 99} {
		c.option(id, info("main"))
		c.expectReply(id, rShutdown, nil)
	}
	c.option(oAbort, nil)
	c.expectReply(oAbort, rAck, nil)
	c.expectEnd()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
}

func TestItem55WriteIsVisible(t *testing.T) {
	s, d := serveRAM(t, nbdsrv.Config{}, 1<<20)
	a, b := s.connect(t, "main", false), s.connect(t, "main", true)
	for i := range 200 {
		d.cold.Store(i%3 == 0)
		want := pattern(4096, byte(i+1))
		a.must(cWrite, 0, 8192, 4096, want)
		expectBytes(t, b.must(cRead, 0, 8192, 4096, nil).data, want)
	}
}

func TestItem56FlushFailureSticks(t *testing.T) {
	s, d := serveRAM(t, nbdsrv.Config{}, 1<<20)
	a, b := s.connect(t, "main", false), s.connect(t, "main", true)
	a.must(cFlush, 0, 0, 0, nil)
	d.hook(func() { d.onFlush = func() error { return syscall.EIO } })
	if r := a.do(cFlush, 0, 0, 0, nil); r.errno != eIO {
		t.Fatalf("FLUSH: %d", r.errno)
	}
	d.hook(func() { d.onFlush = nil })
	for _, c := range []*client{a, b} {
		if r := c.do(cFlush, 0, 0, 0, nil); r.errno != eIO {
			t.Errorf("a FLUSH after the failed one: %d", r.errno)
		}
		if r := c.do(cWrite, fFUA, 0, 512, make([]byte, 512)); r.errno != eIO {
			t.Errorf("FUA after the failed FLUSH: %d", r.errno)
		}
	}
	if n := d.flushes.Load(); n != 2 {
		t.Errorf("the device was flushed %d times, want 2: a failed flush is not tried again", n)
	}
}

// TestItem56FlushBeginsAfterItsRequest: requests that come while a Flush runs
// must wait for another one.
func TestItem56FlushBeginsAfterItsRequest(t *testing.T) {
	s, d := serveRAM(t, nbdsrv.Config{}, 1<<20)
	c := s.connect(t, "main", false)
	g := newGate(t)
	d.hook(func() { d.onFlush = func() error { g.pass(); return nil } })
	c.request(cFlush, 0, 1, 0, 0, nil)
	waitFor(t, "the first flush", func() bool { return g.waiting.Load() == 1 })
	for i := range uint64(10) {
		c.request(cWrite, fFUA, 2+i, 0, 512, make([]byte, 512))
	}
	c.alive() // a READ is not held up
	g.release()
	for range 11 {
		if a := c.answer(0); a.errno != 0 {
			t.Fatal(a.errno)
		}
	}
	if n := d.flushes.Load(); n < 2 || n > 11 {
		t.Errorf("%d flushes", n)
	}
}

func TestItem58Disconnect(t *testing.T) {
	both(t, func(t *testing.T, c *client, d *ramDevice) {
		const count = 64
		slow := func(int64, int) error { time.Sleep(time.Millisecond); return nil }
		d.hook(func() { d.onRead, d.onWrite = slow, slow })
		var all []byte
		for i := range uint64(count) {
			all = append(all, c.header(cWrite, fFUA*uint16(i%2), i, i*4096, 4096)...)
			all = append(all, pattern(4096, byte(i))...)
		}
		c.send(all, c.header(cDisc, 0, 1000, 0, 0))
		seen := map[uint64]bool{}
		for range count {
			a := c.answer(0)
			if a.errno != 0 || seen[a.cookie] || a.cookie >= count {
				t.Fatalf("%+v", a)
			}
			seen[a.cookie] = true
		}
		c.expectEnd()
		stored := d.snapshot()
		for i := range count {
			expectBytes(t, stored[i*4096:(i+1)*4096], pattern(4096, byte(i)))
		}
	})
}

func TestItem59AbruptReset(t *testing.T) {
	exports := newExports().add(nbdsrv.Export{Name: "main", Device: newRAM(1 << 20)})
	s := serveOn(t, nbdsrv.Config{}, exports, "tcp", "127.0.0.1:0")
	s.connect(t, "main", false).alive()
	before := runtime.NumGoroutine()
	for i := range 20 {
		c := s.connect(t, "main", i%2 == 0)
		for j := range uint64(64) {
			c.request(cRead, 0, j, 0, 64<<10, nil)
		}
		if i%4 == 3 {
			c.send(header(cWrite, 0, 1, 0, 1<<19), make([]byte, 1000))
		}
		_ = c.Conn.(*net.TCPConn).SetLinger(0)
		_ = c.Close()
	}
	waitFor(t, "the goroutines to end", func() bool { return runtime.NumGoroutine() <= before+1 })
	waitFor(t, "the exports to be released", func() bool { return exports.inUse() <= 1 })
	s.connect(t, "main", true).alive()
}

func TestItem67ShutdownFinishesRequests(t *testing.T) {
	for _, network := range []string{"unix", "tcp"} {
		t.Run(network, func(t *testing.T) {
			d := newRAM(1 << 20)
			addr := map[string]string{"unix": t.TempDir() + "/s", "tcp": "127.0.0.1:0"}[network]
			s := serveOn(t, nbdsrv.Config{}, newExports().add(nbdsrv.Export{Name: "main", Device: d}), network, addr)
			c, idle := s.connect(t, "main", false), s.connect(t, "main", false)
			g := newGate(t)
			d.cold.Store(true)
			d.hook(func() { d.onWrite = func(int64, int) error { g.pass(); return nil } })
			for i := range uint64(8) {
				c.request(cWrite, fFUA, i, i*4096, 4096, pattern(4096, byte(i)))
			}
			waitFor(t, "the writes to begin", func() bool { return g.waiting.Load() == 8 })
			ended := make(chan error, 1)
			go func() { ended <- s.Shutdown(context.Background()) }()
			idle.expectEnd()
			c.request(cRead, 0, 100, 0, 4096, nil) // too late: stays in the socket
			g.release()
			for range 8 {
				if a := c.answer(0); a.errno != 0 {
					t.Fatal(a.errno)
				}
			}
			if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
				t.Errorf("after the last reply: %d bytes, %v; want an orderly end", n, err)
			}
			_ = c.Close()
			if err := <-ended; err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestItem67ShutdownCutsAtItsDeadline(t *testing.T) {
	s, _ := serveRAM(t, nbdsrv.Config{}, 4<<20)
	c := s.connect(t, "main", false)
	for i := range uint64(16) { // replies nobody reads
		c.request(cRead, 0, i, 0, 1<<20, nil)
	}
	time.Sleep(50 * time.Millisecond)
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if err := s.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
}

func TestServeEndsWithItsContext(t *testing.T) {
	ln, err := net.Listen("unix", t.TempDir()+"/s")
	if err != nil {
		t.Fatal(err)
	}
	s := &server{Server: nbdsrv.New(nbdsrv.Config{Exports: newExports().add(nbdsrv.Export{Name: "main", Device: newRAM(1 << 20)})}), addr: ln.Addr(), exports: nil}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx, ln) }()
	c := s.connect(t, "main", false)
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	c.alive() // until Shutdown
	if err := s.Shutdown(context.Background()); err != nil {
		t.Fatal(err)
	}
	c.expectEnd()
	if err := s.Serve(context.Background(), ln); !errors.Is(err, nbdsrv.ErrServerClosed) {
		t.Fatal(err)
	}
}

// TestItem80FlushCoversAllConnections: at the time of B's flush, A's completed
// writes are in the device.
func TestItem80FlushCoversAllConnections(t *testing.T) {
	s, d := serveRAM(t, nbdsrv.Config{}, 1<<20)
	a, b, c := s.connect(t, "main", false), s.connect(t, "main", true), s.connect(t, "main", true)
	var durable atomic.Pointer[[]byte]
	d.hook(func() { d.onFlush = func() error { p := d.snapshot(); durable.Store(&p); return nil } })
	for i := range 50 {
		d.cold.Store(i%2 == 0)
		want := pattern(8192, byte(i+1))
		a.must(cWrite, 0, 4096, 8192, want)
		b.must(cFlush, 0, 0, 0, nil)
		expectBytes(t, (*durable.Load())[4096:12288], want)
		expectBytes(t, c.must(cRead, 0, 4096, 8192, nil).data, want)
	}
}

// TestItem81ReplayFence: a write stuck in the device on a dead connection must
// not come after a newer one that was acknowledged elsewhere.
func TestItem81ReplayFence(t *testing.T) {
	s, d := serveRAM(t, nbdsrv.Config{}, 1<<20)
	c1, c2 := s.connect(t, "main", false), s.connect(t, "main", false)
	g := newGate(t)
	var calls atomic.Int64
	d.cold.Store(true)
	d.hook(func() {
		d.onWrite = func(int64, int) error {
			if calls.Add(1) == 1 {
				g.pass()
			}
			return nil
		}
	})
	old, newer := pattern(4096, 1), pattern(4096, 2)
	c1.request(cWrite, 0, 1, 0, 4096, old)
	waitFor(t, "the write to get stuck", func() bool { return g.waiting.Load() == 1 })
	_ = c1.Close()
	d.cold.Store(false) // what follows could be served inline

	c2.request(cWrite, 0, 2, 4000, 4096, old)
	c2.request(cWrite, 0, 3, 100<<10, 4096, old) // elsewhere: not held up
	if a := c2.answer(0); a.cookie != 3 {
		t.Fatalf("reply to %d came first", a.cookie)
	}
	_ = c2.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if n, err := c2.Read(make([]byte, 1)); n != 0 || !isTimeout(err) {
		t.Fatalf("overlapping write was answered: %v", err)
	}
	_ = c2.SetReadDeadline(time.Now().Add(10 * time.Second))
	g.release()
	if a := c2.answer(0); a.cookie != 2 || a.errno != 0 {
		t.Fatalf("%+v", a)
	}
	c2.must(cWrite, 0, 0, 4096, newer)
	expectBytes(t, c2.must(cRead, 0, 0, 4096, nil).data, newer)
	if calls.Load() != 4 {
		t.Errorf("%d writes, want 4", calls.Load())
	}
}

// TestItem81UnreadWrites: a write that still lay in the socket of a held-up
// connection when its client left is not carried out.
func TestItem81UnreadWrites(t *testing.T) {
	t.Run("plaintext", func(t *testing.T) { unreadWrites(t, nbdsrv.Config{}, nil) })
	t.Run("TLS", func(t *testing.T) {
		ca := newAuthority(t)
		unreadWrites(t, ca.config(), ca.client(""))
	})
}

func unreadWrites(t *testing.T, cfg nbdsrv.Config, overTLS *tls.Config) {
	// On a Unix socket sending the first reply fails; TCP takes it.
	d := newRAM(1 << 20)
	exports := newExports().add(nbdsrv.Export{Name: "main", Device: d})
	cfg.ConnRequests = 1
	s := serveOn(t, cfg, exports, "tcp", "127.0.0.1:0")
	s.tls = overTLS
	c1, c2 := s.connect(t, "main", false), s.connect(t, "main", false)
	g := newGate(t)
	d.cold.Store(true)
	d.hook(func() {
		d.onWrite = func(off int64, _ int) error {
			if off == 0 {
				g.pass()
			}
			return nil
		}
	})
	stale, newer := pattern(4096, 1), pattern(4096, 2)
	c1.request(cWrite, 0, 1, 0, 4096, stale)
	waitFor(t, "the first write to get stuck", func() bool { return g.waiting.Load() == 1 })
	c1.request(cWrite, 0, 2, 8192, 4096, stale) // waits for the first: ConnRequests
	c1.request(cWrite, 0, 3, 16384, 4096, stale)
	time.Sleep(20 * time.Millisecond)
	_ = c1.Close()
	for _, off := range []uint64{8192, 16384} {
		c2.must(cWrite, 0, off, 4096, stale)
		c2.must(cWrite, 0, off, 4096, newer)
	}
	time.Sleep(1100 * time.Millisecond) // longer than staleAfter
	g.release()
	waitFor(t, "the connection to end", func() bool { return s.exports.inUse() == 1 })
	for _, off := range []uint64{8192, 16384} {
		expectBytes(t, c2.must(cRead, 0, off, 4096, nil).data, newer)
	}
}

// TestItem81QuickReconnect: what lies unserved in the socket of a client that
// closed it and connected again comes before all that it sends then, or never.
func TestItem81QuickReconnect(t *testing.T) {
	for name, held := range map[string]time.Duration{"served": 100 * time.Millisecond, "given up": 1500 * time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			s, d := serveRAM(t, nbdsrv.Config{}, 1<<20)
			g := newGate(t)
			d.hook(func() {
				d.onWrite = func(off int64, _ int) error {
					if off == 0 {
						g.pass()
					}
					return nil
				}
			})
			stale, newer := pattern(4096, 1), pattern(4096, 2)
			c1 := s.connect(t, "main", false)
			both := append(header(cWrite, 0, 1, 0, 4096), stale...)
			both = append(append(both, header(cWrite, 0, 2, 8192, 4096)...), stale...)
			if _, err := c1.Write(both); err != nil { // received together
				t.Fatal(err)
			}
			waitFor(t, "the first write to get stuck", func() bool { return g.waiting.Load() == 1 })
			_ = c1.Close()
			time.AfterFunc(held, g.release)
			c2 := s.connect(t, "main", false)
			c2.must(cWrite, 0, 8192, 4096, stale) // again
			c2.must(cWrite, 0, 8192, 4096, newer)
			waitFor(t, "the first connection to end", func() bool { return s.exports.inUse() == 1 })
			expectBytes(t, c2.must(cRead, 0, 8192, 4096, nil).data, newer)
		})
	}
}

// TestItem81CutReconnect is the same with a connection that the server itself closed,
// because a reply could not be sent.
func TestItem81CutReconnect(t *testing.T) {
	s, d := serveRAM(t, nbdsrv.Config{}, 1<<20)
	reading, writing := newGate(t), newGate(t)
	d.hook(func() {
		d.onRead = func(off int64, _ int) error {
			if off == 4096 {
				reading.pass()
			}
			return nil
		}
		d.onWrite = func(off int64, _ int) error {
			if off == 0 {
				writing.pass()
			}
			return nil
		}
	})
	stale, newer := pattern(4096, 1), pattern(4096, 2)
	c1 := s.connect(t, "main", false)
	d.cold.Store(true)
	c1.request(cRead, 0, 1, 4096, 4096, nil)
	waitFor(t, "the read to get stuck", func() bool { return reading.waiting.Load() == 1 })
	d.cold.Store(false)
	both := append(header(cWrite, 0, 2, 0, 4096), stale...)
	both = append(append(both, header(cWrite, 0, 3, 8192, 4096)...), stale...)
	if _, err := c1.Write(both); err != nil { // received together
		t.Fatal(err)
	}
	waitFor(t, "the first write to get stuck", func() bool { return writing.waiting.Load() == 1 })
	_ = c1.Close()
	reading.release() // nobody takes the reply
	time.Sleep(50 * time.Millisecond)
	time.AfterFunc(100*time.Millisecond, writing.release)
	c2 := s.connect(t, "main", false)
	c2.must(cWrite, 0, 8192, 4096, stale) // again
	c2.must(cWrite, 0, 8192, 4096, newer)
	waitFor(t, "the first connection to end", func() bool { return s.exports.inUse() == 1 })
	expectBytes(t, c2.must(cRead, 0, 8192, 4096, nil).data, newer)
}

// TestItem82Budget: large writes stay within the memory they are allowed, of
// one connection and of all, by not reading their sockets.
func TestItem82Budget(t *testing.T) {
	const budget = 65 << 20
	for name, tt := range map[string]struct {
		conns, depth uint64
		cfg          nbdsrv.Config
	}{
		"server":     {8, 16, nbdsrv.Config{Memory: budget, ConnReserve: 1}},
		"connection": {1, 128, nbdsrv.Config{ConnMemory: budget, ConnWorkers: 128}},
	} {
		t.Run(name, func(t *testing.T) {
			const size = 1 << 20
			s, d := serveRAM(t, tt.cfg, int64(tt.conns*size))
			g := newGate(t)
			d.cold.Store(true)
			d.hook(func() { d.onWrite = func(int64, int) error { g.pass(); return nil } })
			var wg sync.WaitGroup
			for n := range tt.conns {
				c := s.connect(t, "main", false)
				payload := pattern(size, 1)
				wg.Go(func() {
					for i := range tt.depth {
						if _, err := c.Write(append(header(cWrite, 0, i, n*size, size), payload...)); err != nil {
							return
						}
					}
				})
				wg.Go(func() {
					for range tt.depth {
						if a := c.answer(0); a.errno != 0 {
							t.Error(a.errno)
						}
					}
				})
			}
			// Every write that was admitted waits in the device.
			waitFor(t, "the budget to fill", func() bool { return g.waiting.Load() >= budget/size-1 })
			time.Sleep(100 * time.Millisecond)
			if n := g.waiting.Load(); n > budget/size {
				t.Errorf("%d writes of 1 MiB were admitted", n)
			}
			g.release()
			wg.Wait()
		})
	}
}

func TestItem83SlowReader(t *testing.T) {
	s, d := serveRAM(t, nbdsrv.Config{}, 4<<20)
	for range 3 {
		slow := s.connect(t, "main", true)
		go func() {
			for i := range uint64(10000) {
				if _, err := slow.Write(header(cRead, 0, i, 0, 64<<10)); err != nil {
					return
				}
			}
		}()
	}
	time.Sleep(50 * time.Millisecond)
	c := s.connect(t, "main", true)
	for i := range 100 {
		d.cold.Store(i%2 == 0)
		c.must(cWrite, fFUA, 0, 4096, pattern(4096, byte(i)))
		c.must(cRead, 0, 0, 1<<20, nil)
	}
	shutdownNow(t, s)
}

// shutdownNow ends connections whose clients will not take their replies.
func shutdownNow(t *testing.T, s *server) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	_ = s.Shutdown(ctx)
}

// TestItem83StalledMemoryIsTakenBack: connections that hold the server's whole
// budget in replies they do not take are cut when others need it, and only
// then.
func TestItem83StalledMemoryIsTakenBack(t *testing.T) {
	s, d := serveRAM(t, nbdsrv.Config{Memory: 65 << 20, ConnReserve: 1, StallTimeout: 200 * time.Millisecond}, 64<<20)
	d.cold.Store(true)
	hog := s.connect(t, "main", false)
	hog.request(cRead, 0, 1, 0, 64<<20, nil)
	waitFor(t, "the hog to hold memory", func() bool {
		_ = hog.SetReadDeadline(time.Now().Add(5 * time.Second))
		n, err := hog.Read(make([]byte, 1))
		return n == 1 && err == nil
	})
	time.Sleep(500 * time.Millisecond) // nobody waits: it may
	_ = hog.SetReadDeadline(time.Now().Add(time.Minute))
	if _, err := hog.Read(make([]byte, 1<<20)); err != nil {
		t.Fatalf("cut without need: %v", err)
	}
	s.connect(t, "main", false).must(cRead, 0, 0, 16<<20, nil)
	buf := make([]byte, 1<<20)
	for {
		if _, err := hog.Read(buf); isTimeout(err) {
			t.Fatal("the hog lives")
		} else if err != nil {
			break
		}
	}
}

func TestItem84OverlappingWrites(t *testing.T) {
	s, d := serveRAM(t, nbdsrv.Config{}, 1<<20)
	var wg sync.WaitGroup
	var failed atomic.Pointer[string]
	for w := range 3 {
		c := s.connect(t, "main", false)
		wg.Go(func() {
			for i := range 200 {
				d.cold.Store(i%5 == w)
				c.must(cWrite, 0, 0, 4096, bytes.Repeat([]byte{byte(w + 1)}, 4096))
			}
		})
	}
	r := s.connect(t, "main", true)
	wg.Go(func() {
		for range 400 {
			p := r.must(cRead, 0, 0, 4096, nil).data
			if n := bytes.Count(p, p[:1]); n != len(p) {
				msg := fmt.Sprintf("torn block: %d of %d", n, len(p))
				failed.Store(&msg)
			}
		}
	})
	wg.Wait()
	if msg := failed.Load(); msg != nil {
		t.Error(*msg)
	}
}

func TestItem86NoSpace(t *testing.T) {
	both(t, func(t *testing.T, c *client, d *ramDevice) {
		d.hook(func() { d.onWrite = func(int64, int) error { return &net.OpError{Op: "x", Err: syscall.ENOSPC} } })
		if a := c.do(cWrite, 0, 0, 4096, pattern(4096, 1)); a.errno != eNOSPC {
			t.Errorf("error %d", a.errno)
		}
		d.hook(func() { d.onWrite = nil })
		c.must(cWrite, 0, 0, 4096, pattern(4096, 1))
		expectBytes(t, c.must(cRead, 0, 0, 4096, nil).data, pattern(4096, 1))
	})
}

// TestPipelinedBehindGo: requests in the same segment as GO are the
// transmission's, none is lost.
func TestPipelinedBehindGo(t *testing.T) {
	s, _ := serveRAM(t, nbdsrv.Config{}, 1<<20)
	c := s.hello(t, 3)
	c.send(opt(oGo, info("main")), header(cWrite, 0, 1, 5, 3), []byte("abc"), header(cRead, 0, 2, 4, 5))
	c.expectReply(oGo, rInfo, nil)
	c.expectReply(oGo, rAck, nil)
	if a := c.answer(0); a.cookie != 1 || a.errno != 0 {
		t.Fatalf("%+v", a)
	}
	expectBytes(t, c.answer(5).data, []byte("\x00abc\x00"))
}

// TestIdleConnectionsHoldNoBuffers: thousands of attached volumes are mostly
// idle.
func TestIdleConnectionsHoldNoBuffers(t *testing.T) {
	const conns = 100
	s, _ := serveRAM(t, nbdsrv.Config{}, 1<<20)
	if per := idleCost(t, s, conns); per > 32<<10 {
		t.Errorf("%d bytes for an idle connection", per)
	}
}

// idleCost is what a connection takes of the heap, both ends, when it has been used
// and is idle; the mean of some, the last of which is still alive.
func idleCost(t *testing.T, s *server, conns int64) int64 {
	t.Helper()
	heap := func() int64 {
		runtime.GC()
		runtime.GC() // pools keep what they hold for one cycle
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := heap()
	var all []*client
	for range conns {
		c := s.connect(t, "main", true)
		c.must(cRead, 0, 0, 4096, nil)
		c.must(cWrite, 0, 0, 4096, pattern(4096, 1))
		all = append(all, c)
	}
	per := (heap() - before) / conns
	all[conns-1].alive()
	return per
}
