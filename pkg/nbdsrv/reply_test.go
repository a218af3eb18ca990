package nbdsrv_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"syscall"
	"testing"
	"unicode/utf8"

	"github.com/fsximg/fsx/pkg/nbdsrv"
)

// TestItem57FUAIsDurableBeforeItsReply: when the reply to a change with FUA
// comes, a Flush that began after the change has ended. That the volume's Flush
// survives a power cut is the volume's own test of this item.
func TestItem57FUAIsDurableBeforeItsReply(t *testing.T) {
	bothSized(t, 1<<20, func(t *testing.T, c *client, d *ramDevice) {
		var durable atomic.Pointer[[]byte]
		d.hook(func() { d.onFlush = func() error { p := d.snapshot(); durable.Store(&p); return nil } })
		want := d.snapshot()
		for i := range 8 {
			at := uint64(i) * 100_000
			for _, n := range []uint32{512, 4096, 100_000} { // from the receive buffer and from their own
				p := pattern(int(n), byte(i+1))
				copy(want[at:], p)
				c.must(cWrite, fFUA, at, n, p)
				expectBytes(t, *durable.Load(), want)
			}
			clear(want[at+1000 : at+9000])
			c.must(cZero, fFUA, at+1000, 8000, nil)
			expectBytes(t, *durable.Load(), want)
			trimmed := (at + 20_000 + ramBlock - 1) / ramBlock * ramBlock
			clear(want[trimmed : trimmed+ramBlock])
			c.must(cTrim, fFUA, trimmed, ramBlock, nil)
			expectBytes(t, *durable.Load(), want)
		}
		// And the other way round: what fails to become durable is not acknowledged.
		d.hook(func() { d.onFlush = func() error { return syscall.EIO } })
		for _, cmd := range []uint16{cWrite, cZero, cTrim} {
			var p []byte
			if cmd == cWrite {
				p = make([]byte, 4096)
			}
			if a := c.do(cmd, fFUA, 0, 4096, p); a.errno != eIO {
				t.Errorf("command %d with FUA: error %d", cmd, a.errno)
			}
		}
	})
}

// rawChunk is a reply chunk as it came.
type rawChunk struct {
	flags, typ uint16
	body       []byte
}

// chunks reads the reply to one request, chunk by chunk, until DONE.
func (c *client) chunks() (all []rawChunk) {
	c.t.Helper()
	for {
		c.expect(be32(c.chunkMagic()))
		var a answer
		flags, typ, body := c.readChunk(&a)
		all = append(all, rawChunk{flags, typ, body})
		if flags&1 != 0 {
			return all
		}
	}
}

// TestItem69Done: DONE stands on the last chunk and on no other; another reply
// begins right behind it.
func TestItem69Done(t *testing.T) {
	s, d := serveContexts(t, 1<<20)
	for _, headers := range []string{"structured", "extended"} {
		c := s.hello(t, 3)
		if headers == "extended" {
			c.extend()
		} else {
			c.structure()
		}
		c.choose("main", "base:allocation", key, depth)
		c.enter("main")
		status := c.statusType()
		none := []uint16{0}
		for _, cold := range []bool{false, true} {
			d.cold.Store(cold)
			for _, tt := range []struct {
				cmd, flags uint16
				off        uint64
				n          uint32
				types      []uint16
			}{
				{cRead, 0, 0, 4096, []uint16{1}},
				{cRead, 0, 0, 200 << 10, []uint16{1}},
				{cRead, 0, 0, 0, none},
				{cRead, 0, 1 << 20, 1, []uint16{1<<15 + 1}},
				{cSta, 0, 0, 1 << 20, []uint16{status, status, status}},
				{cSta, fReqOne, 0, 1 << 20, []uint16{status, status, status}},
				{cSta, 0, 1 << 20, 1, []uint16{1<<15 + 1}},
			} {
				c.request(tt.cmd, tt.flags, 9, tt.off, tt.n, nil)
				got := c.chunks()
				if len(got) != len(tt.types) {
					t.Fatalf("%s: command %d of %d: %d chunks", headers, tt.cmd, tt.n, len(got))
				}
				for i, chunk := range got {
					last := uint16(0)
					if i == len(got)-1 {
						last = 1
					}
					if chunk.typ != tt.types[i] || chunk.flags != last || (chunk.typ == 0 && len(chunk.body) != 0) {
						t.Errorf("%s: command %d of %d: chunk %d has type %#x, flags %#x, %d bytes",
							headers, tt.cmd, tt.n, i, chunk.typ, chunk.flags, len(chunk.body))
					}
				}
			}
			c.alive()
		}
	}
}

// TestItem71DontFragment: one content chunk, in which holes are zeros.
func TestItem71DontFragment(t *testing.T) {
	const size = 40 << 20
	s, d := serveRAM(t, nbdsrv.Config{}, size)
	for _, headers := range []string{"structured", "extended"} {
		c := s.connectAs(t, "main", headers)
		for off := uint64(0); off < size; off += 1 << 20 {
			c.must(cWrite, 0, off, 5000, pattern(5000, byte(off>>20)+1))
		}
		want := d.snapshot()
		for _, cold := range []bool{false, true} {
			d.cold.Store(cold)
			for _, n := range []uint32{1, 512, 64 << 10, 64<<10 + 1, 1 << 20, 32 << 20} {
				c.request(cRead, fDF, 9, 4000, n, nil)
				got := c.chunks()
				if len(got) != 1 || got[0].typ != 1 || binary.BigEndian.Uint64(got[0].body) != 4000 {
					t.Fatalf("%s: READ of %d with DF: %d chunks, first %#x", headers, n, len(got), got[0].typ)
				}
				expectBytes(t, got[0].body[8:], want[4000:4000+n])
			}
		}
	}
}

// TestItem73ErrorTexts: every error says something, in UTF-8 and without what
// is only the server's business.
func TestItem73ErrorTexts(t *testing.T) {
	s, d := serveRAM(t, nbdsrv.Config{}, 1<<20)
	s.exports.add(nbdsrv.Export{Name: "ro", ReadOnly: true, Device: newRAM(1 << 20)})
	for _, headers := range []string{"structured", "extended"} {
		c, ro := s.connectAs(t, "main", headers), s.connectAs(t, "ro", headers)
		d.hook(func() {
			d.onRead = func(int64, int) error { return fmt.Errorf("/secret\x00\xff: %w", syscall.EIO) }
			d.onZero = func(int64, int64, bool) error { return fmt.Errorf("/secret: %w", syscall.ENOTSUP) }
		})
		texts := map[string]bool{}
		for _, a := range []answer{
			c.do(cRead, 0, 0, 512, nil), c.do(cRead, 0, 1<<20, 1, nil), c.do(cRead, fReqOne, 0, 1, nil),
			c.do(cRead, 0, 0, 65<<20, nil), c.do(99, 0, 0, 0, nil), c.do(cFlush, 0, 1, 0, nil),
			c.do(cSta, 0, 0, 0, nil), c.do(cZero, fFast, 0, 512, nil), ro.do(cTrim, 0, 0, 512, nil),
		} {
			texts[a.text] = true
			if a.errno == 0 || a.text == "" || len(a.text) > 4096 || !utf8.ValidString(a.text) ||
				bytes.ContainsAny([]byte(a.text), "\x00") || bytes.Contains([]byte(a.text), []byte("secret")) {
				t.Errorf("%s: error %d with text %q", headers, a.errno, a.text)
			}
		}
		if len(texts) != 9 {
			t.Errorf("%s: %d texts for nine errors: %v", headers, len(texts), texts)
		}
		d.hook(func() { d.onRead, d.onZero = nil, nil })
	}
}

// TestItem78AllocationIsTrue: after any changes, a range said to be zero reads
// as zeros, and no data is in a hole.
func TestItem78AllocationIsTrue(t *testing.T) {
	const size = 1 << 20
	both(t, func(t *testing.T, c *client, d *ramDevice) {
		if !c.structured {
			t.Skip("block status needs chunks")
		}
		rnd := rand.New(rand.NewPCG(7, 8))
		seen := map[uint64]bool{}
		rounds := 60
		if raceEnabled {
			rounds = 20
		}
		for range rounds {
			off, n := uint64(rnd.IntN(size-1)), uint32(1+rnd.IntN(60_000))
			n = min(n, uint32(size-off))
			switch rnd.IntN(4) {
			case 0:
				c.must(cZero, 0, off, n, nil)
			case 1:
				c.must(cZero, fNoHole, off, n, nil)
			case 2:
				c.must(cTrim, 0, off, n, nil)
			case 3:
				c.must(cWrite, 0, off, n, bytes.Repeat([]byte{1}, int(n)))
			}
			data, at := c.must(cRead, 0, 0, size, nil).data, uint64(0)
			runs := c.must(cSta, 0, 0, size, nil).status
			for i := 0; i < len(runs); i += 2 {
				part, state := data[at:at+runs[i]], runs[i+1]
				seen[state] = true
				zeros := len(bytes.Trim(part, "\x00")) == 0
				if state&2 != 0 && !zeros || state&1 != 0 && state&2 == 0 {
					t.Fatalf("run at %d of %d: state %d", at, runs[i], state)
				}
				at += runs[i]
			}
			if at != size {
				t.Fatalf("the runs end at %d", at)
			}
		}
		if !seen[0] || !seen[2] || !seen[3] {
			t.Errorf("states %v", seen)
		}
	})
}
