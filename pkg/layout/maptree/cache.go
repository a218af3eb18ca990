package maptree

import (
	"math/bits"
	"unsafe"

	"github.com/fsximg/fsx/pkg/layout"
)

// DefaultCacheBytes is the memory for cached nodes if none is given. It holds
// the whole map of about 4 GiB of fully written volume.
const DefaultCacheBytes = 48 << 20

// cache holds verified bytes of nodes under the hash that they were verified
// against. So an entry cannot be stale: a node whose slot was rewritten has
// another hash. Which shard a node is in depends on its level and index, so
// that a leaf and its shortcuts are in one.
type cache struct {
	shards []shard
}

// newCache makes a cache of at most budget bytes, or of one shard.
func newCache(budget int64) *cache {
	// The tables of a shard are 1/12 of it when its nodes are full leaves.
	const shardBytes = shardSize + shardSize/12
	return &cache{shards: make([]shard, max(1, budget/shardBytes))}
}

// bytes is the memory that the cache takes.
func (c *cache) bytes() int64 {
	n := int64(len(c.shards)) * int64(unsafe.Sizeof(shard{}))
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		n += s.bytes()
		s.mu.Unlock()
	}
	return n
}

// found is how often a node was found.
func (c *cache) found() (n uint64) {
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		n += s.hits
		s.mu.Unlock()
	}
	return n
}

func mix(x uint64) uint64 {
	x *= 0x9e3779b97f4a7c15
	x ^= x >> 32
	x *= 0xd6e8feb86659fd93
	return x ^ x>>32
}

func (c *cache) shard(level uint8, index uint64) *shard {
	i, _ := bits.Mul64(mix(index<<4|uint64(level)), uint64(len(c.shards)))
	return &c.shards[i]
}

// copyNode appends a node's bytes to dst.
func (c *cache) copyNode(level uint8, index uint64, h *layout.Hash, dst []byte) ([]byte, bool) {
	s := c.shard(level, index)
	s.mu.Lock()
	defer s.mu.Unlock()
	_, b := s.get(h)
	if b != nil {
		s.hits++
	}
	return append(dst, b...), b != nil
}

// child reads one pointer of an interior node.
func (c *cache) child(level uint8, index uint64, h *layout.Hash, i uint) (p pointer, ok bool) {
	s := c.shard(level, index)
	s.mu.Lock()
	if _, b := s.get(h); b != nil {
		p, ok = interiorBytes(b).child(i), true
		s.hits++
	}
	s.mu.Unlock()
	return p, ok
}

// block reads one block of a leaf, and makes a shortcut to the leaf.
func (c *cache) block(root *layout.Hash, leaf uint64, h *layout.Hash, i uint, ref *layout.BlockRef) (kind layout.Kind, ok bool) {
	s := c.shard(0, leaf)
	s.mu.Lock()
	if pos, b := s.get(h); b != nil {
		kind, ok = readBlock(b, i, ref), true
		s.hits++
		s.cuts.add(root, leaf, pos, leafBytes(b).data())
	}
	s.mu.Unlock()
	return kind, ok
}

// blockByRoot is block where a shortcut exists.
func (c *cache) blockByRoot(root *layout.Hash, leaf uint64, i uint, ref *layout.BlockRef) (kind layout.Kind, ok bool) {
	s := c.shard(0, leaf)
	s.mu.Lock()
	if pos, data, found := s.cuts.find(root, leaf); found && pos >= s.tail {
		e := s.chunks[pos/chunkSize%shardChunks][pos%chunkSize:]
		b := leafBytes(e[entryHeader:])
		if bit := uint16(1) << i; data&bit != 0 {
			b.refAt(bits.OnesCount16(data&(bit-1)), ref)
			kind, ok = layout.Data, true
		} else {
			kind, ok = b.kind(i), true
		}
		markUsed(e)
		s.hits++
	}
	s.mu.Unlock()
	return kind, ok
}

func readBlock(b leafBytes, i uint, ref *layout.BlockRef) layout.Kind {
	kind := b.kind(i)
	if kind == layout.Data {
		b.ref(i, ref)
	}
	return kind
}

// put adds a node.
func (c *cache) put(level uint8, index uint64, h *layout.Hash, node []byte) {
	s := c.shard(level, index)
	s.mu.Lock()
	s.put(h, node)
	s.mu.Unlock()
}

// remove drops a node whose slot will be rewritten or forgotten, and says
// whether it was there.
func (c *cache) remove(level uint8, index uint64, h *layout.Hash) bool {
	s := c.shard(level, index)
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.remove(h)
}
