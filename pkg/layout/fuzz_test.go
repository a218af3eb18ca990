package layout_test

import (
	"bytes"
	"testing"

	"github.com/fsximg/fsx/pkg/layout"
)

// FuzzAccount feeds the decoders of an account's rows, keys and values: no panic,
// and what is accepted encodes to the same bytes and keeps its rules.
func FuzzAccount(f *testing.F) {
	f.Add(layout.AccountKey(7, 12), layout.Tally{{Label: 3, N: 9}, {Label: layout.Unborn, N: 1}}.Encode())
	f.Add(layout.AccountKey(7, layout.AliveRow), layout.Tally(nil).Encode())
	f.Fuzz(func(t *testing.T, key, val []byte) {
		if row, ok := layout.AccountRow(key); ok {
			v := layout.VolumeID(uint32(key[1])<<24 | uint32(key[2])<<16 | uint32(key[3])<<8 | uint32(key[4]))
			if !bytes.Equal(layout.AccountKey(v, row), key) {
				t.Error("key encodes differently")
			}
		}
		tally, err := layout.DecodeTally(val)
		if err != nil {
			return
		}
		if !bytes.Equal(tally.Encode(), val) {
			t.Error("row encodes differently")
		}
		for i, c := range tally {
			if c.N == 0 || i > 0 && c.Label <= tally[i-1].Label || tally.Find(c.Label) != i {
				t.Errorf("count %d of %d is accepted: %+v", i, len(tally), c)
			}
		}
	})
}

// FuzzFate feeds the decoder of deleted volumes' fates: no panic, and what is
// accepted encodes to the same bytes.
func FuzzFate(f *testing.F) {
	f.Add(layout.FateKey(7), []byte{byte(layout.Hidden)})
	f.Add(layout.FateKey(1<<32-1), []byte{byte(layout.Going)})
	f.Add([]byte("00000"), []byte{byte(layout.Going)}) // a key of something else
	f.Fuzz(func(t *testing.T, key, val []byte) {
		v, fate, err := layout.DecodeFate(key, val)
		if err == nil && (!bytes.Equal(layout.FateKey(v), key) || !bytes.Equal([]byte{byte(fate)}, val)) {
			t.Errorf("fate %d of volume %d encodes differently", fate, v)
		}
	})
}
