package convert

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// place is a new file beside its final path, under a temporary name.
type place struct {
	path    string // empty once it is settled
	tmp     string
	replace bool
}

// newPlace makes the file, which only its owner can read. An existing path is
// fs.ErrExist unless replace is set.
func newPlace(path string, replace bool) (*place, *os.File, error) {
	if _, err := os.Lstat(path); err == nil && !replace {
		return nil, nil, fmt.Errorf("%s: %w", path, os.ErrExist)
	}
	dir, base := filepath.Split(path)
	if dir == "" {
		dir = "."
	}
	// CreateTemp makes files with mode 0600.
	f, err := os.CreateTemp(dir, "."+base+".part-*")
	if err != nil {
		return nil, nil, err
	}
	return &place{path, f.Name(), replace}, f, nil
}

// settle gives the file, which is durable, its final name.
func (p *place) settle() error {
	flags := uint(unix.RENAME_NOREPLACE)
	if p.replace {
		flags = 0
	}
	err := unix.Renameat2(unix.AT_FDCWD, p.tmp, unix.AT_FDCWD, p.path, flags)
	if errors.Is(err, unix.EINVAL) && !p.replace { // a file system without NOREPLACE
		if err = os.Link(p.tmp, p.path); err == nil {
			err = os.Remove(p.tmp)
		}
	}
	if err != nil {
		return fmt.Errorf("rename to %s: %w", p.path, err)
	}
	dir := filepath.Dir(p.path)
	p.path = ""
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// discard removes the file unless it is settled.
func (p *place) discard() {
	if p.path != "" {
		os.Remove(p.tmp)
		p.path = ""
	}
}

// fileSink is a new raw file, sparse.
type fileSink struct {
	f     *os.File
	place *place
}

// ToFile makes a sink of a new raw file of the given size, with mode 0600. It
// appears under its name when it is complete. An existing file is fs.ErrExist
// unless replace is set.
func ToFile(path string, size int64, replace bool) (Sink, error) {
	p, f, err := newPlace(path, replace)
	if err != nil {
		return nil, err
	}
	s := &fileSink{f, p}
	if err := f.Truncate(size); err != nil {
		s.Abort()
		return nil, err
	}
	return s, nil
}

func (s *fileSink) Write(p []byte, off int64) error {
	_, err := s.f.WriteAt(p, off)
	return err
}

func (s *fileSink) Zero(off, n int64) error { return nil }

func (s *fileSink) Finish() error {
	if err := s.f.Sync(); err != nil {
		return err
	}
	return s.place.settle()
}

func (s *fileSink) Abort() {
	s.place.discard()
	s.f.Close()
}

// streamSink writes everything, zeros too, one byte after the other.
type streamSink struct{ w *bufio.Writer }

// ToStream makes a sink of a writer that cannot seek.
func ToStream(w io.Writer) Sink { return &streamSink{bufio.NewWriterSize(w, 64<<10)} }

func (s *streamSink) Write(p []byte, _ int64) error {
	_, err := s.w.Write(p)
	return err
}

func (s *streamSink) Zero(off, n int64) error { return writeZeros(s.Write, off, n) }
func (s *streamSink) Finish() error           { return s.w.Flush() }
func (s *streamSink) Abort()                  {}

// deviceSink overwrites a block device.
type deviceSink struct{ f *os.File }

// ToBlockDevice makes a sink of a block device that nothing else uses and that
// has at least the given size. What lies behind stays as it is.
func ToBlockDevice(path string, size int64) (Sink, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_EXCL, 0)
	if err != nil {
		return nil, err
	}
	have, err := f.Seek(0, io.SeekEnd)
	if err == nil && have < size {
		err = fmt.Errorf("%s: %w: %d bytes for %d", path, ErrTooSmall, have, size)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return &deviceSink{f}, nil
}

func (s *deviceSink) Write(p []byte, off int64) error {
	_, err := s.f.WriteAt(p, off)
	return err
}

// Zero leaves it to the kernel, which may know a faster way than writing.
func (s *deviceSink) Zero(off, n int64) error {
	err := unix.Fallocate(int(s.f.Fd()), unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	if err == nil {
		return nil
	}
	return writeZeros(s.Write, off, n)
}

func (s *deviceSink) Finish() error { return s.f.Sync() }
func (s *deviceSink) Abort()        { s.f.Close() }
