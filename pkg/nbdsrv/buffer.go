package nbdsrv

import (
	"math/bits"
	"sync"
)

const (
	// bufferFront is the room before a payload: a reply header ends at it.
	bufferFront = 48
	// bufferMargin is what a buffer holds besides its payload.
	bufferMargin = bufferFront + ReadSlack

	minBufferBits = 12
	maxBufferBits = 26
)

// buffer holds one payload, with a reply's header before and slack behind it.
type buffer struct {
	b     []byte
	class int
}

// payload is the n bytes after the front, with exactly the slack as spare
// capacity.
func (b *buffer) payload(n int) []byte {
	return b.b[bufferFront : bufferFront+n : bufferFront+n+ReadSlack]
}

// bufferPool hands out buffers by power-of-two payload size.
type bufferPool struct {
	classes [maxBufferBits - minBufferBits + 1]sync.Pool
}

func bufferClass(n int) int {
	return max(bits.Len(uint(max(n, 1)-1)), minBufferBits) - minBufferBits
}

// bufferSize is what a buffer for n bytes of payload takes from a budget.
func bufferSize(n int) int64 {
	return int64(1)<<(bufferClass(n)+minBufferBits) + bufferMargin
}

// get returns a buffer for n <= MaxPayload bytes of payload.
func (p *bufferPool) get(n int) *buffer {
	class := bufferClass(n)
	if b, ok := p.classes[class].Get().(*buffer); ok {
		return b
	}
	return &buffer{b: make([]byte, bufferSize(n)), class: class}
}

func (p *bufferPool) put(b *buffer) {
	if b != nil {
		p.classes[b.class].Put(b)
	}
}
