package convert

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
)

// Format is how an image is stored.
type Format string

const (
	Auto  Format = "auto" // raw, unless it begins as a qcow2 image does
	Raw   Format = "raw"
	Qcow2 Format = "qcow2"
)

// ParseFormat reads a --format option.
func ParseFormat(s string) (Format, error) {
	switch f := Format(s); f {
	case Auto, Raw, Qcow2:
		return f, nil
	}
	return "", fmt.Errorf("format %q: %w; use auto, raw or qcow2", s, ErrFormat)
}

// Options says how an image is opened.
type Options struct {
	Format       Format // empty is Auto
	AllowBacking bool   // a qcow2 image may refer to other files
}

// IsURI is whether name is an NBD URI rather than a path.
func IsURI(name string) bool {
	scheme, _, found := strings.Cut(name, ":")
	switch scheme {
	case "nbd", "nbd+unix", "nbds", "nbds+unix":
		return found
	}
	return false
}

// Open makes a source of f, which it takes over: it is closed with the source,
// or here if there is an error.
func Open(ctx context.Context, f *os.File, o Options) (src Source, err error) {
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	if o.Format == Raw {
		return openRaw(f)
	}
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if st.IsDir() {
		return nil, fmt.Errorf("%w: %w", ErrFormat, syscall.EISDIR)
	}
	head := make([]byte, 1024)
	n, seekable, err := peek(f, head)
	if err != nil {
		return nil, err
	}
	isQcow2 := bytes.HasPrefix(head[:n], qcow2Magic)
	switch {
	case !seekable && (isQcow2 || o.Format == Qcow2):
		return nil, fmt.Errorf("%w: qcow2 cannot be read from a pipe", ErrFormat)
	case isQcow2:
		if err := checkQcow2(head[:n], o.AllowBacking); err != nil {
			return nil, err
		}
		return openQcow2(ctx, f, o.AllowBacking)
	case o.Format == Qcow2:
		return nil, fmt.Errorf("%w: not a qcow2 image", ErrFormat)
	}
	if other := foreign(head[:n]); other != "" {
		return nil, fmt.Errorf("%w: it looks like %s", ErrFormat, other)
	}
	if !seekable {
		return newPipe(f, bytes.NewReader(head[:n])), nil
	}
	return openRaw(f)
}

// peek reads the beginning of f, and goes back if it can.
func peek(f *os.File, head []byte) (n int, seekable bool, err error) {
	at, err := f.Seek(0, io.SeekCurrent)
	if err == nil && at == 0 {
		n, err = f.ReadAt(head, 0)
		if errors.Is(err, io.EOF) {
			err = nil
		}
		return n, true, err
	}
	n, err = io.ReadFull(f, head)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = nil
	}
	return n, false, err
}

// foreign names the format of something that is surely not meant to be read
// byte by byte, empty if it may be.
func foreign(head []byte) string {
	for _, f := range []struct {
		off   int
		magic string
		name  string
	}{
		{0, "KDMV", "a VMDK image"},
		{0, "vhdxfile", "a VHDX image"},
		{0, "conectix", "a VHD image"},
		{0x40, "\x7f\x10\xda\xbe", "a VDI image"},
		{0, "\x1f\x8b\x08", "a gzip file"},
		{0, "\xfd7zXZ\x00", "an xz file"},
		{0, "\x28\xb5\x2f\xfd", "a zstd file"},
		{0, "BZh9", "a bzip2 file"},
	} {
		if len(head) > f.off && bytes.HasPrefix(head[f.off:], []byte(f.magic)) {
			return f.name
		}
	}
	return ""
}

var qcow2Magic = []byte("QFI\xfb")

// checkQcow2 reads what it needs of a qcow2 header (docs/interop/qcow2.txt of
// QEMU): a backing file, an external data file and QEMU's own encryption are
// refused.
func checkQcow2(head []byte, allowBacking bool) error {
	if len(head) < 72 {
		return fmt.Errorf("%w: qcow2 header of %d bytes", ErrFormat, len(head))
	}
	be := binary.BigEndian
	version := be.Uint32(head[4:])
	switch {
	case version != 2 && version != 3:
		return fmt.Errorf("%w: qcow2 version %d", ErrFormat, version)
	case be.Uint32(head[32:]) != 0:
		return fmt.Errorf("%w: qcow2 with encryption of its own", ErrFormat)
	case allowBacking:
		return nil
	case be.Uint64(head[8:]) != 0:
		return fmt.Errorf("%w (a backing file)", ErrBacking)
	case version == 3 && len(head) >= 80 && be.Uint64(head[72:])&4 != 0:
		return fmt.Errorf("%w (an external data file)", ErrBacking)
	}
	return nil
}
