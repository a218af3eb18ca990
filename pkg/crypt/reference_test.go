package crypt_test

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"hash"

	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/chacha20poly1305"
	"golang.org/x/crypto/xts"
)

// A second implementation of docs/crypto.md, written from its formulas with the
// standard library only. It shares no code with the package.

func cat(parts ...[]byte) (b []byte) {
	for _, p := range parts {
		b = append(b, p...)
	}
	return b
}

func be16(v uint16) []byte { return binary.BigEndian.AppendUint16(nil, v) }
func be32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }
func be64(v uint64) []byte { return binary.BigEndian.AppendUint64(nil, v) }

func refMAC(h func() hash.Hash, key []byte, parts ...[]byte) []byte {
	m := hmac.New(h, key)
	m.Write(cat(parts...))
	return m.Sum(nil)
}

func refPRK(key []byte) []byte { return refMAC(sha512.New, make([]byte, 64), key) }

func refExpand(prk []byte, n int, info ...[]byte) []byte {
	return must(hkdf.Expand(sha512.New, prk, string(cat(info...)), n))
}

func fsx(label byte) []byte { return []byte{'f', 's', 'x', 0, label} }

func refGCM(key []byte) cipher.AEAD { return must(cipher.NewGCM(must(aes.NewCipher(key)))) }

func refAAD(mode byte, home uint64, i, n int) []byte {
	return cat([]byte("FSXE"), []byte{1, mode, 12, 0}, be64(home), be32(uint32(i)), be32(uint32(n)))
}

// refSeal seals blocks and returns ciphertext and tags.
func refSeal(mode byte, key, nonce, plain []byte, homes []uint64) (ct, tags []byte) {
	prk := refPRK(key)
	if mode == 0x01 {
		return refSealXTS(prk, nonce, plain, homes)
	}
	okm := refExpand(prk, 64, fsx(0x10), []byte{mode, 12}, nonce)
	aead := refGCM(okm[:32])
	if mode == 0x82 {
		aead = must(chacha20poly1305.New(okm[:32]))
	}
	for i, home := range homes {
		n := cat(okm[32:40], be32(binary.BigEndian.Uint32(okm[40:44])^uint32(i)))
		out := aead.Seal(nil, n, plain[i*4096:][:4096], refAAD(mode, home, i, len(homes)))
		ct, tags = append(ct, out[:4096]...), append(tags, out[4096:]...)
	}
	return ct, tags
}

func refSealXTS(prk, nonce, plain []byte, homes []uint64) (ct, tags []byte) {
	x := must(xts.NewCipher(aes.NewCipher, refExpand(prk, 64, []byte("fscrypt\x00\x09"), nonce)))
	mac := refExpand(prk, 32, fsx(0x11), nonce)
	ct = make([]byte, len(plain))
	for i, home := range homes {
		block := ct[i*4096:][:4096]
		x.Encrypt(block, plain[i*4096:][:4096], uint64(i))
		tags = append(tags, refMAC(sha256.New, mac, refAAD(0x01, home, i, len(homes)), block)[:16]...)
	}
	return ct, tags
}

// refSlotKeys returns a slot's associated data, wrapping key and commitment.
func refSlotKeys(store, header, kek []byte) (ad, key, commit []byte) {
	ad = cat([]byte("FSXS\x01\x00\x00\x00"), store, header)
	okm := refExpand(refMAC(sha512.New, []byte("fsx-slot-v1"), kek), 64, ad)
	return ad, okm[:32], okm[32:]
}

// refOpenSlot unwraps the volume key of a slot's bytes, nil if it does not open.
func refOpenSlot(store, slot, kek []byte) []byte {
	ad, key, commit := refSlotKeys(store, slot[:40], kek)
	if !hmac.Equal(commit, slot[40:72]) {
		return nil
	}
	vk, err := refGCM(key).Open(nil, make([]byte, 12), slot[72:], ad)
	if err != nil {
		return nil
	}
	return vk
}

// refOpenBag returns the plaintext of a sealed bag, nil if it does not open.
func refOpenBag(store, bag, vk []byte) []byte {
	okm := refExpand(refPRK(vk), 64, fsx(0x21), store, bag[:16], bag[32:64])
	if !hmac.Equal(okm[32:], bag[64:96]) {
		return nil
	}
	ad := cat([]byte("FSXB\x01\x00\x00\x00"), store, bag[:100])
	plain, err := refGCM(okm[:32]).Open(nil, make([]byte, 12), bag[100:], ad)
	if err != nil {
		return nil
	}
	return plain
}

func refArgon2(passphrase, salt []byte, memory, passes uint32, lanes uint8) []byte {
	return argon2.IDKey(passphrase, salt, passes, memory, lanes, 32)
}
