package crypt_test

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/fsximg/fsx/pkg/crypt"
)

var allModes = []crypt.Mode{crypt.AES256GCM, crypt.ChaCha20Poly1305, crypt.AES256XTS}

func testAuthority() *crypt.Authority {
	return must(crypt.NewAuthority(must(crypt.NewVolumeKey()), testStore, testVolume))
}

// fill makes n blocks with room for the slack, and their homes.
func fill(n int) (buf []byte, homes []uint64) {
	buf = make([]byte, n*crypt.BlockSize, n*crypt.BlockSize+crypt.Slack)
	r := rand.New(rand.NewPCG(uint64(n), 7))
	for i := range buf {
		buf[i] = byte(r.Uint32())
	}
	for range n {
		homes = append(homes, r.Uint64())
	}
	return buf, homes
}

func TestSealOpen(t *testing.T) {
	a := testAuthority()
	for _, mode := range allModes {
		for _, n := range []int{1, 2, 3, 16, 255, 256} {
			k := must(crypt.NewDataKey(mode))
			buf, homes := fill(n)
			plain := bytes.Clone(buf)
			tags := make([]crypt.Tag, n)
			nonce := must(a.Seal(k, buf, homes, tags, 5, &[32]byte{1}))
			e := must(k.Extent(nonce, n))
			for _, i := range rand.Perm(n) {
				block := buf[i*crypt.BlockSize:][:crypt.BlockSize]
				if bytes.Equal(block, plain[i*crypt.BlockSize:][:crypt.BlockSize]) {
					t.Fatalf("%s: block %d of %d is not encrypted", mode, i, n)
				}
				if err := e.Open(block, homes[i], i, &tags[i]); err != nil {
					t.Fatalf("%s: block %d of %d: %v", mode, i, n, err)
				}
			}
			if !bytes.Equal(buf, plain) {
				t.Fatalf("%s: %d blocks differ after opening", mode, n)
			}
		}
	}
}
