package crypt_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/fsximg/fsx/pkg/crypt"
)

// TestOpens: every slot that a secret opens is listed, also two of one volume key,
// and a damaged one is told of.
func TestOpens(t *testing.T) {
	store := crypt.UUID{7}
	ring, err := crypt.NewKeyring(store, crypt.KDF{MemoryKiB: 19 << 10, Passes: 2, Lanes: 1})
	if err != nil {
		t.Fatal(err)
	}
	vk, err := crypt.NewVolumeKey()
	if err != nil {
		t.Fatal(err)
	}
	defer vk.Wipe()
	file := func(b byte) crypt.Secret {
		s, err := crypt.NewKeyFile(bytes.Repeat([]byte{0x80 | b}, 32))
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	for _, s := range []crypt.Secret{file(1), file(2), file(1), crypt.NewClear()} {
		if _, err := ring.AddSlot(vk, s); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		with []crypt.Secret
		want []int
	}{
		{[]crypt.Secret{file(1)}, []int{1, 3}},
		{[]crypt.Secret{file(3)}, nil},
		{[]crypt.Secret{crypt.NewClear(), file(2)}, []int{2, 4}},
	} {
		got, err := ring.Opens(c.with...)
		if err != nil || len(got) != len(c.want) {
			t.Fatalf("opened %v, %v, want %v", got, err, c.want)
		}
		for i, s := range got {
			if s.Number != c.want[i] || s.VolumeKey != vk.ID() {
				t.Errorf("opened %v, want slot %d", s, c.want[i])
			}
		}
	}
	body := ring.Encode()
	body[80+40+32] ^= 1 // the first slot's wrapped key
	bad, err := crypt.ParseKeyring(body, store)
	if err != nil {
		t.Fatal(err)
	}
	got, err := bad.Opens(file(1))
	if !errors.Is(err, crypt.ErrAuth) || len(got) != 1 || got[0].Number != 3 {
		t.Errorf("of a damaged slot: %v, %v", got, err)
	}
}
