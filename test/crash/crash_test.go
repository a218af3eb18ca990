package crash_test

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fsximg/fsx/internal/vfs"
	"github.com/fsximg/fsx/internal/vfs/faultfs"
	"github.com/fsximg/fsx/internal/vfs/trace"
	"github.com/fsximg/fsx/internal/vfs/vfstest"
	"github.com/fsximg/fsx/test/crash"
)

func TestMain(m *testing.M) { crash.Main(m) }

func TestConformance(t *testing.T) {
	rec := crash.Mount(t, crash.Options{})
	n := 0
	vfstest.Run(t, func(t *testing.T) (vfs.FS, string) {
		n++
		dir := filepath.Join(rec.Dir(), fmt.Sprint(n))
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		return vfs.OS(), dir
	})
	rec.Unmount()
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func open(t *testing.T, name string) vfs.File {
	t.Helper()
	f, err := vfs.OS().OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	must(t, err)
	return f
}

func write(t *testing.T, f vfs.File, off int64, text string) {
	t.Helper()
	_, err := f.WriteAt([]byte(text), off)
	must(t, err)
}

// dump is the record as text, without what the test does not want to see.
func dump(t *testing.T, rec *crash.Recorder) string {
	t.Helper()
	var s strings.Builder
	must(t, rec.Trace().Dump(&s))
	return s.String()
}

func equal(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s:\n%s\nwant:\n%s", what, got, want)
	}
}

func TestRecordsEverything(t *testing.T) {
	rec := crash.Mount(t, crash.Options{})
	at := func(s string) string { return filepath.Join(rec.Dir(), s) }
	must(t, os.Mkdir(at("d"), 0o700))
	f := open(t, at("d/tmp"))
	write(t, f, 0, "hello")
	must(t, f.Allocate(0, 10000))
	must(t, f.PunchHole(0, 4096))
	must(t, f.Datasync())
	must(t, f.Truncate(9))
	must(t, f.Close())
	must(t, os.Rename(at("d/tmp"), at("f")))
	must(t, os.Link(at("f"), at("g")))
	must(t, vfs.OS().SyncDir(rec.Dir()))
	rec.Mark("renamed")
	must(t, os.Chmod(at("f"), 0o640))
	must(t, os.Remove(at("g")))
	must(t, os.Remove(at("d")))
	all, err := os.OpenFile(at("f"), os.O_RDWR|os.O_TRUNC, 0)
	must(t, err)
	must(t, all.Sync())
	must(t, all.Close())
	rec.Unmount()
	equal(t, "trace", dump(t, rec), `create d
create d/tmp
write d/tmp 5 bytes in 1
allocate d/tmp 0+10000
punch d/tmp 0+4096
datasync d/tmp
truncate d/tmp 9
rename d/tmp f
link g
sync .
mark "renamed"
chmod g
unlink g
unlink d
truncate g 0
sync g
`)
}

// What Badger does: a mapped file, written in memory, synced by msync.
func TestMappedWrites(t *testing.T) {
	rec := crash.Mount(t, crash.Options{})
	f, err := os.OpenFile(filepath.Join(rec.Dir(), "f"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	must(t, err)
	must(t, f.Truncate(1<<20))
	must(t, vfs.OS().SyncDir(rec.Dir()))
	m, err := unix.Mmap(int(f.Fd()), 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(t, err)
	copy(m[5000:], "synced")
	must(t, unix.Msync(m, unix.MS_SYNC))
	rec.Mark("synced")
	copy(m[5000:], "laters")
	copy(m[9000:], "unsynced")
	must(t, unix.Munmap(m))
	must(t, f.Close())
	rec.Unmount()

	check := func(p trace.Policy, cut int, want5000, want9000 string) {
		t.Helper()
		img := rec.Image(cut, 1, p)
		defer os.RemoveAll(img)
		data, err := os.ReadFile(filepath.Join(img, "f"))
		must(t, err)
		if len(data) != 1<<20 {
			t.Fatalf("size %d", len(data))
		}
		if got := string(data[5000:5006]); got != want5000 {
			t.Errorf("at 5000: %q, want %q", got, want5000)
		}
		if got := strings.TrimRight(string(data[9000:9008]), "\x00"); got != want9000 {
			t.Errorf("at 9000: %q, want %q", got, want9000)
		}
	}
	tr := rec.Trace()
	check(trace.DropUnsynced, tr.MarkAt("synced"), "synced", "")
	check(trace.DropUnsynced, len(tr.Ops), "synced", "")
	check(trace.KeepAll, len(tr.Ops), "laters", "unsynced")
}

// A writes, syncs, writes again: at every cut after the sync the first write is
// there or has been replaced, sector by sector.
func TestSyncedDataSurvivesEveryCut(t *testing.T) {
	rec := crash.Mount(t, crash.Options{})
	f := open(t, filepath.Join(rec.Dir(), "f"))
	must(t, vfs.OS().SyncDir(rec.Dir()))
	const rounds, size = 10, 4096
	for i := range rounds {
		write(t, f, 0, strings.Repeat(string(rune('a'+i)), size))
		must(t, f.Datasync())
		rec.Mark(string(rune('a' + i)))
	}
	must(t, f.Close())
	rec.Unmount()
	torn := 0
	for cut := range len(rec.Trace().Ops) + 1 {
		for seed := range uint64(8) {
			img := rec.Image(cut, seed, trace.RandomTorn)
			data, _ := os.ReadFile(filepath.Join(img, "f"))
			os.RemoveAll(img)
			torn += checkSectors(t, cut, data, rec.Trace().Marks(cut))
		}
	}
	if torn == 0 {
		t.Error("no image was torn")
	}
}

func checkSectors(t *testing.T, cut int, data []byte, marks []string) (torn int) {
	t.Helper()
	if len(marks) == 0 {
		return 0
	}
	acked := marks[len(marks)-1][0]
	if len(data) != 4096 {
		t.Fatalf("cut %d: %d bytes", cut, len(data))
	}
	for s := 0; s < len(data); s += trace.SectorSize {
		c := data[s]
		if c != acked && c != acked+1 {
			t.Fatalf("cut %d: sector of %q after %q was synced", cut, c, acked)
		}
		if !bytes.Equal(data[s:s+trace.SectorSize], bytes.Repeat([]byte{c}, trace.SectorSize)) {
			t.Fatalf("cut %d: a sector is torn inside", cut)
		}
		if c != data[0] {
			torn = 1
		}
	}
	return torn
}

func TestBaseAndSecondRecording(t *testing.T) {
	first := crash.Mount(t, crash.Options{})
	f := open(t, filepath.Join(first.Dir(), "f"))
	must(t, vfs.OS().SyncDir(first.Dir()))
	write(t, f, 0, "one")
	must(t, f.Datasync())
	must(t, f.Close())
	first.Unmount()
	base := first.Image(len(first.Trace().Ops), 0, trace.DropUnsynced)

	second := crash.Mount(t, crash.Options{Base: base})
	g := open(t, filepath.Join(second.Dir(), "f"))
	buf := make([]byte, 3)
	if _, err := g.ReadAt(buf, 0); err != nil || string(buf) != "one" {
		t.Fatalf("the base has %q, %v", buf, err)
	}
	write(t, g, 0, "two")
	must(t, g.Datasync())
	write(t, g, 0, "six")
	must(t, g.Close())
	second.Unmount()
	tr := second.Trace()
	for cut, want := range map[int]string{0: "one", tr.SyncCuts()[0]: "one", len(tr.Ops): "two"} {
		img := second.Image(cut, 0, trace.DropUnsynced)
		if data, err := os.ReadFile(filepath.Join(img, "f")); string(data) != want {
			t.Errorf("cut %d: %q, %v, want %q", cut, data, err, want)
		}
	}
}

func TestFaults(t *testing.T) {
	rec := crash.Mount(t, crash.Options{})
	name := filepath.Join(rec.Dir(), "f")
	f := open(t, name)
	fails := func(what string, err error, want syscall.Errno) {
		t.Helper()
		if !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", what, err, want)
		}
	}
	rec.Arm(faultfs.Rule{Ops: []faultfs.Op{faultfs.Write}, Path: "f", Skip: 1, Count: 1, Err: syscall.EIO})
	write(t, f, 0, "first")
	_, err := f.WriteAt([]byte("second"), 0)
	fails("second write", err, syscall.EIO)
	write(t, f, 0, "third")
	rec.Arm(faultfs.Rule{Ops: []faultfs.Op{faultfs.Sync}, Count: 1, Err: syscall.EIO})
	fails("sync", f.Datasync(), syscall.EIO)
	must(t, f.Datasync())
	rec.DisarmAll()
	rec.Arm(faultfs.Rule{Ops: []faultfs.Op{faultfs.Rename, faultfs.Create}, Err: syscall.EDQUOT})
	fails("rename", os.Rename(name, name+"2"), syscall.EDQUOT)
	_, err = vfs.OS().OpenFile(name+"3", os.O_CREATE|os.O_RDWR, 0o600)
	fails("create", err, syscall.EDQUOT)
	rec.DisarmAll()
	rec.Arm(faultfs.Rule{Ops: []faultfs.Op{faultfs.SyncDir}, Delay: 30 * time.Millisecond})
	start := time.Now()
	must(t, vfs.OS().SyncDir(rec.Dir()))
	if took := time.Since(start); took < 30*time.Millisecond {
		t.Errorf("a delayed sync took %v", took)
	}
	must(t, f.Close())
	rec.Unmount()
	equal(t, "trace", dump(t, rec), `create f
write f 5 bytes in 1
write f 0 bytes in 1: input/output error
write f 5 bytes in 1
sync-lost f: input/output error
datasync f
rename f f2: disk quota exceeded
create f3: disk quota exceeded
sync .
`)
	img := rec.Image(len(rec.Trace().Ops), 0, trace.DropUnsynced)
	data, err := os.ReadFile(filepath.Join(img, "f"))
	if string(data) != "\x00\x00\x00\x00\x00" || err != nil {
		t.Errorf("data that a failed sync lost came back: %q, %v", data, err)
	}
}

func TestFullDisk(t *testing.T) {
	rec := crash.Mount(t, crash.Options{})
	a := open(t, filepath.Join(rec.Dir(), "a"))
	rec.SetFree(64 << 10)
	if n, err := vfs.OS().Free(rec.Dir()); n != 64<<10 || err != nil {
		t.Errorf("Free = %d, %v", n, err)
	}
	n, err := a.WriteAt(make([]byte, 128<<10), 0)
	if n != 64<<10 || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("write = %d, %v", n, err)
	}
	if err := a.Allocate(0, 128<<10); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("allocate: %v", err)
	}
	must(t, a.PunchHole(0, 32<<10))
	write(t, a, 0, strings.Repeat("x", 32<<10))
	must(t, os.Remove(filepath.Join(rec.Dir(), "a")))
	if n, _ := vfs.OS().Free(rec.Dir()); n != 0 {
		t.Errorf("a removed file that is open gave back %d", n)
	}
	must(t, a.Close())
	// The kernel tells of a close when it gets to it.
	for i := 0; ; i++ {
		if n, _ := vfs.OS().Free(rec.Dir()); n == 64<<10 {
			break
		} else if i == 100 {
			t.Fatalf("a removed and closed file gave back %d", n)
		}
		time.Sleep(10 * time.Millisecond)
	}
	rec.Unmount()
}

// A socket that a server left behind is there after the cut, as a file.
func TestSocket(t *testing.T) {
	rec := crash.Mount(t, crash.Options{})
	l, err := net.Listen("unix", filepath.Join(rec.Dir(), "s"))
	must(t, err)
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	c, err := net.Dial("unix", filepath.Join(rec.Dir(), "s"))
	must(t, err)
	c.Close()
	l.Close()
	must(t, vfs.OS().SyncDir(rec.Dir()))
	rec.Unmount()
	img := rec.Image(len(rec.Trace().Ops), 0, trace.DropUnsynced)
	if st, err := os.Lstat(filepath.Join(img, "s")); err != nil || st.Mode().Type() != os.ModeSocket {
		t.Errorf("%v, %v", st, err)
	}
}

// Images of a store of 50 MB must be cheap enough to make hundreds.
func TestImageSpeed(t *testing.T) {
	rec := crash.Mount(t, crash.Options{})
	f := open(t, filepath.Join(rec.Dir(), "f"))
	must(t, vfs.OS().SyncDir(rec.Dir()))
	chunk := bytes.Repeat([]byte{1}, 1<<20)
	for i := range int64(50) {
		_, err := f.WriteAt(chunk, i<<20)
		must(t, err)
		must(t, f.Datasync())
	}
	must(t, f.Close())
	rec.Unmount()
	tr := rec.Trace()
	cuts := tr.SyncCuts()
	var took []time.Duration
	for _, cut := range cuts[len(cuts)-20:] {
		start := time.Now()
		img := rec.Image(cut, 1, trace.RandomTorn)
		took = append(took, time.Since(start))
		os.RemoveAll(img)
	}
	slices.Sort(took)
	t.Logf("an image of 50 MB: median %v, worst %v", took[len(took)/2], took[len(took)-1])
	if median := took[len(took)/2]; median > time.Second {
		t.Errorf("an image takes %v", median)
	}
}

// After any operations, a cut that loses nothing gives what is there.
func TestRecordIsWhole(t *testing.T) {
	rec := crash.Mount(t, crash.Options{})
	vfstest.Churn(t, vfs.OS(), rec.Dir(), 1, 600)
	want := contents(t, rec.Dir())
	rec.Unmount()
	got := contents(t, rec.Image(len(rec.Trace().Ops), 0, trace.KeepAll))
	if len(want) == 0 || !maps.Equal(got, want) {
		t.Errorf("an image of %d files differs from the %d that were there", len(got), len(want))
	}
	for cut := 0; cut <= len(rec.Trace().Ops); cut += 97 {
		for seed, p := range []trace.Policy{trace.DropUnsynced, trace.RandomMixed, trace.RandomNames} {
			os.RemoveAll(rec.Image(cut, uint64(seed), p))
		}
	}
}

func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	must(t, filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		rel, _ := filepath.Rel(dir, path)
		files[rel] = string(data)
		return err
	}))
	return files
}
