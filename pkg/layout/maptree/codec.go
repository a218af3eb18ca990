package maptree

import (
	"encoding/binary"
	"math/bits"

	"github.com/fsximg/fsx/pkg/layout"
)

var be = binary.BigEndian

const (
	leafMagic     = 'L'
	interiorMagic = 'I'

	leafHeader = 6
	refSize    = 4 + 8 + 1 + layout.TagSize
	maxLeaf    = leafHeader + LeafBlocks*refSize

	interiorHeader = 18
	childSize      = 4 + 8 + 32
	maxNode        = interiorHeader + Fanout*childSize

	allBlocks   = 1<<LeafBlocks - 1
	allChildren = 1<<Fanout - 1
)

// leafBytes are the bytes of a checked leaf:
//
//	0 'L' | 1 00 | 2 data bitmap be16 | 4 zero bitmap be16
//	6 for each data bit, lowest first:
//	  owner be32 | extent be64 | index u8 | tag 16
//
// Bit i is block i of the leaf; it is set in at most one bitmap. An all-hole or
// all-zero leaf does not exist.
type leafBytes []byte

func (b leafBytes) data() uint16  { return be.Uint16(b[2:]) }
func (b leafBytes) zeros() uint16 { return be.Uint16(b[4:]) }

func (b leafBytes) kind(i uint) layout.Kind {
	switch {
	case b.data()>>i&1 != 0:
		return layout.Data
	case b.zeros()>>i&1 != 0:
		return layout.Zero
	}
	return layout.Hole
}

// ref reads the reference of block i, whose data bit is set.
func (b leafBytes) ref(i uint, ref *layout.BlockRef) {
	n := bits.OnesCount16(b.data() & (1<<i - 1))
	b.refAt(n, ref)
}

// refAt reads the n-th reference.
func (b leafBytes) refAt(n int, ref *layout.BlockRef) {
	p := b[leafHeader+n*refSize:][:refSize]
	ref.Owner = layout.VolumeID(be.Uint32(p))
	ref.Extent = layout.ExtentID(be.Uint64(p[4:]))
	ref.Index = p[12]
	ref.Tag = layout.Tag(p[13:])
}

// checkLeaf says whether b is a canonical leaf.
func checkLeaf(b []byte) bool {
	if len(b) < leafHeader || b[0] != leafMagic || b[1] != 0 {
		return false
	}
	l := leafBytes(b)
	data, zeros := l.data(), l.zeros()
	if data&zeros != 0 || data|zeros == 0 || zeros == allBlocks || len(b) != leafHeader+refSize*bits.OnesCount16(data) {
		return false
	}
	for p := b[leafHeader:]; len(p) > 0; p = p[refSize:] {
		if be.Uint32(p) == 0 {
			return false // no volume has the number 0
		}
	}
	return true
}

// interiorBytes are the bytes of a checked interior node:
//
//	0 'I' | 1 level u8 | 2 node bitmap be64 | 10 zero bitmap be64
//	18 for each node bit, lowest first:
//	   owner be32 | generation be64 | SHA-256 of the child's bytes, 32
//
// Bit i is child i; it is set in at most one bitmap. An all-hole or all-zero
// node does not exist.
type interiorBytes []byte

func (b interiorBytes) nodes() uint64 { return be.Uint64(b[2:]) }
func (b interiorBytes) zeros() uint64 { return be.Uint64(b[10:]) }

func (b interiorBytes) kind(i uint) layout.Kind {
	switch {
	case b.nodes()>>i&1 != 0:
		return layout.Data
	case b.zeros()>>i&1 != 0:
		return layout.Zero
	}
	return layout.Hole
}

// child reads the pointer to child i.
func (b interiorBytes) child(i uint) (p pointer) {
	p.kind = b.kind(i)
	if p.kind == layout.Data {
		b.childAt(bits.OnesCount64(b.nodes()&(1<<i-1)), &p)
	}
	return p
}

// childAt reads the n-th node pointer.
func (b interiorBytes) childAt(n int, p *pointer) {
	c := b[interiorHeader+n*childSize:][:childSize]
	p.kind = layout.Data
	p.owner = layout.VolumeID(be.Uint32(c))
	p.gen = be.Uint64(c[4:])
	p.hash = layout.Hash(c[12:])
}

// checkInterior says whether b is a canonical interior node.
func checkInterior(b []byte) bool {
	if len(b) < interiorHeader || b[0] != interiorMagic || b[1] < 1 || b[1] > MaxHeight {
		return false
	}
	n := interiorBytes(b)
	nodes, zeros := n.nodes(), n.zeros()
	if nodes&zeros != 0 || nodes|zeros == 0 || zeros == allChildren || len(b) != interiorHeader+childSize*bits.OnesCount64(nodes) {
		return false
	}
	for p := b[interiorHeader:]; len(p) > 0; p = p[childSize:] {
		if be.Uint32(p) == 0 {
			return false
		}
	}
	return true
}

// checkNode says whether b is a canonical node of the level.
func checkNode(b []byte, level uint8) bool {
	if level == 0 {
		return checkLeaf(b)
	}
	return checkInterior(b) && b[1] == level
}

// leaf is a decoded leaf. References behind a clear data bit mean nothing.
type leaf struct {
	data, zeros uint16
	refs        [LeafBlocks]layout.BlockRef
}

func (l *leaf) decode(b leafBytes) {
	l.data, l.zeros = b.data(), b.zeros()
	n := 0
	for set := l.data; set != 0; set &= set - 1 {
		b.refAt(n, &l.refs[bits.TrailingZeros16(set)])
		n++
	}
}

// fill makes the leaf all of one kind, which is not Data.
func (l *leaf) fill(kind layout.Kind) {
	l.data, l.zeros = 0, 0
	if kind == layout.Zero {
		l.zeros = allBlocks
	}
}

// kind is Data if the leaf has to be stored.
func (l *leaf) kind() layout.Kind {
	switch {
	case l.data|l.zeros == 0:
		return layout.Hole
	case l.zeros == allBlocks:
		return layout.Zero
	}
	return layout.Data
}

func (l *leaf) append(b []byte) []byte {
	b = append(b, leafMagic, 0)
	b = be.AppendUint16(be.AppendUint16(b, l.data), l.zeros)
	for set := l.data; set != 0; set &= set - 1 {
		r := &l.refs[bits.TrailingZeros16(set)]
		b = be.AppendUint64(be.AppendUint32(b, uint32(r.Owner)), uint64(r.Extent))
		b = append(append(b, r.Index), r.Tag[:]...)
	}
	return b
}

// interior is a decoded interior node. Pointers behind a clear node bit mean
// nothing.
type interior struct {
	nodes, zeros uint64
	children     [Fanout]pointer
}

func (n *interior) decode(b interiorBytes) {
	n.nodes, n.zeros = b.nodes(), b.zeros()
	i := 0
	for set := n.nodes; set != 0; set &= set - 1 {
		b.childAt(i, &n.children[bits.TrailingZeros64(set)])
		i++
	}
}

func (n *interior) fill(kind layout.Kind) {
	n.nodes, n.zeros = 0, 0
	if kind == layout.Zero {
		n.zeros = allChildren
	}
}

func (n *interior) kind() layout.Kind {
	switch {
	case n.nodes|n.zeros == 0:
		return layout.Hole
	case n.zeros == allChildren:
		return layout.Zero
	}
	return layout.Data
}

func (n *interior) child(i uint) pointer {
	switch {
	case n.nodes>>i&1 != 0:
		return n.children[i]
	case n.zeros>>i&1 != 0:
		return pointer{kind: layout.Zero}
	}
	return pointer{}
}

func (n *interior) setChild(i uint, p *pointer) {
	bit := uint64(1) << i
	n.nodes, n.zeros = n.nodes&^bit, n.zeros&^bit
	switch p.kind {
	case layout.Data:
		n.nodes |= bit
		n.children[i] = *p
	case layout.Zero:
		n.zeros |= bit
	}
}

func (n *interior) append(b []byte, level uint8) []byte {
	b = append(b, interiorMagic, level)
	b = be.AppendUint64(be.AppendUint64(b, n.nodes), n.zeros)
	for set := n.nodes; set != 0; set &= set - 1 {
		p := &n.children[bits.TrailingZeros64(set)]
		b = be.AppendUint64(be.AppendUint32(b, uint32(p.owner)), p.gen)
		b = append(b, p.hash[:]...)
	}
	return b
}
