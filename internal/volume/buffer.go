package volume

import (
	"github.com/fsximg/fsx/pkg/layout"
)

const (
	blockSize = layout.BlockSize
	// slack is the space that seal and open need behind the last block.
	slack = 16

	bufferBlocks = 1024       // 4 MiB of plaintext
	bufferTable  = 4096       // hash slots, a power of two
	maxZeroOps   = 4096       // zero ranges after which a buffer counts as full
	noHome       = ^uint64(0) // a slot that a later zero or trim overtook
	hashFactor   = 0x9E3779B97F4A7C15
)

// buffer holds the plaintext of blocks that were written and not yet sealed. A
// later write to a block replaces the earlier one; a zero or trim drops the
// blocks it covers and is remembered as a range, so every block in the table
// is newer than any range that covers it. Guarded by Volume.mu until frozen,
// then immutable.
type buffer struct {
	arena []byte // bufferBlocks blocks
	homes []uint64
	table []uint16 // slot+1 of a home, open addressing
	zeros zeroRanges
	used  int // slots handed out
}

func newBuffer() (*buffer, error) {
	arena, err := mapAnonymous(bufferBlocks*blockSize + slack)
	if err != nil {
		return nil, err
	}
	return &buffer{arena: arena, homes: make([]uint64, 0, bufferBlocks), table: make([]uint16, bufferTable)}, nil
}

// reset empties the buffer for reuse and wipes its plaintext.
func (b *buffer) reset() {
	clear(b.arena[:b.used*blockSize])
	clear(b.table)
	b.homes, b.zeros, b.used = b.homes[:0], nil, 0
}

// free wipes the plaintext and gives the memory back.
func (b *buffer) free() {
	clear(b.arena)
	unmap(b.arena)
	b.arena = nil
}

func (b *buffer) empty() bool { return b.used == 0 && len(b.zeros) == 0 }

// room says whether n more blocks fit.
func (b *buffer) room(n int) bool {
	return b.used+n <= bufferBlocks && len(b.zeros) < maxZeroOps
}

func hashHome(home uint64) uint64 { return (home * hashFactor) >> 20 }

// find returns the block's plaintext, or nil.
func (b *buffer) find(home layout.BlockNo) []byte {
	if b.used == 0 {
		return nil
	}
	for i := hashHome(uint64(home)); ; i++ {
		s := b.table[i%bufferTable]
		if s == 0 {
			return nil
		}
		if b.homes[s-1] == uint64(home) {
			return b.slot(int(s - 1))
		}
	}
}

func (b *buffer) slot(i int) []byte { return b.arena[i*blockSize : (i+1)*blockSize : (i+1)*blockSize] }

// put returns the place for a block's plaintext, old if it had one. There must
// be room.
func (b *buffer) put(home layout.BlockNo) []byte {
	i := hashHome(uint64(home))
	for ; ; i++ {
		s := b.table[i%bufferTable]
		if s == 0 {
			break
		}
		if b.homes[s-1] == uint64(home) {
			return b.slot(int(s - 1))
		}
	}
	b.homes = append(b.homes, uint64(home))
	b.used++
	b.table[i%bufferTable] = uint16(b.used)
	return b.slot(b.used - 1)
}

// zero makes [start, end) zeros.
func (b *buffer) zero(start, end layout.BlockNo, kind layout.Kind) {
	if n := uint64(end - start); n < uint64(b.used) {
		for h := start; h < end; h++ {
			b.drop(h)
		}
	} else {
		for i, h := range b.homes {
			if layout.BlockNo(h) >= start && layout.BlockNo(h) < end {
				b.homes[i] = noHome
			}
		}
	}
	b.zeros = b.zeros.add(start, end, kind)
}

func (b *buffer) drop(home layout.BlockNo) {
	for i := hashHome(uint64(home)); ; i++ {
		s := b.table[i%bufferTable]
		if s == 0 {
			return
		}
		if b.homes[s-1] == uint64(home) {
			b.homes[s-1] = noHome
			return
		}
	}
}
