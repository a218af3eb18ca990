package loopdev_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fsximg/fsx/internal/attach/loopdev"
)

const size = 8 << 20

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// needLoop skips a test, loudly, where loop devices cannot be attached.
func needLoop(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("NOT TESTED: loop devices need root")
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		t.Skipf("NOT TESTED: no loop devices: %v", err)
	}
}

func image(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	must(t, os.WriteFile(path, nil, 0o600))
	must(t, os.Truncate(path, size))
	return path
}

func attach(t testing.TB, path string, readOnly bool) loopdev.Device {
	t.Helper()
	d, err := loopdev.Attach(context.Background(), path, readOnly)
	must(t, err)
	t.Cleanup(func() { cleanUp(t, d) })
	return d
}

// cleanUp detaches what a test left behind.
func cleanUp(t testing.TB, d loopdev.Device) {
	if now, err := loopdev.Find(d.Number); err != nil || now.Backing != d.Backing {
		return
	}
	if err := detach(d); err != nil {
		t.Errorf("left behind: %+v: %v", d, err)
	}
}

func detach(d loopdev.Device) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return loopdev.Detach(ctx, d.Number, false)
}

func TestRoundTrip(t *testing.T) {
	needLoop(t)
	path := image(t)
	d := attach(t, path, false)
	if d.Backing != path || d.Size != size || d.ReadOnly || !d.PartScan {
		t.Errorf("%+v", d)
	}
	l, err := loopdev.List()
	must(t, err)
	if !slices.Contains(l, d) || !slices.IsSortedFunc(l, func(a, b loopdev.Device) int { return a.Number - b.Number }) {
		t.Errorf("%+v is not in its place in %+v", d, l)
	}
	want := bytes.Repeat([]byte("0123456789abcdef"), 64<<10/16)
	f, err := os.OpenFile(d.Path, os.O_RDWR, 0)
	must(t, err)
	_, err = f.WriteAt(want, 12345) // pages that nobody flushes but Detach
	must(t, err)
	if block, err := unix.IoctlGetInt(int(f.Fd()), unix.BLKSSZGET); err != nil || block != 512 {
		t.Errorf("blocks of %d bytes, %v", block, err)
	}
	must(t, f.Close())
	must(t, detach(d))
	if _, err := loopdev.Find(d.Number); !errors.Is(err, loopdev.ErrNotAttached) {
		t.Errorf("after detaching: %v", err)
	}
	if err := detach(d); !errors.Is(err, loopdev.ErrNotAttached) {
		t.Errorf("detached twice: %v", err)
	}
	got, err := os.ReadFile(path)
	must(t, err)
	if !bytes.Equal(got[12345:12345+len(want)], want) {
		t.Error("what was written is not in the file")
	}
}

func TestReadOnly(t *testing.T) {
	needLoop(t)
	d := attach(t, image(t), true)
	if !d.ReadOnly {
		t.Errorf("%+v", d)
	}
	f, err := os.OpenFile(d.Path, os.O_RDWR, 0)
	if err == nil { // the kernel opens it, and refuses to write
		_, err = f.WriteAt(make([]byte, 512), 0)
		f.Close()
	}
	if !errors.Is(err, os.ErrPermission) {
		t.Errorf("a write to a read-only device: %v", err)
	}
	must(t, detach(d))
}

// TestBusy detaches nothing that is held, by a mount or a partition's mount.
func TestBusy(t *testing.T) {
	needLoop(t)
	d := attach(t, image(t), false)
	holder, err := os.OpenFile(d.Path, os.O_RDONLY|unix.O_EXCL, 0)
	must(t, err)
	if err := detach(d); !errors.Is(err, loopdev.ErrBusy) {
		t.Errorf("detached what is held: %v", err)
	}
	must(t, holder.Close())

	reader, err := os.Open(d.Path)
	must(t, err)
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := loopdev.Detach(ctx, d.Number, false); !errors.Is(err, loopdev.ErrBusy) {
		t.Errorf("detached what is open: %v", err)
	}
	must(t, reader.Close())
	ctx, cancel = context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	for {
		if _, err := loopdev.Find(d.Number); errors.Is(err, loopdev.ErrNotAttached) {
			return
		}
		if ctx.Err() != nil {
			t.Fatal("it did not go away with its last reader")
		}
		time.Sleep(time.Millisecond)
	}
}

// TestPartitions wants the partition of a partitioned image to appear.
func TestPartitions(t *testing.T) {
	needLoop(t)
	path := image(t)
	mbr := make([]byte, 512)
	copy(mbr[446:], []byte{0, 0, 2, 0, 0x83, 0xff, 0xff, 0xff})
	binary.LittleEndian.PutUint32(mbr[454:], 2048)
	binary.LittleEndian.PutUint32(mbr[458:], 4096)
	copy(mbr[510:], "\x55\xaa")
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	must(t, err)
	_, err = f.Write(mbr)
	must(t, errors.Join(err, f.Close()))
	d := attach(t, path, false)
	part := fmt.Sprintf("/sys/block/loop%d/loop%dp1/size", d.Number, d.Number)
	b, err := os.ReadFile(part)
	must(t, detach(d))
	if errors.Is(err, os.ErrNotExist) && !readsPartitions() {
		t.Skip("this kernel reads no partition tables")
	}
	if err != nil || string(b) != "4096\n" {
		t.Errorf("partition: %q, %v", b, err)
	}
}

// TestMany has several attach at once: each gets a device of its own.
func TestMany(t *testing.T) {
	needLoop(t)
	var wg sync.WaitGroup
	devices := make([]loopdev.Device, 8)
	paths := make([]string, len(devices))
	for i := range devices {
		paths[i] = image(t)
		wg.Go(func() {
			var err error
			if devices[i], err = loopdev.Attach(context.Background(), paths[i], false); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for i, d := range devices {
		if d.Backing != paths[i] {
			t.Errorf("%+v has %s", d, paths[i])
		}
		cleanUp(t, d)
	}
}

func TestOldKernel(t *testing.T) {
	needLoop(t)
	d := attach(t, image(t), false)
	must(t, detach(d)) // its number is free now, and very likely still is then
	backing, err := os.OpenFile(image(t), os.O_RDWR, 0)
	must(t, err)
	defer backing.Close()
	must(t, loopdev.AttachInSteps(context.Background(), d.Number, backing))
	got, err := loopdev.Find(d.Number)
	must(t, err)
	defer cleanUp(t, got)
	if got.Backing != backing.Name() || got.Size != size {
		t.Errorf("%+v", got)
	}
	must(t, detach(got))
}

func TestNumber(t *testing.T) {
	link := filepath.Join(t.TempDir(), "link")
	must(t, os.Symlink("/dev/loop12", link))
	for path, want := range map[string]int{"/dev/loop0": 0, "/dev/loop12": 12, "/dev/loop12p1": -1, "/dev/loop": -1, "/dev/loop-control": -1,
		"/dev/loop01": -1, "/dev/loop+1": -1, "loop1": -1, "/dev/nbd0": -1} {
		n, ok := loopdev.Number(path)
		if ok != (want >= 0) || ok && n != want {
			t.Errorf("%s: %d, %v", path, n, ok)
		}
	}
	if _, err := os.Stat("/dev/loop12"); err == nil {
		if n, ok := loopdev.Number(link); n != 12 || !ok {
			t.Errorf("a link to loop12: %d, %v", n, ok)
		}
	}
}

// readsPartitions is whether the kernel knows this kind of partition table, as far as
// it tells.
func readsPartitions() bool {
	f, err := os.Open("/proc/config.gz")
	if err != nil {
		return true
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return true
	}
	config, err := io.ReadAll(z)
	return err != nil || bytes.Contains(config, []byte("CONFIG_MSDOS_PARTITION=y"))
}

func TestNoSuchFile(t *testing.T) {
	if _, err := loopdev.Attach(context.Background(), "/nonexistent/disk", false); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
}
