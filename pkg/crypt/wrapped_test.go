package crypt_test

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"github.com/fsximg/fsx/pkg/crypt"
)

var errUnplugged = errors.New("unplugged")

// xorWrapper keeps the key by its secret's first byte; it stands in for a TPM.
type xorWrapper struct{ fails error }

func (w xorWrapper) Wrap(secret, kek []byte) ([]byte, error) {
	data := append([]byte{secret[0]}, kek...)
	for i := range kek {
		data[i+1] ^= secret[0]
	}
	return data, w.fails
}

func (w xorWrapper) Unwrap(secret, data, kek []byte) error {
	if w.fails != nil {
		return w.fails
	}
	if data[0] != secret[0] {
		return crypt.ErrWrongKey
	}
	for i := range kek {
		kek[i] = data[i+1] ^ secret[0]
	}
	return nil
}

func xorSecret(b byte, fails error) crypt.Secret {
	return crypt.NewWrapped(crypt.SlotTPM2, []byte{b}, xorWrapper{fails})
}

func TestWrappedSlots(t *testing.T) {
	vk, other := must(crypt.NewVolumeKey()), must(crypt.NewVolumeKey())
	k := must(crypt.NewKeyring(testStore, fastKDF))
	must(k.AddSlot(other, xorSecret(1, nil)))
	must(k.AddSlot(vk, xorSecret(2, nil)))
	must(k.AddSlot(vk, keyFile(1)))
	k = reparse(t, k)

	keys := must(k.Unlock(xorSecret(2, nil)))
	if len(keys) != 1 || keys[0].ID() != vk.ID() || keys[0].Proven() {
		t.Fatalf("%d keys, proven %v; want the one of slot 2, not proven", len(keys), keys[0].Proven())
	}
	keys = must(k.Unlock(xorSecret(1, nil), xorSecret(2, nil), keyFile(1)))
	if len(keys) != 2 || keys[0].Proven() || !keys[1].Proven() {
		t.Fatalf("%d keys, want two, of which a key file proves the second", len(keys))
	}
	if _, err := k.Unlock(xorSecret(3, nil)); !errors.Is(err, crypt.ErrWrongKey) {
		t.Fatalf("another's secret: %v", err)
	}
	_, err := k.Unlock(xorSecret(3, nil), xorSecret(2, errUnplugged))
	if !errors.Is(err, crypt.ErrWrongKey) || !errors.Is(err, errUnplugged) {
		t.Fatalf("a wrapper that fails: %v, want its reason", err)
	}
	if keys := must(k.Unlock(xorSecret(2, errUnplugged), keyFile(1))); len(keys) != 1 {
		t.Fatal("a wrapper that fails keeps another secret from opening")
	}
	if _, err := k.OpenSlot(2, xorSecret(2, errUnplugged)); !errors.Is(err, errUnplugged) {
		t.Fatalf("open slot: %v", err)
	}
	must(k.OpenSlot(2, xorSecret(2, nil))).Wipe()
	if _, err := k.AddSlot(vk, xorSecret(2, errUnplugged)); !errors.Is(err, errUnplugged) {
		t.Fatalf("add slot: %v", err)
	}
	wiped := xorSecret(2, nil)
	wiped.Wipe()
	_, err = k.Unlock(wiped)
	wantIs(t, err, crypt.ErrWiped)
}

// TestWrappedSlotDataIsBound: another key in the data does not open the slot,
// and a slot of these types without data is no slot.
func TestWrappedSlotDataIsBound(t *testing.T) {
	vk := must(crypt.NewVolumeKey())
	k := must(crypt.NewKeyring(testStore, fastKDF))
	must(k.AddSlot(vk, xorSecret(2, nil)))
	body := k.Encode()
	bad := bytes.Clone(body)
	bad[len(bad)-1] ^= 1
	_, err := must(crypt.ParseKeyring(bad, testStore)).Unlock(xorSecret(2, nil))
	wantIs(t, err, crypt.ErrWrongKey)

	short := slices.Clone(body[:80+40+80])
	short[80+7] = 80
	_, err = crypt.ParseKeyring(short, testStore)
	wantIs(t, err, crypt.ErrKeyring)
}
