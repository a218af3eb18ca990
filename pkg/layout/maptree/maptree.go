// Package maptree is a volume's map: a persistent Merkle radix tree from a
// block's home to the stored block, over metadb.
//
// A node is named by (owner volume, level, index, generation) and pointed to
// by that name and the SHA-256 of its bytes, so a root's hash vouches for the
// whole tree, and a node that is missing, stale or altered is [ErrDamaged].
// Subtrees that are all hole or all zero have no nodes.
//
// # Generations and slots
//
// A node's generation is epoch<<1 | slot. The epoch is the volume's newest
// snapshot when the node was written. Between two snapshots the two slots
// alternate, so [Update] never overwrites a node of the tree it starts from,
// nor one of a snapshot, nor one of another volume; it may overwrite a node of
// the root before. So of one volume:
//
//   - a root may serve as the start of an update only if every root written
//     before it is either a snapshot's or given up;
//   - readers of a root that has been given up may get ErrDamaged and must try
//     again with the newest root;
//   - after an interrupted update the same update, or another, may start from
//     the same root.
//
// The order of durability belongs to the caller: nodes first (Flush of the
// batch), then the head with the new root, then the removal of what Update
// reported as obsolete.
package maptree

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/fsximg/fsx/pkg/layout"
)

const (
	// LeafBlocks is the number of blocks under a leaf.
	LeafBlocks = 16
	// Fanout is the number of children of an interior node.
	Fanout = 64
	// MaxHeight is the height of the tallest tree; it covers 2^52 blocks.
	MaxHeight = 8

	leafShift   = 4
	fanoutShift = 6
)

// Root is the pointer to a whole tree, as heads and snapshots keep it. The zero
// value is an empty tree of one leaf's size.
type Root = layout.Root

var (
	// ErrDamaged says that a node is missing, or is not what its pointer names.
	ErrDamaged = errors.New("map tree damaged")
	// ErrOrder says that changes were not sorted, overlapped or left the volume.
	ErrOrder = errors.New("map changes out of order")
)

// NodeID names a node.
type NodeID struct {
	Owner layout.VolumeID
	Level uint8
	Index uint64 // number of the node's first block >> Shift(Level)
	Gen   uint64
}

func (n NodeID) String() string {
	return fmt.Sprintf("%s/%d/%x/%x", n.Owner, n.Level, n.Index, n.Gen)
}

// NodeError is an ErrDamaged with its place.
type NodeError struct {
	NodeID
	Cause error
}

func (e *NodeError) Error() string { return fmt.Sprintf("map node %s: %v", e.NodeID, e.Cause) }

// Unwrap makes a NodeError both ErrDamaged and its cause.
func (e *NodeError) Unwrap() []error { return []error{ErrDamaged, e.Cause} }

var (
	errMissing  = errors.New("missing")
	errHash     = errors.New("does not match its pointer's hash")
	errEncoding = errors.New("not a canonical encoding")
)

// Shift is log2 of the blocks that a node of the level covers.
func Shift(level uint8) uint { return leafShift + fanoutShift*uint(level) }

// Capacity is the number of blocks that a tree of the height covers.
func Capacity(height uint8) uint64 { return 1 << Shift(height) }

// HeightFor is the height of the tree of a volume of so many blocks.
func HeightFor(blocks uint64) uint8 {
	var h uint8
	for h < MaxHeight && Capacity(h) < blocks {
		h++
	}
	return h
}

// Node keys: 'n' | owner be32 | level u8 | index be64 | generation be64.
const (
	keyPrefix = 'n'
	keySize   = 22
)

// Key is the node's key in the database.
func (n NodeID) Key() []byte { return n.AppendKey(make([]byte, 0, keySize)) }

// AppendKey appends the node's key to dst.
func (n NodeID) AppendKey(dst []byte) []byte {
	dst = append(dst, keyPrefix)
	dst = binary.BigEndian.AppendUint32(dst, uint32(n.Owner))
	dst = append(dst, n.Level)
	dst = binary.BigEndian.AppendUint64(dst, n.Index)
	return binary.BigEndian.AppendUint64(dst, n.Gen)
}

// ParseKey takes a node's key apart. The node's other slot has the generation
// Gen^1.
func ParseKey(key []byte) (NodeID, bool) {
	if len(key) != keySize || key[0] != keyPrefix {
		return NodeID{}, false
	}
	n := NodeID{
		Owner: layout.VolumeID(binary.BigEndian.Uint32(key[1:])),
		Level: key[5],
		Index: binary.BigEndian.Uint64(key[6:]),
		Gen:   binary.BigEndian.Uint64(key[14:]),
	}
	return n, n.Level <= MaxHeight && n.Index>>(Shift(MaxHeight)-Shift(n.Level)) == 0
}

// Prefix is the prefix of the keys of a volume's own nodes.
func Prefix(owner layout.VolumeID) []byte {
	return binary.BigEndian.AppendUint32([]byte{keyPrefix}, uint32(owner))
}

// pointer is a subtree as its parent sees it. Owner, gen and hash are zero
// unless kind is Data.
type pointer struct {
	kind  layout.Kind
	owner layout.VolumeID
	gen   uint64
	hash  layout.Hash
}

func rootPointer(r *Root) pointer { return pointer{r.Kind, r.Owner, r.Gen, r.Hash} }

func (p *pointer) id(level uint8, index uint64) NodeID {
	return NodeID{p.owner, level, index, p.gen}
}

func (p *pointer) root(height uint8) Root {
	return Root{Kind: p.kind, Height: height, Owner: p.owner, Gen: p.gen, Hash: p.hash}
}
