package nbdsrv_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fsximg/fsx/pkg/nbdsrv"
)

// statsOf waits until the server's counts are as wanted: a reply arrives before it
// is counted.
func statsOf(t *testing.T, s *server, want func(nbdsrv.Stats) error) nbdsrv.Stats {
	t.Helper()
	var err error
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		st := s.Stats()
		if err = want(st); err == nil {
			return st
		}
	}
	t.Fatal(err)
	return nbdsrv.Stats{}
}

// counted is what Stats should tell of a command.
type counted struct {
	requests, bytes uint64
	errors          map[string]uint64
}

func expectTraffic(tr nbdsrv.Traffic, want map[string]counted) error {
	got := map[string]counted{}
	for _, c := range tr.Commands {
		got[c.Command] = counted{c.Latency.Count(), c.Bytes, c.Errors}
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		return fmt.Errorf("counted %v, want %v", got, want)
	}
	return nil
}

func TestStatsCountEveryRequestOnce(t *testing.T) {
	for _, cold := range []bool{false, true} { // inline, and by workers
		t.Run(fmt.Sprintf("cold=%v", cold), func(t *testing.T) {
			s, d := serveRAM(t, nbdsrv.Config{}, 1<<20)
			d.cold.Store(cold)
			d.hook(func() {
				d.onRead = func(off int64, _ int) error {
					if off == 8192 {
						return syscall.EIO
					}
					return nil
				}
			})
			c := s.connect(t, "main", true)
			c.do(cRead, 0, 0, 4096, nil)
			c.do(cRead, 0, 0, 100<<10, nil) // too large for the buffers
			c.do(cRead, 0, 8192, 512, nil)  // fails
			c.do(cRead, 0, 1<<20, 512, nil) // is refused
			c.do(cWrite, 0, 0, 4096, make([]byte, 4096))
			c.do(cWrite, fFUA, 0, 512, make([]byte, 512))
			c.do(cWrite, 0, 0, 100<<10, make([]byte, 100<<10))
			c.do(cWrite, 0, 1<<20, 1, []byte{0}) // past the end
			c.do(cFlush, 0, 0, 0, nil)
			c.do(cTrim, 0, 0, 4096, nil)
			c.do(cZero, 0, 0, 8192, nil)
			c.do(cCache, 0, 0, 4096, nil)
			c.do(cSta, fReqOne, 0, 4096, nil)
			c.do(77, 0, 0, 0, nil)
			want := map[string]counted{
				"read":         {4, 4096 + 100<<10, map[string]uint64{"EIO": 1, "EINVAL": 1}},
				"write":        {4, 4096 + 512 + 100<<10, map[string]uint64{"ENOSPC": 1}},
				"flush":        {1, 0, map[string]uint64{}},
				"trim":         {1, 4096, map[string]uint64{}},
				"write_zeroes": {1, 8192, map[string]uint64{}},
				"cache":        {1, 4096, map[string]uint64{}},
				"block_status": {1, 4096, map[string]uint64{}},
				"unknown":      {1, 0, map[string]uint64{"EINVAL": 1}},
			}
			st := statsOf(t, s, func(st nbdsrv.Stats) error {
				if len(st.Clients) != 1 || len(st.Exports) != 1 {
					return fmt.Errorf("%d clients of %d exports", len(st.Clients), len(st.Exports))
				}
				return expectTraffic(st.Clients[0].Traffic, want)
			})
			if n := st.Exports[0].Flush.Count(); n != 2 { // FLUSH and FUA
				t.Errorf("%d flushes of the device, want 2", n)
			}
			if e := st.Exports[0]; e.Name != "main" || e.Clients != 1 || e.Connections != 1 {
				t.Errorf("export %q has %d clients of %d connections", e.Name, e.Clients, e.Connections)
			}
			if k := st.Clients[0]; k.Export != "main" || k.Peer == "" || k.Headers != "structured" || k.ReadOnly || time.Since(k.Since) > time.Minute {
				t.Errorf("client is told as %+v", k)
			}
			// What a client did stays with its export.
			_ = c.Close()
			st = statsOf(t, s, func(st nbdsrv.Stats) error {
				if len(st.Clients) != 0 {
					return fmt.Errorf("%d clients", len(st.Clients))
				}
				return expectTraffic(st.Exports[0].Traffic, want)
			})
			if e := st.Exports[0]; e.Clients != 0 || e.Connections != 1 || st.Accepted != 1 {
				t.Errorf("export has %d clients of %d connections, the server accepted %d", e.Clients, e.Connections, st.Accepted)
			}
		})
	}
}

// TestStatsLatency has a device that takes a while, which every request waits
// for.
func TestStatsLatency(t *testing.T) {
	const pause = 20 * time.Millisecond
	s, d := serveRAM(t, nbdsrv.Config{}, 1<<20)
	slow := func(int64, int) error { time.Sleep(pause); return nil }
	d.hook(func() {
		d.onRead, d.onWrite = slow, slow
		d.onFlush = func() error { time.Sleep(pause); return nil }
	})
	c := s.connect(t, "main", true)
	c.do(cRead, 0, 0, 4096, nil)
	c.do(cWrite, 0, 0, 4096, make([]byte, 4096))
	c.do(cFlush, 0, 0, 0, nil)
	st := statsOf(t, s, func(st nbdsrv.Stats) error {
		if n := len(st.Clients[0].Commands); n != 3 {
			return fmt.Errorf("%d commands", n)
		}
		return nil
	})
	for _, k := range st.Clients[0].Commands {
		if k.Latency.Sum < pause || k.Latency.Sum > 100*pause {
			t.Errorf("%s took %v, the device alone takes %v", k.Command, k.Latency.Sum, pause)
		}
		if q := k.Latency.Quantile(0.5); q < pause/2 {
			t.Errorf("%s: half took up to %v", k.Command, q)
		}
	}
	if f := st.Clients[0].Flush; f.Sum < pause {
		t.Errorf("the device's flush took %v", f.Sum)
	}
}

func TestStatsInFlight(t *testing.T) {
	s, d := serveRAM(t, nbdsrv.Config{}, 1<<20)
	d.cold.Store(true)
	hold := make(chan struct{})
	d.hook(func() { d.onRead = func(int64, int) error { <-hold; return nil } })
	c := s.connect(t, "main", true)
	c.request(cRead, 0, 1, 0, 8192, nil)
	st := statsOf(t, s, func(st nbdsrv.Stats) error {
		if st.Clients[0].Requests != 1 {
			return fmt.Errorf("%d requests in flight", st.Clients[0].Requests)
		}
		return nil
	})
	if st.Memory < 8192 || st.Memory > 64<<10 || len(st.Clients[0].Commands) != 0 {
		t.Errorf("%d bytes are in flight, and %v was answered", st.Memory, st.Clients[0].Commands)
	}
	close(hold)
	c.answer(8192)
	statsOf(t, s, func(st nbdsrv.Stats) error {
		if st.Memory != 0 || st.Clients[0].Requests != 0 {
			return fmt.Errorf("%d bytes of %d requests are in flight", st.Memory, st.Clients[0].Requests)
		}
		return nil
	})
}

func TestStatsNegotiations(t *testing.T) {
	s, _ := serveRAM(t, nbdsrv.Config{MaxConns: 2}, 1<<20)
	c := s.hello(t, 3)
	if st := s.Stats(); st.Negotiating != 1 || st.Accepted != 1 {
		t.Errorf("%d of %d connections negotiate", st.Negotiating, st.Accepted)
	}
	c.send(be64(1), be64(1)) // no option
	c.expectEnd()
	statsOf(t, s, func(st nbdsrv.Stats) error {
		if st.Failed != 1 || st.Negotiating != 0 {
			return fmt.Errorf("%d negotiations failed, %d go on", st.Failed, st.Negotiating)
		}
		return nil
	})
	s.connect(t, "main", false)
	s.connect(t, "main", false)
	s.dial(t).expectEnd()
	if st := s.Stats(); st.TooMany != 1 || st.Accepted != 4 {
		t.Errorf("%d of %d connections were too many", st.TooMany, st.Accepted)
	}
}

// TestStatsComeAndGo: who only looks whether somebody listens, or is cut off in its
// negotiation, has broken nothing.
func TestStatsComeAndGo(t *testing.T) {
	s := serveOn(t, nbdsrv.Config{HandshakeTimeout: 300 * time.Millisecond}, newExports(), "tcp", "127.0.0.1:0")
	for _, say := range []func(c *client){
		func(*client) {},
		func(c *client) { c.send(be32(3)) },
		func(c *client) { c.send(be32(3), be64(magicOption)) },
		func(c *client) { c.send(be32(3), be64(magicOption), be32(oInfo), be32(100), make([]byte, 10)) },
		func(c *client) { c.send(be32(3), be64(magicOption), be32(oInfo), be32(1<<20), make([]byte, 10)) },
	} {
		for _, linger := range []int{-1, 0} { // a FIN, a RST
			c := s.dial(t)
			say(c)
			_ = c.Conn.(*net.TCPConn).SetLinger(linger)
			_ = c.Close()
		}
	}
	s.hello(t, 3).expectEnd() // took too long
	statsOf(t, s, func(st nbdsrv.Stats) error {
		if st.Failed != 1 || st.Negotiating != 0 || st.Accepted != 11 {
			return fmt.Errorf("%d of %d negotiations failed, %d go on", st.Failed, st.Accepted, st.Negotiating)
		}
		return nil
	})
}

// TestStatsForgetExports has more exports come and go than are remembered.
func TestStatsForgetExports(t *testing.T) {
	const all = 1100
	exports := newExports()
	for i := range all {
		exports.add(nbdsrv.Export{Name: fmt.Sprintf("x%04d", i), Device: newRAM(4096)})
	}
	s := serve(t, nbdsrv.Config{}, exports)
	stays := s.connect(t, "x0000", false)
	for i := 1; i < all; i++ {
		c := s.connect(t, fmt.Sprintf("x%04d", i), false)
		c.request(cDisc, 0, 0, 0, 0, nil)
		c.expectEnd()
	}
	st := statsOf(t, s, func(st nbdsrv.Stats) error {
		if len(st.Clients) != 1 {
			return fmt.Errorf("%d clients", len(st.Clients))
		}
		return nil
	})
	if n := len(st.Exports); n != 1025 {
		t.Errorf("%d exports are remembered", n)
	}
	if st.Exports[0].Name != "x0000" {
		t.Errorf("an export with a client was forgotten")
	}
	stays.do(cRead, 0, 0, 512, nil)
}

func TestLatency(t *testing.T) {
	var l nbdsrv.Latency
	if l.Quantile(0.99) != 0 || l.Mean() != 0 {
		t.Error("nothing was measured, and took a time")
	}
	l.Classes[0], l.Classes[3] = 90, 10 // up to 4 µs; up to 32 µs
	l.Sum = 90*2*time.Microsecond + 10*20*time.Microsecond
	for q, want := range map[float64][2]time.Duration{
		0.45: {time.Microsecond, 3 * time.Microsecond},
		0.9:  {4 * time.Microsecond, 4 * time.Microsecond},
		0.99: {16 * time.Microsecond, 32 * time.Microsecond},
		1:    {32 * time.Microsecond, 32 * time.Microsecond},
	} {
		if got := l.Quantile(q); got < want[0] || got > want[1] {
			t.Errorf("%v did not take longer than %v, want %v", q, got, want)
		}
	}
	if l.Mean() != 3800*time.Nanosecond {
		t.Errorf("mean %v", l.Mean())
	}
	earlier := l
	l.Add(&earlier)
	l.Sub(&earlier)
	if l != earlier {
		t.Errorf("%v and %v", l, earlier)
	}
}

// TestLogOfAClient finds who came, to what, and why it left.
func TestLogOfAClient(t *testing.T) {
	for _, tt := range []struct {
		name, cause string
		leave       func(*server, *client)
	}{
		{"disconnect", "client disconnected", func(_ *server, c *client) { c.request(cDisc, 0, 0, 0, 0, nil) }},
		{"close", "client closed the connection", func(_ *server, c *client) { _ = c.Close() }},
		{"garbage", "bad request magic", func(_ *server, c *client) { c.send(make([]byte, 28)) }},
		{"shutdown", "server shuts down", func(s *server, c *client) {
			go func() { _, _ = io.Copy(io.Discard, c); _ = c.Close() }()
			_ = s.Shutdown(context.Background())
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			log := &logbook{}
			s, _ := serveRAM(t, nbdsrv.Config{Log: slog.New(slog.NewJSONHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))}, 1<<20)
			c := s.connect(t, "main", true)
			c.do(cRead, 0, 0, 512, nil)
			tt.leave(s, c)
			want := []string{`"client connected"`, `"client left"`, tt.cause, `"export":"main"`, fmt.Sprintf(`"peer":"pid %d uid %d"`, os.Getpid(), os.Getuid())}
			var missing string
			for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
				text := strings.Join(log.lines(), "\n")
				i := slices.IndexFunc(want, func(w string) bool { return !strings.Contains(text, w) })
				if missing = ""; i < 0 {
					break
				}
				missing = want[i]
			}
			if missing != "" {
				t.Errorf("the log lacks %s:\n%s", missing, strings.Join(log.lines(), "\n"))
			}
		})
	}
}
