package nbdsrv_test

import (
	"crypto/tls"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/fsximg/fsx/pkg/nbdsrv"
)

// pair serves d over a socket pair and returns the negotiated client side.
func pair(t testing.TB, d nbdsrv.Device, headers string) *client {
	t.Helper()
	return pairWith(t, nbdsrv.Config{}, nil, d, headers)
}

// pairWith is pair with a configuration and, unless nil, over TLS.
func pairWith(t testing.TB, cfg nbdsrv.Config, overTLS *tls.Config, d nbdsrv.Device, headers string) *client {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		if ends[i], err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
	}
	cfg.Exports = newExports().add(nbdsrv.Export{Name: "main", Device: d})
	s := nbdsrv.New(cfg)
	ended := make(chan error, 1)
	go func() { ended <- s.ServeConn(ends[1]) }()
	c := &client{t: t, Conn: ends[0]}
	t.Cleanup(func() {
		_ = c.Close()
		if err := <-ended; err != nil {
			t.Errorf("connection ended with %v", err)
		}
	})
	c.expect(be64(magicGreeting), be64(magicOption), be16(3))
	c.send(be32(3))
	if overTLS != nil {
		c.startTLS(overTLS)
	}
	switch headers {
	case "structured":
		c.structure()
	case "extended":
		c.extend()
	}
	c.enter("main")
	return c
}

// load drives a connection without allocating: depth requests of n bytes at
// random multiples of n go out together, and again when all are answered.
type load struct {
	c        *client
	cmd      uint16
	n, depth int
	blocks   int64
	out, in  []byte
	rnd      *rand.Rand
}

func newLoad(c *client, cmd uint16, n, depth int) *load {
	l := &load{c: c, cmd: cmd, n: n, depth: depth, blocks: int64(c.size) / int64(n), rnd: rand.New(rand.NewPCG(1, 2))}
	one := c.header(cmd, 0, 0, 0, uint32(n))
	reply := 16
	if c.extended {
		reply = 32
	}
	if cmd == cWrite {
		one = append(one, pattern(n, 3)...)
	} else if reply += n; c.extended {
		reply += 8
	} else if c.structured {
		reply += 12
	}
	for range depth {
		l.out = append(l.out, one...)
	}
	l.in = make([]byte, reply*depth)
	return l
}

// round sends one batch and takes the replies.
func (l *load) round() error {
	size := len(l.out) / l.depth
	for i := range l.depth {
		off := uint64(l.rnd.Int64N(l.blocks)) * uint64(l.n)
		binary.BigEndian.PutUint64(l.out[i*size+16:], off)
	}
	if _, err := l.c.Write(l.out); err != nil {
		return err
	}
	_, err := io.ReadFull(l.c, l.in)
	return err
}

// TestNoAllocationPerRequest bounds the allocations of server and client
// together, which is stricter than the server alone.
func TestNoAllocationPerRequest(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector makes pools drop what they hold")
	}
	const depth, requests = 32, 100_000
	for _, tt := range []struct {
		name    string
		cmd     uint16
		n       int
		headers string
		cold    bool
	}{
		{"read", cRead, 4096, "simple", false},
		{"read", cRead, 4096, "structured", false},
		{"read", cRead, 4096, "extended", false},
		{"write", cWrite, 4096, "structured", false},
		{"write", cWrite, 4096, "extended", false},
		{"cold read", cRead, 4096, "structured", true},
		{"cold read", cRead, 4096, "extended", true},
		{"cold write", cWrite, 4096, "structured", true},
		{"cold write", cWrite, 4096, "extended", true},
	} {
		t.Run(tt.name+" "+tt.headers, func(t *testing.T) {
			d := newRAM(16 << 20)
			d.cold.Store(tt.cold)
			l := newLoad(pair(t, d, tt.headers), tt.cmd, tt.n, depth)
			rounds := func(n int) {
				for range n {
					if err := l.round(); err != nil {
						t.Fatal(err)
					}
				}
			}
			rounds(100) // fill the pools
			runtime.GC()
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			rounds(requests / depth)
			runtime.ReadMemStats(&after)
			if per := float64(after.Mallocs-before.Mallocs) / requests; per >= 0.01 {
				t.Errorf("%.4f allocations per request", per)
			}
		})
	}
}

// TestTLSNoAllocationOfOurs bounds the allocations that TLS adds: crypto/tls
// makes one for each read from the socket, on both sides, and we none.
func TestTLSNoAllocationOfOurs(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector makes pools drop what they hold")
	}
	const depth, requests = 32, 32 << 10
	ca := newAuthority(t)
	for _, cold := range []bool{false, true} {
		for _, cmd := range []uint16{cRead, cWrite} {
			d := newRAM(16 << 20)
			d.cold.Store(cold)
			l := newLoad(pairWith(t, ca.config(), ca.client(""), d, "structured"), cmd, 4096, depth)
			profile := allocationsIn(t, func() {
				for range requests / depth {
					if err := l.round(); err != nil {
						t.Fatal(err)
					}
				}
			})
			for place, n := range profile {
				if n > requests/100 {
					t.Errorf("command %d, cold %v: %d allocations in %s", cmd, cold, n, place)
				}
			}
		}
	}
}

func BenchmarkServer(b *testing.B) {
	for _, bb := range []struct {
		name    string
		cmd     uint16
		n       int
		depth   int
		headers string
	}{
		{"read/4K/qd1", cRead, 4096, 1, "structured"},
		{"read/4K/qd32", cRead, 4096, 32, "structured"},
		{"read/4K/qd32/extended", cRead, 4096, 32, "extended"},
		{"write/4K/qd1", cWrite, 4096, 1, "structured"},
		{"write/4K/qd32", cWrite, 4096, 32, "structured"},
		{"write/4K/qd32/extended", cWrite, 4096, 32, "extended"},
		{"read/1M/qd4", cRead, 1 << 20, 4, "structured"},
		{"write/1M/qd4", cWrite, 1 << 20, 4, "structured"},
	} {
		b.Run(bb.name, func(b *testing.B) {
			benchmarkLoad(b, newLoad(pair(b, newRAM(256<<20), bb.headers), bb.cmd, bb.n, bb.depth))
		})
		b.Run("TLS/"+bb.name, func(b *testing.B) {
			ca := newAuthority(b)
			c := pairWith(b, ca.config(), ca.client(""), newRAM(256<<20), bb.headers)
			benchmarkLoad(b, newLoad(c, bb.cmd, bb.n, bb.depth))
		})
	}
}

func benchmarkLoad(b *testing.B, l *load) {
	b.SetBytes(int64(l.n))
	b.ReportAllocs()
	b.ResetTimer()
	for done := 0; done < b.N; done += l.depth {
		if err := l.round(); err != nil {
			b.Fatal(err)
		}
	}
}

// allocationsIn runs f and counts the allocations that were made meanwhile by
// this package's server, by function; those of crypto/tls below it are not its.
func allocationsIn(t *testing.T, f func()) map[string]int64 {
	t.Helper()
	rate := runtime.MemProfileRate
	runtime.MemProfileRate = 1
	defer func() { runtime.MemProfileRate = rate }()
	before := serverAllocations(t)
	f()
	found := serverAllocations(t)
	for place, n := range before {
		found[place] -= n
	}
	return found
}

func serverAllocations(t *testing.T) map[string]int64 {
	t.Helper()
	runtime.GC()
	runtime.GC() // the profile is as old as the last but one
	records := make([]runtime.MemProfileRecord, 10000)
	n, ok := runtime.MemProfile(records, true)
	if !ok {
		t.Fatalf("%d records", n)
	}
	found := map[string]int64{}
	for _, r := range records[:n] {
		// The innermost function that is not the runtime's made it.
		frames := runtime.CallersFrames(r.Stack())
		for {
			frame, more := frames.Next()
			if strings.HasPrefix(frame.Function, "runtime.") && more {
				continue
			}
			if strings.Contains(frame.Function, "/nbdsrv.") {
				found[frame.Function] += r.AllocObjects
			}
			break
		}
	}
	return found
}
