package maptree

import (
	"sync"

	"github.com/fsximg/fsx/pkg/layout"
)

const (
	chunkSize   = 64 << 10
	shardChunks = 16
	shardSize   = chunkSize * shardChunks

	// Entry in a chunk: hash 32 | length be16 | flags u8 | 0, 5 | node bytes,
	// padded to 8 bytes.
	entryHeader = 40
	entryFlags  = 34
	flagUsed    = 1 // read since it was written or passed by the clock
	flagDead    = 2 // not in the index any more
)

// shard is a part of the node cache: a ring of node bytes in chunks that are
// allocated when first reached. A position grows forever; its chunk is position
// / chunkSize modulo shardChunks. What lies in [tail, head) is intact, so a
// position kept elsewhere is valid exactly as long as it is not below tail.
// Eviction is by clock, a chunk at a time. The collector sees a few large
// slices without pointers.
type shard struct {
	mu     sync.Mutex
	chunks [shardChunks][]byte
	ends   [shardChunks]int // where the entries of a chunk end
	head   uint64
	tail   uint64

	// index is an open-addressing table, linear probing, of tag<<48 | position/8
	// + 1; 0 is free. The tag is 16 bits of the hash, its low bits the slot to
	// probe first.
	index []uint64
	count int

	cuts shortcuts

	hits uint64 // nodes that were found

	_ [64]byte // shards do not share cache lines
}

const (
	minIndex = 64
	posMask  = 1<<48 - 1
)

func tagOf(h *layout.Hash) uint64 { return uint64(h[0])<<8 | uint64(h[1]) }

func entrySize(n int) int { return (entryHeader + n + 7) &^ 7 }

// entry is the entry at a valid position.
func (s *shard) entry(pos uint64) []byte {
	c := s.chunks[pos/chunkSize%shardChunks]
	e := c[pos%chunkSize:]
	return e[:entryHeader+int(be.Uint16(e[32:]))]
}

// find returns the position and the entry of a hash.
func (s *shard) find(h *layout.Hash) (uint64, []byte) {
	if len(s.index) == 0 {
		return 0, nil
	}
	mask, tag := uint64(len(s.index)-1), tagOf(h)
	for i := tag & mask; s.index[i] != 0; i = (i + 1) & mask {
		v := s.index[i]
		if v>>48 != tag {
			continue
		}
		pos := (v&posMask - 1) << 3
		if e := s.entry(pos); layout.Hash(e[:32]) == *h {
			return pos, e
		}
	}
	return 0, nil
}

// get is find, for use: it returns the node's bytes, and marks the entry.
func (s *shard) get(h *layout.Hash) (uint64, []byte) {
	pos, e := s.find(h)
	if e == nil {
		return 0, nil
	}
	markUsed(e)
	return pos, e[entryHeader:]
}

func markUsed(e []byte) {
	if e[entryFlags]&flagUsed == 0 {
		e[entryFlags] |= flagUsed
	}
}

// put adds a node's bytes, unless they are there.
func (s *shard) put(h *layout.Hash, node []byte) {
	if _, e := s.find(h); e != nil {
		return
	}
	pos, e := s.allocate(entrySize(len(node)))
	copy(e, h[:])
	be.PutUint16(e[32:], uint16(len(node)))
	e[entryFlags] = 0
	copy(e[entryHeader:], node)
	s.link(tagOf(h), pos)
}

// allocate takes size bytes at the head.
func (s *shard) allocate(size int) (uint64, []byte) {
	if off := int(s.head % chunkSize); off == 0 || off+size > chunkSize {
		s.nextChunk()
	}
	pos, c := s.head, s.head/chunkSize%shardChunks
	s.head += uint64(size)
	s.ends[c] = int(pos%chunkSize) + size
	return pos, s.chunks[c][pos%chunkSize:][:size]
}

// nextChunk moves the head to the next chunk, which when the ring is full is
// the one at the tail: what was used there since the last time stays, moved
// together, as long as a quarter of the chunk comes free; the rest is evicted.
func (s *shard) nextChunk() {
	start := (s.head + chunkSize - 1) / chunkSize * chunkSize
	n := start / chunkSize % shardChunks
	c := s.chunks[n]
	kept := 0
	if c == nil {
		s.chunks[n] = make([]byte, chunkSize)
	}
	for off := 0; c != nil && off < s.ends[n]; {
		old := start - shardSize + uint64(off)
		e := s.entry(old)
		size := entrySize(len(e) - entryHeader)
		off += size
		if e[entryFlags]&flagDead != 0 {
			continue
		}
		tag := tagOf((*layout.Hash)(e[:32]))
		s.unlink(tag, old)
		if e[entryFlags]&flagUsed != 0 && kept+size <= chunkSize*3/4 {
			copy(c[kept:], e)
			c[kept+entryFlags] = 0
			s.link(tag, start+uint64(kept))
			kept += size
		}
	}
	s.ends[n] = kept
	s.head = start + uint64(kept)
	if start >= shardSize {
		s.tail = start - shardSize + chunkSize
	}
}

// remove drops a hash's entry; its space comes free when the clock passes.
func (s *shard) remove(h *layout.Hash) bool {
	pos, e := s.find(h)
	if e == nil {
		return false
	}
	s.unlink(tagOf(h), pos)
	e[entryFlags] |= flagDead
	return true
}

// link adds a position to the index.
func (s *shard) link(tag, pos uint64) {
	if (s.count+1)*4 > len(s.index)*3 {
		s.grow()
	}
	s.place(tag<<48 | (pos>>3 + 1))
	s.count++
}

func (s *shard) place(v uint64) {
	mask := uint64(len(s.index) - 1)
	i := v >> 48 & mask
	for s.index[i] != 0 {
		i = (i + 1) & mask
	}
	s.index[i] = v
}

func (s *shard) grow() {
	old := s.index
	s.index = make([]uint64, max(minIndex, 2*len(old)))
	for _, v := range old {
		if v != 0 {
			s.place(v)
		}
	}
	s.cuts.resize(len(s.index))
}

// unlink removes a position, which is there, from the index, and moves back
// what was probed past it (Knuth, TAOCP 3, 6.4, algorithm R).
func (s *shard) unlink(tag, pos uint64) {
	mask := uint64(len(s.index) - 1)
	i := tag & mask
	for v := tag<<48 | (pos>>3 + 1); s.index[i] != v; {
		i = (i + 1) & mask
	}
	s.count--
	for j := i; ; {
		j = (j + 1) & mask
		v := s.index[j]
		if v == 0 {
			break
		}
		if home := v >> 48 & mask; (j-home)&mask >= (j-i)&mask {
			s.index[i] = v
			i = j
		}
	}
	s.index[i] = 0
}

// bytes is the memory that the shard takes.
func (s *shard) bytes() int64 {
	n := int64(len(s.index))*8 + s.cuts.bytes()
	for _, c := range s.chunks {
		n += int64(len(c))
	}
	return n
}
