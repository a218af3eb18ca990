package crypt

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"encoding"
	"encoding/binary"
	"hash"
	"sync"
)

// HMAC with the key absorbed once (RFC 2104 section 4): the states of the inner
// and outer hash after their first block are kept, in locked memory, and every
// use starts from them. That halves the compressions and allocates nothing.

const (
	state512 = 4 + 8*8 + 128 + 8 // size of a marshalled SHA-512 state
	state256 = 4 + 8*4 + 64 + 8
	prf512   = 2 * state512 // an absorbed HMAC-SHA-512 key: inner state, outer state
	prf256   = 2 * state256
)

type marshalHash interface {
	hash.Hash
	encoding.BinaryAppender
	encoding.BinaryUnmarshaler
}

// hasher computes HMACs of one hash. It belongs to one goroutine at a time.
type hasher struct {
	h     marshalHash
	blank []byte // marshalled fresh state; loading it wipes what h holds
	pad   [128]byte
	sum   [64]byte
}

var (
	pool512 = sync.Pool{New: func() any { return newHasher(sha512.New()) }}
	pool256 = sync.Pool{New: func() any { return newHasher(sha256.New()) }}
)

func newHasher(h hash.Hash) *hasher {
	x := &hasher{h: h.(marshalHash)}
	blank, err := x.h.AppendBinary(nil)
	if err != nil {
		panic("crypt: " + err.Error())
	}
	x.blank = blank
	return x
}

func get512() *hasher { return pool512.Get().(*hasher) }
func get256() *hasher { return pool256.Get().(*hasher) }

func (x *hasher) put(p *sync.Pool) {
	x.load(x.blank)
	clear(x.pad[:])
	clear(x.sum[:])
	p.Put(x)
}

func (x *hasher) load(state []byte) {
	if err := x.h.UnmarshalBinary(state); err != nil {
		panic("crypt: hash state: " + err.Error()) // the state is our own
	}
}

// absorb writes the two states of key, at most one block long or hashed by the
// caller, to dst. len(dst) is prf512 or prf256.
func (x *hasher) absorb(dst, key []byte) {
	half, block := len(dst)/2, x.h.BlockSize()
	for i, b := range [2]byte{0x36, 0x5c} {
		pad := x.pad[:block]
		for j := range pad {
			pad[j] = b
		}
		for j, k := range key {
			pad[j] ^= k
		}
		x.load(x.blank)
		x.h.Write(pad)
		out, err := x.h.AppendBinary(dst[i*half : i*half : (i+1)*half])
		if err != nil || len(out) != half {
			panic("crypt: hash state has an unexpected size")
		}
	}
}

func (x *hasher) begin(prf []byte) { x.load(prf[:len(prf)/2]) }

// finish returns the MAC; it is valid until x is put back.
func (x *hasher) finish(prf []byte) []byte {
	inner := x.h.Sum(x.sum[:0])
	x.load(prf[len(prf)/2:])
	x.h.Write(inner)
	return x.h.Sum(x.sum[:0])
}

// extract is HKDF-Extract with SHA-512 (RFC 5869 section 2.2); it leaves the
// PRK absorbed in prf, ready for expand. The PRK itself is kept nowhere.
// salt is at most 128 bytes; an empty one is 64 zero bytes.
func extract(prf, salt, ikm []byte) {
	x := get512()
	defer x.put(&pool512)
	x.absorb(prf, salt)
	x.begin(prf)
	x.h.Write(ikm)
	prk := x.finish(prf)
	x.absorb(prf, prk)
}

// expand is the first block of HKDF-Expand (RFC 5869 section 2.3), which is all
// this format uses: at most 64 bytes. dst gets T(1)[:len(dst)].
func expand(dst, prf []byte, label ...[]byte) {
	x := get512()
	x.begin(prf)
	for _, l := range label {
		x.h.Write(l)
	}
	x.pad[0] = 1
	x.h.Write(x.pad[:1])
	copy(dst, x.finish(prf))
	x.put(&pool512)
}

// Derivation labels: "fsx\0" and a byte that is used for nothing else. The
// table in docs/crypto.md lists them.
const (
	labelCommit     = 0x01 // of a data key
	labelExtent     = 0x10
	labelExtentMAC  = 0x11
	labelVolumeID   = 0x20
	labelBag        = 0x21
	labelBagSalt    = 0x22
	labelHeadMAC    = 0x23
	labelRecordMAC  = 0x24
	labelNonceHedge = 0x25
)

// expandFSX expands under label "fsx\0" || b || info.
func expandFSX(dst, prf []byte, b byte, info ...[]byte) {
	x := get512()
	x.begin(prf)
	binary.BigEndian.PutUint32(x.pad[:], 'f'<<24|'s'<<16|'x'<<8)
	x.pad[4] = b
	x.h.Write(x.pad[:5])
	for _, l := range info {
		x.h.Write(l)
	}
	x.pad[0] = 1
	x.h.Write(x.pad[:1])
	copy(dst, x.finish(prf))
	x.put(&pool512)
}

// random fills b from the system. It does not fail: crypto/rand ends the
// program rather than return less. Only the package's tests replace it.
var random = func(b []byte) { _, _ = rand.Read(b) }
