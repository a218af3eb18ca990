package crypt_test

import (
	"testing"

	"github.com/fsximg/fsx/pkg/crypt"
)

// TestProven: what opened a volume key tells whether it is proven, whatever the
// order of the slots and of the secrets.
func TestProven(t *testing.T) {
	vk := must(crypt.NewVolumeKey())
	if !vk.Proven() {
		t.Fatal("a volume key that this process made is not proven")
	}
	recovery, _, err := crypt.NewRecoveryKey()
	if err != nil {
		t.Fatal(err)
	}
	clear, key, pass := crypt.NewClear(), keyFile(1), passphrase("pw")
	k := must(crypt.NewKeyring(testStore, fastKDF))
	for _, s := range []crypt.Secret{clear, key, pass, recovery} {
		must(k.AddSlot(vk, s))
	}
	k = reparse(t, k)
	for _, c := range []struct {
		name    string
		secrets []crypt.Secret
		want    bool
	}{
		{"clear", []crypt.Secret{clear}, false},
		{"key file", []crypt.Secret{key}, true},
		{"passphrase", []crypt.Secret{pass}, true},
		{"recovery key", []crypt.Secret{recovery}, true},
		{"clear, then key file", []crypt.Secret{clear, key}, true},
		{"clear, then a wrong and the right key file", []crypt.Secret{clear, keyFile(2), key}, true},
		{"clear and a wrong key file", []crypt.Secret{keyFile(2), clear}, false},
	} {
		keys, err := k.Unlock(c.secrets...)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		if len(keys) != 1 || keys[0].Proven() != c.want {
			t.Errorf("%s: %d keys, proven %v, want one, %v", c.name, len(keys), keys[0].Proven(), c.want)
		}
		keys[0].Wipe()
	}
	for number, want := range map[int]bool{1: false, 2: true} {
		if got := must(k.OpenSlot(number, []crypt.Secret{clear, key}[number-1])).Proven(); got != want {
			t.Errorf("slot %d alone: proven %v, want %v", number, got, want)
		}
	}
}
