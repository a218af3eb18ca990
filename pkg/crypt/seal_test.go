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

// sealedExtent is one extent with everything that it takes to open it.
type sealedExtent struct {
	key   *crypt.DataKey
	nonce crypt.Nonce
	buf   []byte // ciphertext, slack behind it
	homes []uint64
	tags  []crypt.Tag
}

func sealExtent(mode crypt.Mode, n int) *sealedExtent {
	x := &sealedExtent{key: must(crypt.NewDataKey(mode)), tags: make([]crypt.Tag, n)}
	x.buf, x.homes = fill(n)
	x.nonce = must(testAuthority().Seal(x.key, x.buf, x.homes, x.tags, 1, &[32]byte{}))
	return x
}

// block copies block i with the given bytes behind it.
func (x *sealedExtent) block(i int, behind []byte) []byte {
	b := append(bytes.Clone(x.buf[i*crypt.BlockSize:][:crypt.BlockSize]), behind...)
	return b[:crypt.BlockSize]
}

func TestOpenRefuses(t *testing.T) {
	behind := []byte("these sixteen by")
	for _, mode := range allModes {
		x := sealExtent(mode, 3)
		other := must(crypt.NewDataKey(mode))
		flip := func(n crypt.Nonce) crypt.Nonce { n[15] ^= 1; return n }
		good := must(x.key.Extent(x.nonce, 3))
		for _, c := range []struct {
			name  string
			e     *crypt.Extent
			home  uint64
			index int
			tag   crypt.Tag
		}{
			{"another home", good, x.homes[1] ^ 1, 1, x.tags[1]},
			{"a far home", good, x.homes[1] ^ 1<<63, 1, x.tags[1]},
			{"another index", good, x.homes[1], 2, x.tags[1]},
			{"an index beyond the extent", good, x.homes[1], 3, x.tags[1]},
			{"a negative index", good, x.homes[1], -1, x.tags[1]},
			{"another block's tag", good, x.homes[1], 1, x.tags[2]},
			{"a zero tag", good, x.homes[1], 1, crypt.Tag{}},
			{"another nonce", must(x.key.Extent(flip(x.nonce), 3)), x.homes[1], 1, x.tags[1]},
			{"another number of blocks", must(x.key.Extent(x.nonce, 4)), x.homes[1], 1, x.tags[1]},
			{"another key", must(other.Extent(x.nonce, 3)), x.homes[1], 1, x.tags[1]},
		} {
			block := x.block(1, behind)
			if err := c.e.Open(block, c.home, c.index, &c.tag); err != crypt.ErrAuth {
				t.Errorf("%s: %s: %v", mode, c.name, err)
			}
			if !bytes.Equal(block, make([]byte, crypt.BlockSize)) {
				t.Errorf("%s: %s: the block is not zeroed", mode, c.name)
			}
			if got := block[crypt.BlockSize:][:16:16]; !bytes.Equal(got, behind) {
				t.Errorf("%s: %s: bytes behind the block became %q", mode, c.name, got)
			}
		}
	}
}

func TestEveryByteOfBlockAndTagCounts(t *testing.T) {
	for _, mode := range allModes {
		x := sealExtent(mode, 1)
		e := must(x.key.Extent(x.nonce, 1))
		for p := 0; p < crypt.BlockSize; p += 13 {
			block := x.block(0, make([]byte, 16))
			block[p] ^= 1 << (p % 8)
			if err := e.Open(block, x.homes[0], 0, &x.tags[0]); err != crypt.ErrAuth {
				t.Fatalf("%s: byte %d: %v", mode, p, err)
			}
		}
		for p := range 16 {
			tag := x.tags[0]
			tag[p] ^= 0x40
			if err := e.Open(x.block(0, make([]byte, 16)), x.homes[0], 0, &tag); err != crypt.ErrAuth {
				t.Fatalf("%s: byte %d of the tag: %v", mode, p, err)
			}
		}
	}
}

// The same key bytes under two modes share nothing.
func TestModesAreSeparate(t *testing.T) {
	raw := counted("modes-", 64)
	for _, a := range allModes {
		for _, b := range allModes {
			buf, homes := fill(1)
			tags := make([]crypt.Tag, 1)
			must(crypt.DataKeyFrom(raw, a).Extent(crypt.Nonce{}, 1)).SealWith(buf, homes, tags)
			err := must(crypt.DataKeyFrom(raw, b).Extent(crypt.Nonce{}, 1)).Open(buf, homes[0], 0, &tags[0])
			if (err == nil) != (a == b) {
				t.Errorf("sealed by %s, opened by %s: %v", a, b, err)
			}
		}
	}
}

func TestBuffersAreChecked(t *testing.T) {
	a, k := testAuthority(), must(crypt.NewDataKey(crypt.AES256GCM))
	buf, homes := fill(2)
	before := bytes.Clone(buf)
	tags := make([]crypt.Tag, 2)
	for name, seal := range map[string]func() error{
		"no blocks":    func() error { _, err := a.Seal(k, buf[:0], nil, nil, 1, &[32]byte{}); return err },
		"few homes":    func() error { _, err := a.Seal(k, buf, homes[:1], tags, 1, &[32]byte{}); return err },
		"few tags":     func() error { _, err := a.Seal(k, buf, homes, tags[:1], 1, &[32]byte{}); return err },
		"half a block": func() error { _, err := a.Seal(k, buf[:5000], homes, tags, 1, &[32]byte{}); return err },
		"no slack":     func() error { _, err := a.Seal(k, buf[:8192:8207], homes, tags, 1, &[32]byte{}); return err },
		"257 blocks": func() error {
			buf, homes := fill(257)
			_, err := a.Seal(k, buf, homes, make([]crypt.Tag, 257), 1, &[32]byte{})
			return err
		},
		"extent of none": func() error { _, err := k.Extent(crypt.Nonce{}, 0); return err },
		"extent of 257":  func() error { _, err := k.Extent(crypt.Nonce{}, 257); return err },
		"open no slack": func() error {
			return must(k.Extent(crypt.Nonce{}, 1)).Open(buf[:4096:4111], 0, 0, &tags[0])
		},
		"open short": func() error { return must(k.Extent(crypt.Nonce{}, 1)).Open(buf[:4095], 0, 0, &tags[0]) },
	} {
		t.Run(name, func(t *testing.T) { wantIs(t, seal(), crypt.ErrBuffer) })
	}
	if !bytes.Equal(buf, before) {
		t.Fatal("a refused buffer was touched")
	}
}

// A random source that repeats itself does not repeat a nonce: the counter in
// memory changes within a process, sequence and previous MAC after a restart.
func TestNonceIsUniqueWithoutRandomness(t *testing.T) {
	defer crypt.SetRandom(func(b []byte) { clear(b) })()
	vk := crypt.VolumeKeyFrom(counted("nonce-", 32))
	authority := func(vol byte) *crypt.Authority {
		return must(crypt.NewAuthority(vk, testStore, crypt.UUID{vol}))
	}
	k := must(crypt.NewDataKey(crypt.AES256GCM))
	seen := map[crypt.Nonce]string{}
	draw := func(what string, a *crypt.Authority, seq uint64, prev [32]byte) {
		t.Helper()
		buf, homes := fill(1)
		n := must(a.Seal(k, buf, homes, make([]crypt.Tag, 1), seq, &prev))
		if was, dup := seen[n]; dup {
			t.Fatalf("%s repeats the nonce of %s", what, was)
		}
		seen[n] = what
	}
	a := authority(1)
	for range 100 {
		draw("the same extent", a, 1, [32]byte{})
	}
	draw("a new authority", authority(1), 1, [32]byte{})
	restart := func(what string, a *crypt.Authority, seq uint64, prev [32]byte) {
		t.Helper()
		crypt.SetSealed(0)
		draw(what, a, seq, prev)
	}
	restart("restart, next sequence", authority(1), 2, [32]byte{})
	restart("restart, other history", authority(1), 1, [32]byte{1})
	restart("restart, other volume", authority(2), 1, [32]byte{})
	crypt.SetSealed(1 << 20)
}
