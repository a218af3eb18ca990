package main

import (
	"errors"
	"fmt"
	"syscall"
	"testing"

	"github.com/fsximg/fsx/internal/volume"
	"github.com/fsximg/fsx/pkg/nbdsrv"
)

// inner is a device with one context, whose flags are the range's length.
type inner struct {
	nbdsrv.Device
	err error
}

func (inner) Contexts() []string { return []string{"x-test:a"} }

func (i inner) StatusIn(_ string, _, n int64, fn func(int64, uint32) bool) error {
	fn(n, uint32(n))
	return i.err
}

func TestDeviceContexts(t *testing.T) {
	var plain nbdsrv.Contexts = device{struct{ nbdsrv.Device }{}}
	if names := plain.Contexts(); len(names) != 0 {
		t.Errorf("contexts of a device without any: %q", names)
	}
	if err := plain.StatusIn("x-test:a", 0, 1, nil); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("status in a context of a device without any: %v", err)
	}
	for err, want := range map[error]error{
		nil: nil,
		fmt.Errorf("wrapped: %w", volume.ErrReadOnly): syscall.EROFS,
	} {
		d := device{inner{err: err}}
		if names := d.Contexts(); len(names) != 1 || names[0] != "x-test:a" {
			t.Errorf("contexts %q", names)
		}
		told := uint32(0)
		got := d.StatusIn("x-test:a", 0, 9, func(_ int64, flags uint32) bool { told = flags; return true })
		if !errors.Is(got, want) || told != 9 {
			t.Errorf("status %d, error %v, want %v", told, got, want)
		}
	}
}
