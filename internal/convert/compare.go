package convert

import (
	"bytes"
	"context"
	"fmt"
)

// Difference is where two images differ.
type Difference struct {
	// Equal says that they do not.
	Equal bool
	// At is the first byte that differs, or that one of them does not have.
	At int64
	// Sizes are the lengths of both, as far as they are known: of a pipe only
	// if it was read to its end. Otherwise UnknownSize.
	Sizes [2]int64
}

// Compare reads two images side by side until they differ. Holes are zeros.
// Where one is longer it has to be zero there, unless strict wants the same
// length. progress is told of bytes of the longer one; it may be nil.
func Compare(ctx context.Context, a, b Source, strict bool, progress func(n int64)) (d Difference, err error) {
	d = Difference{Sizes: [2]int64{a.Size(), b.Size()}}
	if strict && d.Sizes[0] != UnknownSize && d.Sizes[1] != UnknownSize && d.Sizes[0] != d.Sizes[1] {
		d.At = min(d.Sizes[0], d.Sizes[1])
		return d, nil
	}
	if progress == nil {
		progress = func(int64) {}
	}
	ctx, cancel := context.WithCancel(ctx)
	l, r := pull(ctx, a), pull(ctx, b)
	defer func() {
		cancel()
		l.wait()
		r.wait()
	}()
	for {
		more, err := l.fill()
		if err != nil {
			return d, err
		}
		moreR, err := r.fill()
		if err != nil {
			return d, err
		}
		if !more && !moreR {
			d.Equal, d.Sizes = true, [2]int64{l.at, r.at}
			return d, nil
		}
		if strict && more != moreR {
			d.At = l.at
			return d, nil
		}
		n := min(l.rest(), r.rest())
		if i := differ(l.take(n), r.take(n)); i >= 0 {
			d.At = max(l.at, r.at) - n + i
			return d, nil
		}
		progress(n)
	}
}

// puller is a stream that is read when its receiver asks for the next piece,
// by a goroutine of its own.
type puller struct {
	pieces chan Piece
	next   chan struct{} // the piece before is not needed any more
	done   chan struct{}
	err    error // of the stream, when done is closed

	cur   Piece
	taken bool  // cur came from pieces and is not given back
	ended bool  // nothing follows: zeros for ever
	at    int64 // all before it was taken, not counting the zeros behind the end
}

func pull(ctx context.Context, src Source) *puller {
	p := &puller{pieces: make(chan Piece), next: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(p.done)
		p.err = src.Stream(ctx, func(piece Piece) error {
			select {
			case p.pieces <- piece:
			case <-ctx.Done():
				return ctx.Err()
			}
			select {
			case <-p.next:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	}()
	return p
}

// wait ends with the goroutine, whose context has been cancelled.
func (p *puller) wait() { <-p.done }

// fill makes cur a piece that is not empty. more is false at the end.
func (p *puller) fill() (more bool, err error) {
	for p.cur.Len == 0 && !p.ended {
		if p.taken {
			p.taken = false
			p.next <- struct{}{}
		}
		select {
		case p.cur = <-p.pieces:
			p.taken = true
		case <-p.done:
			if p.err != nil {
				return false, p.err
			}
			p.ended = true
		}
	}
	return !p.ended, nil
}

// rest is how much can be taken: of cur, or without end.
func (p *puller) rest() int64 {
	if p.ended {
		return endless
	}
	return p.cur.Len
}

const endless = 1 << 62

// take takes n bytes of cur, or of the zeros behind the end. Zeros are nil.
func (p *puller) take(n int64) part {
	if p.ended {
		return part{nil, n}
	}
	t := part{nil, n}
	if p.cur.Kind == Data {
		t.bytes, p.cur.Bytes = p.cur.Bytes[:n], p.cur.Bytes[n:]
	}
	p.cur.Off += n
	p.cur.Len -= n
	p.at += n
	return t
}

// part is some bytes, or n zeros.
type part struct {
	bytes []byte
	n     int64
}

// differ is the first place where two parts of one length differ, or -1.
func differ(a, b part) int64 {
	switch {
	case a.bytes == nil && b.bytes == nil:
		return -1
	case a.bytes == nil:
		a, b = b, a
		fallthrough
	case b.bytes == nil:
		for at := 0; at < len(a.bytes); at += len(zeroes) {
			p := a.bytes[at:min(len(a.bytes), at+len(zeroes))]
			if !bytes.Equal(p, zeroes[:len(p)]) {
				return int64(at + firstDifference(p, zeroes[:len(p)]))
			}
		}
		return -1
	case bytes.Equal(a.bytes, b.bytes):
		return -1
	}
	return int64(firstDifference(a.bytes, b.bytes))
}

var zeroes [4096]byte

// firstDifference is the place of the first byte that differs; there is one.
func firstDifference(a, b []byte) int {
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	panic(fmt.Sprintf("%d equal bytes", len(a)))
}
