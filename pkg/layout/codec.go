package layout

import (
	"encoding/binary"
	"errors"
	"fmt"
)

var (
	// ErrCorrupt is wrapped by every decoder's error: the bytes are not a
	// canonical encoding of the object.
	ErrCorrupt = errors.New("corrupt")
	// ErrVersion says that the object is of a format version or uses a feature
	// this program does not know.
	ErrVersion = errors.New("unsupported format version or feature")
)

func corrupt(object, format string, args ...any) error {
	return fmt.Errorf("%s: %w: %s", object, ErrCorrupt, fmt.Sprintf(format, args...))
}

// cursor reads big-endian fields off a byte slice; after running past the end
// every read gives zeros and ok is false.
type cursor struct {
	b  []byte
	ok bool
}

func newCursor(b []byte) *cursor { return &cursor{b: b, ok: true} }

var zeros [64]byte

func (c *cursor) take(n int) []byte {
	if n > len(c.b) {
		c.ok = false
		c.b = nil
		return zeros[:min(n, len(zeros))]
	}
	p := c.b[:n]
	c.b = c.b[n:]
	return p
}

func (c *cursor) u8() uint8   { return c.take(1)[0] }
func (c *cursor) u16() uint16 { return binary.BigEndian.Uint16(c.take(2)) }
func (c *cursor) u32() uint32 { return binary.BigEndian.Uint32(c.take(4)) }
func (c *cursor) u64() uint64 { return binary.BigEndian.Uint64(c.take(8)) }

// zero reads n bytes that must be zero.
func (c *cursor) zero(n int) {
	for _, b := range c.take(n) {
		if b != 0 {
			c.ok = false
		}
	}
}

// done says whether all was read, and nothing is left over.
func (c *cursor) done() bool { return c.ok && len(c.b) == 0 }

var be = binary.BigEndian
