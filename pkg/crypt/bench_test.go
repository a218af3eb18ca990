package crypt_test

import (
	"crypto/aes"
	"crypto/cipher"
	"testing"

	"github.com/fsximg/fsx/pkg/crypt"
)

func BenchmarkSeal(b *testing.B) {
	a := testAuthority()
	for _, mode := range allModes {
		for _, n := range []int{1, 256} {
			b.Run(mode.String()+"/"+sizeName(n), func(b *testing.B) {
				k := must(crypt.NewDataKey(mode))
				buf, homes := fill(n)
				tags := make([]crypt.Tag, n)
				var prev [32]byte
				b.SetBytes(int64(len(buf)))
				b.ReportAllocs()
				for b.Loop() {
					if _, err := a.Seal(k, buf, homes, tags, 1, &prev); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

func sizeName(n int) string {
	if n == 1 {
		return "1-block"
	}
	return "256-blocks"
}

func BenchmarkOpen(b *testing.B) {
	a := testAuthority()
	for _, mode := range allModes {
		b.Run(mode.String(), func(b *testing.B) {
			k := must(crypt.NewDataKey(mode))
			buf, homes := fill(1)
			tags := make([]crypt.Tag, 1)
			nonce := must(a.Seal(k, buf, homes, tags, 1, &[32]byte{}))
			e := must(k.Extent(nonce, 1))
			block := make([]byte, crypt.BlockSize, crypt.BlockSize+crypt.Slack)
			b.SetBytes(crypt.BlockSize)
			b.ReportAllocs()
			for b.Loop() {
				copy(block, buf)
				if err := e.Open(block, homes[0], 0, &tags[0]); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkExtent(b *testing.B) {
	for _, mode := range allModes {
		b.Run(mode.String(), func(b *testing.B) {
			k := must(crypt.NewDataKey(mode))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := k.Extent(crypt.Nonce{1}, 16); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkMAC(b *testing.B) {
	a := testAuthority()
	record := make([]byte, 512)
	b.ReportAllocs()
	for b.Loop() {
		a.MAC(crypt.PurposeRecord, record)
	}
}

// BenchmarkBaseline is what the standard library's GCM does with a block; Seal
// and Open are judged against it.
func BenchmarkBaseline(b *testing.B) {
	block := must(aes.NewCipher(make([]byte, 32)))
	gcm := must(cipher.NewGCM(block))
	p, nonce, ad := make([]byte, crypt.BlockSize, crypt.BlockSize+16), make([]byte, 12), make([]byte, 24)
	b.SetBytes(crypt.BlockSize)
	for b.Loop() {
		gcm.Seal(p[:0], nonce, p, ad)
	}
}
