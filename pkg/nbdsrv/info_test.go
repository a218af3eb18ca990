package nbdsrv_test

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"net"
	"syscall"
	"testing"

	"github.com/fsximg/fsx/pkg/nbdsrv"
)

// What a client is told of an export and of its transmission flags.

// tell sends INFO or GO and returns the replies' data by information type, each
// of which may come once.
func (c *client) tell(opt uint32, name string, requests ...uint16) map[uint16][]byte {
	c.t.Helper()
	c.option(opt, info(name, requests...))
	got := map[uint16][]byte{}
	for {
		typ, p := c.reply(opt)
		if typ == rAck {
			return got
		}
		if typ != rInfo || len(p) < 2 {
			c.t.Fatalf("option %d: reply %#x %x", opt, typ, p)
		}
		kind := binary.BigEndian.Uint16(p)
		if _, ok := got[kind]; ok {
			c.t.Fatalf("information %d came twice", kind)
		}
		got[kind] = p[2:]
	}
}

func TestItem08NoDelay(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	near, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	far, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	_ = far.(*net.TCPConn).SetNoDelay(false) // Go's own default is the other
	raw, err := far.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	s := nbdsrv.New(nbdsrv.Config{Exports: newExports().add(nbdsrv.Export{Name: "main", Device: newRAM(1 << 20)})})
	go func() { _ = s.ServeConn(far) }()
	c := &client{t: t, Conn: near}
	c.expect(be64(magicGreeting), be64(magicOption), be16(3))
	value := 0
	if err := raw.Control(func(fd uintptr) {
		value, err = syscall.GetsockoptInt(int(fd), syscall.IPPROTO_TCP, syscall.TCP_NODELAY)
	}); err != nil || value == 0 {
		t.Errorf("TCP_NODELAY is %d, %v", value, err)
	}
}

func TestItem15ListDescriptions(t *testing.T) {
	exports := newExports().
		add(nbdsrv.Export{Name: "a", Description: "gr\u00fc\u00dfe\x00\xff", Device: newRAM(1 << 20)}).
		add(nbdsrv.Export{Name: "b", Device: newRAM(1 << 20)})
	s := serve(t, nbdsrv.Config{}, exports)
	c := s.hello(t, 3)
	c.option(oList, nil)
	c.expectReply(oList, rServer, join(be32(1), []byte("agr\u00fc\u00dfe??")))
	c.expectReply(oList, rServer, join(be32(1), []byte("b")))
	c.expectReply(oList, rAck, nil)
}

func TestItem22InfoAndGoAgree(t *testing.T) {
	exports := newExports().
		add(nbdsrv.Export{Name: "main", Description: "d", Device: newRAM(3 << 20)}).
		add(nbdsrv.Export{Name: "ro", ReadOnly: true, Device: newRAM(1 << 20)})
	s := serve(t, nbdsrv.Config{}, exports)
	for _, name := range []string{"main", "ro", ""} {
		for i, prepare := range []func(*client){
			func(*client) {},
			(*client).structure,
			func(c *client) { c.structure(); c.choose(name, "base:allocation") },
			(*client).extend,
			func(c *client) { c.extend(); c.choose(name, "base:allocation") },
		} {
			c := s.hello(t, 3)
			prepare(c)
			told := c.tell(oInfo, name, 1, 2, 3)
			again := c.tell(oInfo, name, 1, 2, 3)
			chosen := c.tell(oGo, name, 1, 2, 3)
			if len(told) != 4 || fmt.Sprint(told) != fmt.Sprint(again) || fmt.Sprint(told) != fmt.Sprint(chosen) {
				t.Errorf("export %q, preparation %d: INFO %x, GO %x", name, i, told, chosen)
			}
		}
	}
}

func TestItem23NameAndDescription(t *testing.T) {
	exports := newExports().
		add(nbdsrv.Export{Name: "main", Description: "about main", Device: newRAM(1 << 20)}).
		add(nbdsrv.Export{Name: "plain", Device: newRAM(1 << 20)})
	s := serve(t, nbdsrv.Config{}, exports)
	c := s.hello(t, 3)
	for _, tt := range []struct{ asked, name, description string }{
		{"main", "main", "about main"}, {"", "main", "about main"}, {"plain", "plain", ""},
	} {
		got := c.tell(oInfo, tt.asked, 1, 2)
		if string(got[1]) != tt.name || string(got[2]) != tt.description || len(got) != 3 {
			t.Errorf("export %q: %v", tt.asked, got)
		}
	}
	if got := c.tell(oGo, "main"); len(got) != 1 || got[0] == nil { // not asked, not told
		t.Errorf("GO without requests: %v", got)
	}
}

func TestItem24BlockSizes(t *testing.T) {
	s, d := serveRAM(t, nbdsrv.Config{}, 1<<20)
	got := s.hello(t, 3).tell(oInfo, "main", 3)[3]
	if len(got) != 12 {
		t.Fatalf("NBD_INFO_BLOCK_SIZE has %d bytes", len(got))
	}
	smallest, preferred, largest := binary.BigEndian.Uint32(got), binary.BigEndian.Uint32(got[4:]), binary.BigEndian.Uint32(got[8:])
	if bits.OnesCount32(smallest) != 1 || smallest > 64<<10 || d.Size()%int64(smallest) != 0 {
		t.Errorf("minimum %d", smallest)
	}
	if bits.OnesCount32(preferred) != 1 || preferred < max(smallest, 512) {
		t.Errorf("preferred %d", preferred)
	}
	if largest < max(preferred, 1<<20) || largest%smallest != 0 {
		t.Errorf("maximum %d", largest)
	}
	// It is kept, too.
	c := serveOnly(t, 2*int64(largest))
	want := pattern(int(largest), 1)
	c.must(cWrite, 0, uint64(smallest), largest, want)
	expectBytes(t, c.must(cRead, 0, uint64(smallest), largest, nil).data, want)
}

// serveOnly connects to a new device of its own.
func serveOnly(t *testing.T, size int64) *client {
	t.Helper()
	s, _ := serveRAM(t, nbdsrv.Config{}, size)
	return s.connect(t, "main", true)
}

// flagsOf returns the transmission flags of a writable export and of a
// read-only one, by kind of headers.
func flagsOf(t *testing.T, cfg nbdsrv.Config) (writable, readOnly map[string]uint16) {
	t.Helper()
	exports := newExports().
		add(nbdsrv.Export{Name: "main", Device: newRAM(1 << 20)}).
		add(nbdsrv.Export{Name: "ro", ReadOnly: true, Device: newRAM(1 << 20)})
	s := serve(t, cfg, exports)
	writable, readOnly = map[string]uint16{}, map[string]uint16{}
	for _, headers := range []string{"simple", "structured", "extended"} {
		writable[headers] = s.connectAs(t, "main", headers).flags
		readOnly[headers] = s.connectAs(t, "ro", headers).flags
	}
	return writable, readOnly
}

func TestItem42FlushAndFUA(t *testing.T) {
	writable, _ := flagsOf(t, nbdsrv.Config{})
	for headers, flags := range writable {
		if want := uint16(1<<2 | 1<<3); flags&want != want {
			t.Errorf("%s: flags %#x", headers, flags)
		}
	}
}

func TestItem43DontFragment(t *testing.T) {
	writable, readOnly := flagsOf(t, nbdsrv.Config{})
	for _, all := range []map[string]uint16{writable, readOnly} {
		for headers, flags := range all {
			if got := flags&(1<<7) != 0; got != (headers != "simple") {
				t.Errorf("%s: flags %#x", headers, flags)
			}
		}
	}
}

func TestItem44FastZero(t *testing.T) {
	writable, readOnly := flagsOf(t, nbdsrv.Config{})
	for headers := range writable {
		if flags := writable[headers]; flags&(1<<6|1<<11) != 1<<6|1<<11 {
			t.Errorf("%s: flags %#x", headers, flags)
		}
		if flags := readOnly[headers]; flags&(1<<6|1<<11) != 0 {
			t.Errorf("%s, read-only: flags %#x", headers, flags)
		}
	}
}

func TestItem45MultiConn(t *testing.T) {
	for _, without := range []bool{false, true} {
		writable, readOnly := flagsOf(t, nbdsrv.Config{NoMultiConn: without})
		for headers := range writable {
			for _, flags := range []uint16{writable[headers], readOnly[headers]} {
				if got := flags&(1<<8) != 0; got == without {
					t.Errorf("NoMultiConn %v, %s: flags %#x", without, headers, flags)
				}
			}
		}
	}
}

func TestItem46OtherFlags(t *testing.T) {
	const cache, trim, zeroes, rotational = 1 << 10, 1 << 5, 1 << 6, 1 << 4
	writable, readOnly := flagsOf(t, nbdsrv.Config{})
	for headers := range writable {
		if flags := writable[headers]; flags&(cache|trim|zeroes|rotational) != cache|trim|zeroes {
			t.Errorf("%s: flags %#x", headers, flags)
		}
		if flags := readOnly[headers]; flags&(cache|trim|zeroes|rotational) != cache {
			t.Errorf("%s, read-only: flags %#x", headers, flags)
		}
	}
}
