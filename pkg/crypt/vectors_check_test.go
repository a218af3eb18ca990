package crypt_test

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"testing"

	"github.com/fsximg/fsx/pkg/crypt"
)

func loadVectors(t *testing.T) *vectors {
	t.Helper()
	b, err := os.ReadFile(vectorFile)
	if err != nil {
		t.Fatal(err)
	}
	v := new(vectors)
	if err := json.Unmarshal(b, v); err != nil {
		t.Fatal(err)
	}
	return v
}

// The package makes exactly the bytes that are frozen in the file.
func TestVectorsAreFrozen(t *testing.T) {
	got := append(must(json.MarshalIndent(buildVectors(), "", " ")), '\n')
	if *update {
		if err := os.WriteFile(vectorFile, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(vectorFile)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("%s differs from what the code makes: the format has changed", vectorFile)
	}
}

// The reference implementation agrees with every value in the file.
func TestVectorsByReference(t *testing.T) {
	v := loadVectors(t)
	for _, k := range v.DataKeys {
		prk := refPRK(k.Key)
		wantBytes(t, "prk", prk, k.PRK)
		wantBytes(t, "kid", refExpand(prk, 16, []byte("fscrypt\x00\x01")), k.KID)
		wantBytes(t, "commit", refExpand(prk, 32, fsx(0x01)), k.Commit)
	}
	for _, k := range v.VolumeKey {
		wantBytes(t, "volume key id", refExpand(refPRK(k.Key), 16, fsx(0x20)), k.ID)
	}
	a := v.Authority
	for _, m := range a.MACs {
		key := map[string]hexBytes{"head": a.HeadKey, "record": a.RecordKey}[m.Purpose]
		wantBytes(t, m.Purpose+" mac", refMAC(sha256.New, key, m.Message), m.MAC)
	}
	for _, n := range v.Nonces {
		wantBytes(t, "nonce", refMAC(sha512.New, a.HedgeKey, n.Random, be64(n.Counter), be64(n.Seq), n.Prev)[:16], n.Nonce)
	}
	for _, x := range v.Extents {
		var homes []uint64
		for _, h := range x.Homes {
			var home uint64
			must(fmt.Sscan(h, &home))
			homes = append(homes, home)
		}
		ct, tags := refSeal(byte(must(crypt.ParseMode(x.Mode))), x.Key, x.Nonce, pattern(x.Rule, len(homes)), homes)
		wantSHA(t, x.Mode+" "+x.Name, ct, x.SHA)
		for i, tag := range x.Tags {
			wantBytes(t, fmt.Sprintf("%s %s tag %d", x.Mode, x.Name, i), tags[i*16:][:16], tag)
		}
	}
	v.checkKeyring(t)
}

func (v *vectors) checkKeyring(t *testing.T) {
	t.Helper()
	for _, s := range v.Keyring.Slots {
		wantBytes(t, s.Type+" slot", refOpenSlot(v.Store, s.Slot, s.KEK), s.VolumeKey)
	}
	for _, b := range v.Keyring.Bags {
		wantBytes(t, "bag", refOpenBag(v.Store, b.Sealed, b.VolumeKey), b.Plain)
		salt := refExpand(refPRK(b.VolumeKey), 64, fsx(0x22), v.Store, b.Volume)
		wantBytes(t, "bag salt", refMAC(sha512.New, salt, b.Random, b.Plain)[:32], b.Sealed[32:64])
		wantSHA(t, "bag", b.Sealed, b.Digest)
	}
	for i, key := range v.VolumeKey {
		h := []byte("FSXD\x01\x00\x00\x00")
		for _, s := range v.Keyring.Slots {
			if bytes.Equal(s.Slot[8:24], key.ID) {
				h = append(h, s.Slot...)
			}
		}
		if bytes.Equal(v.Keyring.Unknown[8:24], key.ID) {
			h = append(h, v.Keyring.Unknown...)
		}
		wantSHA(t, "slots "+hex.EncodeToString(key.ID), h, v.Keyring.SlotsDigest[i])
	}
}

// A keyring that was written once stays readable.
func TestVectorKeyringOpens(t *testing.T) {
	v := loadVectors(t)
	k := must(crypt.ParseKeyring(v.Keyring.Body, crypt.UUID(v.Store)))
	wantBytes(t, "body", k.Encode(), v.Keyring.Body)
	for i, s := range v.secrets() {
		keys := must(k.Unlock(s))
		if want := map[bool]int{true: 2, false: 1}[i == 0]; len(keys) != want {
			t.Fatalf("%s opens %d keys, want %d", s.Type(), len(keys), want)
		}
		for j, b := range v.Keyring.Bags[:len(keys)] {
			bag := must(k.OpenBag(crypt.UUID(b.Volume), keys[j]))
			if n := len(bag.Keys()); n != 3-2*j || bag.Keys()[0].Bytes != 1<<40+12345 {
				t.Fatalf("bag %d has %d keys: %+v", j, n, bag.Keys())
			}
		}
	}
	slots := k.Slots()
	if last := slots[len(slots)-1]; last.Number != 40 || last.Type.String() != "unknown-0x7f" {
		t.Fatalf("unknown slot is not kept: %+v", last)
	}
}
