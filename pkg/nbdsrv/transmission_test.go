package nbdsrv_test

import (
	"bytes"
	"math"
	"testing"

	"github.com/fsximg/fsx/pkg/nbdsrv"
)

// both runs f with simple and with structured replies, from memory and from
// workers.
func both(t *testing.T, f func(t *testing.T, c *client, d *ramDevice)) {
	for _, structured := range []bool{false, true} {
		for _, cold := range []bool{false, true} {
			name := map[bool]string{false: "simple", true: "structured"}[structured] +
				map[bool]string{false: "/inline", true: "/workers"}[cold]
			t.Run(name, func(t *testing.T) {
				s, d := serveRAM(t, nbdsrv.Config{}, 80<<20)
				d.cold.Store(cold)
				d.noisy = true
				f(t, s.connect(t, "main", structured), d)
			})
		}
	}
}

func TestReadBackSizes(t *testing.T) {
	both(t, func(t *testing.T, c *client, d *ramDevice) {
		for _, n := range []int{1, 511, 512, 4095, 4096, 4097, 64<<10 - 1, 64 << 10, 64<<10 + 1,
			255 << 10, 256 << 10, 1 << 20, 32 << 20, 64 << 20} {
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
	both(t, func(t *testing.T, c *client, d *ramDevice) {
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
