package main

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/fsximg/fsx/internal/volume"
	"github.com/fsximg/fsx/pkg/nbdsrv"
)

// device is a volume or a snapshot as the NBD server wants it: with its ErrWouldBlock, and
// with errors that carry an errno where NBD has one. Two devices of the same
// volume are equal, by which the server recognises them.
type device struct{ nbdsrv.Device }

var (
	_ nbdsrv.Device   = device{}
	_ nbdsrv.Contexts = device{}
)

func (d device) ReadAt(p []byte, off int64, nowait bool) error {
	return wire(d.Device.ReadAt(p, off, nowait))
}

func (d device) WriteAt(p []byte, off int64, nowait bool) error {
	return wire(d.Device.WriteAt(p, off, nowait))
}

func (d device) ZeroAt(off, n int64, noHole bool) error {
	return wire(d.Device.ZeroAt(off, n, noHole))
}
func (d device) TrimAt(off, n int64) error   { return wire(d.Device.TrimAt(off, n)) }
func (d device) Flush() error                { return wire(d.Device.Flush()) }
func (d device) Prefetch(off, n int64) error { return wire(d.Device.Prefetch(off, n)) }

func (d device) Status(off, n int64, fn func(length int64, hole, zero bool) bool) error {
	return wire(d.Device.Status(off, n, fn))
}

// Contexts is empty where the inner device has none.
func (d device) Contexts() []string {
	if inner, ok := d.Device.(nbdsrv.Contexts); ok {
		return inner.Contexts()
	}
	return nil
}

func (d device) StatusIn(context string, off, n int64, fn func(length int64, flags uint32) bool) error {
	inner, ok := d.Device.(nbdsrv.Contexts)
	if !ok {
		return syscall.EINVAL
	}
	return wire(inner.StatusIn(context, off, n, fn))
}

func wire(err error) error {
	switch {
	case err == nil:
		return nil
	case err == volume.ErrWouldBlock || errors.Is(err, volume.ErrWouldBlock):
		return nbdsrv.ErrWouldBlock
	case errors.Is(err, volume.ErrReadOnly):
		return fmt.Errorf("%w: %w", err, syscall.EROFS)
	}
	return err
}
