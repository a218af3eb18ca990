package crypt_test

import (
	"bytes"
	"sync"
	"testing"

	"github.com/fsximg/fsx/pkg/crypt"
)

func TestWipedKeysDoNothing(t *testing.T) {
	vk, dk := must(crypt.NewVolumeKey()), must(crypt.NewDataKey(crypt.AES256GCM))
	a := must(crypt.NewAuthority(vk, testStore, testVolume))
	k := must(crypt.NewKeyring(testStore, fastKDF))
	s := keyFile(1)
	must(k.AddSlot(vk, s))
	bag := crypt.NewBag()
	if err := bag.Add(dk, true); err != nil {
		t.Fatal(err)
	}
	x := sealExtent(crypt.AES256GCM, 1)
	e := must(x.key.Extent(x.nonce, 1))
	mac := a.MAC(crypt.PurposeHead)

	for range 2 { // twice is once
		vk.Wipe()
		dk.Wipe()
		a.Wipe()
		s.Wipe()
		x.key.Wipe()
	}
	_, err := crypt.NewAuthority(vk, testStore, testVolume)
	wantIs(t, err, crypt.ErrWiped)
	_, err = k.AddSlot(vk, keyFile(2))
	wantIs(t, err, crypt.ErrWiped)
	_, err = k.AddSlot(must(crypt.NewVolumeKey()), s)
	wantIs(t, err, crypt.ErrWiped)
	_, err = k.Unlock(s)
	wantIs(t, err, crypt.ErrWiped)
	wantIs(t, k.SetBag(testVolume, vk, bag), crypt.ErrWiped)
	wantIs(t, crypt.NewBag().Add(dk, true), crypt.ErrWiped)
	_, err = dk.Extent(crypt.Nonce{}, 1)
	wantIs(t, err, crypt.ErrWiped)
	buf, homes := fill(1)
	_, err = a.Seal(bag.WriteKey(), buf, homes, make([]crypt.Tag, 1), 1, &[32]byte{})
	wantIs(t, err, crypt.ErrWiped)
	if a.Verify(crypt.PurposeHead, &mac) {
		t.Error("a wiped authority verifies")
	}
	func() {
		defer func() {
			if recover() == nil {
				t.Error("a wiped authority makes a MAC")
			}
		}()
		a.MAC(crypt.PurposeHead)
	}()
	if len(k.Slots()) != 1 || len(k.Bags()) != 0 {
		t.Error("a failed change stays in the keyring")
	}
	// What was opened before goes on; and the bag's copy is its own.
	if err := e.Open(x.buf, x.homes[0], 0, &x.tags[0]); err != nil {
		t.Error(err)
	}
	if _, err := bag.WriteKey().Extent(crypt.Nonce{}, 1); err != nil {
		t.Error(err)
	}
	own := bag.WriteKey()
	bag.Wipe()
	_, err = own.Extent(crypt.Nonce{}, 1)
	wantIs(t, err, crypt.ErrWiped)
	if bag.WriteKey() != nil || len(bag.Keys()) != 0 {
		t.Error("a wiped bag has keys")
	}
}

// Keys are wiped while others use them: all calls succeed or say ErrWiped, and
// no call works under other bytes than the key's.
func TestConcurrentUseAndWipe(t *testing.T) {
	a := testAuthority()
	for _, mode := range allModes {
		k := must(crypt.NewDataKey(mode))
		var wg sync.WaitGroup
		for g := range 4 {
			wg.Go(func() {
				buf, homes := fill(3)
				plain, tags := bytes.Clone(buf), make([]crypt.Tag, 3)
				for i := range 30 {
					if g == 0 && i == 25 {
						k.Wipe()
					}
					nonce, err := a.Seal(k, buf, homes, tags, 1, &[32]byte{})
					if err != nil {
						wantIs(t, err, crypt.ErrWiped)
						return
					}
					must(crypt.NewDataKey(mode)).Wipe() // reuses what is freed
					e, err := k.Extent(nonce, 3)
					if err != nil {
						wantIs(t, err, crypt.ErrWiped)
						return
					}
					for j := range 3 {
						if err := e.Open(buf[j*crypt.BlockSize:][:crypt.BlockSize], homes[j], j, &tags[j]); err != nil {
							t.Errorf("%s: %v", mode, err)
						}
					}
					if !bytes.Equal(buf, plain) {
						t.Errorf("%s: wrong data", mode)
					}
					if mac := a.MAC(crypt.PurposeHead, buf); !a.Verify(crypt.PurposeHead, &mac, buf[:9], buf[9:]) {
						t.Error("a MAC does not verify")
					}
				}
			})
		}
		wg.Wait()
	}
}

func TestMACsAreSeparate(t *testing.T) {
	vk := must(crypt.NewVolumeKey())
	seen := map[[32]byte]string{}
	for name, a := range map[string]*crypt.Authority{
		"this":          must(crypt.NewAuthority(vk, testStore, testVolume)),
		"other volume":  must(crypt.NewAuthority(vk, testStore, crypt.UUID{1})),
		"other store":   must(crypt.NewAuthority(vk, crypt.UUID{1}, testVolume)),
		"other key":     must(crypt.NewAuthority(must(crypt.NewVolumeKey()), testStore, testVolume)),
		"swapped UUIDs": must(crypt.NewAuthority(vk, testVolume, testStore)),
	} {
		for _, p := range []crypt.Purpose{crypt.PurposeHead, crypt.PurposeRecord} {
			mac := a.MAC(p, []byte("message"))
			if was, dup := seen[mac]; dup {
				t.Errorf("%s makes the MAC of %s", name, was)
			}
			seen[mac] = name
			if !a.Verify(p, &mac, []byte("mess"), []byte("age")) || a.Verify(1-p, &mac, []byte("message")) || a.Verify(p, &mac, []byte("messag")) {
				t.Errorf("%s: verification is wrong", name)
			}
		}
	}
}
