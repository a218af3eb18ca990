package convert_test

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/fsximg/fsx/internal/convert"
)

const block = 4096

// device is a volume in memory that knows which of its blocks hold data.
type device struct {
	mu      sync.Mutex
	b       []byte
	data    []bool // by block
	written int64
	flushed bool
}

func newDevice(size int64) *device {
	return &device{b: make([]byte, size), data: make([]bool, (size+block-1)/block)}
}

func (d *device) Size() int64 { return int64(len(d.b)) }

func (d *device) ReadAt(p []byte, off int64, _ bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	copy(p, d.b[off:])
	// A real volume may overwrite so much behind the buffer.
	for i := range min(16, cap(p)-len(p)) {
		p[:cap(p)][len(p)+i] = 0xee
	}
	return nil
}

func (d *device) WriteAt(p []byte, off int64, _ bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	copy(d.b[off:], p)
	d.written += int64(len(p))
	for b := off / block; b*block < off+int64(len(p)); b++ {
		d.data[b] = true
	}
	return nil
}

func (d *device) ZeroAt(off, n int64, _ bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.b[off : off+n])
	for b := (off + block - 1) / block; b*block < off+n; b++ {
		d.data[b] = (b+1)*block > off+n && off+n < d.Size()
	}
	return nil
}

func (d *device) Flush() error { d.flushed = true; return nil }

func (d *device) Status(off, n int64, fn func(int64, bool, bool) bool) error {
	d.mu.Lock()
	data := slices.Clone(d.data)
	d.mu.Unlock()
	for end := off + n; off < end; {
		stop := off/block*block + block
		for stop < end && data[stop/block] == data[off/block] {
			stop += block
		}
		zero := !data[off/block]
		if !fn(min(stop, end)-off, zero, zero) {
			return nil
		}
		off = stop
	}
	return nil
}

// image is size bytes with data here and there, the last bytes among it.
func image(t testing.TB, size int64) []byte {
	t.Helper()
	bytes := rand.NewChaCha8([32]byte{1, byte(size), byte(size >> 8), byte(size >> 20)})
	r := rand.New(bytes)
	b := make([]byte, size)
	fill := func(p []byte) { bytes.Read(p) }
	for off := int64(0); off < size; off += 1 << 20 {
		if n := min(r.Int64N(300<<10), size-off); r.IntN(2) == 0 {
			fill(b[off : off+n])
		}
	}
	fill(b[max(0, size-100):])
	return b
}

// sparseFile writes b to a file, with holes for its zeros.
func sparseFile(t testing.TB, b []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	f, err := os.Create(path)
	must(t, err)
	defer f.Close()
	must(t, f.Truncate(int64(len(b))))
	for off := 0; off < len(b); off += block {
		p := b[off:min(off+block, len(b))]
		if !allZero(p) {
			_, err := f.WriteAt(p, int64(off))
			must(t, err)
		}
	}
	return path
}

func allZero(p []byte) bool { return len(bytes.TrimLeft(p, "\x00")) == 0 }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func openFile(t testing.TB, path string, o convert.Options) convert.Source {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	src, err := convert.Open(context.Background(), f, o)
	must(t, err)
	t.Cleanup(func() { src.Close() })
	return src
}

// importAll reads src into a new device of its size.
func importAll(t testing.TB, src convert.Source) *device {
	t.Helper()
	d := newDevice(src.Size())
	_, err := convert.Import(context.Background(), src, d, nil)
	must(t, err)
	return d
}

func sameBytes(t testing.TB, got, want []byte) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d bytes instead of %d", len(got), len(want))
	}
	if bytes.Equal(got, want) {
		return
	}
	for i := range got {
		if got[i] != want[i] {
			t.Fatalf("first difference at %d", i)
		}
	}
}

// need skips a test, loudly, that lacks a program.
func need(t testing.TB, names ...string) {
	t.Helper()
	for _, n := range names {
		if _, err := exec.LookPath(n); err != nil {
			t.Skipf("NOT TESTED: %s is not installed", n)
		}
	}
}

func run(t testing.TB, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
}

// nbdkit starts a server and returns its URI.
func nbdkit(t testing.TB, args ...string) string {
	t.Helper()
	need(t, "nbdkit")
	dir, err := os.MkdirTemp("", "fsx-test-")
	must(t, err)
	socket := filepath.Join(dir, "s")
	cmd := exec.Command("nbdkit", append([]string{"-f", "-U", socket, "-P", socket + ".pid"}, args...)...)
	var words bytes.Buffer
	cmd.Stderr = &words
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	must(t, cmd.Start())
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
		os.RemoveAll(dir)
	})
	for range 500 {
		if _, err := os.Stat(socket + ".pid"); err == nil {
			return "nbd+unix:///?socket=" + socket
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("nbdkit %q does not listen: %s", args, &words)
	return ""
}

func dial(t testing.TB, uri string) convert.Source {
	t.Helper()
	c, err := convert.DialNBD(context.Background(), uri)
	must(t, err)
	src := convert.FromRandom(c)
	t.Cleanup(func() { src.Close() })
	return src
}
