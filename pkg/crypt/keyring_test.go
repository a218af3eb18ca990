package crypt_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/fsximg/fsx/pkg/crypt"
)

var (
	testStore  = crypt.UUID{0x51, 1, 2, 3}
	testVolume = crypt.UUID{0x76, 9, 8, 7}
	// fastKDF is the floor: the cheapest that is accepted.
	fastKDF = crypt.KDF{MemoryKiB: 19 << 10, Passes: 2, Lanes: 1}
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func wantIs(t *testing.T, err, target error) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Fatalf("error = %v, want %v", err, target)
	}
}

func keyFile(seed byte) crypt.Secret {
	b := make([]byte, 48)
	for i := range b {
		b[i] = seed ^ byte(i*37)
	}
	return must(crypt.NewKeyFile(b))
}

func passphrase(s string) crypt.Secret { return must(crypt.NewPassphrase([]byte(s))) }

// reparse encodes and parses k, and requires the encoding to be canonical.
func reparse(t *testing.T, k *crypt.Keyring) *crypt.Keyring {
	t.Helper()
	body := k.Encode()
	got, err := crypt.ParseKeyring(body, k.Store())
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Encode(), body) {
		t.Fatal("re-encoding a parsed keyring changes it")
	}
	return got
}

func TestUnlockWithEverySecret(t *testing.T) {
	recovery, text, err := crypt.NewRecoveryKey()
	if err != nil {
		t.Fatal(err)
	}
	secrets := []crypt.Secret{passphrase("correct horse"), keyFile(1), recovery, crypt.NewClear()}
	k := must(crypt.NewKeyring(testStore, fastKDF))
	vk := must(crypt.NewVolumeKey())
	for i, s := range secrets {
		if n := must(k.AddSlot(vk, s)); n != i+1 {
			t.Fatalf("slot number %d, want %d", n, i+1)
		}
	}
	k = reparse(t, k)
	secrets = append(secrets, must(crypt.ParseRecoveryKey(text)))
	for _, s := range secrets {
		keys, err := k.Unlock(s)
		if err != nil || len(keys) != 1 || keys[0].ID() != vk.ID() {
			t.Fatalf("unlock by %s: %v, %v", s.Type(), keys, err)
		}
	}
	for _, s := range []crypt.Secret{passphrase("wrong"), keyFile(2)} {
		_, err := k.Unlock(s)
		wantIs(t, err, crypt.ErrWrongKey)
	}
	_, err = k.Unlock()
	wantIs(t, err, crypt.ErrWrongKey)
	if !k.HasClearSlot() {
		t.Fatal("clear slot is not seen")
	}
}

func TestBagRoundTrip(t *testing.T) {
	k := must(crypt.NewKeyring(testStore, fastKDF))
	vk, other := must(crypt.NewVolumeKey()), must(crypt.NewVolumeKey())
	bag := crypt.NewBag()
	for i, m := range []crypt.Mode{crypt.AES256GCM, crypt.ChaCha20Poly1305, crypt.AES256XTS} {
		if err := bag.Add(must(crypt.NewDataKey(m)), true); err != nil {
			t.Fatal(err)
		}
		bag.AddBytes(bag.WriteKey().ID(), uint64(i)<<40)
	}
	if err := k.SetBag(testVolume, vk, bag); err != nil {
		t.Fatal(err)
	}
	k = reparse(t, k)
	got := must(k.OpenBag(testVolume, vk))
	want := bag.Keys()
	for i, info := range got.Keys() {
		if info != want[i] || info.Number != i+1 || info.Writable != (i == 2) {
			t.Fatalf("key %d: %+v, want %+v", i, info, want[i])
		}
	}
	_, err := k.OpenBag(testVolume, other)
	wantIs(t, err, crypt.ErrWrongKey)
	_, err = k.OpenBag(crypt.UUID{1}, vk)
	wantIs(t, err, crypt.ErrNoBag)
}
