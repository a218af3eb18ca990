package powercut_test

import (
	"encoding/binary"
	"fmt"
	"hash/maphash"
	"math"
	"slices"
	"sort"
)

var sumSeed = maphash.MakeSeed()

// sumOf stands for a block's content.
func sumOf(p []byte) uint64 { return maphash.Bytes(sumSeed, p) }

// state is what is in a volume: of every block the sum, of the loose ones the
// bytes.
type state struct {
	size  int64
	sums  []uint64
	loose []byte
}

// emptyState is the state of a new volume.
func emptyState(size int64) *state {
	s := &state{size: size, sums: make([]uint64, blocksOf(size)), loose: make([]byte, size-(blocksOf(size)-looseBlocks)*blockSize)}
	var zeros [blockSize]byte
	for b := range s.sums {
		s.sums[b] = sumOf(zeros[:s.blockLen(int64(b))])
	}
	return s
}

func (s *state) blockLen(b int64) int64 { return min(blockSize, s.size-b*blockSize) }

func (s *state) looseStart() int64 { return s.size - int64(len(s.loose)) }

func (s *state) clone() *state {
	return &state{s.size, slices.Clone(s.sums), slices.Clone(s.loose)}
}

// change says that operation op gave a block this content.
type change struct {
	op  int
	sum uint64
}

// model knows of every block all contents it had, and when.
type model struct {
	now     *state
	history [][]change
	ops     int
	snaps   map[int64]*life // by the operation that made them
	script  *script         // whose operations they are
}

// life is when a snapshot was there: after the operation that made it, and until
// the one that deleted it.
type life struct{ deleted int }

// newModel starts with a state, which was there before operation 0.
func newModel(start *state) *model {
	m := &model{now: start.clone(), history: make([][]change, len(start.sums)), snaps: map[int64]*life{}}
	for b, sum := range start.sums {
		m.history[b] = []change{{-1, sum}}
	}
	return m
}

// modelOf is the model of the first n operations of a script.
func modelOf(start *state, s *script, n int) *model {
	m := newModel(start)
	for range n {
		m.apply(s, s.operation())
	}
	return m
}

// start is the state that the model started with, without the loose bytes.
func (m *model) start() *state {
	s := m.now.clone()
	s.loose = nil
	for b, h := range m.history {
		s.sums[b] = h[0].sum
	}
	return s
}

// apply notes what an operation does, when all of it has happened.
func (m *model) apply(s *script, o operation) {
	m.ops, m.script = o.index+1, s
	off, end := o.off, o.off+o.n
	var data []byte
	switch o.action {
	case writeBlocks, writeBytes, writeZeros:
		data = s.data(o)
	case zero:
		data = make([]byte, o.n)
	case trim: // rounds inwards
		if off = (off + blockSize - 1) &^ (blockSize - 1); end != m.now.size {
			end &^= blockSize - 1
		}
		if off >= end {
			return
		}
		data = make([]byte, end-off)
	case snapshot:
		m.snaps[int64(o.index)] = &life{deleted: math.MaxInt}
		return
	case unsnapshot:
		m.snaps[o.off].deleted = o.index
		return
	default:
		return
	}
	if off >= m.now.looseStart() {
		copy(m.now.loose[off-m.now.looseStart():], data)
	}
	for b := off / blockSize; b*blockSize < end; b++ {
		var content []byte
		if from := b * blockSize; from >= m.now.looseStart() {
			content = m.now.loose[from-m.now.looseStart():]
		} else {
			content = data[from-off:]
		}
		sum := sumOf(content[:m.now.blockLen(b)])
		m.now.sums[b] = sum
		m.history[b] = append(m.history[b], change{o.index, sum})
	}
}

// allowed are the contents that a block may have when every operation before
// floor is durable and none from ceil on has begun.
func (m *model) allowed(b int64, floor, ceil int) []change {
	h := m.history[b]
	first := sort.Search(len(h), func(i int) bool { return h[i].op >= floor }) - 1
	last := sort.Search(len(h), func(i int) bool { return h[i].op >= ceil })
	return h[max(first, 0):max(last, 1)]
}

// compare says which block of a state it may not have.
func (m *model) compare(got *state, floor, ceil int, read func(b int64) []byte) error {
	var bad []string
	for b := range m.history {
		allowed := m.allowed(int64(b), floor, ceil)
		if slices.ContainsFunc(allowed, func(c change) bool { return c.sum == got.sums[b] }) {
			continue
		}
		if len(bad) < 5 {
			bad = append(bad, fmt.Sprintf("block %d is %s, may be of operations %v", b, m.describe(int64(b), got.sums[b], read), opsOf(allowed)))
		} else {
			bad = append(bad, "")
		}
	}
	if len(bad) == 0 {
		return nil
	}
	return fmt.Errorf("%d blocks are wrong (durable before operation %d, none from %d on): %q", len(bad), floor, ceil, slices.DeleteFunc(bad, func(s string) bool { return s == "" }))
}

func opsOf(l []change) (ops []int) {
	for _, c := range l {
		ops = append(ops, c.op)
	}
	return ops
}

// describe says what is in a block that should not be.
func (m *model) describe(b int64, sum uint64, read func(int64) []byte) string {
	for _, c := range m.history[b] {
		if c.sum == sum {
			return fmt.Sprintf("of operation %d", c.op)
		}
	}
	if read == nil {
		return "of no operation"
	}
	content := read(b)
	if len(slices.Compact(slices.Clone(content))) == 1 {
		return fmt.Sprintf("all %#x", content[0])
	}
	return fmt.Sprintf("block %d of operation %d, or garbage", binary.BigEndian.Uint64(content), int64(binary.BigEndian.Uint64(content[8:]))-1)
}
