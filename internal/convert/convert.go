// Package convert moves disk images in and out of a store: sources (raw files,
// block devices, pipes, qcow2 images, NBD servers, volumes) that stream their
// contents with their holes, and sinks (files, stdout, block devices, qcow2
// images, NBD servers) that take such a stream.
//
// A stream is a sequence of pieces in ascending order, without gaps. Data is
// read ahead by several goroutines, so that an NBD server or a volume that
// decrypts is kept busy while the receiver works. Nothing is spooled: no
// plaintext touches a disk but the one that the user named.
//
// qcow2 goes through qemu-nbd, which is run with a private unix socket for as
// long as the image is open.
package convert

import (
	"context"
	"errors"
	"fmt"
)

var (
	// ErrBacking is returned for a qcow2 image that refers to another file.
	// Whoever made the image chose that file; following it could read
	// anything the user can read.
	ErrBacking = errors.New("image refers to another file")
	// ErrFormat is returned for an image that is not in the format that was
	// asked for, or in one that is not read.
	ErrFormat = errors.New("unsupported image format")
	// ErrNoProgram is returned when a program that is needed is not installed.
	ErrNoProgram = errors.New("program not found")
	// ErrTooLarge is returned when a source does not fit.
	ErrTooLarge = errors.New("source is larger than the volume")
	// ErrTooSmall is returned when a device cannot take the whole volume.
	ErrTooSmall = errors.New("too small")
)

// Kind says what a range holds.
type Kind uint8

const (
	Data Kind = iota // bytes to be read
	Zero             // reads as zeros, and is allocated
	Hole             // reads as zeros, and takes no space
)

// Run is a range of one kind. It is never empty.
type Run struct {
	Off, Len int64
	Kind     Kind
}

// Piece is a part of a stream: some bytes, or a range of zeros.
type Piece struct {
	Run
	// Bytes is Len bytes of a Data piece, valid until the receiver returns.
	Bytes []byte
}

// UnknownSize is the Size of a source that ends when it ends.
const UnknownSize = -1

// Source is an image to be read. It is used by one goroutine.
type Source interface {
	// Size is in bytes, or UnknownSize.
	Size() int64
	// Stream calls fn with the pieces of the whole image. It ends early, with
	// fn's error, if that is not nil.
	Stream(ctx context.Context, fn func(Piece) error) error
	Close() error
}

// Random is an image whose parts can be read in any order.
type Random interface {
	Size() int64
	// ReadAt fills p or fails; several goroutines call it at the same time.
	// It may overwrite p[len(p):len(p)+16].
	ReadAt(p []byte, off int64) error
	// Next is the run that starts at off, which is inside the image. One
	// goroutine calls it, with ascending offsets.
	Next(ctx context.Context, off int64) (Run, error)
	Close() error
}

// Sink takes an image. Its methods are called by one goroutine, with ascending
// offsets and without gaps; a new sink reads as zeros.
type Sink interface {
	Write(p []byte, off int64) error
	Zero(off, n int64) error
	// Finish makes the image durable and puts it in its place.
	Finish() error
	// Abort leaves nothing of the image behind, as far as that is possible.
	// After Finish it does nothing.
	Abort()
}

// Export copies src to sink. progress is told of bytes as they are done; it
// may be nil. The sink is finished, or aborted if there was an error.
func Export(ctx context.Context, src Source, sink Sink, progress func(n int64)) error {
	defer sink.Abort()
	if progress == nil {
		progress = func(int64) {}
	}
	err := src.Stream(ctx, func(p Piece) error {
		if p.Kind != Data {
			return zeroSteps(ctx, p.Run, sink.Zero, progress)
		}
		if err := sink.Write(p.Bytes, p.Off); err != nil {
			return err
		}
		progress(p.Len)
		return ctx.Err()
	})
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := sink.Finish(); err != nil {
		return fmt.Errorf("finish image: %w", err)
	}
	return nil
}

// zeroSteps cuts a range of zeros, so that a slow receiver can be stopped.
func zeroSteps(ctx context.Context, r Run, zero func(off, n int64) error, progress func(int64)) error {
	step := max(zeroStep, r.Len/4096)
	for end := r.Off + r.Len; r.Off < end; r.Off += step {
		n := min(step, end-r.Off)
		if err := zero(r.Off, n); err != nil {
			return err
		}
		progress(n)
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	return nil
}

const zeroStep = 64 << 20
