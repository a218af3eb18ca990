package nbddev_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fsximg/fsx/internal/attach/nbddev"
	"github.com/mdlayher/genetlink"
	"github.com/mdlayher/genetlink/genltest"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

const familyID = 0x1d

// fakeKernel answers messages as the kernel would, and has files in place of sysfs.
type fakeKernel struct {
	t        *testing.T
	sys, dev string
	asked    []genetlink.Message
	answer   func(genetlink.Message) ([]genetlink.Message, error)
	noFamily bool
}

func newFakeKernel(t *testing.T) *fakeKernel {
	f := &fakeKernel{t: t, sys: t.TempDir(), dev: t.TempDir()}
	f.write("module/nbd/refcnt", "0")
	return f
}

func (f *fakeKernel) write(path, text string) {
	f.t.Helper()
	path = filepath.Join(f.sys, path)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text+"\n"), 0o644)); err != nil {
		f.t.Fatal(err)
	}
}

// device puts a device into sysfs.
func (f *fakeKernel) device(index int, attributes map[string]string) {
	for name, text := range attributes {
		f.write(fmt.Sprintf("block/nbd%d/%s", index, name), text)
	}
}

func (f *fakeKernel) kernel() *nbddev.Kernel {
	return nbddev.NewKernel(f.sys, f.dev, func() (*genetlink.Conn, error) {
		if f.noFamily {
			return genltest.Dial(func(genetlink.Message, netlink.Message) ([]genetlink.Message, error) {
				return nil, genltest.Error(int(unix.ENOENT))
			}), nil
		}
		family := genetlink.Family{ID: familyID, Version: 1, Name: "nbd"}
		return genltest.Dial(genltest.ServeFamily(family, func(m genetlink.Message, n netlink.Message) ([]genetlink.Message, error) {
			f.asked = append(f.asked, m)
			if int(n.Header.Type) != familyID || n.Header.Flags&netlink.Request == 0 {
				f.t.Errorf("a message to family %d, flags %s", n.Header.Type, n.Header.Flags)
			}
			return f.answer(m)
		})), nil
	}, func(context.Context) error { return errors.New("module not found") })
}

// refuses has every message answered by an error.
func (f *fakeKernel) refuses(errno unix.Errno) {
	f.answer = func(genetlink.Message) ([]genetlink.Message, error) { return nil, genltest.Error(int(errno)) }
}

func (f *fakeKernel) accepts(answer ...byte) {
	f.answer = func(m genetlink.Message) ([]genetlink.Message, error) {
		return []genetlink.Message{{Header: m.Header, Data: answer}}, nil
	}
}

// socket is a file whose descriptor has the number that the vectors have.
func socket(t *testing.T, number int) *os.File {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	defer r.Close()
	if err := unix.Dup3(int(r.Fd()), number, unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(number), "socket")
	t.Cleanup(func() { f.Close() })
	return f
}

func TestConnectMessage(t *testing.T) {
	f := newFakeKernel(t)
	f.refuses(unix.EBUSY) // the message is what is looked at
	_, err := f.kernel().Connect(t.Context(), []*os.File{socket(t, 0x65), socket(t, 0x66)}, nbddev.Options{
		Path: "/dev/nbd3", Size: 1 << 30, Flags: 0x12d, Backend: "fsx:a:b",
		RequestTimeout: 1500 * time.Millisecond, DeadTimeout: time.Minute,
	})
	if !errors.Is(err, nbddev.ErrInUse) {
		t.Errorf("error: %v", err)
	}
	if len(f.asked) != 1 || f.asked[0].Header.Command != 1 || f.asked[0].Header.Version != 1 {
		t.Fatalf("asked %+v", f.asked)
	}
	want := vector(t, `
		0800 0100 03000000           # NBD_ATTR_INDEX
		0c00 0200 0000004000000000   # NBD_ATTR_SIZE_BYTES
		0c00 0300 0002000000000000   # NBD_ATTR_BLOCK_SIZE_BYTES 512
		0c00 0400 0200000000000000   # NBD_ATTR_TIMEOUT, rounded up
		0c00 0500 2d01000000000000   # NBD_ATTR_SERVER_FLAGS
		0c00 0800 3c00000000000000   # NBD_ATTR_DEAD_CONN_TIMEOUT
		1c00 0780                    # NBD_ATTR_SOCKETS, nested
		0c00 0180 0800 0100 65000000 # NBD_SOCK_ITEM, NBD_SOCK_FD
		0c00 0180 0800 0100 66000000
		0c00 0a00 6673783a613a6200   # NBD_ATTR_BACKEND_IDENTIFIER, with its zero`)
	if !bytes.Equal(f.asked[0].Data, want) {
		t.Errorf("message\n% x, want\n% x", f.asked[0].Data, want)
	}
}

func TestConnectedDeviceAppears(t *testing.T) {
	f := newFakeKernel(t)
	f.accepts(vector(t, "0800 0100 05000000")...)
	f.device(5, map[string]string{"size": "2048", "ro": "1", "pid": "77", "queue/io_timeout": "30000"})
	if err := os.WriteFile(filepath.Join(f.dev, "nbd5"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	// A file is no block device: the partition scan fails, and the device is ended again.
	_, err := f.kernel().Connect(t.Context(), []*os.File{socket(t, 0x67)}, nbddev.Options{Size: 1 << 20, ReadOnly: true})
	if !errors.Is(err, unix.ENOTTY) {
		t.Fatalf("error: %v", err)
	}
	text, err := os.ReadFile(filepath.Join(f.sys, "block/nbd5/queue/io_timeout"))
	if err != nil || string(text) != "10000\n" {
		t.Errorf("io_timeout %q, %v", text, err)
	}
	if len(f.asked) != 2 || f.asked[1].Header.Command != 2 || !bytes.Equal(f.asked[1].Data, vector(t, "0800 0100 05000000")) {
		t.Errorf("not disconnected: %+v", f.asked)
	}
	if !bytes.Contains(f.asked[0].Data, vector(t, "0c00 0500 0200000000000000")) {
		t.Errorf("flags without read-only: % x", f.asked[0].Data)
	}
}

func TestConnectRefuses(t *testing.T) {
	f := newFakeKernel(t)
	f.answer = func(genetlink.Message) ([]genetlink.Message, error) {
		t.Error("the kernel was asked")
		return nil, genltest.Error(int(unix.EINVAL))
	}
	one := []*os.File{socket(t, 0x68)}
	for name, c := range map[string]struct {
		sockets []*os.File
		opt     nbddev.Options
		want    string
	}{
		"no socket":        {nil, nbddev.Options{Size: 512}, "needs a socket"},
		"two, server: one": {append(one, one...), nbddev.Options{Size: 512}, "one connection"},
		"no size":          {one, nbddev.Options{}, "size 0"},
		"half a block":     {one, nbddev.Options{Size: 4096 + 512, BlockSize: 4096}, "multiple of 4096"},
		"odd block":        {one, nbddev.Options{Size: 1 << 20, BlockSize: 513}, "block size 513"},
		"large block":      {one, nbddev.Options{Size: 1 << 20, BlockSize: 1 << 17}, "block size 131072"},
		"other device":     {one, nbddev.Options{Size: 512, Path: "/dev/sda"}, "/dev/sda is not"},
		"partition":        {one, nbddev.Options{Size: 512, Path: "/dev/nbd0p1"}, "/dev/nbd0p1 is not"},
		"long backend":     {one, nbddev.Options{Size: 512, Backend: strings.Repeat("x", 1025)}, "1025 bytes"},
		"negative":         {one, nbddev.Options{Size: 512, DeadTimeout: -1}, "below 0"},
	} {
		if _, err := f.kernel().Connect(t.Context(), c.sockets, c.opt); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestErrorsOfTheKernel(t *testing.T) {
	for errno, want := range map[unix.Errno]error{
		unix.EPERM: nbddev.ErrPermission, unix.EBUSY: nbddev.ErrInUse, unix.ENOSPC: nbddev.ErrNoDevice,
	} {
		f := newFakeKernel(t)
		f.refuses(errno)
		_, err := f.kernel().Connect(t.Context(), []*os.File{socket(t, 0x69)}, nbddev.Options{Size: 512, Way: nbddev.Netlink})
		if !errors.Is(err, want) || !errors.Is(err, errno) {
			t.Errorf("%v: %v, want %v", errno, err, want)
		}
	}
}

func TestNoModule(t *testing.T) {
	f := newFakeKernel(t)
	if err := os.RemoveAll(filepath.Join(f.sys, "module")); err != nil {
		t.Fatal(err)
	}
	err := f.kernel().Load(t.Context())
	if !errors.Is(err, nbddev.ErrNoModule) || !strings.Contains(err.Error(), "modprobe nbd") {
		t.Errorf("error: %v", err)
	}
	f.noFamily = true
	if _, err := f.kernel().Watch(); !errors.Is(err, nbddev.ErrNoModule) {
		t.Errorf("watch: %v", err)
	}
}

func TestNoNetlink(t *testing.T) {
	f := newFakeKernel(t)
	f.noFamily = true
	k := f.kernel()
	_, err := k.Connect(t.Context(), []*os.File{socket(t, 0x6a)}, nbddev.Options{Size: 512, Way: nbddev.Netlink})
	if !errors.Is(err, nbddev.ErrNoNetlink) {
		t.Errorf("netlink: %v", err)
	}
	// By ioctl then, and there is no device that is free.
	_, err = k.Connect(t.Context(), []*os.File{socket(t, 0x6b)}, nbddev.Options{Size: 512})
	if !errors.Is(err, nbddev.ErrNoDevice) {
		t.Errorf("ioctl: %v", err)
	}
}
