package powercut_test

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
)

const blockSize = 4096

// looseBlocks are the last blocks of a volume, in which operations begin and
// end anywhere. In all others they cover whole blocks.
const looseBlocks = 64

// action is what an operation does to a store.
type action uint8

const (
	writeBlocks action = iota
	writeBytes         // any alignment, in the loose blocks
	writeZeros
	zero
	trim
	flush
	flushLater // and go on meanwhile
	checkpoint
	checkpointLater
	compact
	reopen
	snapshot
	unsnapshot // deletes the one of operation off
)

// operation is one step of a script. Its index is its place in the script.
type operation struct {
	action
	index  int
	off, n int64
}

// script makes operations without end, the same for the same seed and size.
type script struct {
	seed  uint64
	size  int64
	rng   *rand.Rand
	next  int
	quiet int     // operations still to come before the next flush: a burst
	calm  bool    // no upkeep, no reopening
	snaps []int64 // snapshots that there are, by their operations
}

// mostSnaps bounds the snapshots that there are at a time.
const mostSnaps = 4

// snapName is what the snapshot of an operation is called.
func (s *script) snapName(index int64) string { return fmt.Sprintf("s%x.%d", s.seed, index) }

func newScript(seed uint64, size int64) *script {
	return &script{seed: seed, size: size, rng: rand.New(rand.NewPCG(seed, 0x5c71)), next: 0}
}

// again is the script from its start.
func (s *script) again() *script {
	c := newScript(s.seed, s.size)
	c.calm = s.calm
	return c
}

// strict is the number of blocks before the loose ones.
func (s *script) strict() int64 { return blocksOf(s.size) - looseBlocks }

func blocksOf(size int64) int64 { return (size + blockSize - 1) / blockSize }

func (s *script) operation() operation {
	o := operation{index: s.next}
	s.next++
	k := s.rng.IntN(1000)
	if s.quiet > 0 {
		s.quiet--
		k %= 700
	} else if s.seed%3 == 0 && !s.calm && s.rng.IntN(8) == 0 {
		k = 975 // one script in three is full of snapshots
	}
	switch {
	case k < 420:
		o.action = writeBlocks
		o.off, o.n = s.blocks()
	case k < 530:
		o.action = writeBytes
		o.off, o.n = s.bytes()
	case k < 560:
		o.action = writeZeros
		o.off, o.n = s.blocks()
	case k < 700:
		o.action = []action{zero, trim}[k%2]
		if k < 600 {
			o.off, o.n = s.bytes()
		} else {
			o.off, o.n = s.blocks()
		}
	case k < 880:
		o.action = flush
	case k < 950:
		o.action = flushLater
	case s.calm:
		o.action = flush
	case k < 965:
		o.action = checkpoint
	case k < 975:
		o.action = checkpointLater
	case k < 980 && len(s.snaps) < mostSnaps:
		o.action = snapshot
		s.snaps = append(s.snaps, int64(o.index))
	case k < 980:
		o.action = unsnapshot
		i := s.rng.IntN(len(s.snaps))
		o.off = s.snaps[i]
		s.snaps = slices.Delete(s.snaps, i, i+1)
	case k < 983:
		o.action = compact
	case k < 986:
		o.action = reopen
	default:
		o.action = flush
		s.quiet = 30 + s.rng.IntN(60)
	}
	return o
}

// blocks chooses whole blocks, half of the time among the first few.
func (s *script) blocks() (off, n int64) {
	limit, most := s.strict(), int64(8)
	if s.rng.IntN(2) == 0 {
		limit = max(limit/8, 8)
	}
	switch {
	case s.quiet > 0 && s.rng.IntN(2) == 0:
		most = 256
	case s.rng.IntN(8) == 0:
		most = 64
	}
	n = min(1+s.rng.Int64N(most), limit)
	return s.rng.Int64N(limit-n+1) * blockSize, n * blockSize
}

// bytes chooses a range in the loose blocks.
func (s *script) bytes() (off, n int64) {
	start := s.strict() * blockSize
	n = 1 + s.rng.Int64N(3*blockSize)
	return start + s.rng.Int64N(s.size-start-n+1), n
}

// data is what a write writes. A block says which it is, and which operation
// wrote it; the rest follows from that, so no mixture of two looks like one.
func (s *script) data(o operation) []byte {
	p := make([]byte, o.n)
	switch o.action {
	case writeBlocks:
		for at := int64(0); at < o.n; at += blockSize {
			fill(p[at:min(at+blockSize, o.n)], s.seed, (o.off+at)/blockSize, o.index)
		}
	case writeBytes:
		fill(p, s.seed, o.off, o.index)
	}
	return p
}

func fill(p []byte, seed uint64, home int64, index int) {
	var b [blockSize * 3]byte
	binary.BigEndian.PutUint64(b[0:], uint64(home))
	binary.BigEndian.PutUint64(b[8:], uint64(index)+1)
	binary.BigEndian.PutUint64(b[16:], seed)
	x := seed ^ uint64(home)*0x9E3779B97F4A7C15 ^ uint64(index+1)*0xBF58476D1CE4E5B9
	for i := 24; i < len(p); i += 8 {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		binary.LittleEndian.PutUint64(b[i:], x|1) // never zeros
	}
	copy(p, b[:])
}
