package crypt_test

import (
	"testing"

	"github.com/fsximg/fsx/pkg/crypt"
)

// Opening a block and making a MAC are on the path of every request: they must
// not allocate. Sealing allocates for the extent's cipher, not for its blocks.
func TestHotPathDoesNotAllocate(t *testing.T) {
	if raceEnabled {
		t.Skip("sync.Pool drops at random under the race detector")
	}
	a := testAuthority()
	for _, mode := range allModes {
		k := must(crypt.NewDataKey(mode))
		seal := func(n int) float64 {
			buf, homes := fill(n)
			tags := make([]crypt.Tag, n)
			var prev [32]byte
			return testing.AllocsPerRun(20, func() { must(a.Seal(k, buf, homes, tags, 1, &prev)) })
		}
		if one, many := seal(1), seal(256); many > one {
			t.Errorf("%s: sealing 256 blocks allocates %v times, 1 block %v times", mode, many, one)
		}
		buf, homes := fill(1)
		tags := make([]crypt.Tag, 1)
		e := must(k.Extent(must(a.Seal(k, buf, homes, tags, 1, &[32]byte{})), 1))
		block := make([]byte, crypt.BlockSize, crypt.BlockSize+crypt.Slack)
		n := testing.AllocsPerRun(100, func() {
			copy(block, buf)
			if err := e.Open(block, homes[0], 0, &tags[0]); err != nil {
				t.Fatal(err)
			}
		})
		if n != 0 {
			t.Errorf("%s: opening a block allocates %v times", mode, n)
		}
	}
	record, sum := make([]byte, 300), [32]byte{}
	n := testing.AllocsPerRun(100, func() {
		sum = a.MAC(crypt.PurposeRecord, record, sum[:])
		if a.Verify(crypt.PurposeHead, &[32]byte{}, record) {
			t.Fatal("a zero MAC verifies")
		}
	})
	if n != 0 {
		t.Errorf("MAC and Verify allocate %v times", n)
	}
}
