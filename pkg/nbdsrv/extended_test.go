package nbdsrv_test

import (
	"bytes"
	"fmt"
	"math"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/fsximg/fsx/pkg/nbdsrv"
)

// Extended headers, from the text of the branch extension-ext-header.

func TestItem38ExtendedHeaders(t *testing.T) {
	s, _ := serveRAM(t, nbdsrv.Config{}, 1<<20)
	c := s.hello(t, 3)
	c.option(oExtended, []byte{0})
	c.expectReply(oExtended, rInvalid, nil)
	c.structure() // may come before
	c.extend()
	c.extend() // changes nothing
	c.option(oStructured, nil)
	c.expectReply(oStructured, rExtended, nil)
	c.option(oStructured, []byte{0})
	if typ, _ := c.reply(oStructured); typ != rExtended && typ != rInvalid {
		t.Fatalf("STRUCTURED_REPLY with data: %#x", typ)
	}
	c.choose("main", "base:allocation") // needs nothing else
	c.enter("main")
	c.alive()
}

// TestItem38RefusedOptionChangesNothing: data with the option, and compact
// headers stay.
func TestItem38RefusedOptionChangesNothing(t *testing.T) {
	s, _ := serveRAM(t, nbdsrv.Config{}, 1<<20)
	c := s.hello(t, 3)
	c.option(oExtended, []byte("x"))
	c.expectReply(oExtended, rInvalid, nil)
	c.structure()
	c.enter("main")
	c.alive()
}

func TestItem38ExportNameIsRefused(t *testing.T) {
	s, _ := serveRAM(t, nbdsrv.Config{}, 1<<20)
	c := s.hello(t, 3)
	c.extend()
	c.option(oExportName, []byte("main"))
	c.expectEnd()
}

func TestItem43DontFragmentWithExtendedHeaders(t *testing.T) {
	s, _ := serveRAM(t, nbdsrv.Config{}, 1<<20)
	const df, subset = 1 << 7, 1 << 12
	if c := s.connectAs(t, "main", "extended"); c.flags&(df|subset) != df|subset {
		t.Errorf("with contexts: flags %#x", c.flags)
	}
	c := s.hello(t, 3)
	c.extend()
	c.enter("main")
	if c.flags&(df|subset) != df {
		t.Errorf("without contexts: flags %#x", c.flags)
	}
	for _, headers := range []string{"simple", "structured"} {
		if c := s.connectAs(t, "main", headers); c.flags&subset != 0 {
			t.Errorf("%s: flags %#x", headers, c.flags)
		}
	}
}

// TestItem79Bytes compares whole messages.
func TestItem79Bytes(t *testing.T) {
	s, d := serveRAM(t, nbdsrv.Config{}, 1<<20)
	c := s.connectAs(t, "main", "extended")
	reply := func(flags, typ uint16, off uint64, payload ...[]byte) []byte {
		body := join(payload...)
		return join(be32(magicExtReply), be16(flags), be16(typ), be64(7), be64(off), be64(uint64(len(body))), body)
	}
	for _, cold := range []bool{false, true} {
		d.cold.Store(cold)
		c.send(extended(cWrite, fPayload, 7, 4096, 3), []byte("abc"))
		c.expect(reply(1, 0, 4096))
		c.send(extended(cRead, 0, 7, 4095, 5))
		c.expect(reply(1, 1, 4095, be64(4095), []byte("\x00abc\x00")))
		c.send(extended(cRead, fDF, 7, 12345, 0))
		c.expect(reply(1, 0, 12345))
		c.send(extended(cSta, 0, 7, 4096, 8192))
		c.expect(reply(1, 6, 4096, be32(1), be32(2), be64(4096), be64(0), be64(4096), be64(3)))
		for _, cmd := range []uint16{cTrim, cZero, cCache} {
			c.send(extended(cmd, 0, 7, 8192, 4096))
			c.expect(reply(1, 0, 8192))
		}
		c.send(extended(cFlush, 0, 7, 0, 0))
		c.expect(reply(1, 0, 0))
		text := []byte("request reaches past the end of the export")
		c.send(extended(cRead, 0, 7, 1<<20, 1))
		c.expect(reply(1, 1<<15+1, 1<<20, be32(eINVAL), be16(uint16(len(text))), text))
		d.hook(func() { d.onRead = func(int64, int) error { return placedError(5000) } })
		text = []byte("block failed authentication (offset 5000)")
		c.send(extended(cRead, 0, 7, 4096, 4096))
		c.expect(reply(1, 1<<15+2, 4096, be32(eIO), be16(uint16(len(text))), text, be64(5000)))
		d.hook(func() { d.onRead = nil })
	}
	c.send(extended(cDisc, 0, 7, 0, 0))
	c.expectEnd()
}

// TestItem79WholeHeaders: a compact request is none, and a header may come in
// two parts.
func TestItem79WholeHeaders(t *testing.T) {
	s, _ := serveRAM(t, nbdsrv.Config{}, 1<<20)
	c := s.connectAs(t, "main", "extended")
	p := extended(cRead, 0, 7, 0, 1)
	for _, cut := range []int{1, 28, 31} {
		c.send(p[:cut])
		c.send(p[cut:])
		if a := c.answer(1); a.cookie != 7 || len(a.data) != 1 {
			t.Fatalf("%+v", a)
		}
	}
	c.send(header(cRead, 0, 1, 0, 512), make([]byte, 4))
	c.expectEnd()
	c = s.connect(t, "main", true)
	c.send(p)
	c.expectEnd()
}

func TestItem79WriteNeedsPayloadFlag(t *testing.T) {
	s, d := serveRAM(t, nbdsrv.Config{}, 1<<20)
	c := s.connectAs(t, "main", "extended")
	before := d.snapshot()
	for _, n := range []uint64{0, 1, 4096, 1 << 19} {
		c.send(extended(cWrite, 0, 7, 0, n)) // no payload follows
		if a := c.answer(0); a.errno != eINVAL || a.cookie != 7 {
			t.Errorf("WRITE of %d without the flag: %+v", n, a)
		}
		c.alive()
	}
	expectBytes(t, d.snapshot(), before)
	c.send(extended(cWrite, fPayload, 7, 0, 0))
	if a := c.answer(0); a.errno != 0 {
		t.Errorf("WRITE of nothing: %+v", a)
	}
	c.alive()
}

func TestItem79UnexpectedPayload(t *testing.T) {
	s, d := serveRAM(t, nbdsrv.Config{}, 1<<20)
	c := s.connectAs(t, "main", "extended")
	for _, n := range []int{1, 12, 512, 64 << 10, 64<<10 + 1, 3 << 20} {
		// What is not skipped would be taken for a request.
		payload := bytes.Repeat([]byte{0xff}, n)
		for _, cmd := range []uint16{cRead, cFlush, cTrim, cCache, cZero, cSta, 8, 0xffff} {
			c.send(extended(cmd, fPayload, 7, 0, uint64(n)), payload)
			if a := c.answer(0); a.errno != eINVAL || a.cookie != 7 {
				t.Errorf("command %d with %d bytes: %+v", cmd, n, a)
			}
		}
		c.alive()
	}
	if d.trims.Load()+d.zeroes.Load()+d.flushes.Load()+d.prefetches.Load() != 0 {
		t.Error("a refused request reached the device")
	}
}

// TestItem79PayloadLimit: more than can be skipped in any time ends the
// connection; it is not allocated either.
func TestItem79PayloadLimit(t *testing.T) {
	s, _ := serveRAM(t, nbdsrv.Config{}, 1<<20)
	for _, n := range []uint64{64<<20 + 1, 1 << 32, 1 << 63, math.MaxUint64} {
		for _, cmd := range []uint16{cRead, cWrite, cTrim, cSta, 99} {
			c := s.connectAs(t, "main", "extended")
			c.send(extended(cmd, fPayload, 7, 0, n))
			c.expectEnd()
		}
	}
}

// sparse is a device of 8 EiB that remembers the last range.
type sparse struct {
	*ramDevice
	off, n atomic.Int64
}

func (d *sparse) Size() int64 { return math.MaxInt64 &^ 511 }
func (d *sparse) TrimAt(off, n int64) error {
	d.off.Store(off)
	d.n.Store(n)
	return nil
}
func (d *sparse) ZeroAt(off, n int64, _ bool) error { return d.TrimAt(off, n) }
func (d *sparse) Prefetch(off, n int64) error       { return d.TrimAt(off, n) }
func (d *sparse) Status(off, n int64, fn func(int64, bool, bool) bool) error {
	_ = d.TrimAt(off, n)
	fn(n/2, true, true)
	fn(n, false, false)
	return nil
}
func (d *sparse) Contexts() []string { return nil }

// TestItem79EffectLengths: 64 bits of length where no payload depends on it.
func TestItem79EffectLengths(t *testing.T) {
	d := &sparse{ramDevice: newRAM(1 << 20)}
	size := uint64(d.Size())
	s := serve(t, nbdsrv.Config{}, newExports().add(nbdsrv.Export{Name: "main", Device: d}))
	c := s.connectAs(t, "main", "extended")
	for _, tt := range []struct{ off, n uint64 }{
		{0, 1 << 32}, {512, 1<<32 + 512}, {1 << 40, 1 << 41}, {0, size}, {size - 1, 1}, {1, size - 1},
	} {
		for _, cmd := range []uint16{cTrim, cZero, cCache, cSta} {
			c.send(extended(cmd, 0, 7, tt.off, tt.n))
			a := c.answer(0)
			if a.errno != 0 || a.offset != tt.off || d.off.Load() != int64(tt.off) || d.n.Load() != int64(tt.n) {
				t.Fatalf("command %d at %d+%d: %+v, device saw %d+%d", cmd, tt.off, tt.n, a, d.off.Load(), d.n.Load())
			}
			want := []uint64{tt.n / 2, 3, tt.n - tt.n/2, 0}
			if tt.n == 1 {
				want = want[2:]
			}
			if cmd == cSta && fmt.Sprint(a.status) != fmt.Sprint(want) {
				t.Errorf("%d+%d: status %v, want %v", tt.off, tt.n, a.status, want)
			}
		}
	}
}

// TestItem79Bounds: no sum wraps, whatever the 64 bits are.
func TestItem79Bounds(t *testing.T) {
	s, d := serveRAM(t, nbdsrv.Config{}, 1<<20)
	c := s.connectAs(t, "main", "extended")
	for _, tt := range []struct{ off, n uint64 }{
		{0, 1<<20 + 1}, {1 << 19, 1 << 20}, {1, math.MaxUint64}, {math.MaxUint64, 1}, {0, math.MaxUint64},
		{0, 1 << 63}, {1 << 63, 1 << 63}, {0, 1 << 32}, {math.MaxUint64 - 511, 1024}, {4096, math.MaxUint64 - 4095},
	} {
		for cmd, want := range map[uint16]uint32{cRead: eINVAL, cTrim: eINVAL, cSta: eINVAL, cCache: eINVAL, cZero: eNOSPC} {
			c.send(extended(cmd, 0, 7, tt.off, tt.n))
			if a := c.answer(0); a.errno != want || a.offset != tt.off || a.cookie != 7 {
				t.Errorf("command %d at %#x+%#x: %+v", cmd, tt.off, tt.n, a)
			}
		}
		c.alive()
	}
	if d.trims.Load()+d.zeroes.Load()+d.prefetches.Load() != 0 {
		t.Error("a refused request reached the device")
	}
}

// TestItem79StatusOfSomeContexts: a BLOCK_STATUS whose payload names contexts
// (NBD_FLAG_BLOCK_STATUS_PAYLOAD).
func TestItem79StatusOfSomeContexts(t *testing.T) {
	s, _ := serveContexts(t, 1<<20)
	c := s.hello(t, 3)
	c.extend()
	c.choose("main", key, "base:allocation", dirtyA) // 2, 1, 3
	c.enter("main")
	ask := func(flags uint16, n uint64, ids ...uint32) answer {
		t.Helper()
		payload := be64(n)
		for _, id := range ids {
			payload = append(payload, be32(id)...)
		}
		c.send(extended(cSta, flags|fPayload, 7, 4096, uint64(len(payload))), payload)
		return c.answer(0)
	}
	all := c.contexts
	for _, tt := range []struct {
		ids  []uint32
		want string
	}{
		{[]uint32{2}, "map[2:[8192 0 4096 3]]"},
		{[]uint32{3, 2}, "map[2:[8192 0 4096 3] 3:[12288 0]]"},
		{[]uint32{1, 2, 3}, "map[1:[12288 3] 2:[8192 0 4096 3] 3:[12288 0]]"},
	} {
		c.contexts = tt.ids
		if a := ask(0, 12288, tt.ids...); a.errno != 0 || fmt.Sprint(a.in) != tt.want {
			t.Errorf("contexts %v: %+v, want %s", tt.ids, a, tt.want)
		}
	}
	c.contexts = []uint32{3}
	if a := ask(fReqOne, 100, 3); fmt.Sprint(a.in) != "map[3:[100 0]]" {
		t.Errorf("REQ_ONE: %+v", a)
	}
	c.contexts = all
	for name, a := range map[string]answer{
		"unknown id": ask(0, 4096, 4), "an unknown id among known ones": ask(0, 4096, 1, 9), "id 0": ask(0, 4096, 0),
		"twice": ask(0, 4096, 1, 2, 1), "none": ask(0, 4096), "length 0": ask(0, 0, 1), "past the end": ask(0, 1<<20, 1),
		"2^63": ask(0, 1<<63, 1), "2^64-1": ask(0, math.MaxUint64, 1), "too many": ask(0, 4096, make([]uint32, 17)...),
	} {
		if a.errno != eINVAL || a.cookie != 7 {
			t.Errorf("%s: %+v", name, a)
		}
	}
	for _, n := range []int{0, 1, 4, 7, 8, 11, 13, 15} {
		c.send(extended(cSta, fPayload, 7, 0, uint64(n)), make([]byte, n))
		if a := c.answer(0); a.errno != eINVAL {
			t.Errorf("payload of %d bytes: %+v", n, a)
		}
	}
	if a := c.must(cSta, 0, 4096, 12288, nil); len(a.in) != 3 {
		t.Errorf("without a payload: %v", a.in)
	}
}

// TestItem79ManyContexts: the largest selection in one reply, and all of a
// map of single blocks in as many replies as it takes.
func TestItem79ManyContexts(t *testing.T) {
	const size = 80 << 20
	s, d := serveContexts(t, size)
	var names []string
	var all []ramContext
	for i := range 16 {
		names = append(names, fmt.Sprintf("x-fsx:dirty:%s%d", strings.Repeat("n", 100), i))
		all = append(all, everyNth(names[i], 2))
	}
	d.offer(all...)
	c := s.hello(t, 3)
	c.extend()
	c.choose("main", names...)
	c.enter("main")
	for off := uint64(0); off < size; {
		a := c.must(cSta, 0, off, uint32(size-off), nil)
		if a.size > 64<<10+32 {
			t.Fatalf("a reply of %d bytes", a.size)
		}
		runs := a.in[2]
		if len(runs) < 200 && size-off > 1<<20 {
			t.Fatalf("%d runs at %d", len(runs)/2, off)
		}
		for i := 0; i < len(runs); i += 2 {
			if want := uint64(2 * (1 - off/ramBlock%2)); runs[i] != ramBlock || runs[i+1] != want {
				t.Fatalf("run at %d: %v", off, runs[i:i+2])
			}
			off += runs[i]
		}
	}
	a := c.must(cSta, fReqOne, 0, size, nil)
	for id, runs := range a.in {
		if fmt.Sprint(runs) != "[4096 2]" {
			t.Errorf("context %d: %v", id, runs)
		}
	}
}

// TestItem79Pipelined: requests of all kinds in one segment, payloads that no
// command wants among them, are each answered once.
func TestItem79Pipelined(t *testing.T) {
	for _, cold := range []bool{false, true} {
		s, d := serveRAM(t, nbdsrv.Config{}, 4<<20)
		d.cold.Store(cold)
		c := s.connectAs(t, "main", "extended")
		const rounds = 200
		go func() {
			var all []byte
			for i := range uint64(rounds) {
				all = join(all, extended(cWrite, fPayload, 4*i, i*8192, 5000), pattern(5000, byte(i)),
					extended(cTrim, fPayload, 4*i+1, i, 300), pattern(300, 1),
					extended(cSta, fPayload, 4*i+2, i, 12), be64(4096), be32(1),
					extended(cRead, 0, 4*i+3, i, 700))
			}
			_, _ = c.Write(all)
		}()
		seen := map[uint64]bool{}
		for range 4 * rounds {
			a := c.answer(0)
			want := [4]uint32{0, eINVAL, 0, 0}[a.cookie%4]
			if a.errno != want || seen[a.cookie] || a.cookie >= 4*rounds {
				t.Fatalf("%+v", a)
			}
			seen[a.cookie] = true
		}
		content := d.snapshot()
		for i := range rounds / 2 {
			expectBytes(t, content[i*8192:i*8192+5000], pattern(5000, byte(i)))
		}
	}
}
