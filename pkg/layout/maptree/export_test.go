package maptree

import (
	"crypto/sha256"
	"fmt"

	"github.com/fsximg/fsx/pkg/layout"
)

// HashOf is a node's hash.
func HashOf(b []byte) layout.Hash { return sha256.Sum256(b) }

// Recode decodes a node of the level and encodes it again. ok is false if it
// is not canonical.
func Recode(b []byte, level uint8) (out []byte, ok bool) {
	if !checkNode(b, level) {
		return nil, false
	}
	if level == 0 {
		var l leaf
		l.decode(b)
		return l.append(nil), l.kind() == layout.Data
	}
	var n interior
	n.decode(b)
	return n.append(nil, level), n.kind() == layout.Data
}

// CheckCache checks that every live entry of the cache is found by its hash,
// where it is, and that the index has nothing else. It returns the entries'
// number.
func CheckCache(r *Reader) (entries int, err error) {
	for i := range r.cache.shards {
		s := &r.cache.shards[i]
		s.mu.Lock()
		defer s.mu.Unlock()
		live := 0
		for pos := s.tail; pos < s.head; {
			if off := int(pos % chunkSize); off == s.ends[pos/chunkSize%shardChunks] {
				pos += uint64(chunkSize - off)
				continue
			}
			e := s.entry(pos)
			h := layout.Hash(e[:32])
			if at, _ := s.find(&h); e[entryFlags]&flagDead == 0 {
				if live++; at != pos {
					return 0, fmt.Errorf("entry at %d is found at %d", pos, at)
				}
				if sha256.Sum256(e[entryHeader:]) != h {
					return 0, fmt.Errorf("entry at %d was overwritten", pos)
				}
			}
			pos += uint64(entrySize(len(e) - entryHeader))
		}
		used := 0
		for _, v := range s.index {
			if v != 0 {
				used++
			}
		}
		if used != live || s.count != live {
			return 0, fmt.Errorf("%d entries, index has %d and counts %d", live, used, s.count)
		}
		entries += live
	}
	return entries, nil
}
