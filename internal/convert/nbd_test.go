package convert_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/fsximg/fsx/internal/convert"
	"github.com/fsximg/fsx/internal/nbdclient"
)

// Servers with and without each thing that the client can use.
func TestNBDSource(t *testing.T) {
	need(t, "nbdkit")
	want := image(t, 12<<20)
	path := sparseFile(t, want)
	for name, args := range map[string][]string{
		"everything":      {"file", path},
		"simple replies":  {"--no-sr", "file", path},
		"no extents":      {"--filter=noextents", "file", path},
		"large blocks":    {"--filter=blocksize-policy", "file", path, "blocksize-minimum=65536", "blocksize-preferred=65536", "blocksize-maximum=2M"},
		"strict blocks":   {"--filter=blocksize-policy", "file", path, "blocksize-minimum=4096", "blocksize-maximum=64k", "blocksize-error-policy=error"},
		"named":           {"--filter=exportname", "file", path, "exportname=a b", "exportname-strict=true"},
		"slow, reordered": {"--filter=delay", "file", path, "delay-read=5ms"},
	} {
		t.Run(name, func(t *testing.T) {
			uri := nbdkit(t, args...)
			if name == "named" {
				uri = strings.Replace(uri, ":///?", ":///a%20b?", 1)
			}
			sameBytes(t, importAll(t, dial(t, uri)).b, want)
		})
	}
}

func TestNBDSparseSource(t *testing.T) {
	need(t, "nbdkit")
	uri := nbdkit(t, "memory", "64G")
	var data int64
	src := dial(t, uri)
	if src.Size() != 64<<30 {
		t.Fatalf("size %d", src.Size())
	}
	must(t, src.Stream(context.Background(), func(p convert.Piece) error {
		if p.Kind == convert.Data {
			data += p.Len
		}
		return nil
	}))
	if data != 0 {
		t.Errorf("read %d bytes of nothing", data)
	}
}

func TestNBDErrors(t *testing.T) {
	need(t, "nbdkit")
	path := sparseFile(t, []byte(strings.Repeat("x", 1<<20)))
	src := dial(t, nbdkit(t, "--filter=error", "file", path, "error-pread=EIO", "error-pread-rate=100%"))
	_, err := convert.Import(context.Background(), src, newDevice(1<<20), nil)
	if err == nil || !strings.Contains(err.Error(), "input/output error") {
		t.Errorf("failing reads: %v", err)
	}
	uri := nbdkit(t, "--filter=exportname", "file", path, "exportname=yes", "exportname-strict=true")
	if _, err := convert.DialNBD(context.Background(), uri); !errors.Is(err, nbdclient.ErrProtocol) {
		t.Errorf("unknown export: %v", err)
	}
	if _, err := convert.DialNBD(context.Background(), "nbd+unix:///?socket=/nonexistent"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no server: %v", err)
	}
}

func TestNBDSink(t *testing.T) {
	need(t, "nbdkit", "nbdcopy")
	want := image(t, 10<<20)
	d := importAll(t, openFile(t, sparseFile(t, want), convert.Options{}))
	for name, args := range map[string][]string{
		"plain":    {"memory", "11M"},
		"no zeros": {"--filter=nozero", "memory", "11M"},
		"small":    {"--filter=blocksize-policy", "memory", "11M", "blocksize-maximum=64k", "blocksize-error-policy=error", "blocksize-minimum=512"},
	} {
		t.Run(name, func(t *testing.T) {
			uri := nbdkit(t, args...)
			// There must be something to be zeroed.
			full := sparseFile(t, []byte(strings.Repeat("y", 11<<20)))
			run(t, "nbdcopy", "--request-size=65536", full, uri)
			sink, err := convert.ToNBD(context.Background(), uri, d.Size())
			must(t, err)
			must(t, convert.Export(context.Background(), convert.FromDevice(d), sink, nil))
			got, err := exec.Command("nbdcopy", "--request-size=65536", uri, "-").Output()
			must(t, err)
			sameBytes(t, got[:len(want)], want)
			if string(got[len(want):len(want)+3]) != "yyy" {
				t.Error("what lies behind was touched")
			}
		})
	}
	if _, err := convert.ToNBD(context.Background(), nbdkit(t, "memory", "1M"), 2<<20); !errors.Is(err, convert.ErrTooSmall) {
		t.Errorf("too small: %v", err)
	}
	if _, err := convert.ToNBD(context.Background(), nbdkit(t, "-r", "memory", "1M"), 1<<20); !errors.Is(err, os.ErrPermission) {
		t.Errorf("read-only: %v", err)
	}
	sink, err := convert.ToNBD(context.Background(), nbdkit(t, "--filter=error", "memory", "11M", "error-pwrite=ENOSPC", "error-pwrite-rate=100%"), d.Size())
	must(t, err)
	if err := convert.Export(context.Background(), convert.FromDevice(d), sink, nil); err == nil {
		t.Error("failing writes were not noticed")
	}
}

func TestIsURI(t *testing.T) {
	for name, want := range map[string]bool{
		"nbd://h": true, "nbd+unix:///?socket=s": true, "nbds://h": true, "nbd": false, "./nbd://h": false, "file.img": false, "nbdx:y": false,
	} {
		if convert.IsURI(name) != want {
			t.Errorf("IsURI(%s) is %v", name, !want)
		}
	}
}
