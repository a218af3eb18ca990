package convert

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// file is a regular file or a block device, read as it is.
type file struct {
	f      *os.File
	size   int64
	sparse bool // SEEK_DATA works
}

// openRaw makes a source of f, which it takes over: a regular file or block
// device is read in parallel and with its holes, anything else is a pipe.
func openRaw(f *os.File) (Source, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	switch mode := st.Mode(); {
	case mode.IsRegular():
		// A file on stdin may have been read already; what follows counts.
		if at, err := f.Seek(0, io.SeekCurrent); err != nil || at != 0 {
			return newPipe(f, nil), err
		}
		return FromRandom(&file{f: f, size: st.Size(), sparse: true}), nil
	case mode.IsDir():
		return nil, fmt.Errorf("%w: %w", ErrFormat, syscall.EISDIR)
	case mode&os.ModeDevice != 0 && mode&os.ModeCharDevice == 0:
		size, err := f.Seek(0, io.SeekEnd)
		if err != nil {
			return nil, fmt.Errorf("size of device: %w", err)
		}
		return FromRandom(&file{f: f, size: size}), nil
	default:
		return newPipe(f, nil), nil
	}
}

func (f *file) Size() int64  { return f.size }
func (f *file) Close() error { return f.f.Close() }

func (f *file) ReadAt(p []byte, off int64) error {
	_, err := f.f.ReadAt(p, off)
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: it became shorter", io.ErrUnexpectedEOF)
	}
	return err
}

// Next asks the file system for the next hole. Where it cannot tell, all is
// data; the receiver finds zeros by itself.
func (f *file) Next(_ context.Context, off int64) (Run, error) {
	rest := Run{off, f.size - off, Data}
	if !f.sparse {
		return rest, nil
	}
	data, err := unix.Seek(int(f.f.Fd()), off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		rest.Kind = Hole
		return rest, nil
	case err != nil:
		f.sparse = false
		return rest, nil
	case data > off:
		return Run{off, min(data, f.size) - off, Hole}, nil
	}
	hole, err := unix.Seek(int(f.f.Fd()), off, unix.SEEK_HOLE)
	if err != nil {
		return Run{}, err
	}
	if hole <= off {
		return Run{}, fmt.Errorf("%w: it became shorter", io.ErrUnexpectedEOF)
	}
	return Run{off, min(hole, f.size) - off, Data}, nil
}

// pipe is a source of unknown size that is read once.
type pipe struct {
	r io.Reader
	c io.Closer
}

// newPipe reads f; head was read of it already.
func newPipe(f *os.File, head io.Reader) Source {
	if head != nil {
		return &pipe{io.MultiReader(head, f), f}
	}
	return &pipe{f, f}
}

func (p *pipe) Size() int64  { return UnknownSize }
func (p *pipe) Close() error { return p.c.Close() }

// Stream reads one piece ahead. A read that blocks is not interrupted by ctx;
// the process ends without it.
func (p *pipe) Stream(ctx context.Context, fn func(Piece) error) error {
	type filled struct {
		buf []byte
		n   int
		err error
	}
	ch, free := make(chan filled), make(chan []byte, 2)
	free <- make([]byte, pieceSize)
	free <- make([]byte, pieceSize)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		for {
			var f filled
			select {
			case f.buf = <-free:
			case <-ctx.Done():
				return
			}
			f.n, f.err = io.ReadFull(p.r, f.buf)
			select {
			case ch <- f:
			case <-ctx.Done():
				return
			}
			if f.err != nil {
				return
			}
		}
	}()
	for off := int64(0); ; {
		var f filled
		select {
		case f = <-ch:
		case <-ctx.Done():
			return ctx.Err()
		}
		if f.n > 0 {
			if err := fn(Piece{Run{off, int64(f.n), Data}, f.buf[:f.n]}); err != nil {
				return err
			}
			off += int64(f.n)
		}
		switch {
		case errors.Is(f.err, io.EOF), errors.Is(f.err, io.ErrUnexpectedEOF):
			return nil
		case f.err != nil:
			return fmt.Errorf("read at %d: %w", off, f.err)
		}
		free <- f.buf
	}
}
