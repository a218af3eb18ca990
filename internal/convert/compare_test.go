package convert_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/fsximg/fsx/internal/convert"
)

// pieces is a source that hands its bytes over in pieces of arbitrary sizes.
type pieces struct {
	b     []byte
	sizes *rand.Rand
	err   error // instead of the end
}

// newPieces has a generator of its own: two sources stream at the same time.
func newPieces(b []byte, rng *rand.Rand) *pieces {
	return &pieces{b: b, sizes: rand.New(rand.NewPCG(rng.Uint64(), 0))}
}

func (p *pieces) Size() int64  { return int64(len(p.b)) }
func (p *pieces) Close() error { return nil }

func (p *pieces) Stream(ctx context.Context, fn func(convert.Piece) error) error {
	for off := 0; off < len(p.b); {
		n := min(len(p.b)-off, 1+p.sizes.IntN(9000))
		piece := convert.Piece{Run: convert.Run{Off: int64(off), Len: int64(n), Kind: convert.Data}, Bytes: bytes.Clone(p.b[off : off+n])}
		if allZero(piece.Bytes) && p.sizes.IntN(2) == 0 {
			piece.Kind, piece.Bytes = convert.Hole, nil
		}
		if err := fn(piece); err != nil {
			return err
		}
		clear(piece.Bytes) // it was valid until now
		off += n
	}
	return p.err
}

func TestCompare(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	compare := func(a, b []byte, strict bool) convert.Difference {
		t.Helper()
		d, err := convert.Compare(context.Background(), newPieces(a, rng), newPieces(b, rng), strict, nil)
		must(t, err)
		return d
	}
	for _, size := range []int64{0, 1, 4095, 4096, 300_000} {
		a := image(t, size)
		if d := compare(a, a, true); !d.Equal || d.Sizes != [2]int64{size, size} {
			t.Errorf("size %d: %+v", size, d)
		}
		longer := append(bytes.Clone(a), make([]byte, 5000)...)
		for _, pair := range [][2][]byte{{a, longer}, {longer, a}} {
			if d := compare(pair[0], pair[1], false); !d.Equal {
				t.Errorf("size %d, zeros behind: %+v", size, d)
			}
			if d := compare(pair[0], pair[1], true); d.Equal || d.At != size {
				t.Errorf("size %d, strict: %+v", size, d)
			}
		}
		for range 30 {
			at := rng.Int64N(size + 5000)
			other := bytes.Clone(longer)
			other[at] ^= 0x80
			if d := compare(a, other, false); d.Equal || d.At != at {
				t.Errorf("size %d, byte %d differs: %+v", size, at, d)
			}
			if d := compare(other, a, false); d.Equal || d.At != at {
				t.Errorf("size %d, byte %d differs, swapped: %+v", size, at, d)
			}
		}
	}
}

func TestCompareFails(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	broken, a := errors.New("broken"), image(t, 100_000)
	failing := newPieces(a, rng)
	failing.err = broken
	_, err := convert.Compare(context.Background(), newPieces(a, rng), failing, false, nil)
	if !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if d, err := convert.Compare(ctx, convert.FromDevice(newDevice(8<<20)), newPieces(a, rng), false, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled, and compared: %+v, %v", d, err)
	}
}
