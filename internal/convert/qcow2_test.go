package convert_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fsximg/fsx/internal/convert"
)

func TestQcow2RoundTrip(t *testing.T) {
	need(t, "qemu-img", "qemu-nbd")
	want := image(t, 20<<20+512)
	dir := t.TempDir()
	raw, qcow := sparseFile(t, want), filepath.Join(dir, "i.qcow2")
	run(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", raw, qcow)
	d := importAll(t, openFile(t, qcow, convert.Options{}))
	sameBytes(t, d.b, want)

	out := filepath.Join(dir, "out.qcow2")
	sink, err := convert.ToQcow2(context.Background(), out, d.Size(), false)
	must(t, err)
	must(t, convert.Export(context.Background(), convert.FromDevice(d), sink, nil))
	run(t, "qemu-img", "compare", "-f", "raw", "-F", "qcow2", raw, out)
	run(t, "qemu-img", "check", "-q", "-f", "qcow2", out)
	st, err := os.Stat(out)
	must(t, err)
	if st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", st.Mode())
	}
	if _, err := convert.ToQcow2(context.Background(), out, 512, false); !errors.Is(err, fs.ErrExist) {
		t.Errorf("existing image: %v", err)
	}
	left, err := filepath.Glob(filepath.Join(dir, ".*"))
	must(t, err)
	if len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestQcow2References(t *testing.T) {
	need(t, "qemu-img", "qemu-nbd")
	dir := t.TempDir()
	want := image(t, 4<<20)
	secret := sparseFile(t, want)
	backed, external := filepath.Join(dir, "backed"), filepath.Join(dir, "external")
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", secret, backed)
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file="+filepath.Join(dir, "data"), external, "1M")
	for _, path := range []string{backed, external} {
		f, err := os.Open(path)
		must(t, err)
		if _, err := convert.Open(context.Background(), f, convert.Options{}); !errors.Is(err, convert.ErrBacking) {
			t.Errorf("%s: %v", filepath.Base(path), err)
		}
	}
	d := importAll(t, openFile(t, backed, convert.Options{AllowBacking: true}))
	sameBytes(t, d.b, want)
}

func TestQcow2Refuses(t *testing.T) {
	need(t, "qemu-img", "qemu-nbd")
	dir := t.TempDir()
	whole, raw := filepath.Join(dir, "q"), sparseFile(t, make([]byte, 1<<20))
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", whole, "1M")
	b, err := os.ReadFile(whole)
	must(t, err)
	broken := filepath.Join(dir, "broken")
	b[40] = 0xff // offset of the L1 table
	must(t, os.WriteFile(broken, b, 0o600))
	b[40] = 0
	encrypted := filepath.Join(dir, "encrypted")
	b[35] = 1 // crypt_method
	must(t, os.WriteFile(encrypted, b, 0o600))

	for _, row := range []struct {
		path   string
		format convert.Format
		want   string
	}{
		{raw, convert.Qcow2, "not a qcow2 image"},
		{encrypted, convert.Auto, "encryption of its own"},
		{broken, convert.Auto, "qemu-nbd"},
	} {
		f, err := os.Open(row.path)
		must(t, err)
		_, err = convert.Open(context.Background(), f, convert.Options{Format: row.format})
		if err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: %v", filepath.Base(row.path), err)
		}
	}

	r, w, err := os.Pipe()
	must(t, err)
	go func() { w.Write([]byte("QFI\xfb\x00\x00\x00\x03")); w.Close() }()
	if _, err := convert.Open(context.Background(), r, convert.Options{}); !errors.Is(err, convert.ErrFormat) {
		t.Errorf("qcow2 in a pipe: %v", err)
	}

	t.Setenv("PATH", "")
	f, err := os.Open(whole)
	must(t, err)
	if _, err := convert.Open(context.Background(), f, convert.Options{}); !errors.Is(err, convert.ErrNoProgram) {
		t.Errorf("without qemu-nbd: %v", err)
	}
	if _, err := convert.ToQcow2(context.Background(), filepath.Join(dir, "new"), 512, false); !errors.Is(err, convert.ErrNoProgram) {
		t.Errorf("without qemu-img: %v", err)
	}
}
