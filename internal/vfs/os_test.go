package vfs_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fsximg/fsx/internal/vfs"
	"github.com/fsximg/fsx/internal/vfs/vfstest"
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

func TestConformance(t *testing.T) {
	vfstest.Run(t, func(t *testing.T) (vfs.FS, string) { return vfs.OS(), t.TempDir() })
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
