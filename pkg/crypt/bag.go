package crypt

import (
	"fmt"
	"math"
	"sync"
)

// MaxBagKeys is the largest number of data keys in one bag.
const MaxBagKeys = 4096

// Bag is a volume's data keys. It owns copies of what is added; Wipe destroys
// them all. It is safe for concurrent use.
type Bag struct {
	redact
	mu    sync.RWMutex
	keys  []bagKey
	index map[ID]int // into keys
	next  uint32     // number of the next key; never reused
}

type bagKey struct {
	key      *DataKey
	number   uint32
	writable bool
	bytes    uint64
}

// KeyInfo describes a data key of a bag.
type KeyInfo struct {
	Number   int // from 1; stays the key's for the life of the volume
	ID       ID
	Mode     Mode
	Writable bool   // new extents are sealed under it; at most one is
	Bytes    uint64 // encrypted so far, advisory
}

// NewBag makes an empty bag.
func NewBag() *Bag { return &Bag{index: map[ID]int{}, next: 1} }

// Add puts a copy of k into the bag under the next number; if it is there
// already, only its writable mark changes. A writable key takes the mark from
// the one that had it. Errors: ErrWiped, ErrFull, ErrKeyConflict.
func (b *Bag) Add(k *DataKey, writable bool) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	i, ok := b.index[k.id]
	if ok && b.keys[i].key.mode != k.mode {
		return fmt.Errorf("add data key %s: %w", k.id, ErrKeyConflict)
	}
	if !ok {
		if len(b.keys) >= MaxBagKeys || b.next == math.MaxUint32 {
			return fmt.Errorf("add data key %s: %w", k.id, ErrFull)
		}
		own, err := k.clone()
		if err != nil {
			return err
		}
		i = len(b.keys)
		b.keys = append(b.keys, bagKey{key: own, number: b.next})
		b.index[k.id] = i
		b.next++
	}
	if writable {
		for j := range b.keys {
			b.keys[j].writable = false
		}
	}
	b.keys[i].writable = writable
	return nil
}

// Remove wipes a data key and takes it out of the bag. Its number is not given
// again.
func (b *Bag) Remove(id ID) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	i, ok := b.index[id]
	if !ok {
		return false
	}
	b.keys[i].key.Wipe()
	b.keys = append(b.keys[:i], b.keys[i+1:]...)
	delete(b.index, id)
	for ; i < len(b.keys); i++ {
		b.index[b.keys[i].key.id] = i
	}
	return true
}

// Next is the number that the next key will get.
func (b *Bag) Next() uint32 {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.next
}

// Reserve has the next key get a number not below next.
func (b *Bag) Reserve(next uint32) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.next = max(b.next, next)
}

// Clone copies the bag with those of its keys that have a number below limit.
// They keep their numbers and marks. The error is ErrWiped.
func (b *Bag) Clone(limit uint32) (*Bag, error) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	c := NewBag()
	c.next = b.next
	for _, k := range b.keys {
		if k.number >= limit {
			continue
		}
		own, err := k.key.clone()
		if err != nil {
			c.Wipe()
			return nil, err
		}
		c.index[k.key.id] = len(c.keys)
		k.key = own
		c.keys = append(c.keys, k)
	}
	return c, nil
}

// Adopt adds the keys that only other has, with their numbers, and takes over
// which one is written under and how much was. other is a later state of a clone of this bag. The
// error is ErrWiped.
func (b *Bag) Adopt(other *Bag) error {
	next, err := other.Clone(math.MaxUint32)
	if err != nil {
		return err
	}
	defer next.Wipe()
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range next.keys {
		k := &next.keys[i]
		at, ok := b.index[k.key.id]
		if !ok {
			own, err := k.key.clone()
			if err != nil {
				return err
			}
			at = len(b.keys)
			b.keys = append(b.keys, bagKey{key: own, number: k.number})
			b.index[k.key.id] = at
		}
		b.keys[at].writable, b.keys[at].bytes = k.writable, k.bytes
	}
	b.next = max(b.next, next.next)
	return nil
}

// Get finds a data key. It belongs to the bag: the caller does not wipe it.
func (b *Bag) Get(id ID) (*DataKey, bool) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	i, ok := b.index[id]
	if !ok {
		return nil, false
	}
	return b.keys[i].key, true
}

// Number is the number of a data key.
func (b *Bag) Number(id ID) (int, bool) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	i, ok := b.index[id]
	if !ok {
		return 0, false
	}
	return int(b.keys[i].number), true
}

// WriteKey is the key for new extents, nil if the bag has none. It belongs to
// the bag.
func (b *Bag) WriteKey() *DataKey {
	b.mu.RLock()
	defer b.mu.RUnlock()
	for i := range b.keys {
		if b.keys[i].writable {
			return b.keys[i].key
		}
	}
	return nil
}

// Keys lists the data keys by number.
func (b *Bag) Keys() []KeyInfo {
	b.mu.RLock()
	defer b.mu.RUnlock()
	infos := make([]KeyInfo, len(b.keys))
	for i, k := range b.keys {
		infos[i] = KeyInfo{int(k.number), k.key.id, k.key.mode, k.writable, k.bytes}
	}
	return infos
}

// AddBytes counts n more bytes as encrypted under a key. The count stops at
// its largest value; an unknown key is ignored.
func (b *Bag) AddBytes(id ID, n uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if i, ok := b.index[id]; ok {
		k := &b.keys[i]
		if k.bytes += n; k.bytes < n {
			k.bytes = math.MaxUint64
		}
	}
}

// Wipe destroys every data key and empties the bag.
func (b *Bag) Wipe() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, k := range b.keys {
		k.key.Wipe()
	}
	b.keys = nil
	clear(b.index)
}
