package volume_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/fsximg/fsx/internal/vfs"
	"github.com/fsximg/fsx/internal/vfs/trace"
	"github.com/fsximg/fsx/internal/volume"
	"github.com/fsximg/fsx/pkg/layout/store"
)

// readOnlyFS is a file system mounted read-only.
type readOnlyFS struct{ vfs.FS }

func (f readOnlyFS) OpenFile(name string, flag int, perm fs.FileMode) (vfs.File, error) {
	if flag&(os.O_RDWR|os.O_WRONLY|os.O_CREATE) != 0 {
		return nil, &fs.PathError{Op: "open", Path: name, Err: syscall.EROFS}
	}
	return f.FS.OpenFile(name, flag, perm)
}

func (f readOnlyFS) Remove(name string) error {
	return &fs.PathError{Op: "remove", Path: name, Err: syscall.EROFS}
}

// TestReadOnlyFileSystem reads stores where nothing may be written: one that
// was closed, and one whose process was killed.
func TestReadOnlyFileSystem(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.fsx")
	s := create(t, path, tamperSize)
	v := mainVolume(t, s)
	for i := range 40 {
		put(t, v, int64(i), i)
	}
	flush(t, v)
	unclean := killed(t, path)
	closeStore(t, s)
	for _, path := range []string{path, unclean} {
		before, copied := filepath.Join(t.TempDir(), "before"), path
		if err := trace.CopyTree(before, copied); err != nil {
			t.Fatal(err)
		}
		o := options(t)
		o.FS = readOnlyFS{vfs.OS()}
		if _, err := volume.Open(path, o); !errors.Is(err, syscall.EROFS) {
			t.Errorf("for writing: %v", err)
		}
		o.ReadOnly = true
		s := openWith(t, path, o)
		v := mainVolume(t, s)
		for i := range 40 {
			expect(t, v, int64(i), i)
		}
		if err := v.WriteAt(block(1), 0, false); !errors.Is(err, volume.ErrReadOnly) {
			t.Errorf("a write: %v", err)
		}
		if rep, err := s.Check(ctx0, volume.CheckOptions{}); err != nil || !rep.Clean() || rep.Volumes[0].Verified != 40 {
			t.Errorf("check: %+v, %v", rep, err)
		}
		closeStore(t, s)
		sameTree(t, path, before)
	}
}

// sameTree compares the files of two folders.
func sameTree(t *testing.T, a, b string) {
	t.Helper()
	err := filepath.WalkDir(a, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, _ := filepath.Rel(a, name)
		x, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		y, err := os.ReadFile(filepath.Join(b, rel))
		if err != nil || !bytes.Equal(x, y) {
			t.Errorf("%s changed, %v", rel, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestKeyringAreas writes areas that are whole but not where or what they may
// be; the last right one counts.
func TestKeyringAreas(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.fsx")
	closeStore(t, create(t, path, tamperSize))
	d, err := store.Open(vfs.OS(), path, "test", false)
	must(t, err)
	defer d.Close(true)
	expect := func(want uint64, when string) {
		t.Helper()
		gen := uint64(0)
		areas, err := d.ReadKeyring()
		if err == nil {
			gen = areas[0].Generation
		}
		if gen != want || (err == nil) != (want != 0) {
			t.Errorf("%s: generation %d, want %d, %v", when, gen, want, err)
		}
	}
	expect(2, "new")
	areas, err := d.ReadKeyring()
	must(t, err)
	body := areas[0].Body
	name := filepath.Join(path, "keyring")
	const area1 = 16 << 20
	whole, err := os.ReadFile(name)
	must(t, err)
	for _, area := range []int64{0, area1} {
		undo := flip(t, name, area+100, 3)
		expect(map[int64]uint64{0: 1, area1: 2}[area], "a bad byte in one area")
		undo()
	}
	must(t, os.WriteFile(name, whole[area1:], 0o600))
	expect(0, "generation 1 in area 0")
	must(t, os.WriteFile(name, whole, 0o600))
	must(t, d.WriteKeyring(body, 3))
	expect(3, "written")
	undo := flip(t, name, area1+25, 0)
	expect(2, "with a byte set that is to be zero")
	undo()
}
