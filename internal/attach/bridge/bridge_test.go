package bridge_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fsximg/fsx/internal/attach/bridge"
	"github.com/fsximg/fsx/internal/nbdclient/reconnect"
	"github.com/fsximg/fsx/pkg/nbdsrv"
)

const size = 16 << 20

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// needFUSE skips a test, loudly, where nothing can be mounted.
func needFUSE(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("NOT TESTED: mounting needs root")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skipf("NOT TESTED: no FUSE: %v", err)
	}
}

// disk is a device in memory that notes what it was asked for.
type disk struct {
	mu       sync.Mutex
	b        []byte
	readOnly bool
	err      error // of all changes
	calls    []string
	stuck    chan struct{} // reads wait for it, if it is not nil
}

func (d *disk) note(s string) { d.calls = append(d.calls, s) }

func (d *disk) noted(t testing.TB, want ...string) {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(want) != len(d.calls) {
		t.Errorf("%q instead of %q", d.calls, want)
	}
	for i := range min(len(want), len(d.calls)) {
		if d.calls[i] != want[i] {
			t.Errorf("%q instead of %q", d.calls, want)
		}
	}
	d.calls = nil
}

// holds is a copy of what the device has.
func (d *disk) holds(off, end int64) []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	return bytes.Clone(d.b[off:end])
}

func (d *disk) Size() int64    { return int64(len(d.b)) }
func (d *disk) ReadOnly() bool { return d.readOnly }

func (d *disk) ReadAt(p []byte, off int64, nowait bool) error {
	d.mu.Lock()
	stuck := d.stuck
	d.mu.Unlock()
	if stuck != nil {
		if nowait {
			return nbdsrv.ErrWouldBlock
		}
		<-stuck
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	copy(p, d.b[off:])
	return nil
}

func (d *disk) WriteAt(p []byte, off int64, _ bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	copy(d.b[off:], p)
	return d.err
}

func (d *disk) ZeroAt(off, n int64, noHole bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.note(map[bool]string{true: "zero", false: "hole"}[noHole])
	clear(d.b[off : off+n])
	return d.err
}

func (d *disk) TrimAt(_, _ int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.note("trim")
	return nil
}

func (d *disk) Flush() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.note("flush")
	return d.err
}

func (d *disk) Status(_, n int64, fn func(int64, bool, bool) bool) error {
	fn(n, false, false)
	return nil
}

func (d *disk) Prefetch(_, _ int64) error               { return nil }
func (d *disk) List(*nbdsrv.Client) []nbdsrv.ExportInfo { return nil }
func (d *disk) Open(string, *nbdsrv.Client) (nbdsrv.Export, func(), error) {
	return nbdsrv.Export{Device: d}, func() {}, nil
}

// mount serves d and mounts it. Everything is gone when the test ends.
func mount(t testing.TB, d *disk) *bridge.Bridge {
	t.Helper()
	needFUSE(t)
	dir := t.TempDir()
	socket := filepath.Join(dir, "s")
	ln, err := net.Listen("unix", socket)
	must(t, err)
	srv := nbdsrv.New(nbdsrv.Config{Exports: d})
	go srv.Serve(context.Background(), ln)
	c, err := reconnect.Dial(context.Background(), reconnect.Options{Redial: func(context.Context) (string, error) {
		return "nbd+unix:///?socket=" + socket, nil
	}})
	must(t, err)
	point := filepath.Join(dir, "mnt")
	must(t, os.Mkdir(point, 0o700))
	b, err := bridge.Mount(point, c, slog.New(slog.NewTextHandler(testWriter{t}, nil)))
	must(t, err)
	t.Cleanup(func() {
		if err := bridge.Unmount(point); err != nil {
			t.Error(err)
		}
		c.Close()
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		srv.Shutdown(ctx)
	})
	return b
}

// testWriter is for lines that must not be written.
type testWriter struct{ testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.Errorf("logged: %s", p)
	return len(p), nil
}

func open(t testing.TB, b *bridge.Bridge, flags int) *os.File {
	t.Helper()
	f, err := os.OpenFile(b.File(), flags, 0)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

func noise(n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i*i>>3 + i>>9)
	}
	return p
}

func TestReadAndWrite(t *testing.T) {
	d := &disk{b: make([]byte, size)}
	b := mount(t, d)
	f := open(t, b, os.O_RDWR)
	st, err := f.Stat()
	must(t, err)
	if st.Size() != size || st.Mode() != 0o600 {
		t.Errorf("%d bytes, %v", st.Size(), st.Mode())
	}
	for _, at := range []struct{ off, n int }{{0, 1}, {1, 511}, {4096, 4096}, {12345, 100_000}, {64 << 10, 64<<10 + 1}, {3 << 20, 1 << 20}, {5<<20 + 7, 5 << 20}, {size - 3, 3}} {
		want := noise(at.n)
		if _, err := f.WriteAt(want, int64(at.off)); err != nil {
			t.Fatalf("%+v: %v", at, err)
		}
		if !bytes.Equal(d.holds(int64(at.off), int64(at.off+at.n)), want) {
			t.Errorf("%+v: the server has something else", at)
		}
		got := make([]byte, at.n)
		if _, err := f.ReadAt(got, int64(at.off)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%+v: %v", at, err)
		}
	}
	p := make([]byte, 100)
	if n, err := f.ReadAt(p, size-10); n != 10 || !errors.Is(err, io.EOF) {
		t.Errorf("over the end: %d bytes, %v", n, err)
	}
	if n, err := f.ReadAt(p, size+10); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("behind the end: %d bytes, %v", n, err)
	}
	if _, err := f.WriteAt(p, size); err == nil {
		t.Error("written behind the end")
	}
	d.noted(t)
	must(t, f.Sync())
	d.noted(t, "flush")
}

func TestFallocate(t *testing.T) {
	before := noise(size)
	d := &disk{b: bytes.Clone(before)}
	b := mount(t, d)
	f := open(t, b, os.O_RDWR)
	hole, keep, zero := unix.FALLOC_FL_PUNCH_HOLE, unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_ZERO_RANGE
	for _, tt := range []struct {
		mode   int
		off, n int64
		call   string
	}{{hole | keep, 4096, 8192, "hole"}, {hole | keep, 1, 3, "hole"}, {zero | keep, 1 << 20, 1 << 20, "zero"}, {hole | keep, size - 4096, 8192, "hole"}} {
		must(t, unix.Fallocate(int(f.Fd()), uint32(tt.mode), tt.off, tt.n))
		d.noted(t, tt.call)
		end := min(tt.off+tt.n, size)
		now := d.holds(0, size)
		if len(bytes.Trim(now[tt.off:end], "\x00")) > 0 || now[tt.off-1] != before[tt.off-1] || end < size && now[end] != before[end] {
			t.Errorf("%+v: not what was asked for", tt)
		}
	}
	for _, mode := range []int{0, keep, unix.FALLOC_FL_COLLAPSE_RANGE} {
		if err := unix.Fallocate(int(f.Fd()), uint32(mode), 0, 4096); !errors.Is(err, unix.EOPNOTSUPP) {
			t.Errorf("mode %d: %v", mode, err)
		}
	}
	d.noted(t)
}

func TestErrors(t *testing.T) {
	d := &disk{b: make([]byte, size)}
	b := mount(t, d)
	f := open(t, b, os.O_RDWR)
	for _, want := range []syscall.Errno{syscall.ENOSPC, syscall.EIO, syscall.EPERM} {
		d.mu.Lock()
		d.err = want
		d.mu.Unlock()
		if _, err := f.WriteAt(make([]byte, 4096), 0); !errors.Is(err, want) {
			t.Errorf("write: %v instead of %v", err, want)
		}
		if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 4096); !errors.Is(err, want) {
			t.Errorf("punch: %v instead of %v", err, want)
		}
	}
	if err := f.Sync(); !errors.Is(err, syscall.EIO) && !errors.Is(err, syscall.EPERM) {
		t.Errorf("sync: %v", err)
	}
}

func TestReadOnly(t *testing.T) {
	d := &disk{b: noise(size), readOnly: true}
	b := mount(t, d)
	if f, err := os.OpenFile(b.File(), os.O_RDWR, 0); !errors.Is(err, syscall.EROFS) {
		f.Close()
		t.Errorf("open for writing: %v", err)
	}
	got, err := io.ReadAll(open(t, b, os.O_RDONLY))
	if err != nil || !bytes.Equal(got, d.holds(0, size)) {
		t.Errorf("%v", err)
	}
}

// TestManyAtOnce has reads that the server does not answer: a folder and a write are
// served all the same.
func TestManyAtOnce(t *testing.T) {
	want := noise(size)
	d := &disk{b: bytes.Clone(want), stuck: make(chan struct{})}
	b := mount(t, d)
	var wg sync.WaitGroup
	for i := range 20 {
		f := open(t, b, os.O_RDWR)
		wg.Go(func() {
			got := make([]byte, 100_000)
			if _, err := f.ReadAt(got, int64(i)*100_000); err != nil || !bytes.Equal(got, want[i*100_000:(i+1)*100_000]) {
				t.Errorf("read %d: %v", i, err)
			}
		})
	}
	names, err := os.ReadDir(filepath.Dir(b.File()))
	if err != nil || len(names) != 1 || names[0].Name() != bridge.FileName {
		t.Errorf("%v, %v", names, err)
	}
	if _, err := os.Stat(b.File() + "x"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no such file: %v", err)
	}
	_, err = open(t, b, os.O_WRONLY).WriteAt(make([]byte, 10), size-10)
	must(t, err)
	close(d.stuck)
	wg.Wait()
}

func TestClose(t *testing.T) {
	b := mount(t, &disk{b: make([]byte, size)})
	f := open(t, b, os.O_RDONLY)
	if err := b.Close(context.Background()); !errors.Is(err, bridge.ErrBusy) {
		t.Errorf("while the file is open: %v", err)
	}
	_, err := f.Read(make([]byte, 10))
	must(t, errors.Join(err, f.Close()))
	must(t, b.Close(context.Background()))
	select {
	case <-b.Ended():
	default:
		t.Error("closed, and has not ended")
	}
	if _, err := os.Stat(b.File()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after unmounting: %v", err)
	}
	must(t, bridge.Unmount(filepath.Dir(b.File()))) // is nothing to do
}

// TestUnmountedByOthers wants the bridge to end.
func TestUnmountedByOthers(t *testing.T) {
	b := mount(t, &disk{b: make([]byte, size)})
	must(t, unix.Unmount(filepath.Dir(b.File()), 0))
	select {
	case <-b.Ended():
	case <-time.After(5 * time.Second):
		t.Fatal("it goes on")
	}
	must(t, b.Close(context.Background()))
}

func TestMountFails(t *testing.T) {
	needFUSE(t)
	if _, err := bridge.Mount("/nonexistent", nil, slog.Default()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
}
