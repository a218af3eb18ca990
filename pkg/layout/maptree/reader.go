package maptree

import (
	"crypto/sha256"
	"errors"
	"sync"
	"sync/atomic"

	"github.com/fsximg/fsx/pkg/layout"
	"github.com/fsximg/fsx/pkg/layout/metadb"
)

// ReaderOptions configure a Reader.
type ReaderOptions struct {
	// CacheBytes is the memory for cached nodes; 0 is DefaultCacheBytes. It is
	// taken as it is needed.
	CacheBytes int64
}

// Reader reads and updates the map trees of all volumes of a store. All methods
// are safe for concurrent use.
//
// Every node is checked against its pointer's hash, and decoded strictly, when
// it comes from the database.
type Reader struct {
	db    *metadb.DB
	cache *cache
	bufs  sync.Pool // *[]byte of capacity maxNode
	loads atomic.Uint64
}

// NewReader makes a reader of the nodes in db.
func NewReader(db *metadb.DB, o ReaderOptions) *Reader {
	if o.CacheBytes == 0 {
		o.CacheBytes = DefaultCacheBytes
	}
	r := &Reader{db: db, cache: newCache(o.CacheBytes)}
	r.bufs.New = func() any {
		b := make([]byte, 0, maxNode)
		return &b
	}
	return r
}

// CacheBytes is the memory that the cache takes now.
func (r *Reader) CacheBytes() int64 { return r.cache.bytes() }

// CacheUse tells how often a node was wanted that the cache had, and how often one
// had to be read from the database.
func (r *Reader) CacheUse() (hits, misses uint64) { return r.cache.found(), r.loads.Load() }

// load reads a node from the database into buf[:0] and verifies it.
func (r *Reader) load(p *pointer, level uint8, index uint64, buf []byte) ([]byte, error) {
	r.loads.Add(1)
	id := p.id(level, index)
	var key [keySize]byte
	b, err := r.db.GetAppend(id.AppendKey(key[:0]), buf[:0])
	switch {
	case err == metadb.ErrNotFound:
		return nil, &NodeError{id, errMissing}
	case errors.Is(err, metadb.ErrClosed):
		return nil, err
	case err != nil:
		return nil, &NodeError{id, err} // Badger found its own checksum wrong
	}
	if sha256.Sum256(b) != p.hash {
		return nil, &NodeError{id, errHash}
	}
	if !checkNode(b, level) {
		return nil, &NodeError{id, errEncoding}
	}
	return b, nil
}

// node reads a node into buf[:0], from the cache if it is there. With keep the
// cache has it afterwards.
func (r *Reader) node(p *pointer, level uint8, index uint64, buf []byte, keep bool) ([]byte, error) {
	if b, ok := r.cache.copyNode(level, index, &p.hash, buf[:0]); ok {
		return b, nil
	}
	b, err := r.load(p, level, index, buf)
	if err == nil && keep {
		r.cache.put(level, index, &p.hash, b)
	}
	return b, err
}

// Lookup says what a block is; the reference is valid for Data only. A block
// outside the tree is a hole. It allocates nothing when the nodes are cached.
func (r *Reader) Lookup(root Root, block layout.BlockNo) (kind layout.Kind, ref layout.BlockRef, err error) {
	if root.Kind != layout.Data {
		if uint64(block) >= Capacity(root.Height) {
			return layout.Hole, ref, nil
		}
		return root.Kind, ref, nil
	}
	if root.Height > MaxHeight {
		return layout.Hole, ref, errHeight(&root)
	}
	leaf, i := uint64(block)>>leafShift, uint(block%LeafBlocks)
	kind, ok := r.cache.blockByRoot(&root.Hash, leaf, i, &ref)
	if !ok && uint64(block) < Capacity(root.Height) {
		kind, err = r.descend(&root, leaf, i, &ref)
	}
	return kind, ref, err
}

// descend is Lookup without a shortcut.
func (r *Reader) descend(root *Root, leaf uint64, i uint, ref *layout.BlockRef) (layout.Kind, error) {
	p := rootPointer(root)
	for level := root.Height; level > 0; level-- {
		var err error
		if p, err = r.child(&p, level, leaf); err != nil || p.kind != layout.Data {
			return p.kind, err
		}
	}
	if kind, ok := r.cache.block(&root.Hash, leaf, &p.hash, i, ref); ok {
		return kind, nil
	}
	buf := r.bufs.Get().(*[]byte)
	defer r.bufs.Put(buf)
	b, err := r.load(&p, 0, leaf, *buf)
	if err != nil {
		return layout.Hole, err
	}
	r.cache.put(0, leaf, &p.hash, b)
	return readBlock(b, i, ref), nil
}

// child is the pointer, in the node of the level, towards a leaf. On error its
// kind is Hole.
func (r *Reader) child(p *pointer, level uint8, leaf uint64) (pointer, error) {
	index := leaf >> (fanoutShift * level)
	slot := uint(leaf>>(fanoutShift*(level-1))) % Fanout
	if c, ok := r.cache.child(level, index, &p.hash, slot); ok {
		return c, nil
	}
	buf := r.bufs.Get().(*[]byte)
	defer r.bufs.Put(buf)
	b, err := r.load(p, level, index, *buf)
	if err != nil {
		return pointer{}, err
	}
	r.cache.put(level, index, &p.hash, b)
	return interiorBytes(b).child(slot), nil
}

// Reaches says whether a tree has a node. Nodes that no head and no snapshot
// reaches, in either slot, are left over from interrupted updates.
func (r *Reader) Reaches(root Root, id NodeID) (bool, error) {
	if root.Height > MaxHeight {
		return false, errHeight(&root)
	}
	leaf := id.Index << (fanoutShift * id.Level)
	if id.Level > root.Height || leaf>>(fanoutShift*root.Height) != 0 {
		return false, nil
	}
	p := rootPointer(&root)
	for level := root.Height; level > id.Level && p.kind == layout.Data; level-- {
		var err error
		if p, err = r.child(&p, level, leaf); err != nil {
			return false, err
		}
	}
	return p.kind == layout.Data && p.id(id.Level, id.Index) == id, nil
}

func errHeight(root *Root) error {
	return &NodeError{NodeID{Owner: root.Owner, Level: root.Height, Gen: root.Gen}, errEncoding}
}
