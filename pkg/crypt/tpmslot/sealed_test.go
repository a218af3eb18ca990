package tpmslot_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"testing"

	"github.com/fsximg/fsx/pkg/crypt"
	"github.com/fsximg/fsx/pkg/crypt/tpmslot"
)

// The encoding and the authorization value are frozen: a change is a change of
// the format. The second was computed with Python's hmac.
const (
	exampleData = "46535854" + "01" + "01" + "000b" + "00000880" + "0003" + "0002" +
		"000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f" +
		"404142434445464748494a4b4c4d4e4f505152535455565758595a5b5c5d5e5f" +
		"000b00000000000000000000000000000000000000000000000000000000000000ff" + "010203" + "0405"
	exampleAuth = "6a5e47454ff1c87db9a7fddb5cfe2c12a5d003a099e1597777241a78def6c830"
)

func TestSealedVectors(t *testing.T) {
	if got := hex.EncodeToString(tpmslot.SealedExample()); got != exampleData {
		t.Errorf("slot data\n got %s\nwant %s", got, exampleData)
	}
	if got := hex.EncodeToString(tpmslot.AuthOf("1234")); got != exampleAuth {
		t.Errorf("authorization value %s, want %s", got, exampleAuth)
	}
}

func TestSealedIsStrict(t *testing.T) {
	good := tpmslot.SealedExample()
	if again, err := tpmslot.Recode(good); err != nil || !bytes.Equal(again, good) {
		t.Fatalf("recode: %x, %v", again, err)
	}
	for name, change := range map[string]func(b []byte) []byte{
		"empty":               func([]byte) []byte { return nil },
		"cut":                 func(b []byte) []byte { return b[:len(b)-1] },
		"trailing byte":       func(b []byte) []byte { return append(b, 0) },
		"magic":               func(b []byte) []byte { b[0]++; return b },
		"version":             func(b []byte) []byte { b[4] = 2; return b },
		"flags":               func(b []byte) []byte { b[5] = 2; return b },
		"bank":                func(b []byte) []byte { b[7] = 4; return b },
		"pcr 24":              func(b []byte) []byte { b[8] = 1; return b },
		"no public area":      func(b []byte) []byte { b[13] = 0; return b },
		"long private area":   func(b []byte) []byte { b[14] = 0xff; return b },
		"salt without a pin":  func(b []byte) []byte { b[5] = 0; return b },
		"name algorithm":      func(b []byte) []byte { b[81] = 4; return b },
		"header only":         func(b []byte) []byte { return b[:114] },
		"header cut at a bit": func(b []byte) []byte { return b[:113] },
	} {
		if _, err := tpmslot.Recode(change(bytes.Clone(good))); !errors.Is(err, crypt.ErrSlotData) {
			t.Errorf("%s: %v, want ErrSlotData", name, err)
		}
	}
}

// FuzzSealed: whatever is accepted encodes to the same bytes.
func FuzzSealed(f *testing.F) {
	f.Add(tpmslot.SealedExample())
	f.Fuzz(func(t *testing.T, b []byte) {
		again, err := tpmslot.Recode(bytes.Clone(b))
		if err == nil && !bytes.Equal(again, b) {
			t.Fatalf("%x encodes to %x", b, again)
		}
		if err != nil && !errors.Is(err, crypt.ErrSlotData) {
			t.Fatalf("error %v is not ErrSlotData", err)
		}
	})
}

func TestPCRs(t *testing.T) {
	for text, want := range map[string]tpmslot.PCRs{"": 0, "7": 1 << 7, "7+11": 1<<7 | 1<<11, "0+23": 1 | 1<<23} {
		got, err := tpmslot.ParsePCRs(text)
		if err != nil || got != want || got.String() != text {
			t.Errorf("%q: %v %q, %v", text, uint32(got), got, err)
		}
	}
	for _, text := range []string{"24", "x", "7+", "+", "7,11", "-1", "300"} {
		if _, err := tpmslot.ParsePCRs(text); !errors.Is(err, tpmslot.ErrPCRs) {
			t.Errorf("%q: %v, want ErrPCRs", text, err)
		}
	}
}
