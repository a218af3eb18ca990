package crypt_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/fsximg/fsx/pkg/crypt"
)

const recoveryAlphabet = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"

func TestRecoveryKeyRoundTrip(t *testing.T) {
	for i := range 200 {
		key := counted(strings.Repeat("r", i), 32)
		text := crypt.RecoveryText(key)
		if len(text) != 13*5+12 {
			t.Fatalf("text %q has %d characters", text, len(text))
		}
		loose := " " + strings.ToLower(strings.ReplaceAll(text, "-", "\n ")) + "\r\n"
		sloppy := strings.NewReplacer("0", "o", "1", "l", "-", "").Replace(text)
		for _, s := range []string{text, loose, sloppy, strings.ReplaceAll(text, "1", "I")} {
			got, err := crypt.ParseRecoveryKey(s)
			if err != nil {
				t.Fatalf("%q: %v", s, err)
			}
			wantBytes(t, s, crypt.RecoveryBytes(got), key)
		}
	}
}

func TestNewRecoveryKeysDiffer(t *testing.T) {
	_, a, _ := crypt.NewRecoveryKey()
	_, b, _ := crypt.NewRecoveryKey()
	if a == b {
		t.Fatal("two recovery keys are the same")
	}
}

// Every wrong character, and every swap of neighbours, is found in its group.
func TestRecoveryKeyFindsTypingErrors(t *testing.T) {
	text := []byte(crypt.RecoveryText(counted("typing-", 32)))
	for i, c := range text {
		if c == '-' {
			continue
		}
		for _, wrong := range []byte(recoveryAlphabet) {
			if wrong != c {
				bad := bytes.Clone(text)
				bad[i] = wrong
				wantGroup(t, string(bad), i/6+1)
			}
		}
		if i%6 < 4 && text[i+1] != c {
			bad := bytes.Clone(text)
			bad[i], bad[i+1] = bad[i+1], bad[i]
			wantGroup(t, string(bad), i/6+1)
		}
	}
}

func TestRecoveryKeyFindsSwappedGroups(t *testing.T) {
	groups := strings.Split(crypt.RecoveryText(counted("groups-", 32)), "-")
	for i := range groups {
		for j := range i {
			bad := append([]string(nil), groups...)
			bad[i], bad[j] = bad[j], bad[i]
			wantGroup(t, strings.Join(bad, "-"), j+1)
		}
	}
}

func TestRecoveryKeyLength(t *testing.T) {
	text := crypt.RecoveryText(counted("length-", 32))
	wantGroup(t, text[:7]+text[8:], 2) // a character lost in the second group
	wantGroup(t, text[:14]+"0"+text[14:], 3)
	wantGroup(t, text[:13]+"U"+text[14:], 3)
	wantGroup(t, text[:13]+"é"+text[14:], 3)
	for _, s := range []string{"", "-", strings.ReplaceAll(text, "-", "")[1:], text + "-00000", strings.Repeat("0", 5000)} {
		wantGroup(t, s, 0)
	}
}

// The four bits behind the key are checked, so that no key has two texts.
func TestRecoveryKeyIsCanonical(t *testing.T) {
	text := crypt.RecoveryText(make([]byte, 32))
	last := text[len(text)-5:]
	accepted := 0
	for _, c := range recoveryAlphabet {
		for _, check := range recoveryAlphabet {
			s := text[:len(text)-5] + last[:3] + string(c) + string(check)
			if _, err := crypt.ParseRecoveryKey(s); err == nil {
				accepted++
			}
		}
	}
	if accepted < 1 || accepted > 2 { // the bit of the key in that character
		t.Fatalf("%d endings are accepted", accepted)
	}
}

func wantGroup(t *testing.T, text string, group int) {
	t.Helper()
	_, err := crypt.ParseRecoveryKey(text)
	var e *crypt.RecoveryKeyError
	if !errors.As(err, &e) || e.Group != group || !errors.Is(err, crypt.ErrRecoveryKey) {
		t.Fatalf("%q: %v, want an error in group %d", text, err, group)
	}
}

func FuzzParseRecoveryKey(f *testing.F) {
	f.Add(crypt.RecoveryText(make([]byte, 32)))
	f.Add(crypt.RecoveryText(counted("fuzz-", 32)))
	f.Add("o0-iIlL \t-")
	f.Fuzz(func(t *testing.T, s string) {
		secret, err := crypt.ParseRecoveryKey(s)
		if err != nil {
			if !errors.Is(err, crypt.ErrRecoveryKey) {
				t.Fatalf("error %v", err)
			}
			return
		}
		normal := strings.NewReplacer("O", "0", "I", "1", "L", "1", "-", "").Replace(strings.ToUpper(strings.Join(strings.Fields(s), "")))
		if text := crypt.RecoveryText(crypt.RecoveryBytes(secret)); strings.ReplaceAll(text, "-", "") != normal {
			t.Fatalf("%q reads as %q", s, text)
		}
	})
}

func TestRecoveryKeyRandomDamage(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	text := crypt.RecoveryText(counted("damage-", 32))
	for range 2000 {
		b := []byte(text)
		for range 2 + r.IntN(6) {
			if i := r.IntN(len(b)); b[i] != '-' {
				b[i] = recoveryAlphabet[r.IntN(32)]
			}
		}
		s, err := crypt.ParseRecoveryKey(string(b))
		if err == nil && string(b) != text && bytes.Equal(crypt.RecoveryBytes(s), counted("damage-", 32)) {
			t.Fatalf("two texts for one key: %q", b)
		}
	}
}
