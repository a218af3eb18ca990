package store

import (
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/fsximg/fsx/internal/vfs"
	"github.com/fsximg/fsx/pkg/layout"
)

// The keyring file has two areas, written in turn:
//
//	 0  magic "FSXKRING"
//	 8  generation, be64
//	16  length of the body, be32
//	20  zeros, 12
//	32  SHA-256 of bytes 0 to 31 and the body
//	64  body (docs/crypto.md)
const (
	keyringMagic  = "FSXKRING"
	areaSize      = 16 << 20
	areaHeader    = 64
	maxKeyringLen = areaSize - areaHeader
)

// KeyringArea is one valid area of the keyring file.
type KeyringArea struct {
	Body       []byte
	Generation uint64
}

// ReadKeyring returns the valid areas, the newest first: at least one. They are
// durable: an area that a killed process wrote is synced before it is believed.
func (d *Dir) ReadKeyring() (areas []KeyringArea, err error) {
	f, err := d.fs.OpenFile(filepath.Join(d.Path, keyringName), os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := f.Datasync(); err != nil {
		return nil, err
	}
	for area := range int64(2) {
		b, gen, err := readArea(f, area*areaSize)
		if err != nil {
			return nil, err
		}
		if b != nil && gen != 0 && gen%2 == uint64(area) {
			areas = append(areas, KeyringArea{b, gen})
		}
	}
	if len(areas) == 0 {
		return nil, fmt.Errorf("%s: keyring: %w: no valid area", d.Path, layout.ErrCorrupt)
	}
	slices.SortFunc(areas, func(a, b KeyringArea) int { return cmp.Compare(b.Generation, a.Generation) })
	return areas, nil
}

func readArea(f vfs.File, off int64) (body []byte, gen uint64, err error) {
	var h [areaHeader]byte
	if n, err := f.ReadAt(h[:], off); n < len(h) {
		if errors.Is(err, io.EOF) {
			return nil, 0, nil
		}
		return nil, 0, err
	}
	n := be.Uint32(h[16:])
	if string(h[:8]) != keyringMagic || n > maxKeyringLen || [12]byte(h[20:32]) != [12]byte{} {
		return nil, 0, nil
	}
	body = make([]byte, n)
	if m, err := f.ReadAt(body, off+areaHeader); m < len(body) {
		if errors.Is(err, io.EOF) {
			return nil, 0, nil
		}
		return nil, 0, err
	}
	if areaSum(h[:32], body) != layout.Hash(h[32:]) {
		return nil, 0, nil
	}
	return body, be.Uint64(h[8:]), nil
}

func areaSum(header, body []byte) (sum layout.Hash) {
	s := sha256.New()
	s.Write(header)
	s.Write(body)
	s.Sum(sum[:0])
	return sum
}

// WriteKeyring writes the body into the area that the generation belongs to, and
// syncs it: with the generation after the newest into the older area, so that a
// torn write leaves the newer one. What a longer body left behind this one is
// overwritten with zeros.
func (d *Dir) WriteKeyring(body []byte, generation uint64) error {
	return d.writeArea(body, generation, bodyLength)
}

// ShredKeyring is WriteKeyring, and overwrites with zeros whatever else is in the
// area, a torn write's leavings too.
func (d *Dir) ShredKeyring(body []byte, generation uint64) error {
	return d.writeArea(body, generation, usedLength)
}

// writeArea writes an area. old tells how much of it may have been written before,
// in bytes from its start.
func (d *Dir) writeArea(body []byte, generation uint64, old func(f vfs.File, off int64) (int, error)) error {
	if len(body) > maxKeyringLen {
		return fmt.Errorf("keyring: %d bytes are too many", len(body))
	}
	f, err := d.fs.OpenFile(filepath.Join(d.Path, keyringName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	off := int64(generation%2) * areaSize
	length, err := old(f, off)
	if err != nil {
		return err
	}
	b := make([]byte, max(areaHeader+len(body), length))
	copy(b, keyringMagic)
	be.PutUint64(b[8:], generation)
	be.PutUint32(b[16:], uint32(len(body)))
	sum := areaSum(b[:32], body)
	copy(b[32:], sum[:])
	copy(b[areaHeader:], body)
	if _, err := f.WriteAt(b, off); err != nil {
		return err
	}
	if err := f.Datasync(); err != nil {
		return err
	}
	return d.fs.SyncDir(d.Path)
}

// bodyLength is the length of an area as its header says; 0 if it has none.
func bodyLength(f vfs.File, off int64) (int, error) {
	var h [areaHeader]byte
	n, err := f.ReadAt(h[:], off)
	if err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	length := be.Uint32(h[16:])
	if n < len(h) || string(h[:8]) != keyringMagic || length > maxKeyringLen {
		return 0, nil
	}
	size, err := f.Size()
	return int(min(areaHeader+int64(length), max(size-off, 0))), err
}

// usedLength is the length of an area up to its last byte that is not zero.
func usedLength(f vfs.File, off int64) (int, error) {
	const step = 1 << 20
	used := 0
	buf := make([]byte, step)
	for at := 0; at < areaSize; at += step {
		n, err := f.ReadAt(buf, off+int64(at))
		if err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
		for i := n - 1; i >= 0; i-- {
			if buf[i] != 0 {
				used = at + i + 1
				break
			}
		}
		if n < step {
			break
		}
	}
	return used, nil
}
