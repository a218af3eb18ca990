package main

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fsximg/fsx/pkg/nbdsrv"
)

// disk is a device in memory that lies once, when its lie wants to.
type disk struct {
	mu   sync.Mutex
	data []byte
	n    int // requests so far
	lie  lie
	last []byte // before the latest write
}

// lie changes what a request does. It returns whether it lied.
type lie struct {
	read   func(d *disk, p []byte, off int64) bool
	write  func(d *disk, p []byte, off int64) bool
	zero   func(d *disk, off, n int64) bool
	trim   func(d *disk, off, n int64) bool
	status bool
}

// truthful is how many requests are served before the lie: after the filling.
const truthful = 300

func (d *disk) Size() int64      { return int64(len(d.data)) }
func (d *disk) ReadOnly() bool   { return false }
func (d *disk) Flush() error     { return nil }
func (d *disk) due() bool        { d.n++; return d.n > truthful }
func (d *disk) set(off, n int64) { clear(d.data[off : off+n]) }

func (d *disk) Prefetch(int64, int64) error { return nil }

func (d *disk) ReadAt(p []byte, off int64, _ bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	copy(p, d.data[off:])
	if d.due() && d.lie.read != nil {
		d.lie.read(d, p, off)
	}
	return nil
}

func (d *disk) WriteAt(p []byte, off int64, _ bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.due() && d.lie.write != nil && d.lie.write(d, p, off) {
		return nil
	}
	copy(d.data[off:], p)
	return nil
}

func (d *disk) ZeroAt(off, n int64, _ bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.due() && d.lie.zero != nil && d.lie.zero(d, off, n) {
		return nil
	}
	d.set(off, n)
	return nil
}

func (d *disk) TrimAt(off, n int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.due() && d.lie.trim != nil && d.lie.trim(d, off, n) {
		return nil
	}
	from, to := (off+blockSize-1)&^(blockSize-1), (off+n)&^(blockSize-1)
	if from < to {
		d.set(from, to-from)
	}
	return nil
}

func (d *disk) Status(off, n int64, fn func(length int64, hole, zero bool) bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	zero := nonZero(d.data[off:off+n]) < 0
	if d.due() && d.lie.status {
		zero = true
	}
	fn(n, zero, zero)
	return nil
}

// only is the list of exports with one device.
type only struct{ d *disk }

func (o only) List(*nbdsrv.Client) []nbdsrv.ExportInfo { return []nbdsrv.ExportInfo{{Name: "main"}} }
func (o only) Open(string, *nbdsrv.Client) (nbdsrv.Export, func(), error) {
	return nbdsrv.Export{Name: "main", Device: o.d}, func() {}, nil
}

// soakDisk runs a short soak against a server in this process.
func soakDisk(t *testing.T, d *disk, requests int64) (string, error) {
	t.Helper()
	d.data = make([]byte, 16<<20)
	dir, err := os.MkdirTemp("", "soak") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	socket := filepath.Join(dir, "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := nbdsrv.New(nbdsrv.Config{Exports: only{d}})
	var wg sync.WaitGroup
	wg.Go(func() { srv.Serve(context.Background(), l) })
	defer wg.Wait()
	defer srv.Shutdown(context.Background())
	var out bytes.Buffer
	o := options{socket: socket, export: "main", requests: requests, connections: 3, depth: 32, seed: 7}
	err = run(o, &out)
	return out.String(), err
}

// TestTruth: a server that does what it should passes, with connections that
// were broken off.
func TestTruth(t *testing.T) {
	out, err := soakDisk(t, &disk{}, 30000)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if last := lines[len(lines)-1]; !strings.HasPrefix(last, "RESULT soak: ") || strings.Contains(last, "(0 broken off)") {
		t.Errorf("the last line is %q", last)
	}
}

// TestLies: each way of losing, mixing up or inventing data is found.
func TestLies(t *testing.T) {
	for name, l := range map[string]lie{
		"a write is lost": {write: func(*disk, []byte, int64) bool { return true }},
		"a write goes elsewhere": {write: func(d *disk, p []byte, off int64) bool {
			copy(d.data[(off+blockSize)%(8<<20):], p)
			return true
		}},
		"a write stops early": {write: func(d *disk, p []byte, off int64) bool {
			copy(d.data[off:], p[:len(p)-1])
			return true
		}},
		"a bit is flipped":      {read: func(_ *disk, p []byte, _ int64) bool { p[len(p)/2] ^= 4; return true }},
		"a neighbour is read":   {read: func(d *disk, p []byte, off int64) bool { copy(p, d.data[(off+blockSize)%(8<<20):]); return true }},
		"zeros are read":        {read: func(_ *disk, p []byte, _ int64) bool { clear(p); return true }},
		"zeroing does nothing":  {zero: func(*disk, int64, int64) bool { return true }},
		"zeroing does too much": {zero: func(d *disk, off, n int64) bool { d.set(off, min(n+unitSize, d.Size()-off)); return true }},
		"a trim is rounded outwards": {trim: func(d *disk, off, n int64) bool {
			from, to := off&^(blockSize-1), (off+n+blockSize-1)&^(blockSize-1)
			d.set(from, to-from)
			return true
		}},
		"data is said to be zero": {status: true},
		"an old write comes late": {write: func(d *disk, p []byte, off int64) bool {
			if d.last == nil {
				d.last = bytes.Clone(d.data[:blockSize])
			}
			copy(d.data[off:], p)
			copy(d.data, d.last) // what was there before
			return true
		}},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := soakDisk(t, &disk{lie: l}, 60000)
			var d *difference
			if !errors.As(err, &d) {
				t.Fatalf("not found: %v\n%s", err, out)
			}
			if !strings.Contains(out, "requests that touched unit") || !strings.Contains(out, " 1 errors") {
				t.Errorf("what was printed tells no history:\n%s", out)
			}
		})
	}
}

// TestPattern: no unit or version has the content of another.
func TestPattern(t *testing.T) {
	seen := map[uint64]bool{0: true}
	p := make([]byte, unitSize)
	for unit := range uint64(300) {
		for version := range uint32(300) {
			w := first(5, unit, version)
			if seen[w] {
				t.Fatalf("unit %d version %d is like another", unit, version)
			}
			seen[w] = true
		}
	}
	fill(p, first(5, 1, 2))
	for at := range p {
		p[at] ^= 0x80
		if bad := differs(p, first(5, 1, 2)); bad < 0 || at < bad || at >= bad+32 {
			t.Errorf("a change of byte %d is found at %d", at, bad)
		}
		p[at] ^= 0x80
	}
	if differs(p, first(5, 1, 2)) >= 0 {
		t.Error("the content differs from itself")
	}
}

// TestUnits: a unit is taken by many readers or by one change.
func TestUnits(t *testing.T) {
	m := newModel(1<<20, 0, 1)
	if !m.take(0, 1024, false) || !m.take(512, 1024, false) {
		t.Fatal("two readers")
	}
	if m.take(1024, 1024, true) {
		t.Fatal("a change beside a reader")
	}
	m.give(0, 2, false)
	m.give(1, 3, false)
	if !m.take(1024, 1024, true) || m.take(1536, 10, false) || m.take(0, 4096, true) {
		t.Fatal("a change must be alone")
	}
	m.give(2, 4, true)
	if !m.take(0, 4096, true) {
		t.Fatal("units are left taken")
	}
}

// TestMemoryGrows: growth is told from a plateau.
func TestMemoryGrows(t *testing.T) {
	for name, tt := range map[string]struct {
		at   func(second int64) int64 // MiB
		grow bool
	}{
		"plateau": {func(s int64) int64 { return min(60+s, 120) }, false},
		"waves":   {func(s int64) int64 { return 100 + s%7 }, false},
		"leak":    {func(s int64) int64 { return 60 + s/2 }, true},
	} {
		var samples []sample
		for s := range int64(600) {
			samples = append(samples, sample{time.Duration(s) * time.Second, tt.at(s) << 20})
		}
		if _, _, err := judgeMemory(samples, 600*time.Second); (err != nil) != tt.grow {
			t.Errorf("%s: %v", name, err)
		}
	}
}
