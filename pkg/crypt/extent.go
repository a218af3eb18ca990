package crypt

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"fmt"
	"sync"

	"golang.org/x/crypto/chacha20poly1305"
)

const aadSize = 24

// Extent is the opened cipher of one extent. It is immutable, safe for
// concurrent use, and meant to be cached: making one costs about as much as
// opening a block. It outlives a Wipe of its data key.
type Extent struct {
	redact
	aead   cipher.AEAD // nil for AES256XTS
	xts    *xtsCipher
	base   [12]byte
	mode   Mode
	blocks uint32
}

// Extent derives the cipher of the extent with nonce n, which has the given
// number of blocks, 1 to MaxExtentBlocks. A wrong nonce or number shows when a
// block is opened.
func (k *DataKey) Extent(n Nonce, blocks int) (*Extent, error) {
	if blocks < 1 || blocks > MaxExtentBlocks {
		return nil, fmt.Errorf("open extent of %d blocks: %w", blocks, ErrBuffer)
	}
	k.mu.RLock()
	defer k.mu.RUnlock()
	if k.mem == nil {
		return nil, fmt.Errorf("open extent under data key %s: %w", k.id, ErrWiped)
	}
	e := &Extent{mode: k.mode, blocks: uint32(blocks)}
	prf := k.mem.b[dataKeySize:]
	s := scratches.Get().(*scratch)
	defer s.put()
	if k.mode == AES256XTS {
		return e, e.initXTS(prf, s, n)
	}
	return e, e.initAEAD(prf, s, n)
}

func (e *Extent) initAEAD(prf []byte, s *scratch, n Nonce) (err error) {
	info := append(s.info[:0], byte(e.mode), blockShift)
	info = append(info, n[:]...)
	okm := s.okm[:64]
	expandFSX(okm, prf, labelExtent, info)
	copy(e.base[:], okm[32:44])
	if e.mode == ChaCha20Poly1305 {
		e.aead, err = chacha20poly1305.New(okm[:32])
		return err
	}
	block, err := aes.NewCipher(okm[:32])
	if err != nil {
		return err
	}
	e.aead, err = cipher.NewGCM(block)
	return err
}

// scratch is what one block operation needs beside its buffer. The cipher
// interfaces would move it to the heap at every call; a pool does not.
type scratch struct {
	aad   [aadSize]byte
	nonce [12]byte
	saved [Slack]byte
	info  [24]byte
	okm   [96]byte
	tweak [BlockSize]byte // AES256XTS only
}

var scratches = sync.Pool{New: func() any { return new(scratch) }}

func (s *scratch) put() {
	clear(s.okm[:])
	scratches.Put(s)
}

// prepare writes the nonce and the associated data of block i:
//
//	0  4 "FSXE"
//	4  1 version, 1
//	5  1 mode
//	6  1 log2 of the block size, 12
//	7  1 zero
//	8  8 home, big endian
//	16 4 i, big endian
//	20 4 number of blocks in the extent, big endian
func (e *Extent) prepare(s *scratch, home uint64, i uint32) {
	binary.BigEndian.PutUint32(s.aad[0:], 'F'<<24|'S'<<16|'X'<<8|'E')
	s.aad[4], s.aad[5], s.aad[6], s.aad[7] = keyVersion, byte(e.mode), blockShift, 0
	binary.BigEndian.PutUint64(s.aad[8:], home)
	binary.BigEndian.PutUint32(s.aad[16:], i)
	binary.BigEndian.PutUint32(s.aad[20:], e.blocks)
	s.nonce = e.base
	last := binary.BigEndian.Uint32(s.nonce[8:])
	binary.BigEndian.PutUint32(s.nonce[8:], last^i)
}

// Open turns the ciphertext of the extent's block index into plaintext, in
// place. home is the block number that the reader asked for.
//
// len(block) must be BlockSize and cap(block) at least BlockSize+Slack; the
// slack is used and restored, so neighbours in one buffer may be opened in any
// order by one goroutine, not by two at once. Otherwise the error is ErrBuffer.
// If the block is not what was sealed for that home, index and tag, the error
// is ErrAuth and the block is zeroed.
func (e *Extent) Open(block []byte, home uint64, index int, tag *Tag) error {
	if len(block) != BlockSize || cap(block) < BlockSize+Slack {
		return ErrBuffer
	}
	if index < 0 || index >= int(e.blocks) {
		clear(block)
		return ErrAuth
	}
	s := scratches.Get().(*scratch)
	e.prepare(s, home, uint32(index))
	var ok bool
	if e.xts != nil {
		ok = e.xts.open(s, block, uint64(index), tag)
	} else {
		ok = e.openAEAD(s, block, tag)
	}
	scratches.Put(s)
	if !ok {
		clear(block)
		return ErrAuth
	}
	return nil
}

func (e *Extent) openAEAD(s *scratch, block []byte, tag *Tag) bool {
	sealed := block[: BlockSize+Slack : BlockSize+Slack]
	slack := sealed[BlockSize:]
	copy(s.saved[:], slack)
	copy(slack, tag[:])
	_, err := e.aead.Open(block[:0], s.nonce[:], sealed, s.aad[:])
	copy(slack, s.saved[:])
	return err == nil
}

// seal encrypts block index in place and writes its tag; the slack behind it is
// restored.
func (e *Extent) seal(s *scratch, block []byte, home uint64, index int, tag *Tag) {
	e.prepare(s, home, uint32(index))
	if e.xts != nil {
		e.xts.seal(s, block, uint64(index), tag)
		return
	}
	slack := block[BlockSize : BlockSize+Slack]
	copy(s.saved[:], slack)
	e.aead.Seal(block[:0], s.nonce[:], block[:BlockSize], s.aad[:])
	copy(tag[:], slack)
	copy(slack, s.saved[:])
}
