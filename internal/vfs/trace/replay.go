package trace

import (
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// replay applies a file's pending changes to f, which has its durable content,
// as far as keep lets them survive, and returns the resulting size and mode.
//
// Changes of the metadata (size, holes, mode) survive in their order, so the
// size is that after the last surviving one; data survives independently of
// them, but ends at that size, and is zero where a surviving truncation or
// punch came after it.
func (im *imager) replay(f *os.File, s *state, keep *fates) (size int64, mode uint32, err error) {
	size, mode = s.size, s.mode
	meta := keep.prefix(s.metadataChanges())
	live := s.size // the size that the program saw
	for _, c := range s.pending {
		op, grown := c.op, max(live, c.op.Off+c.op.Len)
		if op.Kind == Write {
			if err := im.replayWrite(f, c, keep); err != nil {
				return 0, 0, err
			}
			if grown == live {
				continue
			}
		}
		live = op.sizeAfter(live)
		if meta == 0 {
			continue
		}
		meta--
		size = live
		switch op.Kind {
		case Truncate:
			err = f.Truncate(op.Off)
		case Punch:
			err = punch(f, op.Off, min(op.Len, live-op.Off))
		case Chmod:
			mode = op.Mode & 0o7777
		}
		if err != nil {
			return 0, 0, err
		}
	}
	return size, mode, f.Truncate(size)
}

// metadataChanges counts the pending changes other than writes within the size.
func (s *state) metadataChanges() int {
	n, live := 0, s.size
	for _, c := range s.pending {
		after := c.op.sizeAfter(live)
		if c.op.Kind != Write || after != live {
			n++
		}
		live = after
	}
	return n
}

// sizeAfter is a file's size after op.
func (op *Op) sizeAfter(size int64) int64 {
	switch op.Kind {
	case Write, Allocate:
		return max(size, op.Off+op.Len)
	case Truncate:
		return op.Off
	}
	return size
}

func (im *imager) replayWrite(f *os.File, c change, keep *fates) error {
	whole, torn := keep.whole()
	if whole && c.lost {
		return nil // the system believes it is on disk and it is not
	}
	if !whole && !torn || c.op.Len == 0 {
		return nil
	}
	data, err := im.t.payload(c.op)
	if err != nil {
		return err
	}
	if torn {
		return writeSectors(f, data, c.op.Off, keep)
	}
	_, err = f.WriteAt(data, c.op.Off)
	return err
}

// writeSectors writes those sectors of data that survive.
func writeSectors(f *os.File, data []byte, off int64, keep *fates) error {
	mixed := make([]byte, len(data))
	if _, err := f.ReadAt(mixed, off); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	any := false
	for at := int64(0); at < int64(len(data)); {
		end := min((off+at)/SectorSize*SectorSize+SectorSize-off, int64(len(data)))
		if keep.sector() {
			copy(mixed[at:end], data[at:end])
			any = true
		}
		at = end
	}
	if !any {
		return nil
	}
	_, err := f.WriteAt(mixed, off)
	return err
}

func punch(f *os.File, off, n int64) error {
	if n <= 0 {
		return nil
	}
	err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	if err != unix.EOPNOTSUPP {
		return err
	}
	zeros := make([]byte, min(n, 1<<20))
	for n > 0 {
		w, err := f.WriteAt(zeros[:min(n, int64(len(zeros)))], off)
		if err != nil {
			return err
		}
		off, n = off+int64(w), n-int64(w)
	}
	return nil
}

// copySparse makes dst, which must not exist, a copy of src with its holes, and
// returns it open. An empty src stands for an empty file.
func copySparse(dst, src string) (*os.File, error) {
	out, err := os.OpenFile(dst, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	if src != "" {
		if err := copyData(out, src); err != nil {
			out.Close()
			return nil, err
		}
	}
	return out, nil
}

func copyData(out *os.File, src string) error {
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	defer in.Close()
	size, err := in.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	for off := int64(0); off < size; {
		start, err := unix.Seek(int(in.Fd()), off, unix.SEEK_DATA)
		if err == unix.ENXIO {
			break // a hole up to the end
		} else if err != nil {
			return err
		}
		end, err := unix.Seek(int(in.Fd()), start, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		if err := copyRange(out, in, start, end); err != nil {
			return err
		}
		off = end
	}
	return out.Truncate(size)
}

func copyRange(out, in *os.File, off, end int64) error {
	for off < end {
		roff, woff := off, off
		n, err := unix.CopyFileRange(int(in.Fd()), &roff, int(out.Fd()), &woff, int(end-off), 0)
		if err != nil || n == 0 { // not between these file systems
			_, err = io.Copy(io.NewOffsetWriter(out, off), io.NewSectionReader(in, off, end-off))
			return err
		}
		off += int64(n)
	}
	return nil
}
