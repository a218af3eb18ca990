package crypt

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/subtle"
	"encoding/binary"
)

// xtsCipher is fscrypt's (unmerged) per-extent AES-256-XTS, context 9, with a
// tag of our own: encrypt, then HMAC-SHA-256 over associated data and
// ciphertext, truncated to 16 bytes. The data unit is the block's index.
type xtsCipher struct {
	data, tweak cipher.Block
	mac         [prf256]byte
}

func (e *Extent) initXTS(prf []byte, s *scratch, n Nonce) (err error) {
	key, mac := s.okm[:64], s.okm[64:96]
	expand(key, prf, append(append(s.info[:0], "fscrypt\x00\x09"...), n[:]...))
	expandFSX(mac, prf, labelExtentMAC, append(s.info[:0], n[:]...))
	x := new(xtsCipher)
	if x.data, err = aes.NewCipher(key[:32]); err != nil {
		return err
	}
	if x.tweak, err = aes.NewCipher(key[32:]); err != nil {
		return err
	}
	h := get256()
	h.absorb(x.mac[:], mac)
	h.put(&pool256)
	e.xts = x
	return nil
}

func (x *xtsCipher) seal(s *scratch, block []byte, unit uint64, tag *Tag) {
	block = block[:BlockSize]
	x.encrypt(s, block, unit)
	x.tag(s, block, tag)
}

func (x *xtsCipher) encrypt(s *scratch, block []byte, unit uint64) {
	x.mask(s, unit)
	subtle.XORBytes(block, block, s.tweak[:])
	for i := 0; i < BlockSize; i += 16 {
		b := block[i : i+16 : i+16]
		x.data.Encrypt(b, b)
	}
	subtle.XORBytes(block, block, s.tweak[:])
	clear(s.tweak[:])
}

// open checks the tag before it decrypts.
func (x *xtsCipher) open(s *scratch, block []byte, unit uint64, tag *Tag) bool {
	var want Tag
	x.tag(s, block, &want)
	if subtle.ConstantTimeCompare(want[:], tag[:]) != 1 {
		return false
	}
	x.mask(s, unit)
	subtle.XORBytes(block, block, s.tweak[:])
	for i := 0; i < BlockSize; i += 16 {
		b := block[i : i+16 : i+16]
		x.data.Decrypt(b, b)
	}
	subtle.XORBytes(block, block, s.tweak[:])
	clear(s.tweak[:])
	return true
}

func (x *xtsCipher) tag(s *scratch, block []byte, tag *Tag) {
	h := get256()
	h.begin(x.mac[:])
	h.h.Write(s.aad[:])
	h.h.Write(block)
	copy(tag[:], h.finish(x.mac[:]))
	h.put(&pool256)
}

// mask fills s.tweak with the 256 tweaks of a data unit: each is the one before
// times alpha in GF(2^128), little endian (IEEE 1619-2007 section 5.2).
func (x *xtsCipher) mask(s *scratch, unit uint64) {
	t := s.tweak[:16]
	binary.LittleEndian.PutUint64(t, unit)
	clear(t[8:])
	x.tweak.Encrypt(t, t)
	lo, hi := binary.LittleEndian.Uint64(t), binary.LittleEndian.Uint64(t[8:])
	for i := 16; i < BlockSize; i += 16 {
		carry := uint64(int64(hi) >> 63)
		hi = hi<<1 | lo>>63
		lo = lo<<1 ^ carry&0x87
		t := s.tweak[i : i+16]
		binary.LittleEndian.PutUint64(t, lo)
		binary.LittleEndian.PutUint64(t[8:], hi)
	}
}
