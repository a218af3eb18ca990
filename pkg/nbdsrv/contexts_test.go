package nbdsrv_test

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fsximg/fsx/pkg/nbdsrv"
)

// everyNth is a context whose flags are n in every nth block, from the first
// on, and 0 in the others.
func everyNth(name string, n int64) ramContext {
	return ramContext{name, func(block int64) uint32 {
		if block%n == 0 {
			return uint32(n)
		}
		return 0
	}}
}

// Names as a real engine offers them.
const (
	depth  = "qemu:allocation-depth"
	key    = "x-fsx:key"
	dirtyA = "x-fsx:dirty:a"
	dirtyB = "x-fsx:dirty:b:c"
)

// serveContexts serves a device with four contexts of its own as "main".
func serveContexts(t *testing.T, size int64) (*server, *ramDevice) {
	t.Helper()
	s, d := serveRAM(t, nbdsrv.Config{}, size)
	d.offer(everyNth(depth, 2), everyNth(key, 3), everyNth(dirtyA, 4), everyNth(dirtyB, 5))
	return s, d
}

// chosen connects to "main" with contexts selected.
func (s *server) chosen(t *testing.T, contexts ...string) *client {
	t.Helper()
	c := s.hello(t, 3)
	c.structure()
	c.choose("main", contexts...)
	c.enter("main")
	return c
}

// expectContexts sends LIST_META_CONTEXT and compares what it finds.
func (c *client) expectContexts(queries, want []string) {
	c.t.Helper()
	c.option(oListMeta, meta("main", queries...))
	for _, name := range want {
		c.expectReply(oListMeta, rMeta, append(be32(0), name...))
	}
	c.expectReply(oListMeta, rAck, nil)
}

func TestItem32ListDeviceContexts(t *testing.T) {
	s, d := serveContexts(t, 1<<20)
	c := s.hello(t, 3)
	c.structure()
	for _, tt := range []struct{ queries, want []string }{
		{nil, []string{"base:allocation", depth, key, dirtyA, dirtyB}},
		{[]string{"base:"}, []string{"base:allocation"}},
		{[]string{"qemu:"}, []string{depth}},
		{[]string{"x-fsx:"}, []string{key, dirtyA, dirtyB}},
		{[]string{"x-fsx:dirty:"}, []string{dirtyA, dirtyB}},
		{[]string{"x-fsx:dirty:b:"}, []string{dirtyB}},
		{[]string{key}, []string{key}},
		{[]string{dirtyB, "x-fsx:dirty:", "base:"}, []string{"base:allocation", dirtyA, dirtyB}},
		{[]string{"x-fsx:dirty", "x-fsx:dirty:b", "x-fsx", "x-", "fsx:", ":", "", "qemu:dirty-bitmap:", "other:"}, nil},
	} {
		c.expectContexts(tt.queries, tt.want)
	}
	d.offer() // They may change at any time.
	c.expectContexts(nil, []string{"base:allocation"})
	c.expectContexts([]string{"x-fsx:"}, nil)
}

// TestItem32NoContexts: a device without the interface has one context.
func TestItem32NoContexts(t *testing.T) {
	d := newRAM(1 << 20)
	d.offer(everyNth(depth, 2))
	s := serve(t, nbdsrv.Config{}, newExports().add(nbdsrv.Export{Name: "main", Device: struct{ nbdsrv.Device }{d}}))
	c := s.hello(t, 3)
	c.structure()
	c.expectContexts(nil, []string{"base:allocation"})
	c.option(oSetMeta, meta("main", depth))
	c.expectReply(oSetMeta, rAck, nil)
}

// TestItem37ContextNames: what is no name of a context, or not the device's to
// define, is not offered.
func TestItem37ContextNames(t *testing.T) {
	s, d := serveContexts(t, 1<<20)
	long := "x-fsx:" + strings.Repeat("n", 4096-6)
	bad := []string{"base:allocation", "base:own", "word", ":leaf", "x-fsx:", "x-fsx:\x00", "x-fsx:\xff", long + "n"}
	var all []ramContext
	for _, name := range append(bad, long) {
		all = append(all, everyNth(name, 2))
	}
	d.offer(all...)
	c := s.hello(t, 3)
	c.structure()
	c.expectContexts(nil, []string{"base:allocation", long})
	c.option(oSetMeta, meta("main", bad[1:5]...))
	c.expectReply(oSetMeta, rAck, nil)
	c.choose("main", "base:allocation", long)
	c.enter("main")
	d.hook(func() { d.onStatusIn = func(string) error { return syscall.EIO } })
	if a := c.do(cSta, 0, 0, 4096, nil); a.errno != eIO || a.size > 384 {
		t.Errorf("error %d in %d bytes", a.errno, a.size)
	}
}

func TestItem34SelectDeviceContexts(t *testing.T) {
	s, _ := serveContexts(t, 1<<20)
	c := s.hello(t, 3)
	c.structure()
	c.option(oSetMeta, meta("main", "base:", "qemu:", "x-fsx:", "x-fsx:dirty:", "x-fsx:dirty", "x-fsx:none", "other:y", "word", ""))
	c.expectReply(oSetMeta, rAck, nil)
	// Each once, in the order of the queries, whatever stands between.
	c.option(oSetMeta, meta("main", dirtyB, "x-fsx:", dirtyB, "base:allocation", "x-fsx:none", depth, "base:allocation"))
	for _, want := range []string{"\x00\x00\x00\x02" + dirtyB, "\x00\x00\x00\x01base:allocation", "\x00\x00\x00\x03" + depth} {
		c.expectReply(oSetMeta, rMeta, []byte(want))
	}
	c.expectReply(oSetMeta, rAck, nil)
	// What was selected before is forgotten.
	c.choose("main", key)
	c.enter("main")
	a := c.must(cSta, 0, 0, 8192, nil)
	if fmt.Sprint(a.in) != "map[2:[4096 3 4096 0]]" {
		t.Errorf("status %v", a.in)
	}
}

func TestItem34TooManyContexts(t *testing.T) {
	s, d := serveContexts(t, 1<<20)
	var names []string
	var all []ramContext
	for i := range 40 {
		names = append(names, fmt.Sprintf("x-fsx:dirty:%d", i))
		all = append(all, everyNth(names[i], int64(i+1)))
	}
	d.offer(all...)
	c := s.hello(t, 3)
	c.structure()
	c.expectContexts([]string{"x-fsx:"}, names)
	// Not the queries count but what they select.
	many := append(append([]string{"x-fsx:none", "x-fsx:"}, names[:16]...), names[:16]...)
	c.option(oSetMeta, meta("main", many...))
	for range 16 {
		c.expectReply(oSetMeta, rMeta, nil)
	}
	c.expectReply(oSetMeta, rAck, nil)
	c.option(oSetMeta, meta("main", names[:17]...))
	c.expectReply(oSetMeta, rTooBig, nil)
	c.enter("main")
	if a := c.do(cSta, 0, 0, 4096, nil); a.errno != eINVAL {
		t.Errorf("BLOCK_STATUS without a selection: %d", a.errno)
	}
	c.alive()
}

func TestItem35DeviceContextsHoldForOneExport(t *testing.T) {
	s, d := serveContexts(t, 1<<20)
	other := newRAM(1 << 20)
	other.offer(everyNth(key, 2))
	s.exports.add(nbdsrv.Export{Name: "other", Device: other})
	c := s.hello(t, 3)
	c.structure()
	c.choose("main", key)
	c.enter("other")
	if a := c.do(cSta, 0, 0, 4096, nil); a.errno != eINVAL {
		t.Errorf("contexts of another export: %d", a.errno)
	}

	// An export that is opened again may be another device by then.
	c = s.hello(t, 3)
	c.structure()
	c.choose("main", "base:allocation", key)
	c.option(oInfo, info("other"))
	c.expectReply(oInfo, rInfo, nil)
	c.expectReply(oInfo, rAck, nil)
	s.exports.add(nbdsrv.Export{Name: "main", Device: struct{ nbdsrv.Device }{d}})
	c.enter("main")
	if a := c.do(cSta, 0, 0, 4096, nil); a.errno != eINVAL || len(a.chunks) != 1 {
		t.Errorf("contexts that the device lost: error %d in %d chunks", a.errno, len(a.chunks))
	}
	c.alive()
}

// TestItem75SeveralContexts: a chunk for each context, in one reply.
func TestItem75SeveralContexts(t *testing.T) {
	s, _ := serveContexts(t, 1<<20)
	c := s.chosen(t, key, "base:allocation", dirtyA)
	c.must(cWrite, 0, ramBlock, 2*ramBlock, pattern(2*ramBlock, 1))
	for _, tt := range []struct {
		off  uint64
		n    uint32
		flag uint16
		want string
	}{
		{0, 5 * ramBlock, 0, "map[1:[4096 3 8192 0 8192 3] 2:[4096 3 8192 0 4096 3 4096 0] 3:[4096 4 12288 0 4096 4]]"},
		{100, 8192, 0, "map[1:[3996 3 4196 0] 2:[3996 3 4196 0] 3:[3996 4 4196 0]]"},
		{1<<20 - 1, 1, 0, "map[1:[1 3] 2:[1 3] 3:[1 0]]"},
		{ramBlock, 1<<20 - ramBlock, fReqOne, "map[1:[8192 0] 2:[8192 0] 3:[12288 0]]"}, // item 76
		{ramBlock, 100, fReqOne, "map[1:[100 0] 2:[100 0] 3:[100 0]]"},
		{0, 1 << 20, fReqOne, "map[1:[4096 3] 2:[4096 3] 3:[4096 4]]"},
	} {
		a := c.must(cSta, tt.flag, tt.off, tt.n, nil)
		if len(a.chunks) != 3 || fmt.Sprint(a.in) != tt.want {
			t.Errorf("%d+%d: %v in %d chunks, want %v", tt.off, tt.n, a.in, len(a.chunks), tt.want)
		}
	}
	// Byte for byte: DONE on the last chunk only.
	c.request(cSta, fReqOne, 7, 0, ramBlock, nil)
	for i, want := range [][3]uint32{{2, 4096, 3}, {1, 4096, 3}, {3, 4096, 4}} {
		c.expect(be32(magicStructured), be16(uint16(i/2)), be16(5), be64(7), be32(12), be32(want[0]), be32(want[1]), be32(want[2]))
	}
	if a := c.do(cSta, 0, 1<<20-ramBlock, 2*ramBlock, nil); a.errno != eINVAL || len(a.chunks) != 1 {
		t.Errorf("past the end: error %d in %d chunks", a.errno, len(a.chunks))
	}
	c.alive()
}

// TestItem76AllContexts: the smallest reply of the largest selection.
func TestItem76AllContexts(t *testing.T) {
	s, d := serveContexts(t, 1<<20)
	names := []string{"base:allocation"}
	var all []ramContext
	for i := range 15 {
		names = append(names, fmt.Sprintf("x-fsx:dirty:%d", i))
		all = append(all, everyNth(names[i+1], int64(i+2)))
	}
	d.offer(all...)
	c := s.chosen(t, names...)
	for range 3 {
		a := c.must(cSta, fReqOne, 0, 1<<20, nil)
		for id, run := range a.in {
			want := []uint64{4096, uint64(id)}
			if id == 1 {
				want = []uint64{1 << 20, 3}
			}
			if fmt.Sprint(run) != fmt.Sprint(want) {
				t.Errorf("context %d: %v, want %v", id, run, want)
			}
		}
	}
	c.alive()
}

// TestItem75ContextFails: the error of one context is the only chunk.
func TestItem75ContextFails(t *testing.T) {
	s, d := serveContexts(t, 1<<20)
	c := s.chosen(t, "base:allocation", depth, key)
	for _, name := range []string{depth, key} {
		for err, want := range map[error]uint32{
			errors.New("at /secret"):                      eIO,
			fmt.Errorf("at /secret: %w", syscall.EINVAL):  eINVAL,
			fmt.Errorf("at /secret: %w", syscall.ENOTSUP): eINVAL,
			nbdsrv.ErrWouldBlock:                          eIO,
		} {
			d.hook(func() {
				d.onStatusIn = func(context string) error {
					if context == name {
						return err
					}
					return nil
				}
			})
			for _, flag := range []uint16{0, fReqOne} {
				a := c.do(cSta, flag, 0, 1<<20, nil)
				if a.errno != want || len(a.chunks) != 1 || strings.Contains(a.text, "secret") || a.text == "" {
					t.Errorf("%v in %s: error %d %q, chunks %v", err, name, a.errno, a.text, a.chunks)
				}
			}
			c.alive()
		}
	}
	d.hook(func() { d.onStatusIn = nil })
	c.must(cSta, 0, 0, 1<<20, nil)
}

// silent says nothing of any range.
type silent struct{ nbdsrv.Device }

func (silent) Status(int64, int64, func(int64, bool, bool) bool) error { return nil }
func (silent) Contexts() []string                                      { return []string{key} }
func (silent) StatusIn(string, int64, int64, func(int64, uint32) bool) error {
	return nil
}

// TestItem75SilentDevice: flags 0 are a safe answer in base:allocation only.
func TestItem75SilentDevice(t *testing.T) {
	s := serve(t, nbdsrv.Config{}, newExports().add(nbdsrv.Export{Name: "main", Device: silent{newRAM(1 << 20)}}))
	if a := s.chosen(t, "base:allocation").must(cSta, 0, 100, 8192, nil); fmt.Sprint(a.status) != "[8192 0]" {
		t.Errorf("base:allocation: %v", a.status)
	}
	if a := s.chosen(t, "base:allocation", key).do(cSta, 0, 100, 8192, nil); a.errno != eIO {
		t.Errorf("%s: error %d", key, a.errno)
	}
}

// TestItem75ContextVanishes: a name stays selected when the device drops it.
func TestItem75ContextVanishes(t *testing.T) {
	s, d := serveContexts(t, 1<<20)
	c, base := s.chosen(t, dirtyA, "base:allocation", key), s.chosen(t, "base:allocation")
	c.must(cSta, 0, 0, 8192, nil)
	d.offer(everyNth(key, 3))
	if a := c.do(cSta, 0, 0, 8192, nil); a.errno != eINVAL || len(a.chunks) != 1 {
		t.Errorf("error %d, chunks %v", a.errno, a.chunks)
	}
	c.alive()
	base.must(cSta, 0, 0, 8192, nil)
	next := s.hello(t, 3)
	next.structure()
	next.option(oSetMeta, meta("main", dirtyA))
	next.expectReply(oSetMeta, rAck, nil)
	d.offer(everyNth(key, 3), everyNth(dirtyA, 2))
	if a := c.must(cSta, 0, 0, 8192, nil); fmt.Sprint(a.in[2]) != "[4096 2 4096 0]" {
		t.Errorf("status %v", a.in)
	}
}

// TestItem77SharedRoom: all chunks together are no larger than one may be;
// what a context does not need is for those behind it.
func TestItem77SharedRoom(t *testing.T) {
	const size, most = 80 << 20, 64<<10 + 20
	s, d := serveContexts(t, size)
	busy := everyNth("x-fsx:dirty:busy", 2)
	calm := ramContext{"x-fsx:dirty:calm", func(int64) uint32 { return 9 }}
	names := []string{busy.name, calm.name}
	all := []ramContext{busy, calm}
	for i := range 14 {
		names = append(names, fmt.Sprintf("x-fsx:dirty:%d", i))
		all = append(all, everyNth(names[i+2], 2))
	}
	d.offer(all...)
	for _, tt := range []struct {
		contexts []string
		runs     []int // by context, as far as they are many
	}{
		{[]string{busy.name}, []int{8191}},
		{[]string{busy.name, "base:allocation"}, []int{4094, 1}},
		{[]string{"base:allocation", busy.name}, []int{1, 8187}},
		{[]string{calm.name, busy.name, "base:allocation"}, []int{1, 4092, 1}},
		{names, nil},
	} {
		c := s.chosen(t, tt.contexts...)
		a := c.must(cSta, 0, 0, size, nil)
		total := 0
		for i, id := range c.contexts {
			runs := a.in[id]
			total += len(runs) / 2
			if tt.runs != nil && len(runs)/2 != tt.runs[i] || tt.runs == nil && i != 1 && len(runs)/2 < 500 {
				t.Errorf("%v: %d runs in context %d", tt.contexts, len(runs)/2, i)
			}
			for n := 0; n < len(runs) && len(runs) > 2; n += 2 {
				if want := uint64(2 * (1 - n/2%2)); runs[n] != ramBlock || runs[n+1] != want {
					t.Fatalf("%v: run %d of context %d: %v", tt.contexts, n/2, i, runs[n:n+2])
				}
			}
		}
		if a.size > most || total > 8191 {
			t.Errorf("%v: %d runs in %d bytes", tt.contexts, total, a.size)
		}
		c.alive()
	}
}

// TestItem82StatusBudget: a BLOCK_STATUS of several contexts is admitted like
// one of a single context.
func TestItem82StatusBudget(t *testing.T) {
	const requests, fit = 1500, (64<<20 + 64) / (64<<10 + 64)
	s, d := serveRAM(t, nbdsrv.Config{
		ConnMemory: 1, ConnReserve: 1, ConnRequests: 2 * requests, ConnWorkers: requests, Workers: requests,
	}, 1<<20)
	d.offer(everyNth(depth, 2), everyNth(key, 3))
	c := s.chosen(t, depth, "base:allocation", key)
	g := newGate(t)
	d.hook(func() {
		d.onStatusIn = func(context string) error {
			if context == depth {
				g.pass()
			}
			return nil
		}
	})
	go func() {
		var all []byte
		for i := range uint64(requests) {
			all = append(all, header(cSta, 0, i, 0, 4*ramBlock)...)
		}
		_, _ = c.Write(all)
	}()
	waitFor(t, "the budget to fill", func() bool { return g.waiting.Load() >= fit })
	time.Sleep(100 * time.Millisecond)
	if n := g.waiting.Load(); n > fit {
		t.Errorf("%d requests were admitted, %d fit", n, fit)
	}
	g.release()
	for range requests {
		if a := c.answer(0); a.errno != 0 || len(a.chunks) != 3 {
			t.Fatalf("error %d, chunks %v", a.errno, a.chunks)
		}
	}
}
