package interop_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/fsximg/fsx/internal/attach/bridge"
	"github.com/fsximg/fsx/internal/attach/loopdev"
	"github.com/fsximg/fsx/internal/nbdclient/reconnect"
)

// bridged is an export as a loop device over FUSE, in this process, as an attached
// volume is where the kernel has no NBD.
type bridged struct {
	t       *testing.T
	client  *reconnect.Client
	bridge  *bridge.Bridge
	device  loopdev.Device
	dir     string
	mounted string
	log     *logBuffer
}

func needBridge(t *testing.T, tools ...string) {
	t.Helper()
	need(t, tools...)
	if os.Getuid() != 0 {
		t.Skip("SKIP: mounting needs root")
	}
	for _, dev := range []string{"/dev/fuse", "/dev/loop-control"} {
		if _, err := os.Stat(dev); err != nil {
			t.Skipf("SKIP: no %s on this machine", dev)
		}
	}
}

// makeBridge attaches; the test's end undoes it. uri is asked for at each connection.
func makeBridge(t *testing.T, uri func() string) *bridged {
	t.Helper()
	b := &bridged{t: t, dir: t.TempDir(), log: &logBuffer{}}
	log := slog.New(slog.NewTextHandler(b.log, nil))
	var err error
	b.client, err = reconnect.Dial(context.Background(), reconnect.Options{Log: log, Redial: func(context.Context) (string, error) {
		if s := uri(); s != "" {
			return s, nil
		}
		return "", errors.New("no server")
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.clear)
	if b.bridge, err = bridge.Mount(b.dir, b.client, log); err != nil {
		t.Fatal(err)
	}
	b.device, err = loopdev.Attach(context.Background(), b.bridge.File(), b.client.Export().ReadOnly())
	if err != nil {
		t.Fatal(err)
	}
	if !b.device.DirectIO {
		t.Errorf("%+v: data is cached twice", b.device)
	}
	return b
}

// clear undoes makeBridge, in whatever state it is.
func (b *bridged) clear() {
	if b.mounted != "" && execute(b.t, "umount", b.mounted).code != 0 {
		execute(b.t, "umount", "-l", b.mounted)
	}
	if b.device.Path != "" {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := loopdev.Detach(ctx, b.device.Number, true); err != nil && !errors.Is(err, loopdev.ErrNotAttached) {
			b.t.Errorf("detach: %v", err)
		}
	}
	if err := bridge.Unmount(b.dir); err != nil {
		b.t.Error(err)
	}
	b.client.Close()
	if b.t.Failed() {
		b.t.Logf("log of the bridge:\n%s", tail(b.log.String(), 4000))
	}
}

// detach is the orderly end.
func (b *bridged) detach() {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := loopdev.Detach(ctx, b.device.Number, false); err != nil {
		b.t.Fatal(err)
	}
	b.device = loopdev.Device{}
	if err := errors.Join(b.bridge.Close(ctx), b.client.Close()); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bridged) open(flags int) *os.File {
	b.t.Helper()
	f, err := os.OpenFile(b.device.Path, flags, 0)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { f.Close() })
	return f
}

func always(s string) func() string { return func() string { return s } }

// TestBridgeRoundTrip writes through the page cache and around it, discards, and reads
// what the store exports afterwards.
func TestBridgeRoundTrip(t *testing.T) {
	needBridge(t)
	rng := random(t)
	s := newStore(t, t.TempDir())
	const size = 64 << 20
	s.create("64M")
	srv := s.serve()
	b := makeBridge(t, always(srv.uri))
	want := make([]byte, size)
	cached, direct := b.open(os.O_RDWR), b.open(os.O_RDWR|unix.O_DIRECT)
	for i := range 60 {
		off := rng.Int64N(size/4096) * 4096
		n := min(1+rng.Int64N(2<<20/4096), (size-off)/4096) * 4096
		part, err := want[off:off+n], error(nil)
		switch i % 4 {
		case 0, 1:
			copy(part, noise(rng, int(n)))
			_, err = cached.WriteAt(part, off)
		case 2:
			copy(part, noise(rng, int(n)))
			_, err = direct.WriteAt(aligned(part), off)
		case 3:
			clear(part)
			err = discard(cached, off, n, rng.IntN(2) == 0)
		}
		if err != nil {
			t.Fatalf("change %d at %d: %v", i, off, err)
		}
	}
	got := aligned(make([]byte, size))
	if _, err := direct.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("read back: %v", err)
	}
	if err := errors.Join(cached.Close(), direct.Close()); err != nil {
		t.Fatal(err)
	}
	b.detach()
	srv.stop()
	s.check()
	out := filepath.Join(t.TempDir(), "out")
	s.export(out)
	if got, err := os.ReadFile(out); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the store has something else: %v", err)
	}
}

// discard asks the device for zeros: as blkdiscard does, or as blkdiscard --zeroout.
func discard(f *os.File, off, n int64, zero bool) error {
	request := uintptr(unix.BLKDISCARD)
	if zero {
		request = unix.BLKZEROOUT
	}
	place := [2]uint64{uint64(off), uint64(n)}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(unsafe.Pointer(&place)))
	if errno != 0 {
		return errno
	}
	return nil
}

// TestBridgeTrim wants the space of a deleted file back in the store.
func TestBridgeTrim(t *testing.T) {
	needBridge(t, "mkfs.ext4", "fstrim", "mount", "umount", "qemu-img", "nbdinfo")
	s := newStore(t, t.TempDir())
	s.create("256M")
	srv := s.serve()
	b := makeBridge(t, always(srv.uri))
	must(t, "mkfs.ext4", "-q", b.device.Path)
	b.mounted = t.TempDir()
	must(t, "mount", b.device.Path, b.mounted)
	file := filepath.Join(b.mounted, "big")
	if err := os.WriteFile(file, noise(random(t), 100<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	must(t, "sync", "-f", b.mounted)
	full := dataBytes(t, srv.uri)
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	must(t, "sync", "-f", b.mounted)
	must(t, "fstrim", b.mounted)
	if now := dataBytes(t, srv.uri); now > full-90<<20 {
		t.Errorf("%d bytes of data before, %d after deleting 100 MiB", full, now)
	}
	must(t, "umount", b.mounted)
	b.mounted = ""
	b.detach()
	must(t, "nbdinfo", srv.uri) // the server lives on
}

// dataBytes is how much of an export is data, by base:allocation.
func dataBytes(t *testing.T, uri string) (n int64) {
	t.Helper()
	var extents []struct {
		Length int64 `json:"length"`
		Type   int   `json:"type"`
	}
	decode(t, must(t, "nbdinfo", "--map", "--json", uri), &extents)
	for _, e := range extents {
		if e.Type == 0 {
			n += e.Length
		}
	}
	return n
}

// TestBridgeFullDisk wants ENOSPC at whoever writes around the page cache, and the
// device to go on when there is space again.
func TestBridgeFullDisk(t *testing.T) {
	needBridge(t)
	disk := smallDisk(t, "tmpfs", 192)
	s := newStore(t, disk)
	s.create("512M")
	filler := filepath.Join(disk, "filler")
	writeFiller(t, filler, 64<<20)
	srv := s.serve()
	b := makeBridge(t, always(srv.uri))
	f := b.open(os.O_RDWR | unix.O_DIRECT)
	p := aligned(noise(random(t), 1<<20))
	var err error
	written := int64(0)
	for ; err == nil && written < 512<<20; written += int64(len(p)) {
		_, err = f.WriteAt(p, written)
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("after %d bytes: %v", written, err)
	}
	got := aligned(make([]byte, len(p)))
	if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, p) {
		t.Errorf("read from the full disk: %v", err)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	waitFor(t, 30*time.Second, "space", func() bool {
		_, err := f.WriteAt(p, written)
		return err == nil
	})
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		t.Errorf("after that: %v", err)
	}
	b.detach()
}

// TestBridgeReadOnly attaches an export that refuses changes.
func TestBridgeReadOnly(t *testing.T) {
	needBridge(t)
	s := newStore(t, t.TempDir())
	s.create("16M")
	srv := s.serve("--read-only-export", "main")
	b := makeBridge(t, always(srv.uri))
	if !b.device.ReadOnly {
		t.Errorf("%+v", b.device)
	}
	f, err := os.OpenFile(b.device.Path, os.O_RDWR, 0)
	if err == nil {
		_, err = f.WriteAt(make([]byte, 4096), 0)
		f.Close()
	}
	if !errors.Is(err, os.ErrPermission) && !errors.Is(err, syscall.EROFS) {
		t.Errorf("a write: %v", err)
	}
	if _, err := b.open(os.O_RDONLY).ReadAt(make([]byte, 4096), 0); err != nil {
		t.Error(err)
	}
}

// TestBridgeCycles attaches and detaches again and again: nothing may be left.
func TestBridgeCycles(t *testing.T) {
	needBridge(t)
	s := newStore(t, t.TempDir())
	s.create("16M")
	srv := s.serve()
	before := ownedNow(t, srv)
	cycles := choose(20, 200)
	for range cycles {
		b := makeBridge(t, always(srv.uri))
		f := b.open(os.O_RDWR)
		_, err := f.WriteAt([]byte("something"), 4096)
		if err = errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
		b.detach()
	}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		now := ownedNow(t, srv)
		// The server opens files of its store as they are needed.
		grown := now.ofServer - before.ofServer
		if now.ofServer = before.ofServer; now == before && grown < min(cycles, 10) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("before %+v, now %+v, and %d descriptors more of the server", before, now, grown)
		}
	}
}

// owned is what cycles could leave behind.
type owned struct{ descriptors, ofServer, mounts, devices, goroutines int }

func ownedNow(t *testing.T, srv *server) (o owned) {
	t.Helper()
	count := func(pid any) int {
		l, err := os.ReadDir(fmt.Sprintf("/proc/%v/fd", pid))
		if err != nil {
			t.Fatal(err)
		}
		return len(l)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	devices, err := loopdev.List()
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range devices {
		if strings.Contains(d.Backing, t.Name()) { // others of this machine have theirs
			o.devices++
		}
	}
	runtime.GC()
	o.descriptors, o.ofServer = count("self"), count(srv.pid())
	o.mounts, o.goroutines = strings.Count(string(mounts), t.Name()), runtime.NumGoroutine()
	return o
}

// aligned is a copy of p that direct I/O can use.
func aligned(p []byte) []byte {
	b := make([]byte, len(p)+4096)
	skip := -int(uintptr(unsafe.Pointer(&b[0]))) & 4095
	b = b[skip : skip+len(p)]
	copy(b, p)
	return b
}
