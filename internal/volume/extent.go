package volume

import (
	"errors"
	"fmt"
	"sync"

	"github.com/fsximg/fsx/pkg/crypt"
	"github.com/fsximg/fsx/pkg/layout"
	"github.com/fsximg/fsx/pkg/layout/metadb"
)

// openExtent is an extent with its cipher, ready to open blocks.
type openExtent struct {
	rec    layout.ExtentRecord
	cipher *crypt.Extent
	used   bool // since the clock hand last passed
}

type extentName struct {
	owner layout.VolumeID
	id    layout.ExtentID
}

// extentCache keeps a bounded number of opened extents of one volume. Ciphers
// depend on the volume's own bag, so a cache is never shared. It is safe for
// concurrent use.
type extentCache struct {
	shards [extentShards]extentShard
	limit  func() int // of a shard
}

const (
	extentShards = 16
	// maxOpenExtents bounds the opened extents of all volumes of a store; one takes
	// about 1 KiB.
	maxOpenExtents = 16 << 10
)

type extentShard struct {
	mu    sync.Mutex
	m     map[extentName]*openExtent
	ring  []extentName
	hand  int
	drops uint64 // calls of drop

	hits, misses uint64 // of get
}

// newExtentCache makes a cache of so many extents a shard as limit says, which
// may change.
func newExtentCache(limit func() int) *extentCache {
	c := &extentCache{limit: limit}
	for i := range c.shards {
		c.shards[i].m = map[extentName]*openExtent{}
	}
	return c
}

func (c *extentCache) shard(n extentName) *extentShard {
	return &c.shards[uint64(n.id)*hashFactor>>60]
}

// get returns the cached extent, or nil and a ticket for put: an extent whose
// record was read before its blocks moved must not come into the cache after
// it was dropped from there.
func (c *extentCache) get(n extentName) (x *openExtent, ticket uint64) {
	s := c.shard(n)
	s.mu.Lock()
	defer s.mu.Unlock()
	x = s.m[n]
	if x != nil {
		x.used = true
		s.hits++
	} else {
		s.misses++
	}
	return x, s.drops
}

// use tells how often get found what it was asked for, and how often not.
func (c *extentCache) use() (hits, misses uint64) {
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		hits, misses = hits+s.hits, misses+s.misses
		s.mu.Unlock()
	}
	return hits, misses
}

// put caches an extent whose record was read after get gave the ticket.
func (c *extentCache) put(n extentName, x *openExtent, ticket uint64) {
	s := c.shard(n)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.drops != ticket {
		return
	}
	if _, ok := s.m[n]; ok {
		s.m[n] = x
		return
	}
	limit := c.limit()
	for len(s.ring) > limit { // it got less
		last := len(s.ring) - 1
		delete(s.m, s.ring[last])
		s.ring = s.ring[:last]
		s.hand = 0
	}
	if len(s.ring) < limit {
		s.ring = append(s.ring, n)
		s.m[n] = x
		return
	}
	for {
		old := s.ring[s.hand]
		if o := s.m[old]; o == nil || !o.used {
			delete(s.m, old)
			break
		} else {
			o.used = false
		}
		s.hand = (s.hand + 1) % len(s.ring)
	}
	s.ring[s.hand] = n
	s.hand = (s.hand + 1) % len(s.ring)
	s.m[n] = x
}

// drop forgets an extent whose blocks have moved.
func (c *extentCache) drop(n extentName) {
	s := c.shard(n)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drops++
	delete(s.m, n) // its place in the ring is taken over by the clock
}

// forget drops all of them.
func (c *extentCache) forget() {
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		s.drops++
		s.m, s.ring, s.hand = map[extentName]*openExtent{}, nil, 0
		s.mu.Unlock()
	}
}

// extent returns the opened extent that a block reference names.
func (v *Volume) extent(owner layout.VolumeID, id layout.ExtentID) (*openExtent, error) {
	name := extentName{owner, id}
	x, ticket := v.cache.get(name)
	if x != nil {
		return x, nil
	}
	rec, err := v.extentRecord(owner, id)
	if err != nil {
		return nil, err
	}
	// A data key resolves only through this volume's own bag, and what is lent to it
	// by whoever has the key of its base (base.go), so that nobody
	// can have another volume's extents decrypted by copying them into his own.
	key, ok := v.bag.Get(crypt.ID(rec.KID))
	if !ok {
		key, ok = v.baseKey(crypt.ID(rec.KID))
	}
	if !ok {
		return nil, fmt.Errorf("data key %s is not available: %w", rec.KID, ErrKeyMissing)
	}
	if uint8(key.Mode()) != rec.Mode {
		return nil, fmt.Errorf("extent %x: %w: mode %#x is not its key's", uint64(id), ErrDamaged, rec.Mode)
	}
	cipher, err := key.Extent(crypt.Nonce(rec.Nonce), int(rec.Blocks))
	if err != nil {
		return nil, err
	}
	x = &openExtent{rec: rec, cipher: cipher}
	v.cache.put(name, x, ticket)
	return x, nil
}

// extentRecord finds an extent among those not checkpointed yet, or in the
// index.
func (v *Volume) extentRecord(owner layout.VolumeID, id layout.ExtentID) (rec layout.ExtentRecord, err error) {
	if owner == v.id {
		v.mu.RLock()
		found := false
		v.layersLocked(func(o *overlay) bool {
			rec, found = o.extents[id]
			return !found
		})
		v.mu.RUnlock()
		if found {
			return rec, nil
		}
	}
	return v.store.indexRecord(owner, id)
}

// indexRecord finds an extent's record in the index.
func (s *Store) indexRecord(owner layout.VolumeID, id layout.ExtentID) (rec layout.ExtentRecord, err error) {
	err = s.db.Get(layout.ExtentKey(owner, id), func(val []byte) error {
		rec, err = layout.DecodeExtentRecord(val)
		return err
	})
	if errors.Is(err, metadb.ErrNotFound) || errors.Is(err, layout.ErrCorrupt) {
		err = fmt.Errorf("extent %x of volume %v: %w: no valid record", uint64(id), owner, ErrDamaged)
	}
	return rec, err
}
