// Package vfstest is the conformance suite of implementations of vfs.FS.
package vfstest

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

	"github.com/fsximg/fsx/internal/vfs"
)

// Run tests the file system that mount returns, in the empty directory that it
// also returns.
func Run(t *testing.T, mount func(t *testing.T) (v vfs.FS, dir string)) {
	for name, test := range map[string]func(*testing.T, vfs.FS, string){
		"ReadWrite": readWrite, "AllocateAndPunch": allocateAndPunch, "Lock": lock,
		"Names": names, "Failures": failures,
	} {
		t.Run(name, func(t *testing.T) {
			v, dir := mount(t)
			test(t, v, dir)
		})
	}
}

func open(t *testing.T, v vfs.FS, name string, flag int) vfs.File {
	t.Helper()
	f, err := v.OpenFile(name, flag, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func readWrite(t *testing.T, v vfs.FS, dir string) {
	f := open(t, v, filepath.Join(dir, "f"), os.O_RDWR|os.O_CREATE|os.O_EXCL)
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

func allocateAndPunch(t *testing.T, v vfs.FS, dir string) {
	f := open(t, v, filepath.Join(dir, "f"), os.O_RDWR|os.O_CREATE|os.O_EXCL)
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

func lock(t *testing.T, v vfs.FS, dir string) {
	name := filepath.Join(dir, "lock")
	a := open(t, v, name, os.O_RDWR|os.O_CREATE)
	b := open(t, v, name, os.O_RDWR)
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

func names(t *testing.T, v vfs.FS, dir string) {
	at := func(s string) string { return filepath.Join(dir, s) }
	if err := v.Mkdir(at("d"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{"d/b", "d/a"} {
		open(t, v, at(s), os.O_CREATE|os.O_RDWR).WriteAt([]byte(s), 0)
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

func failures(t *testing.T, v vfs.FS, dir string) {
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
	open(t, v, name, os.O_CREATE|os.O_RDWR)
	if _, err := v.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600); !errors.Is(err, fs.ErrExist) {
		t.Errorf("exclusive create of an existing file: %v", err)
	}
	ro := open(t, v, name, os.O_RDONLY)
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
