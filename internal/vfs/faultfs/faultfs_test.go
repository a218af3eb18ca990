package faultfs_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fsximg/fsx/internal/vfs"
	"github.com/fsximg/fsx/internal/vfs/faultfs"
	"github.com/fsximg/fsx/internal/vfs/trace"
	"github.com/fsximg/fsx/internal/vfs/vfstest"
)

func mount(t *testing.T, o faultfs.Options) (*faultfs.FS, string) {
	t.Helper()
	dir := t.TempDir()
	f, err := faultfs.New(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	return f, dir
}

func open(t *testing.T, v vfs.FS, name string) vfs.File {
	t.Helper()
	f, err := v.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func read(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestConformance(t *testing.T) {
	t.Run("plain", func(t *testing.T) {
		vfstest.Run(t, func(t *testing.T) (vfs.FS, string) {
			f, dir := mount(t, faultfs.Options{})
			return f, dir
		})
	})
	t.Run("recording", func(t *testing.T) {
		vfstest.Run(t, func(t *testing.T) (vfs.FS, string) {
			f, dir := mount(t, faultfs.Options{TraceDir: t.TempDir(), DropOnFailedSync: true})
			return f, dir
		})
	})
}

func TestEveryOperationCanFail(t *testing.T) {
	f, dir := mount(t, faultfs.Options{})
	file := open(t, f, filepath.Join(dir, "f"))
	at := func(s string) string { return filepath.Join(dir, s) }
	buf := make([]byte, 1)
	calls := map[faultfs.Op]func() error{
		faultfs.Open:     func() error { _, err := f.OpenFile(at("f"), os.O_RDWR, 0); return err },
		faultfs.Create:   func() error { _, err := f.OpenFile(at("g"), os.O_RDWR|os.O_CREATE, 0o600); return err },
		faultfs.Mkdir:    func() error { return f.Mkdir(at("d"), 0o700) },
		faultfs.Remove:   func() error { return f.Remove(at("f")) },
		faultfs.Rename:   func() error { return f.Rename(at("f"), at("h")) },
		faultfs.ReadDir:  func() error { _, err := f.ReadDir(dir); return err },
		faultfs.Stat:     func() error { _, err := f.Stat(at("f")); return err },
		faultfs.Free:     func() error { _, err := f.Free(dir); return err },
		faultfs.SyncDir:  func() error { return f.SyncDir(dir) },
		faultfs.Read:     func() error { _, err := file.ReadAtNoWait(buf, 0); return err },
		faultfs.Write:    func() error { _, err := file.WriteAt(buf, 0); return err },
		faultfs.Sync:     func() error { return file.Datasync() },
		faultfs.Truncate: func() error { return file.Truncate(9) },
		faultfs.Allocate: func() error { return file.Allocate(0, 9) },
		faultfs.Punch:    func() error { return file.PunchHole(0, 9) },
		faultfs.Lock:     func() error { return file.TryLock() },
		faultfs.Close:    func() error { return open(t, f, at("f")).Close() },
	}
	for op, call := range calls {
		armed := f.Arm(faultfs.Rule{Ops: []faultfs.Op{op}, Err: syscall.EIO})
		if err := call(); !errors.Is(err, syscall.EIO) {
			t.Errorf("%s: %v, want EIO", op, err)
		}
		if armed.Fired() != 1 {
			t.Errorf("%s fired %d times", op, armed.Fired())
		}
		armed.Disarm()
	}
	if names, _ := f.ReadDir(dir); len(names) != 1 || names[0] != "f" {
		t.Errorf("failed operations left %v", names)
	}
	if read(t, at("f")) != "" {
		t.Error("failed operations changed the file")
	}
}

func TestRules(t *testing.T) {
	const n = 1000
	count := func(r faultfs.Rule) (fired int, first int) {
		in := faultfs.NewInjector(1)
		r.Err = syscall.EIO
		a := in.Arm(r)
		first = -1
		for i := range n {
			if v := in.Decide(faultfs.Write, "vol/1/seg"); v.Err != 0 && first < 0 {
				first = i
			}
		}
		return a.Fired(), first
	}
	for _, test := range []struct {
		name  string
		rule  faultfs.Rule
		fired int
		first int
	}{
		{"any", faultfs.Rule{}, n, 0},
		{"third", faultfs.Rule{Skip: 2, Count: 1}, 1, 2},
		{"from the tenth", faultfs.Rule{Skip: 9}, n - 9, 9},
		{"other operation", faultfs.Rule{Ops: []faultfs.Op{faultfs.Sync}}, 0, -1},
		{"one of two operations", faultfs.Rule{Ops: []faultfs.Op{faultfs.Sync, faultfs.Write}}, n, 0},
		{"base name", faultfs.Rule{Path: "se?"}, n, 0},
		{"other name", faultfs.Rule{Path: "1"}, 0, -1},
		{"whole path", faultfs.Rule{Path: "vol/*/seg"}, n, 0},
		{"other path", faultfs.Rule{Path: "meta/*"}, 0, -1},
	} {
		if fired, first := count(test.rule); fired != test.fired || first != test.first {
			t.Errorf("%s: fired %d, first %d, want %d, %d", test.name, fired, first, test.fired, test.first)
		}
	}
	if fired, _ := count(faultfs.Rule{Chance: 0.25}); fired < n/5 || fired > n*3/10 {
		t.Errorf("a chance of 1/4 fired %d of %d", fired, n)
	}
}

func TestShortAndTornWrites(t *testing.T) {
	f, dir := mount(t, faultfs.Options{Seed: 3})
	name := filepath.Join(dir, "f")
	file := open(t, f, name)
	short := f.Arm(faultfs.Rule{Ops: []faultfs.Op{faultfs.Write}, Keep: 3, Err: syscall.ENOSPC})
	if n, err := file.WriteAt([]byte("abcdef"), 0); n != 3 || !errors.Is(err, syscall.ENOSPC) || read(t, name) != "abc" {
		t.Errorf("short write = %d, %v, left %q", n, err, read(t, name))
	}
	short.Disarm()
	f.Arm(faultfs.Rule{Ops: []faultfs.Op{faultfs.Write}, Torn: true})
	const sectors = 64
	file.Truncate(sectors * trace.SectorSize)
	if n, err := file.WriteAt(bytes.Repeat([]byte("x"), sectors*trace.SectorSize), 0); n != 0 || !errors.Is(err, syscall.EIO) {
		t.Errorf("torn write = %d, %v", n, err)
	}
	written := 0
	for s := range sectors {
		got := read(t, name)[s*trace.SectorSize:][:trace.SectorSize]
		switch {
		case got == strings.Repeat("x", trace.SectorSize):
			written++
		case strings.Contains(got, "x"):
			t.Errorf("sector %d is torn inside", s)
		}
	}
	if written < sectors/4 || written > sectors*3/4 {
		t.Errorf("%d of %d sectors written", written, sectors)
	}
}

func TestDelay(t *testing.T) {
	f, dir := mount(t, faultfs.Options{})
	file := open(t, f, filepath.Join(dir, "f"))
	file.WriteAt([]byte("x"), 0)
	f.Arm(faultfs.Rule{Ops: []faultfs.Op{faultfs.Read}, Delay: 20 * time.Millisecond})
	buf := make([]byte, 1)
	if _, err := file.ReadAtNoWait(buf, 0); err != vfs.ErrWouldBlock {
		t.Errorf("ReadAtNoWait: %v, want ErrWouldBlock", err)
	}
	start := time.Now()
	if _, err := file.ReadAt(buf, 0); err != nil || time.Since(start) < 20*time.Millisecond {
		t.Errorf("ReadAt: %v after %v", err, time.Since(start))
	}
}

func TestDiskFillsUp(t *testing.T) {
	f, dir := mount(t, faultfs.Options{})
	a, b := open(t, f, filepath.Join(dir, "a")), open(t, f, filepath.Join(dir, "b"))
	f.Space.SetFree(16 << 10)
	full := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("%s: %v, want ENOSPC", what, err)
		}
	}
	fits := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	n, err := a.WriteAt(make([]byte, 20<<10), 0)
	full("write", err)
	if n != 16<<10 {
		t.Errorf("a write into 16 KiB wrote %d", n)
	}
	if free, _ := f.Free(dir); free != 0 {
		t.Errorf("free on a full disk = %d", free)
	}
	_, err = a.WriteAt(make([]byte, 16<<10), 0)
	fits("overwrite", err)
	_, err = b.WriteAt([]byte("x"), 0)
	full("write to another file", err)
	fits("punch", a.PunchHole(0, 8<<10))
	full("allocate too much", b.Allocate(0, 12<<10))
	fits("allocate", b.Allocate(0, 8<<10))
	_, err = b.WriteAt(make([]byte, 8<<10), 0)
	fits("write to allocated", err)
	fits("truncate", b.Truncate(4096))
	_, err = a.WriteAt(make([]byte, 4096), 0)
	fits("write after truncate", err)
	fits("remove", f.Remove(filepath.Join(dir, "b")))
	_, err = a.WriteAt(make([]byte, 4096), 4096)
	fits("write after remove", err)
	c := open(t, f, filepath.Join(dir, "c"))
	_, err = c.WriteAt([]byte("x"), 0)
	full("write on a disk full again", err)
	fits("rename over", f.Rename(filepath.Join(dir, "c"), filepath.Join(dir, "a")))
	_, err = c.WriteAt([]byte("x"), 0)
	fits("write after rename over", err)
}

func TestFailedSyncDropsData(t *testing.T) {
	f, dir := mount(t, faultfs.Options{DropOnFailedSync: true, TraceDir: t.TempDir()})
	name := filepath.Join(dir, "f")
	file := open(t, f, name)
	f.SyncDir(dir)
	file.WriteAt([]byte("old"), 0)
	if err := file.Datasync(); err != nil {
		t.Fatal(err)
	}
	file.WriteAt([]byte("newer"), 0)
	armed := f.Arm(faultfs.Rule{Ops: []faultfs.Op{faultfs.Sync}, Err: syscall.EIO})
	if err := file.Datasync(); !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	armed.Disarm()
	if got := read(t, name); got != "old\x00\x00" {
		t.Errorf("after the failed sync the file has %q", got)
	}
	if err := file.Datasync(); err != nil {
		t.Fatal(err)
	}
	if got := crash(t, f, trace.DropUnsynced); got["f"] != "old\x00\x00" {
		t.Errorf("after a sync that succeeded again, a crash leaves %q", got["f"])
	}
}

// crash returns the files after a power cut now.
func crash(t *testing.T, f *faultfs.FS, p trace.Policy) map[string]string {
	t.Helper()
	tr, err := f.Trace()
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	dir := t.TempDir()
	if err := tr.CrashImage(dir, len(tr.Ops), 0, p); err != nil {
		t.Fatal(err)
	}
	tree, paths, err := trace.ReadTree(dir)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for id, path := range paths {
		if tree.Node(id).IsFile() {
			files[path] = read(t, filepath.Join(dir, path))
		}
	}
	return files
}

func TestIgnoredSync(t *testing.T) {
	f, dir := mount(t, faultfs.Options{TraceDir: t.TempDir()})
	file := open(t, f, filepath.Join(dir, "f"))
	if err := f.SyncDir(dir); err != nil {
		t.Fatal(err)
	}
	f.Arm(faultfs.Rule{Ops: []faultfs.Op{faultfs.Sync}, Ignore: true, Count: 1})
	file.WriteAt([]byte("x"), 0)
	if err := file.Datasync(); err != nil {
		t.Fatal(err)
	}
	if got := crash(t, f, trace.DropUnsynced); got["f"] != "" {
		t.Errorf("an ignored sync kept %q", got["f"])
	}
	file.Datasync()
	if got := crash(t, f, trace.DropUnsynced); got["f"] != "x" {
		t.Errorf("the next sync kept %q", got["f"])
	}
}

// The record has every change, in order, with the base that was there before.
func TestRecord(t *testing.T) {
	root := t.TempDir()
	at := func(s string) string { return filepath.Join(root, s) }
	os.Mkdir(at("d"), 0o700)
	os.WriteFile(at("d/base"), []byte("base"), 0o600)
	f, err := faultfs.New(root, faultfs.Options{TraceDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	f.Mkdir(at("e"), 0o700)
	file := open(t, f, at("e/tmp"))
	file.WriteAt([]byte("data"), 2)
	file.Allocate(0, 10)
	file.PunchHole(2, 1)
	file.Datasync()
	f.Rename(at("e/tmp"), at("d/new"))
	f.SyncDir(at("d"))
	f.Mark("done")
	f.OpenFile(at("d/base"), os.O_WRONLY|os.O_TRUNC, 0)
	f.Remove(at("d/base"))
	tr, err := f.Trace()
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	var got strings.Builder
	tr.Dump(&got)
	want := `create e
create e/tmp
write e/tmp 4 bytes in 1
allocate e/tmp 0+10
punch e/tmp 2+1
datasync e/tmp
rename e/tmp d/new
sync d
mark "done"
truncate d/base 0
unlink d/base
`
	if got.String() != want {
		t.Errorf("got\n%s\nwant\n%s", got.String(), want)
	}
	// The name e was never synced, so its removal there carries nothing else.
	files := crash(t, f, trace.DropUnsynced)
	if len(files) != 2 || files["d/base"] != "base" || files["d/new"] != "\x00\x00\x00ata\x00\x00\x00\x00" {
		t.Errorf("a crash leaves %q", files)
	}
}

// After any operations, a cut that loses nothing gives what is there.
func TestRecordIsWhole(t *testing.T) {
	f, dir := mount(t, faultfs.Options{TraceDir: t.TempDir(), DropOnFailedSync: true})
	vfstest.Churn(t, f, dir, 1, 600)
	got, n := crash(t, f, trace.KeepAll), 0
	tree, paths, err := trace.ReadTree(dir)
	if err != nil {
		t.Fatal(err)
	}
	for id, path := range paths {
		if !tree.Node(id).IsFile() {
			continue
		}
		n++
		if want := read(t, filepath.Join(dir, path)); got[path] != want {
			t.Errorf("%s: %d bytes, want %d, or other content", path, len(got[path]), len(want))
		}
	}
	if n == 0 || n != len(got) {
		t.Errorf("%d files, and %d in the image", n, len(got))
	}
}
