package nbddev_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/fsximg/fsx/internal/attach/nbddev"
	"github.com/mdlayher/genetlink"
	"golang.org/x/sys/unix"
)

func TestList(t *testing.T) {
	f := newFakeKernel(t)
	f.device(10, map[string]string{"size": "0", "ro": "0"})
	f.device(2, map[string]string{"size": "16", "ro": "1", "pid": "4711", "backend": "fsx:u:main@one"})
	f.device(0, map[string]string{"size": "0", "ro": "0"})
	f.write("block/nbd2/nbd2p1/size", "8")
	f.write("block/nbdx/size", "8")
	f.accepts(vector(t, `
		4000 0900
		1400 0100 0800 0100 00000000 0500 0200 01 000000
		1400 0100 0800 0100 02000000 0500 0200 01 000000
		1400 0100 0800 0100 0a000000 0500 0200 00 000000`)...)
	want := []nbddev.Device{
		{Index: 0, Path: filepath.Join(f.dev, "nbd0"), Open: true},
		{Index: 2, Path: filepath.Join(f.dev, "nbd2"), Connected: true, PID: 4711, Backend: "fsx:u:main@one", Size: 8192, ReadOnly: true},
		{Index: 10, Path: filepath.Join(f.dev, "nbd10")},
	}
	if got, err := f.kernel().List(); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
	want[0].Open = false
	f.noFamily = true
	if got, err := f.kernel().List(); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("without netlink: %+v, %v", got, err)
	}
}

func TestReconnect(t *testing.T) {
	f := newFakeKernel(t)
	f.accepts()
	f.device(2, map[string]string{"size": "16", "ro": "0", "pid": "1", "backend": "fsx:u:main"})
	f.device(3, map[string]string{"size": "0", "ro": "0"})
	k, s := f.kernel(), socket(t, 0x6c)
	if err := k.Reconnect(2, s, "fsx:u:other"); !errors.Is(err, nbddev.ErrBackend) {
		t.Errorf("another backend: %v", err)
	}
	for _, index := range []int{3, 4} {
		if err := k.Reconnect(index, s, "fsx:u:main"); !errors.Is(err, nbddev.ErrNotConnected) {
			t.Errorf("device %d: %v", index, err)
		}
	}
	if len(f.asked) != 0 {
		t.Fatalf("the kernel was asked: %+v", f.asked)
	}
	if err := k.Reconnect(2, s, "fsx:u:main"); err != nil {
		t.Fatal(err)
	}
	want := vector(t, `
		0800 0100 02000000
		1000 0780 0c00 0180 0800 0100 6c000000
		0f00 0a00 6673783a753a6d61696e00 00`)
	if m := f.asked[0]; m.Header.Command != 3 || !bytes.Equal(m.Data, want) {
		t.Errorf("command %d\n% x, want\n% x", m.Header.Command, m.Data, want)
	}
	if err := k.Fail(2, "fsx:u:main"); err != nil {
		t.Fatal(err)
	}
	want = vector(t, "0800 0100 02000000 0c00 0400 0100000000000000 0f00 0a00 6673783a753a6d61696e00 00")
	if m := f.asked[1]; m.Header.Command != 3 || !bytes.Equal(m.Data, want) {
		t.Errorf("fail: command %d\n% x, want\n% x", m.Header.Command, m.Data, want)
	}
	f.refuses(unix.EINVAL)
	if err := k.Reconnect(2, s, "fsx:u:main"); !errors.Is(err, nbddev.ErrNotConnected) {
		t.Errorf("refused: %v", err)
	}
}

func TestAbandonWaitsUntilItIsGone(t *testing.T) {
	f := newFakeKernel(t)
	f.device(2, map[string]string{"size": "16", "ro": "0", "pid": "1"})
	f.answer = func(m genetlink.Message) ([]genetlink.Message, error) {
		if m.Header.Command == 2 {
			f.device(2, map[string]string{"size": "0"})
			if err := os.Remove(filepath.Join(f.sys, "block/nbd2/pid")); err != nil {
				t.Error(err)
			}
		}
		return []genetlink.Message{{Header: m.Header}}, nil
	}
	if err := f.kernel().Abandon(t.Context(), 2); err != nil {
		t.Error(err)
	}
	if err := f.kernel().Abandon(t.Context(), 2); !errors.Is(err, nbddev.ErrNotConnected) {
		t.Errorf("again: %v", err)
	}
}

func TestIndexOf(t *testing.T) {
	for path, want := range map[string]int{
		"/dev/nbd0": 0, "nbd15": 15, "/dev/nbd0p1": -1, "/dev/nbd": -1, "/dev/nbd01": -1, "/dev/nbd-1": -1, "/dev/nbd+1": -1, "/dev/sda": -1, "": -1,
	} {
		if index, ok := nbddev.IndexOf(path); ok != (want >= 0) || ok && index != want {
			t.Errorf("%q: %d, %t", path, index, ok)
		}
	}
}
