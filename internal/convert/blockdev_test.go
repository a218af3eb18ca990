package convert_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fsximg/fsx/internal/convert"
)

// loopDevice attaches a file as a block device.
func loopDevice(t *testing.T, path string) string {
	t.Helper()
	need(t, "losetup")
	if os.Geteuid() != 0 {
		t.Skip("NOT TESTED: block devices need root")
	}
	out, err := exec.Command("losetup", "-f", "--show", path).CombinedOutput()
	if err != nil {
		t.Skipf("NOT TESTED: losetup: %v: %s", err, out)
	}
	dev := strings.TrimSpace(string(out))
	t.Cleanup(func() { run(t, "losetup", "-d", dev) })
	return dev
}

func TestBlockDevices(t *testing.T) {
	want := image(t, 8<<20)
	d := importAll(t, openFile(t, sparseFile(t, want), convert.Options{}))
	behind := strings.Repeat("z", 1<<20)
	path := filepath.Join(t.TempDir(), "disk")
	must(t, os.WriteFile(path, []byte(strings.Repeat("y", 8<<20)+behind), 0o600))
	dev := loopDevice(t, path)

	sink, err := convert.ToBlockDevice(dev, d.Size())
	must(t, err)
	must(t, convert.Export(context.Background(), convert.FromDevice(d), sink, nil))
	src := openFile(t, dev, convert.Options{})
	if src.Size() != 9<<20 {
		t.Errorf("size of device %d", src.Size())
	}
	got := importAll(t, src)
	sameBytes(t, got.b, append(want, behind...))
	if got.data[0] == allZero(want[:block]) {
		t.Error("zeros of a device are stored")
	}
	if _, err := convert.ToBlockDevice(dev, 10<<20); !errors.Is(err, convert.ErrTooSmall) {
		t.Errorf("too small a device: %v", err)
	}
}
