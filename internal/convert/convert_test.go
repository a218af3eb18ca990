package convert_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/fsximg/fsx/internal/convert"
)

func TestFileRoundTrip(t *testing.T) {
	for _, size := range []int64{0, 1, 511, 4096, 1<<20 - 1, 1 << 20, 1<<20 + 1, 9<<20 + 512, 40 << 20} {
		want := image(t, size)
		d := importAll(t, openFile(t, sparseFile(t, want), convert.Options{}))
		sameBytes(t, d.b, want)
		if !d.flushed {
			t.Error("not flushed")
		}
		for b, data := range d.data {
			if p := want[b*block : min((b+1)*block, len(want))]; data && allZero(p) {
				t.Fatalf("size %d: block %d of zeros was written", size, b)
			}
		}

		path := filepath.Join(t.TempDir(), "out")
		sink, err := convert.ToFile(path, size, false)
		must(t, err)
		var progress int64
		must(t, convert.Export(context.Background(), convert.FromDevice(d), sink, func(n int64) { progress += n }))
		got, err := os.ReadFile(path)
		must(t, err)
		sameBytes(t, got, want)
		if progress != size {
			t.Errorf("progress %d of %d", progress, size)
		}
		st, err := os.Stat(path)
		must(t, err)
		if st.Mode().Perm() != 0o600 {
			t.Errorf("mode %v", st.Mode())
		}
		if used := st.Sys().(*syscall.Stat_t).Blocks * 512; size > 9<<20 && used > size*3/4 {
			t.Errorf("not sparse: %d of %d bytes", used, size)
		}
	}
}

func TestPipe(t *testing.T) {
	want := image(t, 5<<20+77)
	open := func() convert.Source {
		r, w, err := os.Pipe()
		must(t, err)
		go func() {
			w.Write(want)
			w.Close()
		}()
		src, err := convert.Open(context.Background(), r, convert.Options{})
		must(t, err)
		return src
	}
	src := open()
	defer src.Close()
	if src.Size() != convert.UnknownSize {
		t.Errorf("size %d of a pipe", src.Size())
	}
	d := newDevice(6 << 20)
	rep, err := convert.Import(context.Background(), src, d, nil)
	must(t, err)
	sameBytes(t, d.b[:len(want)], want)
	if !allZero(d.b[len(want):]) || rep.Source != int64(len(want)) {
		t.Errorf("rest is not zero, or wrong length: %+v", rep)
	}

	tooLong := open()
	defer tooLong.Close()
	if _, err := convert.Import(context.Background(), tooLong, newDevice(5<<20), nil); !errors.Is(err, convert.ErrTooLarge) {
		t.Errorf("too long a pipe: %v", err)
	}
}

// A file on stdin that was read in part goes on where it is.
func TestFileInTheMiddle(t *testing.T) {
	f, err := os.Open(sparseFile(t, []byte("headbody")))
	must(t, err)
	_, err = io.ReadFull(f, make([]byte, 4))
	must(t, err)
	src, err := convert.Open(context.Background(), f, convert.Options{})
	must(t, err)
	defer src.Close()
	d := newDevice(512)
	_, err = convert.Import(context.Background(), src, d, nil)
	must(t, err)
	if !bytes.HasPrefix(d.b, []byte("body\x00")) {
		t.Errorf("got %q", d.b[:8])
	}
}

func TestImportOverOldContents(t *testing.T) {
	old, want := image(t, 8<<20), image(t, 7<<20+100)
	copy(want[3<<20:5<<20], old[3<<20:5<<20])
	d := importAll(t, openFile(t, sparseFile(t, old), convert.Options{}))
	d.written = 0
	rep, err := convert.Import(context.Background(), openFile(t, sparseFile(t, want), convert.Options{}), d, nil)
	must(t, err)
	sameBytes(t, d.b[:len(want)], want)
	if !allZero(d.b[len(want):]) {
		t.Error("what lies behind the source is not zero")
	}
	if rep.Written != d.written || rep.Written+rep.Zeroed+rep.Kept != d.Size() {
		t.Errorf("report %+v, %d written", rep, d.written)
	}

	d.written = 0
	rep, err = convert.Import(context.Background(), openFile(t, sparseFile(t, want), convert.Options{}), d, nil)
	must(t, err)
	// The rest of the source's last block is zeroed without a look.
	if d.written != 0 || rep.Written != 0 || rep.Zeroed >= block {
		t.Errorf("the same again wrote %d bytes: %+v", d.written, rep)
	}
}

func TestImportRefusesLarger(t *testing.T) {
	d := newDevice(1 << 20)
	_, err := convert.Import(context.Background(), openFile(t, sparseFile(t, image(t, 1<<20+1)), convert.Options{}), d, nil)
	if !errors.Is(err, convert.ErrTooLarge) || d.written != 0 {
		t.Errorf("got %v, %d written", err, d.written)
	}
}

func TestEmpty(t *testing.T) {
	d := newDevice(1 << 20)
	if empty, err := convert.Empty(d); err != nil || !empty {
		t.Errorf("new device: %v, %v", empty, err)
	}
	must(t, d.WriteAt([]byte{1}, 1<<20-1, false))
	if empty, err := convert.Empty(d); err != nil || empty {
		t.Errorf("written device: %v, %v", empty, err)
	}
}

func TestCancel(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	d := newDevice(40 << 20)
	src := openFile(t, sparseFile(t, image(t, 40<<20)), convert.Options{})
	_, err := convert.Import(ctx, src, d, func(int64) { cancel() })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("import: %v", err)
	}
	dir := t.TempDir()
	sink, err := convert.ToFile(filepath.Join(dir, "out"), 40<<20, false)
	must(t, err)
	ctx, cancel = context.WithCancel(context.Background())
	src = openFile(t, sparseFile(t, image(t, 40<<20)), convert.Options{})
	if err := convert.Export(ctx, src, sink, func(int64) { cancel() }); !errors.Is(err, context.Canceled) {
		t.Errorf("export: %v", err)
	}
	noFiles(t, dir)
}

func noFiles(t *testing.T, dir string) {
	t.Helper()
	left, err := os.ReadDir(dir)
	must(t, err)
	if len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// failing is a source that fails in the middle.
type failing struct{ *device }

func (f failing) ReadAt(p []byte, off int64) error {
	if off >= 3<<20 {
		return syscall.EIO
	}
	return f.device.ReadAt(p, off, false)
}
func (f failing) Close() error { return nil }
func (f failing) Next(_ context.Context, off int64) (convert.Run, error) {
	return convert.Run{Off: off, Len: f.Size() - off, Kind: convert.Data}, nil
}

func TestFailingSourceLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	src := convert.FromRandom(failing{newDevice(20 << 20)})
	sink, err := convert.ToFile(filepath.Join(dir, "out"), src.Size(), false)
	must(t, err)
	if err := convert.Export(context.Background(), src, sink, nil); !errors.Is(err, syscall.EIO) {
		t.Errorf("got %v", err)
	}
	noFiles(t, dir)
}

func TestFileSinkAndExistingFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "out")
	must(t, os.WriteFile(path, []byte("old"), 0o644))
	if _, err := convert.ToFile(path, 1, false); !errors.Is(err, fs.ErrExist) {
		t.Errorf("existing file: %v", err)
	}
	sink, err := convert.ToFile(path, 3, true)
	must(t, err)
	must(t, sink.Write([]byte("new"), 0))
	if b, _ := os.ReadFile(path); string(b) != "old" {
		t.Errorf("replaced before it was complete: %q", b)
	}
	must(t, sink.Finish())
	sink.Abort()
	if b, _ := os.ReadFile(path); string(b) != "new" {
		t.Errorf("got %q", b)
	}

	// Someone makes the file while we write.
	other := filepath.Join(t.TempDir(), "race")
	sink, err = convert.ToFile(other, 3, false)
	must(t, err)
	must(t, os.WriteFile(other, []byte("theirs"), 0o644))
	if err := sink.Finish(); !errors.Is(err, fs.ErrExist) {
		t.Errorf("file that appeared meanwhile: %v", err)
	}
	sink.Abort()
	if b, _ := os.ReadFile(other); string(b) != "theirs" {
		t.Errorf("overwrote a file that appeared meanwhile: %q", b)
	}
}

func TestStreamSink(t *testing.T) {
	want := image(t, 3<<20+5)
	d := importAll(t, openFile(t, sparseFile(t, want), convert.Options{}))
	var got bytes.Buffer
	must(t, convert.Export(context.Background(), convert.FromDevice(d), convert.ToStream(&got), nil))
	sameBytes(t, got.Bytes(), want)
}

func TestForeignFormats(t *testing.T) {
	for head, want := range map[string]string{
		"\x1f\x8b\x08\x00": "gzip", "KDMV\x01": "VMDK", "vhdxfile": "VHDX", "\xfd7zXZ\x00": "xz",
		strings.Repeat("x", 0x40) + "\x7f\x10\xda\xbe": "VDI", "QFI\xfb": "qcow2 header of 4",
	} {
		path := filepath.Join(t.TempDir(), "f")
		must(t, os.WriteFile(path, []byte(head), 0o600))
		f, err := os.Open(path)
		must(t, err)
		_, err = convert.Open(context.Background(), f, convert.Options{})
		if !errors.Is(err, convert.ErrFormat) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", head, err)
		}
		src := openFile(t, path, convert.Options{Format: convert.Raw})
		if src.Size() != int64(len(head)) {
			t.Errorf("%q as raw: %d bytes", head, src.Size())
		}
	}
	f, err := os.Open(t.TempDir())
	must(t, err)
	if _, err := convert.Open(context.Background(), f, convert.Options{}); !errors.Is(err, convert.ErrFormat) {
		t.Errorf("directory: %v", err)
	}
}
