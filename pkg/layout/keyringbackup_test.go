package layout_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"testing"
	"time"

	"github.com/fsximg/fsx/pkg/layout"
)

func backup(body int) *layout.KeyringBackup {
	return &layout.KeyringBackup{
		Store: layout.UUID{1, 2, 3}, Created: time.Unix(1790000000, 0).UTC(), Body: bytes.Repeat([]byte{0xa5}, body),
	}
}

// TestKeyringBackup: what is encoded decodes to the same, and no byte of it can be
// another.
func TestKeyringBackup(t *testing.T) {
	for _, n := range []int{0, 1, 80, 70000} {
		b := backup(n).Encode()
		k, err := layout.DecodeKeyringBackup(b)
		if err != nil || k.Store != backup(n).Store || !k.Created.Equal(backup(n).Created) || !bytes.Equal(k.Body, backup(n).Body) {
			t.Fatalf("body of %d bytes: %v, %v", n, k, err)
		}
		for _, i := range []int{0, 8, 12, 16, 32, 40, 44, len(b) - 32, len(b) - 1} {
			bad := bytes.Clone(b)
			bad[i] ^= 1
			if _, err := layout.DecodeKeyringBackup(bad); err == nil {
				t.Errorf("body of %d bytes: byte %d altered, and accepted", n, i)
			}
		}
		if _, err := layout.DecodeKeyringBackup(b[:len(b)-1]); !errors.Is(err, layout.ErrCorrupt) {
			t.Errorf("cut: %v", err)
		}
	}
}

func FuzzKeyringBackup(f *testing.F) {
	f.Add(backup(0).Encode())
	f.Add(backup(100).Encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		k, err := layout.DecodeKeyringBackup(b)
		if err == nil && !bytes.Equal(k.Encode(), b) {
			t.Error("decoded, but encodes to something else")
		}
		if len(b) > 32 { // beyond the sum
			sum := sha256.Sum256(b[:len(b)-32])
			b = append(bytes.Clone(b[:len(b)-32]), sum[:]...)
			if k, err := layout.DecodeKeyringBackup(b); err == nil && !bytes.Equal(k.Encode(), b) {
				t.Error("decoded, but encodes to something else")
			}
		}
	})
}
