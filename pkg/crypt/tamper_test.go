package crypt_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/fsximg/fsx/pkg/crypt"
)

// tampered is a keyring with two key-file slots and two bags, as bytes.
type tampered struct {
	body  []byte
	keys  []*crypt.VolumeKey
	files []crypt.Secret
	vols  []crypt.UUID
}

const (
	slotBytes = 120
	slotsAt   = 80
	bagsAt    = slotsAt + 2*slotBytes
)

func newTampered() *tampered {
	k := must(crypt.NewKeyring(testStore, fastKDF))
	x := &tampered{vols: []crypt.UUID{{1}, {2}}}
	for i := range 2 {
		vk, s := must(crypt.NewVolumeKey()), keyFile(byte(i))
		bag := crypt.NewBag()
		_ = bag.Add(must(crypt.NewDataKey(crypt.AES256GCM)), true)
		must(k.AddSlot(vk, s))
		if err := k.SetBag(x.vols[i], vk, bag); err != nil {
			panic(err)
		}
		x.keys, x.files = append(x.keys, vk), append(x.files, s)
	}
	x.body = k.Encode()
	return x
}

// open parses body, unlocks with secret i and opens bag i.
func (x *tampered) open(body []byte, i int) error {
	k, err := crypt.ParseKeyring(body, testStore)
	if err != nil {
		return err
	}
	keys, err := k.Unlock(x.files[i])
	if err != nil {
		return err
	}
	bag, err := k.OpenBag(x.vols[i], keys[0])
	if err == nil {
		bag.Wipe()
	}
	return err
}

func TestEveryByteOfSlotAndBagCounts(t *testing.T) {
	x := newTampered()
	bagBytes := (len(x.body) - bagsAt) / 2
	for i := range 2 {
		if err := x.open(x.body, i); err != nil {
			t.Fatal(err)
		}
		var at []int
		for j := range slotBytes {
			at = append(at, slotsAt+i*slotBytes+j)
		}
		for j := range bagBytes {
			at = append(at, bagsAt+i*bagBytes+j)
		}
		for _, p := range at {
			for _, bit := range []byte{0x01, 0x80} {
				body := bytes.Clone(x.body)
				body[p] ^= bit
				if x.open(body, i) == nil {
					t.Errorf("bit %#x of byte %d does not count", bit, p)
				}
			}
		}
	}
}

func TestKeyringHeaderCounts(t *testing.T) {
	x := newTampered()
	k := must(crypt.ParseKeyring(x.body, testStore))
	must(k.AddSlot(x.keys[0], passphrase("p")))
	body := k.Encode()
	for p := range slotsAt {
		bad := bytes.Clone(body)
		bad[p] ^= 0x01
		got, err := crypt.ParseKeyring(bad, testStore)
		if err != nil {
			continue
		}
		// Only cost and salt may change and still parse; then nothing opens.
		if p < 24 || p >= 68 {
			t.Errorf("byte %d of the header does not count", p)
		}
		if p%8 == 0 {
			_, err = got.Unlock(passphrase("p"))
			wantIs(t, err, crypt.ErrWrongKey)
		}
	}
}

func TestCutAndLongKeyrings(t *testing.T) {
	x := newTampered()
	for n := range x.body {
		_, err := crypt.ParseKeyring(x.body[:n], testStore)
		wantIs(t, err, crypt.ErrKeyring)
	}
	_, err := crypt.ParseKeyring(append(bytes.Clone(x.body), 0), testStore)
	wantIs(t, err, crypt.ErrKeyring)
}

func TestMovedSlotsAndBags(t *testing.T) {
	x := newTampered()
	_, err := crypt.ParseKeyring(x.body, crypt.UUID{9})
	wantIs(t, err, crypt.ErrKeyringStore)

	// Another store's keyring that claims to be ours.
	body := bytes.Clone(x.body)
	body[8] ^= 1
	k := must(crypt.ParseKeyring(body, crypt.UUID(body[8:24])))
	_, err = k.Unlock(x.files[0])
	wantIs(t, err, crypt.ErrWrongKey)
	_, err = k.OpenBag(x.vols[0], x.keys[0])
	wantIs(t, err, crypt.ErrAuth)

	// A bag given to another volume.
	body = bytes.Clone(x.body)
	body[bagsAt+15] ^= 1
	k = must(crypt.ParseKeyring(body, testStore))
	_, err = k.OpenBag(crypt.UUID(body[bagsAt:bagsAt+16]), x.keys[0])
	wantIs(t, err, crypt.ErrAuth)

	// A slot that opens and holds another key than it says, made by someone
	// who has the secret: not this volume key.
	body = bytes.Clone(x.body)
	copy(body[slotsAt+8:slotsAt+24], body[slotsAt+slotBytes+8:slotsAt+slotBytes+24])
	if x.open(body, 0) == nil {
		t.Fatal("a slot opens under another key's name")
	}
}

// A right secret and a damaged wrapped key are told apart from a wrong secret.
func TestDamagedSlotIsNamed(t *testing.T) {
	x := newTampered()
	x.body[slotsAt+100] ^= 1
	k := must(crypt.ParseKeyring(x.body, testStore))
	_, err := k.Unlock(x.files[0])
	wantIs(t, err, crypt.ErrAuth)
	wantIs(t, err, crypt.ErrWrongKey)
	_, err = k.OpenSlot(1, x.files[0])
	wantIs(t, err, crypt.ErrAuth)
	_, err = k.OpenSlot(2, x.files[0])
	wantIs(t, err, crypt.ErrWrongKey)
	if errors.Is(err, crypt.ErrAuth) {
		t.Fatal("a wrong secret is called damage")
	}
	// The other slot is not in the way.
	must(k.Unlock(x.files...))
}

func TestMalformedKeyrings(t *testing.T) {
	be := binary.BigEndian
	x := newTampered()
	bag := (len(x.body) - bagsAt) / 2
	swap := func(b []byte, at, n int) { copy(b[at:], cat(b[at+n:at+2*n], b[at:at+n])) }
	for _, c := range []struct {
		name string
		edit func(b []byte)
		want error
	}{
		{"magic", func(b []byte) { b[0] = 'G' }, crypt.ErrKeyring},
		{"version", func(b []byte) { b[4] = 2 }, crypt.ErrKeyringVersion},
		{"kdf", func(b []byte) { b[5] = 2 }, crypt.ErrKeyringVersion},
		{"reserved", func(b []byte) { b[6] = 1 }, crypt.ErrKeyring},
		{"memory above the ceiling", func(b []byte) { be.PutUint32(b[24:], 1<<20+1) }, crypt.ErrKDF},
		{"memory below the floor", func(b []byte) { be.PutUint32(b[24:], 19<<10-1) }, crypt.ErrKDF},
		{"memory as large as can be", func(b []byte) { be.PutUint32(b[24:], 1<<32-1) }, crypt.ErrKDF},
		{"passes", func(b []byte) { be.PutUint32(b[28:], 17) }, crypt.ErrKDF},
		{"one pass", func(b []byte) { be.PutUint32(b[28:], 1) }, crypt.ErrKDF},
		{"no lanes", func(b []byte) { b[32] = 0 }, crypt.ErrKDF},
		{"lanes", func(b []byte) { b[32] = 17 }, crypt.ErrKDF},
		{"memory times passes", func(b []byte) { be.PutUint32(b[24:], 1<<20); be.PutUint32(b[28:], 5) }, crypt.ErrKDF},
		{"more slots than there are", func(b []byte) { be.PutUint32(b[68:], 3) }, crypt.ErrKeyring},
		{"fewer slots than there are", func(b []byte) { be.PutUint32(b[68:], 1) }, crypt.ErrKeyring},
		{"four billion slots", func(b []byte) { be.PutUint32(b[68:], 1<<32-1) }, crypt.ErrKeyring},
		{"more bags than there are", func(b []byte) { be.PutUint32(b[72:], 3) }, crypt.ErrKeyring},
		{"four billion bags", func(b []byte) { be.PutUint32(b[72:], 1<<32-1) }, crypt.ErrKeyring},
		{"slot type zero", func(b []byte) { b[slotsAt] = 0 }, crypt.ErrKeyring},
		{"slot flags", func(b []byte) { b[slotsAt+1] = 1 }, crypt.ErrKeyring},
		{"slot number zero", func(b []byte) { b[slotsAt+3] = 0 }, crypt.ErrKeyring},
		{"slot number twice", func(b []byte) { b[slotsAt+slotBytes+3] = 1 }, crypt.ErrKeyring},
		{"slots out of order", func(b []byte) { swap(b, slotsAt, slotBytes) }, crypt.ErrKeyring},
		{"slot of another size", func(b []byte) { b[slotsAt+7] -= 1 }, crypt.ErrKeyring},
		{"slot of 4 GiB", func(b []byte) { be.PutUint32(b[slotsAt+4:], 1<<32-1) }, crypt.ErrKeyring},
		{"unknown slot of 4 GiB", func(b []byte) { b[slotsAt] = 9; be.PutUint32(b[slotsAt+4:], 1<<32-1) }, crypt.ErrKeyring},
		{"bags out of order", func(b []byte) { swap(b, bagsAt, bag) }, crypt.ErrKeyring},
		{"two bags of a volume", func(b []byte) { copy(b[bagsAt+bag:], b[bagsAt:bagsAt+16]) }, crypt.ErrKeyring},
		{"bag of no whole keys", func(b []byte) { b[bagsAt+99]++ }, crypt.ErrKeyring},
		{"bag of 4 GiB", func(b []byte) { be.PutUint32(b[bagsAt+96:], 1<<32-1) }, crypt.ErrKeyring},
	} {
		body := bytes.Clone(x.body)
		c.edit(body)
		if _, err := crypt.ParseKeyring(body, testStore); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
}

func TestMalformedBags(t *testing.T) {
	b := crypt.NewBag()
	for i := range 3 {
		_ = b.Add(must(crypt.NewDataKey(crypt.AES256GCM)), i == 1)
	}
	plain := crypt.EncodeBag(b)
	wantBytes(t, "bag", crypt.EncodeBag(must(crypt.DecodeBag(plain))), plain)
	for p := range plain {
		bad := bytes.Clone(plain)
		bad[p] ^= 0x10
		got, err := crypt.DecodeBag(bad)
		counter := p >= 8 && (p-8)%128 >= 8 && (p-8)%128 < 16
		next := p >= 4 && p < 8
		if (err == nil) != (counter || next) {
			t.Errorf("byte %d: %v", p, err)
		}
		if err == nil && !bytes.Equal(crypt.EncodeBag(got), bad) {
			t.Errorf("byte %d: re-encoding differs", p)
		}
	}
	for n := range plain {
		if _, err := crypt.DecodeBag(plain[:n]); err == nil {
			t.Errorf("a bag cut to %d bytes is read", n)
		}
	}
	for name, bad := range map[string][]byte{
		"next number too small": slices.Concat(plain[:7], []byte{3}, plain[8:]),
		"same key twice":        slices.Concat(plain[:136+16], plain[8+16:136], plain[264:]),
		"second writable":       slices.Concat(plain[:9], []byte{1}, plain[10:]),
		"trailing":              append(bytes.Clone(plain), make([]byte, 128)...),
	} {
		if _, err := crypt.DecodeBag(bad); err == nil {
			t.Errorf("%s is read", name)
		}
	}
}

func FuzzParseKeyring(f *testing.F) {
	x := newTampered()
	f.Add(x.body)
	f.Add(addUnknownSlot(x.body))
	f.Add(must(crypt.NewKeyring(testStore, crypt.KDF{})).Encode())
	f.Fuzz(func(t *testing.T, body []byte) {
		store := testStore
		if len(body) >= 24 {
			store = crypt.UUID(body[8:24])
		}
		k, err := crypt.ParseKeyring(body, store)
		if err != nil {
			return
		}
		if !bytes.Equal(k.Encode(), body) {
			t.Fatal("re-encoding differs")
		}
		for _, s := range k.Slots() {
			_ = fmt.Sprint(s, k.SlotsDigest(s.VolumeKey))
		}
		for _, b := range k.Bags() {
			if _, err := k.OpenBag(b.Volume, x.keys[0]); err != nil && !errors.Is(err, crypt.ErrWrongKey) && !errors.Is(err, crypt.ErrAuth) {
				t.Fatal(err)
			}
		}
		if _, err := k.Unlock(x.files...); err != nil && !errors.Is(err, crypt.ErrWrongKey) {
			t.Fatal(err)
		}
	})
}

func FuzzDecodeBag(f *testing.F) {
	b := crypt.NewBag()
	f.Add(crypt.EncodeBag(b))
	_ = b.Add(crypt.DataKeyFrom(counted("k", 64), crypt.AES256XTS), true)
	f.Add(crypt.EncodeBag(b))
	f.Fuzz(func(t *testing.T, plain []byte) {
		got, err := crypt.DecodeBag(plain)
		if err == nil && !bytes.Equal(crypt.EncodeBag(got), plain) {
			t.Fatal("re-encoding differs")
		}
	})
}

// forge makes the bytes of a one-slot keyring with a key-file slot whose fields
// are whatever the forger, who has the secret, likes.
func forge(file []byte, id crypt.ID, payload func(ad, key, commit []byte) []byte) *crypt.Keyring {
	body := must(crypt.NewKeyring(testStore, fastKDF)).Encode()
	binary.BigEndian.PutUint32(body[68:], 1)
	header := cat([]byte{2, 0, 0, 1}, be32(80), id[:], make([]byte, 16))
	ad, key, commit := refSlotKeys(testStore[:], header, file)
	return must(crypt.ParseKeyring(cat(body, header, payload(ad, key, commit)), testStore))
}

func TestForgedSlots(t *testing.T) {
	file, raw := counted("forged-", 48), counted("forged-key-", 32)
	secret, id := must(crypt.NewKeyFile(file)), crypt.VolumeKeyFrom(raw).ID()
	wrap := func(ad, key []byte) []byte { return refGCM(key).Seal(nil, make([]byte, 12), raw, ad) }
	honest := func(ad, key, commit []byte) []byte { return cat(commit, wrap(ad, key)) }
	must(forge(file, id, honest).Unlock(secret))

	// Under another key's name.
	_, err := forge(file, crypt.ID{1}, honest).Unlock(secret)
	wantIs(t, err, crypt.ErrAuth)
	// Without the commitment, as a ciphertext that opens under two keys needs.
	_, err = forge(file, id, func(ad, key, _ []byte) []byte { return cat(make([]byte, 32), wrap(ad, key)) }).Unlock(secret)
	wantIs(t, err, crypt.ErrWrongKey)
}

func TestForgedBags(t *testing.T) {
	raw := counted("forged-key-", 32)
	vk := crypt.VolumeKeyFrom(raw)
	id := vk.ID()
	body := must(crypt.NewKeyring(testStore, fastKDF)).Encode()
	binary.BigEndian.PutUint32(body[72:], 1)
	open := func(commit bool, plain []byte) error {
		header := cat(testVolume[:], id[:], make([]byte, 64), be32(uint32(len(plain)+16)))
		okm := refExpand(refPRK(raw), 64, fsx(0x21), testStore[:], testVolume[:], header[32:64])
		if commit {
			copy(header[64:], okm[32:])
		}
		ad := cat([]byte("FSXB\x01\x00\x00\x00"), testStore[:], header)
		sealed := refGCM(okm[:32]).Seal(nil, make([]byte, 12), plain, ad)
		_, err := must(crypt.ParseKeyring(cat(body, header, sealed), testStore)).OpenBag(testVolume, vk)
		return err
	}
	plain := crypt.EncodeBag(crypt.NewBag())
	if err := open(true, plain); err != nil {
		t.Fatal(err)
	}
	wantIs(t, open(false, plain), crypt.ErrAuth)
	plain[0] = 2
	if open(true, plain) == nil {
		t.Fatal("a bag of an unknown version is read")
	}
}

// A slot of a known type and another size is refused, though all else fits.
func TestSlotsOfOtherSizes(t *testing.T) {
	k := must(crypt.NewKeyring(testStore, fastKDF))
	must(k.AddSlot(must(crypt.NewVolumeKey()), keyFile(1)))
	for _, n := range []int{0, 31, 79, 81} {
		body := k.Encode()
		body = append(body, 0)[:slotsAt+40+n]
		body[slotsAt+7] = byte(n)
		_, err := crypt.ParseKeyring(body, testStore)
		wantIs(t, err, crypt.ErrKeyring)
		body[slotsAt] = 0x7f // not known here, so any size will do
		_, err = must(crypt.ParseKeyring(body, testStore)).Unlock(keyFile(1))
		wantIs(t, err, crypt.ErrWrongKey)
	}
}
