package crypt_test

import (
	"bytes"
	"math"
	"strings"
	"testing"

	"github.com/fsximg/fsx/pkg/crypt"
)

func TestModes(t *testing.T) {
	for _, m := range allModes {
		if got, err := crypt.ParseMode(m.String()); err != nil || got != m {
			t.Errorf("%s reads as %v, %v", m, got, err)
		}
	}
	for _, s := range []string{"", "aes", "AES-256-GCM", "mode-0x00", "aes-256-gcm "} {
		_, err := crypt.ParseMode(s)
		wantIs(t, err, crypt.ErrMode)
	}
	_, err := crypt.NewDataKey(0x80)
	wantIs(t, err, crypt.ErrMode)
}

func TestSecretsAreChecked(t *testing.T) {
	_, err := crypt.NewPassphrase(nil)
	wantIs(t, err, crypt.ErrEmptyPassphrase)
	_, err = crypt.NewPassphrase(make([]byte, crypt.MaxPassphrase+1))
	wantIs(t, err, crypt.ErrLongPassphrase)
	for n, want := range map[int]error{0: crypt.ErrKeyFileSize, 31: crypt.ErrKeyFileSize, 65: crypt.ErrKeyFileSize, 32: nil, 64: nil} {
		_, err := crypt.NewKeyFile(make([]byte, n))
		if want == nil && err != nil {
			t.Errorf("key file of %d bytes: %v", n, err)
		}
		if want != nil {
			wantIs(t, err, want)
		}
	}
	for _, text := range []string{strings.Repeat("a", 32), "0123456789abcdef0123456789abcdef\n", "short", strings.Repeat("long ", 50)} {
		_, err := crypt.NewKeyFile([]byte(text))
		wantIs(t, err, crypt.ErrPrintableKeyFile)
	}
}

func TestKDFBounds(t *testing.T) {
	for _, k := range []crypt.KDF{
		{MemoryKiB: 19<<10 - 1, Passes: 2, Lanes: 1}, {MemoryKiB: 1<<20 + 1, Passes: 2, Lanes: 1},
		{MemoryKiB: 64 << 10, Passes: 1, Lanes: 4}, {MemoryKiB: 64 << 10, Passes: 17, Lanes: 4},
		{MemoryKiB: 64 << 10, Passes: 3, Lanes: 17}, {MemoryKiB: 64 << 10, Passes: 3},
		{MemoryKiB: 1 << 20, Passes: 5, Lanes: 4}, {MemoryKiB: math.MaxUint32, Passes: math.MaxUint32, Lanes: 1},
		{Passes: 3}, {Lanes: 1},
	} {
		_, err := crypt.NewKeyring(testStore, k)
		wantIs(t, err, crypt.ErrKDF)
	}
	for _, k := range []crypt.KDF{fastKDF, {MemoryKiB: 1 << 20, Passes: 4, Lanes: 16}, {MemoryKiB: 256 << 10, Passes: 16, Lanes: 1}} {
		if got := must(crypt.NewKeyring(testStore, k)).KDF(); got != k {
			t.Errorf("%+v became %+v", k, got)
		}
	}
	want := crypt.KDF{MemoryKiB: 64 << 10, Passes: 3, Lanes: 4}
	if got := must(crypt.NewKeyring(testStore, crypt.KDF{})).KDF(); got != want {
		t.Errorf("default is %+v", got)
	}
}

func TestSlotNumbers(t *testing.T) {
	k := must(crypt.NewKeyring(testStore, fastKDF))
	a, b := must(crypt.NewVolumeKey()), must(crypt.NewVolumeKey())
	for i := range 4 {
		must(k.AddSlot(a, keyFile(byte(i))))
	}
	digest := k.SlotsDigest(a.ID())
	wantIs(t, k.RemoveSlot(5), crypt.ErrNoSlot)
	wantIs(t, k.ReplaceSlot(0, a, keyFile(9)), crypt.ErrNoSlot)
	if err := k.RemoveSlot(2); err != nil {
		t.Fatal(err)
	}
	_, err := k.Unlock(keyFile(1))
	wantIs(t, err, crypt.ErrWrongKey)
	if n := must(k.AddSlot(b, keyFile(9))); n != 2 {
		t.Fatalf("the free number is 2, the slot got %d", n)
	}
	if err := k.ReplaceSlot(4, b, keyFile(8)); err != nil {
		t.Fatal(err)
	}
	if k.SlotsDigest(a.ID()) == digest || k.SlotsDigest(crypt.ID{}) == k.SlotsDigest(b.ID()) {
		t.Error("the digest does not follow the slots")
	}
	before := k.SlotsDigest(a.ID())
	if err := k.RemoveSlot(4); err != nil || k.SlotsDigest(a.ID()) != before {
		t.Errorf("%v, or the digest follows another key's slots", err)
	}
	want := []crypt.SlotInfo{{1, crypt.SlotKeyFile, a.ID(), crypt.KDF{}, ""}, {2, crypt.SlotKeyFile, b.ID(), crypt.KDF{}, ""}, {3, crypt.SlotKeyFile, a.ID(), crypt.KDF{}, ""}}
	for i, s := range reparse(t, k).Slots() {
		if s != want[i] {
			t.Errorf("slot %+v, want %+v", s, want[i])
		}
	}
	keys := must(k.Unlock(keyFile(2), keyFile(0), keyFile(9), keyFile(0)))
	if len(keys) != 2 || keys[0].ID() != a.ID() || keys[1].ID() != b.ID() {
		t.Errorf("unlocked %d keys", len(keys))
	}
}

// One passphrase opens all volume keys, and clear slots open only on demand.
func TestUnlockSeveralVolumeKeys(t *testing.T) {
	k := must(crypt.NewKeyring(testStore, fastKDF))
	var want []crypt.ID
	for range 3 {
		vk := must(crypt.NewVolumeKey())
		must(k.AddSlot(vk, passphrase("one for all")))
		want = append(want, vk.ID())
	}
	clearKey := must(crypt.NewVolumeKey())
	must(k.AddSlot(clearKey, crypt.NewClear()))
	for i, vk := range must(k.Unlock(passphrase("one for all"))) {
		if vk.ID() != want[i] {
			t.Errorf("key %d is %s", i, vk.ID())
		}
	}
	if keys := must(k.Unlock(passphrase("one for all"), crypt.NewClear())); len(keys) != 4 {
		t.Errorf("%d keys, want 4", len(keys))
	}
	vk := must(k.OpenSlot(2, passphrase("one for all")))
	if vk.ID() != want[1] {
		t.Error("slot 2 opens another key")
	}
	_, err := k.OpenSlot(4, passphrase("one for all"))
	wantIs(t, err, crypt.ErrWrongKey)
	_, err = k.OpenSlot(9, crypt.NewClear())
	wantIs(t, err, crypt.ErrNoSlot)
}

func TestBagKeys(t *testing.T) {
	b := crypt.NewBag()
	keys := make([]*crypt.DataKey, 3)
	for i := range keys {
		keys[i] = must(crypt.NewDataKey(crypt.AES256GCM))
		if err := b.Add(keys[i], i < 2); err != nil {
			t.Fatal(err)
		}
	}
	if b.WriteKey().ID() != keys[1].ID() {
		t.Error("the last writable key is not the one to write with")
	}
	if err := b.Add(keys[0], true); err != nil || b.WriteKey().ID() != keys[0].ID() || len(b.Keys()) != 3 {
		t.Errorf("%v, or adding again makes a second key", err)
	}
	if err := b.Add(keys[0], false); err != nil || b.WriteKey() != nil {
		t.Errorf("%v, or the mark stays", err)
	}
	b.AddBytes(keys[2].ID(), math.MaxUint64-1)
	b.AddBytes(keys[2].ID(), 5)
	b.AddBytes(crypt.ID{}, 5)
	if !b.Remove(keys[0].ID()) || b.Remove(keys[0].ID()) {
		t.Error("a key is not removed once")
	}
	if _, ok := b.Get(keys[0].ID()); ok {
		t.Error("a removed key is found")
	}
	if got := b.Keys(); got[0].Number != 2 || got[1].Number != 3 || got[1].Bytes != math.MaxUint64 {
		t.Errorf("keys are %+v", got)
	}
	// Numbers are not given again, not even that of the last one and after storing.
	b.Remove(keys[2].ID())
	b = must(crypt.DecodeBag(crypt.EncodeBag(b)))
	if err := b.Add(must(crypt.NewDataKey(crypt.AES256GCM)), true); err != nil || b.Keys()[1].Number != 4 {
		t.Errorf("%v, keys are %+v", err, b.Keys())
	}
	raw := counted("conflict-", 64)
	if err := b.Add(crypt.DataKeyFrom(raw, crypt.AES256GCM), false); err != nil {
		t.Fatal(err)
	}
	wantIs(t, b.Add(crypt.DataKeyFrom(raw, crypt.AES256XTS), false), crypt.ErrKeyConflict)
}

func TestBagsOfVolumes(t *testing.T) {
	k := must(crypt.NewKeyring(testStore, fastKDF))
	vk := must(crypt.NewVolumeKey())
	vols := []crypt.UUID{{3}, {1}, {2}}
	for i, v := range vols {
		b := crypt.NewBag()
		for range i {
			_ = b.Add(must(crypt.NewDataKey(crypt.AES256GCM)), false)
		}
		if err := k.SetBag(v, vk, b); err != nil {
			t.Fatal(err)
		}
	}
	k = reparse(t, k)
	for i, info := range k.Bags() {
		want := crypt.BagInfo{Volume: crypt.UUID{byte(i + 1)}, VolumeKey: vk.ID(), Keys: []int{1, 2, 0}[i]}
		if info != want {
			t.Errorf("bag %+v, want %+v", info, want)
		}
	}
	old, _ := k.BagDigest(vols[0])
	if err := k.SetBag(vols[0], vk, crypt.NewBag()); err != nil {
		t.Fatal(err)
	}
	if now, ok := k.BagDigest(vols[0]); !ok || now == old {
		t.Error("sealing the same bag again gives the same bytes")
	}
	if id, ok := k.BagVolumeKey(vols[1]); !ok || id != vk.ID() {
		t.Error("the bag's volume key is not told")
	}
	k.RemoveBag(vols[1])
	_, ok1 := k.BagDigest(vols[1])
	_, ok2 := k.BagVolumeKey(vols[1])
	if ok1 || ok2 || len(k.Bags()) != 2 {
		t.Error("a removed bag is still there")
	}
}

// A random source that repeats does not seal two different bags under one key.
func TestBagSaltIsHedged(t *testing.T) {
	defer crypt.SetRandom(func(b []byte) { clear(b) })()
	k := must(crypt.NewKeyring(testStore, fastKDF))
	vk := crypt.VolumeKeyFrom(counted("hedge-", 32))
	b := crypt.NewBag()
	seal := func() []byte {
		if err := k.SetBag(testVolume, vk, b); err != nil {
			t.Fatal(err)
		}
		return k.Encode()[80:][32:64]
	}
	salt := seal()
	_ = b.Add(crypt.DataKeyFrom(counted("d", 64), crypt.AES256GCM), true)
	other := seal()
	b.AddBytes(b.WriteKey().ID(), 1)
	if bytes.Equal(salt, other) || bytes.Equal(other, seal()) {
		t.Fatal("two bags share a salt")
	}
}

// A keyring never grows beyond what its file holds.
func TestKeyringIsBounded(t *testing.T) {
	k := must(crypt.NewKeyring(testStore, fastKDF))
	vk, b := must(crypt.NewVolumeKey()), crypt.NewBag()
	for i := range crypt.MaxBagKeys {
		if err := b.Add(crypt.DataKeyFrom(counted(strings.Repeat("b", 1+i%7)+string(rune(i)), 64), crypt.AES256GCM), false); err != nil {
			t.Fatal(err)
		}
	}
	wantIs(t, b.Add(must(crypt.NewDataKey(crypt.AES256GCM)), false), crypt.ErrFull)
	n := 0
	for ; n < 100; n++ {
		if err := k.SetBag(crypt.UUID{byte(n)}, vk, b); err != nil {
			wantIs(t, err, crypt.ErrFull)
			break
		}
	}
	body := k.Encode()
	if n != 31 || len(body) > crypt.MaxKeyring {
		t.Fatalf("%d full bags in %d bytes", n, len(body))
	}
	if err := k.SetBag(crypt.UUID{3}, vk, b); err != nil {
		t.Errorf("replacing a bag: %v", err)
	}
	must(crypt.ParseKeyring(body, testStore))
	_, err := crypt.ParseKeyring(append(body, make([]byte, crypt.MaxKeyring)...), testStore)
	wantIs(t, err, crypt.ErrKeyring)
	b.Wipe()
}
