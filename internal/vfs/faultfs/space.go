package faultfs

import (
	"math/bits"
	"sync"
)

// pageSize is the unit in which space is taken and given back.
const pageSize = 4096

// Space is a disk that can fill up. Safe for concurrent use.
type Space struct {
	mu      sync.Mutex
	used    int64 // pages
	limit   int64 // pages; only if limited
	limited bool
}

// Pages is the space that one file has. The zero value has none. It is guarded
// by the Space that it is used with.
type Pages struct {
	words []uint64
}

// SetFree limits what can still be taken to n bytes; n < 0 lifts the limit.
func (s *Space) SetFree(n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.limited, s.limit = n >= 0, s.used+n/pageSize
}

// Free returns how many bytes can still be taken, and whether that is limited.
func (s *Space) Free() (int64, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return max(0, s.limit-s.used) * pageSize, s.limited
}

// Take takes the pages of [off, off+n) that p does not have, as far as there is
// room, and returns how many of the n bytes have their page now.
func (s *Space) Take(p *Pages, off, n int64) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	for at := off / pageSize; at*pageSize < off+n; at++ {
		if p.has(at) {
			continue
		}
		if s.limited && s.used >= s.limit {
			return max(0, at*pageSize-off)
		}
		p.add(at)
		s.used++
	}
	return n
}

// TakeAll is Take, but takes nothing unless there is room for all.
func (s *Space) TakeAll(p *Pages, off, n int64) bool {
	s.mu.Lock()
	need := int64(0)
	for at := off / pageSize; at*pageSize < off+n; at++ {
		if !p.has(at) {
			need++
		}
	}
	room := !s.limited || s.used+need <= s.limit
	s.mu.Unlock()
	return room && s.Take(p, off, n) == n
}

// Give gives back the whole pages in [off, off+n); n < 0 stands for all from
// off on.
func (s *Space) Give(p *Pages, off, n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	first, end := (off+pageSize-1)/pageSize, int64(len(p.words))*64
	if n >= 0 {
		end = min(end, (off+n)/pageSize)
	}
	for at := first; at < end; at++ {
		if w := &p.words[at/64]; *w>>(at%64)&1 == 1 {
			*w &^= 1 << (at % 64)
			s.used--
		}
	}
}

// Bytes returns how much space the file has.
func (s *Space) Bytes(p *Pages) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, w := range p.words {
		n += bits.OnesCount64(w)
	}
	return int64(n) * pageSize
}

func (p *Pages) has(page int64) bool {
	return page/64 < int64(len(p.words)) && p.words[page/64]>>(page%64)&1 == 1
}

func (p *Pages) add(page int64) {
	for page/64 >= int64(len(p.words)) {
		p.words = append(p.words, 0)
	}
	p.words[page/64] |= 1 << (page % 64)
}
