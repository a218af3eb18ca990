package vfs_test

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fsximg/fsx/internal/vfs"
)

func open(t *testing.T, name string, flag int) vfs.File {
	t.Helper()
	f, err := vfs.OS().OpenFile(name, flag, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func create(t *testing.T) vfs.File {
	t.Helper()
	return open(t, filepath.Join(t.TempDir(), "f"), os.O_RDWR|os.O_CREATE|os.O_EXCL)
}

func TestReadWrite(t *testing.T) {
	f := create(t)
	want := bytes.Repeat([]byte("0123456789abcdef"), 4096)
	if n, err := f.WriteAt(want, 100); n != len(want) || err != nil {
		t.Fatalf("WriteAt = %d, %v", n, err)
	}
	size := int64(100 + len(want))
	if n, err := f.Size(); n != size || err != nil {
		t.Fatalf("Size = %d, %v, want %d", n, err, size)
	}
	reads := map[string]func([]byte, int64) (int, error){"ReadAt": f.ReadAt, "ReadAtNoWait": f.ReadAtNoWait}
	for name, read := range reads {
		got := make([]byte, len(want))
		if n, err := read(got, 100); n != len(got) || err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s = %d, %v, equal %v", name, n, err, bytes.Equal(got, want))
		}
		if n, err := read(got, size-10); n != 10 || err != io.EOF {
			t.Errorf("%s across the end = %d, %v, want 10, EOF", name, n, err)
		}
		if n, err := read(got, size); n != 0 || err != io.EOF {
			t.Errorf("%s at the end = %d, %v, want 0, EOF", name, n, err)
		}
		if n, err := read(nil, 0); n != 0 || err != nil {
			t.Errorf("%s of nothing = %d, %v", name, n, err)
		}
		if _, err := read(got, -1); !errors.Is(err, syscall.EINVAL) {
			t.Errorf("%s at -1: %v, want EINVAL", name, err)
		}
	}
	if err := f.Datasync(); err != nil {
		t.Error(err)
	}
}

// A page that was dropped from memory must be reported and not waited for.
// The test needs a disk file system; it looks beside the package's sources.
func TestReadAtNoWaitCold(t *testing.T) {
	dir, err := os.MkdirTemp(".", "cold")
	if err != nil {
		t.Skip("no place for a file on disk:", err)
	}
	defer os.RemoveAll(dir)
	name := filepath.Join(dir, "f")
	f := open(t, name, os.O_RDWR|os.O_CREATE)
	buf := make([]byte, 1<<20)
	f.WriteAt(buf, 0)
	if err := f.Datasync(); err != nil {
		t.Fatal(err)
	}
	raw, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	if err := unix.Fadvise(int(raw.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		t.Skip("fadvise:", err)
	}
	if resident(t, raw, len(buf)) {
		t.Skip("this file system keeps dropped pages (tmpfs?)")
	}
	if _, err := f.ReadAtNoWait(buf, 0); err != vfs.ErrWouldBlock {
		if err == nil {
			t.Skip("this file system cannot tell")
		}
		t.Fatalf("cold: %v, want ErrWouldBlock", err)
	}
	if n, err := f.ReadAt(buf[:8192], 0); n != 8192 || err != nil {
		t.Fatal(n, err)
	}
	if n, err := f.ReadAtNoWait(buf[:8192], 0); n != 8192 || err != nil {
		t.Errorf("warm: %d, %v", n, err)
	}
}

func resident(t *testing.T, f *os.File, n int) bool {
	m, err := unix.Mmap(int(f.Fd()), 0, n, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(m)
	vec := make([]byte, n/os.Getpagesize())
	if _, _, errno := unix.Syscall(unix.SYS_MINCORE, addr(m), uintptr(n), addr(vec)); errno != 0 {
		t.Fatal(errno)
	}
	return slices.ContainsFunc(vec, func(b byte) bool { return b&1 != 0 })
}

func TestNoAllocations(t *testing.T) {
	f := create(t)
	buf := make([]byte, 4096)
	f.WriteAt(buf, 0)
	for name, call := range map[string]func(){
		"ReadAt":       func() { f.ReadAt(buf, 0) },
		"ReadAtNoWait": func() { f.ReadAtNoWait(buf, 0) },
		"WriteAt":      func() { f.WriteAt(buf, 0) },
	} {
		if n := testing.AllocsPerRun(100, call); n != 0 {
			t.Errorf("%s allocates %v times", name, n)
		}
	}
}

func TestAllocateAndPunch(t *testing.T) {
	f := create(t)
	want := bytes.Repeat([]byte{7}, 1<<20)
	f.WriteAt(want, 0)
	if err := f.Allocate(0, 4<<20); errors.Is(err, vfs.ErrUnsupported) {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
	if n, _ := f.Size(); n != 4<<20 {
		t.Errorf("size after Allocate = %d", n)
	}
	if n, err := f.Allocated(); n < 4<<20 || err != nil {
		t.Errorf("Allocated = %d, %v", n, err)
	}
	got := make([]byte, 1<<20)
	if f.ReadAt(got, 0); !bytes.Equal(got, want) {
		t.Error("Allocate changed data")
	}
	if err := f.PunchHole(0, 2<<20); errors.Is(err, vfs.ErrUnsupported) {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
	if f.ReadAt(got, 0); !bytes.Equal(got, make([]byte, 1<<20)) {
		t.Error("punched range is not zero")
	}
	if n, _ := f.Allocated(); n < 2<<20 || n >= 3<<20 {
		t.Errorf("Allocated after PunchHole = %d", n)
	}
	if n, _ := f.Size(); n != 4<<20 {
		t.Errorf("size after PunchHole = %d", n)
	}
	if err := f.Truncate(5); err != nil {
		t.Fatal(err)
	}
	if n, _ := f.Size(); n != 5 {
		t.Errorf("size after Truncate = %d", n)
	}
}

func TestLock(t *testing.T) {
	name := filepath.Join(t.TempDir(), "lock")
	a := open(t, name, os.O_RDWR|os.O_CREATE)
	b := open(t, name, os.O_RDWR)
	if err := a.TryLock(); err != nil {
		t.Fatal(err)
	}
	if err := b.TryLock(); !errors.Is(err, vfs.ErrLocked) {
		t.Fatalf("second lock: %v, want ErrLocked", err)
	}
	a.Close()
	if err := b.TryLock(); err != nil {
		t.Fatal("after Close:", err)
	}
}

func TestNames(t *testing.T) {
	v, dir := vfs.OS(), t.TempDir()
	at := func(s string) string { return filepath.Join(dir, s) }
	if err := v.Mkdir(at("d"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{"d/b", "d/a"} {
		open(t, at(s), os.O_CREATE|os.O_RDWR).WriteAt([]byte(s), 0)
	}
	if err := v.Rename(at("d/b"), at("d/c")); err != nil {
		t.Fatal(err)
	}
	if got, err := v.ReadDir(at("d")); !slices.Equal(got, []string{"a", "c"}) || err != nil {
		t.Errorf("ReadDir = %v, %v", got, err)
	}
	if st, err := v.Stat(at("d/c")); err != nil || st.Size() != 3 || st.Mode().Perm() != 0o600 {
		t.Errorf("Stat = %v, %v", st, err)
	}
	if err := v.SyncDir(at("d")); err != nil {
		t.Error(err)
	}
	if n, err := v.Free(at("d")); n <= 0 || err != nil {
		t.Errorf("Free = %d, %v", n, err)
	}
	for _, s := range []string{"d/a", "d/c", "d"} {
		if err := v.Remove(at(s)); err != nil {
			t.Error(err)
		}
	}
}

func TestErrors(t *testing.T) {
	v, dir := vfs.OS(), t.TempDir()
	gone := filepath.Join(dir, "gone")
	_, openErr := v.OpenFile(gone, os.O_RDWR, 0)
	_, statErr := v.Stat(gone)
	_, freeErr := v.Free(gone)
	_, listErr := v.ReadDir(gone)
	for op, err := range map[string]error{
		"open": openErr, "stat": statErr, "free": freeErr, "readdir": listErr,
		"remove": v.Remove(gone), "rename": v.Rename(gone, dir+"/x"), "sync": v.SyncDir(gone),
	} {
		if !errors.Is(err, fs.ErrNotExist) || !errors.Is(err, syscall.ENOENT) {
			t.Errorf("%s of a missing name: %v", op, err)
		}
	}
	name := filepath.Join(dir, "f")
	open(t, name, os.O_CREATE|os.O_RDWR)
	if _, err := v.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600); !errors.Is(err, fs.ErrExist) {
		t.Errorf("exclusive create of an existing file: %v", err)
	}
	ro := open(t, name, os.O_RDONLY)
	_, err := ro.WriteAt([]byte("x"), 0)
	var pe *fs.PathError
	if !errors.As(err, &pe) || pe.Path != name || !errors.Is(err, syscall.EBADF) {
		t.Errorf("write to a read-only file: %v", err)
	}
	ro.Close()
	if err := ro.Close(); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("second Close: %v", err)
	}
}

func TestNoSpace(t *testing.T) {
	f, err := vfs.OS().OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("x"), 0); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("write to a full device: %v, want ENOSPC", err)
	}
}
