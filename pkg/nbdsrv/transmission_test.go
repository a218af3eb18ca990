package nbdsrv_test

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"syscall"
	"testing"

	"github.com/fsximg/fsx/pkg/nbdsrv"
)

// both runs f from memory and from workers, with simple and structured replies
// and with extended headers, in plaintext and over TLS (with -short some of these).
func both(t *testing.T, f func(t *testing.T, c *client, d *ramDevice)) {
	t.Helper()
	bothSized(t, 4<<20, f)
}

func bothSized(t *testing.T, size int64, f func(t *testing.T, c *client, d *ramDevice)) {
	t.Helper()
	for _, headers := range []string{"simple", "structured", "extended"} {
		for _, cold := range []bool{false, true} {
			name := headers + map[bool]string{false: "/inline", true: "/workers"}[cold]
			run := func(t *testing.T, cfg nbdsrv.Config, overTLS *tls.Config) {
				s, d := serveRAM(t, cfg, size)
				s.tls = overTLS
				d.cold.Store(cold)
				d.noisy = true
				f(t, s.connectAs(t, "main", headers), d)
			}
			if testing.Short() && !cold && headers == "simple" {
				continue
			}
			t.Run(name, func(t *testing.T) { run(t, nbdsrv.Config{}, nil) })
			if testing.Short() && !(cold && headers == "structured") {
				continue
			}
			t.Run(name+"/TLS", func(t *testing.T) {
				ca := newAuthority(t)
				run(t, ca.config(), ca.client(""))
			})
		}
	}
}

func TestReadBackSizes(t *testing.T) {
	bothSized(t, 80<<20, func(t *testing.T, c *client, d *ramDevice) {
		for _, n := range []int{1, 511, 512, 4095, 4096, 4097, 64<<10 - 1, 64 << 10, 64<<10 + 1,
			255 << 10, 256 << 10, 1 << 20, 32 << 20, 64 << 20} {
			if raceEnabled && n > 1<<20 {
				break // nothing there depends on the size
			}
			want := pattern(n, byte(n>>3)+1)
			c.must(cWrite, 0, 7, uint32(n), want)
			if a := c.must(cRead, 0, 7, uint32(n), nil); !bytes.Equal(a.data, want) {
				t.Fatalf("%d bytes came back different", n)
			}
		}
	})
}

func TestItem47PayloadOnlyWithWrite(t *testing.T) {
	both(t, func(t *testing.T, c *client, d *ramDevice) {
		for _, cmd := range []uint16{cTrim, cZero, cCache, cSta, 8, 77, 0xffff} {
			c.do(cmd, 0, 0, 1<<20, nil)
			c.alive()
		}
		if a := c.do(cFlush, 0, 0, 4096, nil); a.errno != eINVAL {
			t.Fatalf("FLUSH of a range: %d", a.errno)
		}
		c.must(cFlush, 0, 0, 0, nil)
		c.alive()
	})
}

func TestItem48BadRequestMagic(t *testing.T) {
	s, _ := serveRAM(t, nbdsrv.Config{}, 1<<20)
	c := s.connect(t, "main", false)
	c.send(be32(magicRequest+1), make([]byte, 24))
	c.expectEnd()
}

func TestItem49Bounds(t *testing.T) {
	const size = 80 << 20
	bothSized(t, size, func(t *testing.T, c *client, d *ramDevice) {
		for _, r := range []struct {
			off uint64
			n   uint32
		}{
			{size, 1}, {size - 1, 2}, {size + 1, 1}, {0, size + 1}, {1 << 63, 512},
			{math.MaxUint64 - 511, 512}, {math.MaxUint64, 1}, {math.MaxInt64, 512},
		} {
			for cmd, want := range map[uint16]uint32{cRead: eINVAL, cTrim: eINVAL, cSta: eINVAL, cCache: eINVAL,
				cWrite: eNOSPC, cZero: eNOSPC} {
				if r.n > 1<<20 && (cmd == cWrite || cmd == cRead) {
					continue // refused for another reason
				}
				var payload []byte
				if cmd == cWrite {
					payload = make([]byte, r.n)
				}
				if a := c.do(cmd, 0, r.off, r.n, payload); a.errno != want {
					t.Fatalf("command %d at %#x+%d: error %d, want %d", cmd, r.off, r.n, a.errno, want)
				}
				c.alive()
			}
		}
		c.must(cRead, 0, size-1, 1, nil)
	})
}

func TestItem40HasFlags(t *testing.T) {
	for _, cfg := range []nbdsrv.Config{{}, {NoMultiConn: true}} {
		s, _ := serveRAM(t, cfg, 1<<20)
		for _, structured := range []bool{false, true} {
			c := s.connect(t, "main", structured)
			// Items 42 to 46: FLUSH and FUA, DF only with structured replies,
			// FAST_ZERO beside WRITE_ZEROES, multi-conn unless it is off, no
			// ROTATIONAL.
			want := uint16(1<<0 | 1<<2 | 1<<3 | 1<<5 | 1<<6 | 1<<10 | 1<<11)
			if structured {
				want |= 1 << 7
			}
			if !cfg.NoMultiConn {
				want |= 1 << 8
			}
			if c.flags != want {
				t.Errorf("structured %v, %+v: flags %#x, want %#x", structured, cfg, c.flags, want)
			}
		}
	}
}

func TestItem41ReadOnly(t *testing.T) {
	device := newRAM(1 << 20)
	device.readOnly = true
	exports := newExports().
		add(nbdsrv.Export{Name: "export", ReadOnly: true, Device: newRAM(1 << 20)}).
		add(nbdsrv.Export{Name: "device", Device: device})
	s := serve(t, nbdsrv.Config{}, exports)
	for _, name := range []string{"export", "device"} {
		for _, structured := range []bool{false, true} {
			c := s.connect(t, name, structured)
			if c.flags&(1<<0|1<<1) != 3 || c.flags&(1<<5|1<<6|1<<11) != 0 {
				t.Errorf("flags %#x", c.flags)
			}
			for _, n := range []uint32{512, 64 << 10, 200 << 10} {
				if a := c.do(cWrite, fFUA, 0, n, pattern(int(n), 1)); a.errno != ePERM {
					t.Errorf("WRITE of %d: error %d", n, a.errno)
				}
			}
			for _, cmd := range []uint16{cTrim, cZero} {
				if a := c.do(cmd, 0, 0, 4096, nil); a.errno != ePERM {
					t.Errorf("command %d: error %d", cmd, a.errno)
				}
			}
			c.must(cFlush, 0, 0, 0, nil)
			expectBytes(t, c.must(cRead, 0, 0, 512, nil).data, make([]byte, 512))
		}
	}
}

func TestItem50RefusedWriteIsDrained(t *testing.T) {
	bothSized(t, 80<<20, func(t *testing.T, c *client, d *ramDevice) {
		for _, n := range []uint32{1, 64 << 10, 300 << 10, 64<<20 + 1} {
			want := uint32(eNOSPC)
			if n > 64<<20 {
				if c.extended {
					break // it hangs up: TestItem79PayloadLimit
				}
				want = eINVAL
			}
			if a := c.do(cWrite, 0, 80<<20-uint64(n/2), n, make([]byte, n)); a.errno != want {
				t.Fatalf("%d bytes: error %d, want %d", n, a.errno, want)
			}
			c.alive()
		}
	})
}

func TestItem51CommandsAndFlags(t *testing.T) {
	both(t, func(t *testing.T, c *client, d *ramDevice) {
		for _, cmd := range []uint16{8, 9, 255, 0x8000, 0xffff} {
			if a := c.do(cmd, 0, 0, 512, nil); a.errno != eINVAL {
				t.Errorf("command %d: error %d", cmd, a.errno)
			}
		}
		for cmd, allowed := range map[uint16]uint16{cRead: fFUA, cWrite: fFUA, cFlush: fFUA, cTrim: fFUA,
			cCache: fFUA, cZero: fFUA | fNoHole | fFast, cSta: fFUA | fReqOne} {
			if cmd == cRead && c.structured {
				allowed |= fDF
			}
			for bit := range 16 {
				flag := uint16(1) << bit
				if flag&allowed != 0 {
					continue
				}
				var payload []byte
				n := uint32(512)
				if cmd == cFlush {
					n = 0
				}
				if cmd == cWrite || (c.extended && flag == fPayload) {
					payload = make([]byte, n)
				}
				if c.extended && flag == fPayload && cmd == cFlush {
					n = 512
					payload = make([]byte, n)
				}
				if c.extended && flag == fPayload && cmd == cWrite {
					continue // it belongs there
				}
				if a := c.do(cmd, flag, 0, n, payload); a.errno != eINVAL {
					t.Errorf("command %d with flag %#x: error %d", cmd, flag, a.errno)
				}
			}
		}
		c.alive()
	})
}

func TestItem52FUAEverywhere(t *testing.T) {
	both(t, func(t *testing.T, c *client, d *ramDevice) {
		c.must(cRead, fFUA, 0, 4096, nil)
		c.must(cCache, fFUA, 0, 4096, nil)
		if c.structured {
			c.must(cSta, fFUA, 0, 4096, nil)
		}
		if n := d.flushes.Load(); n != 0 {
			t.Errorf("%d flushes for commands that change nothing", n)
		}
		// Item 57: what changes something is flushed before the reply.
		for i, r := range []struct {
			cmd uint16
			n   uint32
		}{{cWrite, 4096}, {cWrite, 100 << 10}, {cTrim, 4096}, {cZero, 4096}, {cFlush, 0}} {
			var payload []byte
			if r.cmd == cWrite {
				payload = pattern(int(r.n), 5)
			}
			c.must(r.cmd, fFUA, 0, r.n, payload)
			if n := d.flushes.Load(); n != int64(i)+1 {
				t.Errorf("command %d: %d flushes, want %d", r.cmd, n, i+1)
			}
		}
	})
}

func TestItem53ZeroLength(t *testing.T) {
	both(t, func(t *testing.T, c *client, d *ramDevice) {
		for _, cmd := range []uint16{cRead, cWrite, cTrim, cZero, cCache} {
			for _, off := range []uint64{0, 7, 4 << 20} {
				a := c.must(cmd, 0, off, 0, nil)
				if cmd == cRead && a.simple == c.structured {
					t.Error("wrong kind of reply to an empty READ")
				}
			}
		}
		if a := c.do(cSta, 0, 0, 0, nil); a.errno != eINVAL {
			t.Errorf("BLOCK_STATUS of nothing: %d", a.errno)
		}
		c.alive()
	})
}

func TestItem54FailedReadHasNoPayload(t *testing.T) {
	both(t, func(t *testing.T, c *client, d *ramDevice) {
		for _, n := range []uint32{4096, 1 << 20} {
			d.hook(func() { d.onRead = func(int64, int) error { return fmt.Errorf("/secret/path: %w", syscall.EIO) } })
			a := c.do(cRead, 0, 0, n, nil)
			if a.errno != eIO || len(a.data) != 0 || a.simple == c.structured {
				t.Errorf("error %d, %d bytes, simple %v", a.errno, len(a.data), a.simple)
			}
			if c.structured && a.text != "input/output error" { // item 73
				t.Errorf("text %q", a.text)
			}
			d.hook(func() { d.onRead = nil })
			c.alive()
		}
	})
}

func TestItem60TrimInside(t *testing.T) {
	both(t, func(t *testing.T, c *client, d *ramDevice) {
		want := pattern(64<<10, 1)
		c.must(cWrite, 0, 0, uint32(len(want)), want)
		c.must(cTrim, 0, 5000, 10000, nil)
		clear(want[8192:12288])
		expectBytes(t, c.must(cRead, 0, 0, uint32(len(want)), nil).data, want)
	})
}

func TestItem61WriteZeroes(t *testing.T) {
	both(t, func(t *testing.T, c *client, d *ramDevice) {
		for _, flags := range []uint16{0, fNoHole, fFast, fFast | fNoHole, fFUA | fNoHole} {
			want := pattern(64<<10, byte(flags)+1)
			c.must(cWrite, 0, 0, uint32(len(want)), want)
			c.must(cZero, flags, 5000, 20000, nil)
			clear(want[5000:25000])
			expectBytes(t, c.must(cRead, 0, 0, uint32(len(want)), nil).data, want)
			if !c.structured {
				continue
			}
			state := c.must(cSta, fReqOne, 8192, 12288, nil).status[1]
			if want := uint64(3 - flags&fNoHole/2); state != want {
				t.Errorf("flags %#x: status %d, want %d", flags, state, want)
			}
		}
	})
}

func TestItem62RangesBeyondThePayloadLimit(t *testing.T) {
	const size = 80 << 20
	bothSized(t, size, func(t *testing.T, c *client, d *ramDevice) {
		for _, cmd := range []uint16{cTrim, cZero, cCache, cSta} {
			if cmd == cSta && !c.structured {
				continue
			}
			c.must(cmd, 0, 0, size, nil)
			if a := c.do(cmd, 0, 0, 3<<30, nil); a.errno != eINVAL && a.errno != eNOSPC {
				t.Errorf("command %d past the end: %d", cmd, a.errno)
			}
		}
		c.alive()
	})
}

func TestItem63Cache(t *testing.T) {
	both(t, func(t *testing.T, c *client, d *ramDevice) {
		c.must(cCache, 0, 4096, 12345, nil)
		if d.prefetches.Load() != 1 {
			t.Error("the device was not asked")
		}
	})
}

func TestItem64ErrorValues(t *testing.T) {
	for err, want := range map[error]uint32{
		syscall.EPERM: ePERM, syscall.EROFS: ePERM, syscall.EACCES: ePERM,
		syscall.EIO: eIO, syscall.ENOMEM: eIO, syscall.EBADF: eIO, syscall.ECANCELED: eIO,
		syscall.EINVAL: eINVAL, syscall.ENOTSUP: eINVAL, syscall.EOVERFLOW: eINVAL,
		syscall.ENOSPC: eNOSPC, syscall.EDQUOT: eNOSPC, syscall.EFBIG: eNOSPC,
		syscall.ESHUTDOWN:  108,
		errors.New("else"): eIO,
	} {
		both(t, func(t *testing.T, c *client, d *ramDevice) {
			d.hook(func() {
				d.onWrite = func(int64, int) error { return fmt.Errorf("wrapped: %w", err) }
				d.onZero = func(int64, int64, bool) error { return err }
				d.onTrim = func(int64, int64) error { return err }
			})
			for _, r := range []struct{ cmd, flags uint16 }{{cWrite, 0}, {cWrite, fFUA}, {cZero, fFUA}, {cTrim, 0}} {
				var payload []byte
				if r.cmd == cWrite {
					payload = make([]byte, 4096)
				}
				if a := c.do(r.cmd, r.flags, 0, 4096, payload); a.errno != want {
					t.Errorf("%v from command %d: wire %d, want %d", err, r.cmd, a.errno, want)
				}
			}
			if d.flushes.Load() != 0 {
				t.Error("a failed change was flushed")
			}
			fast := want
			if errors.Is(err, syscall.ENOTSUP) {
				fast = eNOTSUP
			}
			if a := c.do(cZero, fFast, 0, 4096, nil); a.errno != fast {
				t.Errorf("%v from a fast zero: wire %d, want %d", err, a.errno, fast)
			}
			c.alive() // item 86: the service goes on
		})
	}
}

func TestItem65Cookies(t *testing.T) {
	both(t, func(t *testing.T, c *client, d *ramDevice) {
		cookies := []uint64{0, 1, 1, math.MaxUint64, math.MaxUint64, 1 << 63}
		for _, cookie := range cookies {
			c.request(cRead, 0, cookie, 0, 4096, nil)
		}
		count := map[uint64]int{}
		for range cookies {
			count[c.answer(4096).cookie]++
		}
		if count[1] != 2 || count[math.MaxUint64] != 2 || count[0] != 1 || count[1<<63] != 1 {
			t.Errorf("cookies %v", count)
		}
	})
}

// TestItem66RepliesDoNotInterleave mixes inline and worker replies of many
// sizes; answer() fails at the first byte out of place, and the data tells
// replies apart.
func TestItem66RepliesDoNotInterleave(t *testing.T) {
	both(t, func(t *testing.T, c *client, d *ramDevice) {
		for b := int64(0); b < d.Size()/8; b++ {
			binary.BigEndian.PutUint64(d.data[b*8:], uint64(b))
		}
		d.hook(func() {
			d.onRead = func(off int64, _ int) error {
				if off%3 == 0 {
					d.cold.Store(!d.cold.Load())
				}
				return nil
			}
		})
		sizes := []uint32{8, 4096, 16, 64 << 10, 65544, 8192, 300 << 10}
		const count = 300
		go func() {
			var all []byte
			for i := range uint64(count) {
				all = append(all, c.header(cRead, 0, i, i*4096, sizes[i%7])...)
			}
			_, _ = c.Write(all)
		}()
		for range count {
			cookie, data := c.pick(sizes)
			first := binary.BigEndian.Uint64(data)
			last := binary.BigEndian.Uint64(data[len(data)-8:])
			if first != cookie*512 || last != first+uint64(len(data)/8)-1 {
				t.Fatalf("reply %d holds words %d to %d", cookie, first, last)
			}
		}
	})
}

// pick reads the reply to any of the READs whose cookie modulo 7 tells the size.
func (c *client) pick(sizes []uint32) (cookie uint64, data []byte) {
	c.t.Helper()
	if c.structured {
		a := c.answer(0)
		return a.cookie, a.data
	}
	c.expect(be32(magicSimple), be32(0))
	cookie = binary.BigEndian.Uint64(c.read(8))
	return cookie, c.read(int(sizes[cookie%7]))
}

func TestItem68NoSimpleReplyToRead(t *testing.T) {
	s, d := serveRAM(t, nbdsrv.Config{}, 1<<20)
	c := s.connect(t, "main", true)
	check := func(a answer, errno uint32) {
		t.Helper()
		if a.simple || a.errno != errno || len(a.chunks) != 1 { // item 69: answer() takes DONE as the end
			t.Errorf("%+v", a)
		}
	}
	for _, cold := range []bool{false, true} {
		d.cold.Store(cold)
		check(c.do(cRead, 0, 0, 4096, nil), 0)
		check(c.do(cRead, 0, 0, 0, nil), 0)
		check(c.do(cRead, 0, 1<<20, 1, nil), eINVAL)
		check(c.do(cRead, fReqOne, 0, 1, nil), eINVAL)
		check(c.do(cRead, 0, 0, 1<<31, nil), eINVAL)
	}
}

func TestItem70Chunks(t *testing.T) {
	s, d := serveRAM(t, nbdsrv.Config{}, 4<<20)
	c := s.connect(t, "main", true)
	copy(d.data, pattern(4<<20, 1))
	for _, flags := range []uint16{0, fDF} { // item 71
		for _, n := range []uint32{1, 4096, 64 << 10, 2 << 20} {
			c.request(cRead, flags, 9, 12288, n, nil)
			c.expect(be32(magicStructured), be16(1), be16(1), be64(9), be32(n+8), be64(12288))
			expectBytes(t, c.read(int(n)), d.data[12288:12288+n])
		}
	}
}

func TestItem72ErrorOffset(t *testing.T) {
	both(t, func(t *testing.T, c *client, d *ramDevice) {
		for _, tt := range []struct {
			off  uint64
			n    uint32
			bad  int64
			want int64
		}{{0, 8192, 4096, 4096}, {0, 1 << 20, 65536, 65536}, {4096, 4096, 0, -1}, {4096, 4096, 8192, -1}, {4096, 4096, -5, -1}} {
			d.hook(func() {
				d.onRead = func(int64, int) error { return fmt.Errorf("volume at /secret: %w", placedError(tt.bad)) }
			})
			a := c.do(cRead, 0, tt.off, tt.n, nil)
			d.hook(func() { d.onRead = nil })
			if a.errno != eIO || len(a.data) != 0 {
				t.Errorf("error %d, %d bytes", a.errno, len(a.data))
			}
			if !c.structured {
				continue
			}
			if a.at != tt.want || a.text == "" || bytes.Contains([]byte(a.text), []byte("secret")) {
				t.Errorf("bad block at %d: told %d, %q", tt.bad, a.at, a.text)
			}
		}
		c.alive()
	})
}

func TestItem74BlockStatusWithoutContext(t *testing.T) {
	s, _ := serveRAM(t, nbdsrv.Config{}, 1<<20)
	simple := s.connect(t, "main", false)
	structured := s.hello(t, 3)
	structured.structure()
	structured.enter("main")
	for _, c := range []*client{simple, structured} {
		if a := c.do(cSta, 0, 0, 4096, nil); a.errno != eINVAL {
			t.Errorf("error %d", a.errno)
		}
		c.alive()
	}
}

func TestItem75BlockStatus(t *testing.T) {
	s, _ := serveRAM(t, nbdsrv.Config{}, 1<<20)
	c := s.connect(t, "main", true)
	for _, b := range []int{1, 2, 5} {
		c.must(cWrite, 0, uint64(b)*ramBlock, ramBlock, pattern(ramBlock, 1))
	}
	c.must(cZero, fNoHole, 3*ramBlock, ramBlock, nil)
	// hole 0, data 1-2, zero 3, hole 4, data 5, hole to the end; items 77 and
	// 78: neighbours are one run, nothing passes the end, ZERO only where
	// zeros are.
	for _, tt := range []struct {
		off  uint64
		n    uint32
		flag uint16
		want []uint32
	}{
		{0, 1 << 20, 0, []uint32{4096, 3, 8192, 0, 4096, 2, 4096, 3, 4096, 0, 1<<20 - 6*4096, 3}},
		{100, 4096, 0, []uint32{3996, 3, 100, 0}},
		{4096, 8192, 0, []uint32{8192, 0}},
		{1<<20 - 1, 1, 0, []uint32{1, 3}},
		{4096, 1 << 16, fReqOne, []uint32{8192, 0}}, // item 76
		{4096, 100, fReqOne, []uint32{100, 0}},
	} {
		a := c.must(cSta, tt.flag, tt.off, tt.n, nil)
		if len(a.chunks) != 1 || fmt.Sprint(a.status) != fmt.Sprint(tt.want) {
			t.Errorf("%d+%d: %v in %d chunks, want %v", tt.off, tt.n, a.status, len(a.chunks), tt.want)
		}
	}
}

// TestItem77ManyExtents: a map of single blocks does not fit one reply, which
// then covers a part of the request from its beginning.
func TestItem77ManyExtents(t *testing.T) {
	s, d := serveRAM(t, nbdsrv.Config{}, 80<<20)
	c := s.connect(t, "main", true)
	for i := range d.state {
		d.state[i] = byte(i%2) * 2
	}
	var total, runs uint64
	for total < 80<<20 {
		a := c.must(cSta, 0, total, uint32(80<<20-total), nil)
		for i := 0; i < len(a.status); i += 2 {
			want := uint64(3)
			if total/ramBlock%2 == 1 {
				want = 0
			}
			if a.status[i] != ramBlock || a.status[i+1] != want {
				t.Fatalf("run at %d: %v", total, a.status[i:i+2])
			}
			total += a.status[i]
			runs++
		}
	}
	if runs != 80<<20/ramBlock {
		t.Fatalf("%d runs", runs)
	}
}
