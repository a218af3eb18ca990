package main

import (
	"bytes"
	"fmt"
	"sync/atomic"
)

// A unit's word: who has it in flight, whether it reads as zeros, and how often
// it was written.
//
//	bits 24-31  0 nobody, 1 to 254 requests that read it, 255 one that changes it
//	bit  23     it is zeros (never written, zeroed, or trimmed)
//	bits 0-22   version: the number of writes so far
const (
	readerStep  = 1 << 24
	changing    = 255 << 24
	zeroFlag    = 1 << 23
	versionMask = zeroFlag - 1
	contentMask = zeroFlag | versionMask
)

// model is what the volume must hold. The last part of the volume, the odd part,
// takes requests at any byte and is kept as bytes; of the rest, each unit's
// content follows from its word.
//
// A request takes its units before it is sent and gives them back when it has
// been answered. So no two changes of a unit are in flight together, nor a
// change and a read, on whichever connections, and what a read must bring is
// known exactly. Safe for concurrent use.
type model struct {
	seed  uint64
	size  int64
	oddAt int64
	odd   []byte // guarded by the units' words
	units []atomic.Uint32
}

func newModel(size, oddSize int64, seed uint64) *model {
	m := &model{seed: seed, size: size, oddAt: size - oddSize, odd: make([]byte, oddSize), units: make([]atomic.Uint32, size/unitSize)}
	for i := range m.units {
		m.units[i].Store(zeroFlag)
	}
	return m
}

// span is the units that a range touches.
func span(off int64, n int) (from, to int) {
	return int(off / unitSize), int((off + int64(n) + unitSize - 1) / unitSize)
}

// take reserves a range for a read or a change, all of it or nothing.
func (m *model) take(off int64, n int, change bool) bool {
	from, to := span(off, n)
	for u := from; u < to; u++ {
		if !m.takeUnit(u, change) {
			m.give(from, u, change)
			return false
		}
	}
	return true
}

func (m *model) takeUnit(u int, change bool) bool {
	for {
		w := m.units[u].Load()
		next := w + readerStep
		if change {
			next = w | changing
		}
		if w >= 254*readerStep || change && w >= readerStep {
			return false
		}
		if m.units[u].CompareAndSwap(w, next) {
			return true
		}
	}
}

// give returns units that take reserved.
func (m *model) give(from, to int, change bool) {
	for u := from; u < to; u++ {
		if change {
			m.units[u].Store(m.units[u].Load() & contentMask)
		} else {
			m.units[u].Add(^uint32(readerStep - 1))
		}
	}
}

// write makes the next version of a range that the caller has taken and appends
// its content to p.
func (m *model) write(p []byte, off int64, n int, salt uint64) []byte {
	at := len(p)
	p = append(p, make([]byte, n)...)
	if off >= m.oddAt {
		content := m.odd[off-m.oddAt:][:n]
		for i, w := 0, mix(salt); i < n; i, w = i+8, w+step {
			for k := i; k < min(i+8, n); k++ {
				content[k] = byte(w >> (8 * (k - i)))
			}
		}
		copy(p[at:], content)
		return p
	}
	from, to := span(off, n)
	for u := from; u < to; u++ {
		version := (m.units[u].Load() + 1) & versionMask
		m.units[u].Store(changing | version)
		fill(p[at:], first(m.seed, uint64(u), version))
		at += unitSize
	}
	return p
}

// clear makes a range that the caller has taken zeros.
func (m *model) clear(off int64, n int) {
	if off >= m.oddAt {
		clear(m.odd[off-m.oddAt:][:n])
		return
	}
	from, to := span(off, n)
	for u := from; u < to; u++ {
		m.units[u].Store(m.units[u].Load() | zeroFlag)
	}
}

// content is what a range held before a change, for changes whose outcome may
// never be known.
type content struct {
	words []uint32
	odd   []byte
}

// save copies what a range holds into c, whose memory is used again.
func (m *model) save(c *content, off int64, n int) {
	c.words, c.odd = c.words[:0], c.odd[:0]
	if off >= m.oddAt {
		c.odd = append(c.odd, m.odd[off-m.oddAt:][:n]...)
		return
	}
	from, to := span(off, n)
	for u := from; u < to; u++ {
		c.words = append(c.words, m.units[u].Load()&contentMask)
	}
}

// restore undoes a change of a range that the caller still has.
func (m *model) restore(c *content, off int64, n int) {
	if off >= m.oddAt {
		copy(m.odd[off-m.oddAt:], c.odd)
		return
	}
	from, _ := span(off, n)
	for i, w := range c.words {
		m.units[from+i].Store(changing | w)
	}
}

// check compares what was read at off with the model. With old, each unit (of
// the odd part: each byte) may also be what it was before a change whose outcome
// is unknown. The error is a *difference.
func (m *model) check(p []byte, off int64, old *content) error {
	if off >= m.oddAt {
		return m.checkOdd(p, off, old)
	}
	u, _ := span(off, len(p))
	for i := 0; len(p) > 0; i, u, p = i+1, u+1, p[unitSize:] {
		bad := m.checkUnit(p, u, m.units[u].Load())
		if bad >= 0 && old != nil && m.checkUnit(p, u, old.words[i]) < 0 {
			bad = -1
		}
		if bad >= 0 {
			return &difference{at: int64(u)*unitSize + int64(bad), got: m.describe(p[:unitSize], u), want: m.wanted(u, i, old)}
		}
	}
	return nil
}

func (m *model) checkUnit(p []byte, u int, word uint32) int {
	if word&zeroFlag != 0 {
		return nonZero(p[:unitSize])
	}
	return differs(p, first(m.seed, uint64(u), word&versionMask))
}

func (m *model) checkOdd(p []byte, off int64, old *content) error {
	want := m.odd[off-m.oddAt:][:len(p)]
	if bytes.Equal(p, want) {
		return nil
	}
	for i := range p {
		if p[i] != want[i] && (old == nil || p[i] != old.odd[i]) {
			return &difference{at: off + int64(i), got: fmt.Sprintf("%x", p[i:min(i+16, len(p))]), want: fmt.Sprintf("%x", want[i:min(i+16, len(p))])}
		}
	}
	return nil
}

// zeros says whether a range must read as zeros.
func (m *model) zeros(off, n int64) bool {
	if off >= m.oddAt {
		return nonZero(m.odd[off-m.oddAt:][:n]) < 0
	}
	from, to := span(off, int(n))
	for u := from; u < to; u++ {
		if m.units[u].Load()&zeroFlag == 0 {
			return false
		}
	}
	return true
}

// difference is a place where the server's answer is not what the model says.
type difference struct {
	at        int64 // byte of the volume
	got, want string
}

func (d *difference) Error() string {
	return fmt.Sprintf("byte %d, unit %d: got %s, want %s", d.at, d.at/unitSize, d.got, d.want)
}

// describe names the version that a unit's content is of, if it is one.
func (m *model) describe(p []byte, u int) string {
	if nonZero(p) < 0 {
		return "zeros"
	}
	now := m.units[u].Load() & versionMask
	for back := range min(now+1, 1<<16) {
		if differs(p, first(m.seed, uint64(u), now-back)) < 0 {
			return fmt.Sprintf("version %d of this unit", now-back)
		}
	}
	for _, other := range []int{u - 8, u - 1, u + 1, u + 8} {
		if other < 0 || other >= len(m.units) {
			continue
		}
		if differs(p, first(m.seed, uint64(other), m.units[other].Load()&versionMask)) < 0 {
			return fmt.Sprintf("the content of unit %d", other)
		}
	}
	return fmt.Sprintf("%x… of no version", p[:16])
}

func (m *model) wanted(u, i int, old *content) string {
	text := versionText(m.units[u].Load())
	if old != nil {
		text += " or " + versionText(old.words[i])
	}
	return text
}

func versionText(word uint32) string {
	if word&zeroFlag != 0 {
		return fmt.Sprintf("zeros (after version %d)", word&versionMask)
	}
	return fmt.Sprintf("version %d", word&versionMask)
}
