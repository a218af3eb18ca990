package crypt

import (
	"crypto/sha256"
	"fmt"
	"strings"
)

// A recovery key is 256 random bits in 13 groups of five characters:
//
//	4 characters of data, 20 bits, most significant first
//	1 check character over these four and the group's number
//
// The 52 data characters carry the 256 bits and then 4 bits of checksum, the
// high bits of SHA-256 of the key. The check character finds every single
// wrong character and every swap of neighbours, in the group where it is.
const (
	recoveryBytes  = 32
	recoveryGroups = 13
	groupData      = 4
	groupSize      = groupData + 1
	recoveryChars  = recoveryGroups * groupSize

	// Crockford's alphabet: no I, L, O or U.
	recoveryAlphabet = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
	maxRecoveryText  = 1024
)

// RecoveryKeyError tells where a recovery key is mistyped. It is an
// ErrRecoveryKey, and never holds a part of the key.
type RecoveryKeyError struct {
	Group  int    // from 1; 0 if it cannot be told
	Reason string // "has a wrong character", …
}

func (e *RecoveryKeyError) Error() string {
	if e.Group == 0 {
		return "recovery key " + e.Reason
	}
	return fmt.Sprintf("recovery key group %d %s", e.Group, e.Reason)
}

// Is makes errors.Is(err, ErrRecoveryKey) true.
func (e *RecoveryKeyError) Is(target error) bool { return target == ErrRecoveryKey }

// NewRecoveryKey makes a recovery key and its text, which is shown once.
func NewRecoveryKey() (Secret, string, error) {
	c := newCell(recoveryBytes)
	defer c.free()
	random(c.b)
	return newSecret(SlotRecoveryKey, c.b), formatRecoveryKey(c.b), nil
}

// ParseRecoveryKey reads what NewRecoveryKey wrote. Case, white space and
// dashes do not matter; O reads as 0, I and L as 1. The error is a
// *RecoveryKeyError.
func ParseRecoveryKey(text string) (Secret, error) {
	if len(text) > maxRecoveryText {
		return nil, &RecoveryKeyError{Reason: "is too long"}
	}
	var values [recoveryChars]byte
	defer clear(values[:])
	if err := readRecoveryText(text, &values); err != nil {
		return nil, err
	}
	c := newCell(recoveryBytes)
	defer c.free()
	if err := decodeRecovery(c.b, &values); err != nil {
		return nil, err
	}
	return newSecret(SlotRecoveryKey, c.b), nil
}

// readRecoveryText turns characters into their values and counts them. A group
// of the wrong length is named if dashes show the groups.
func readRecoveryText(text string, values *[recoveryChars]byte) error {
	n, group, inGroup := 0, 1, 0
	misplaced := 0
	for _, r := range text {
		switch {
		case strings.ContainsRune(" \t\r\n\v\f", r):
			continue
		case r == '-':
			if inGroup > 0 && inGroup != groupSize && misplaced == 0 {
				misplaced = group
			}
			if inGroup > 0 {
				group, inGroup = group+1, 0
			}
			continue
		}
		v := recoveryValue(r)
		if v < 0 {
			return &RecoveryKeyError{Group: n/groupSize + 1, Reason: "has a character that no recovery key has"}
		}
		if n < recoveryChars {
			values[n] = byte(v)
		}
		n++
		inGroup++
	}
	if n == recoveryChars {
		return nil
	}
	if misplaced == 0 || group == 1 {
		return &RecoveryKeyError{Reason: fmt.Sprintf("has %d of %d characters", n, recoveryChars)}
	}
	return &RecoveryKeyError{Group: misplaced, Reason: fmt.Sprintf("does not have %d characters", groupSize)}
}

func recoveryValue(r rune) int {
	if r >= 'a' && r <= 'z' {
		r -= 'a' - 'A'
	}
	switch r {
	case 'O':
		r = '0'
	case 'I', 'L':
		r = '1'
	}
	return strings.IndexRune(recoveryAlphabet, r)
}

func decodeRecovery(key []byte, values *[recoveryChars]byte) error {
	var acc, bits uint32
	out := key[:0]
	for g := range recoveryGroups {
		group := values[g*groupSize:][:groupSize]
		if groupCheck(g, group[:groupData]) != group[groupData] {
			return &RecoveryKeyError{Group: g + 1, Reason: "has a wrong character"}
		}
		for _, v := range group[:groupData] {
			acc, bits = acc<<5|uint32(v), bits+5
			if bits >= 8 && len(out) < recoveryBytes {
				bits -= 8
				out = append(out, byte(acc>>bits))
			}
		}
	}
	if byte(acc&0xf) != recoveryChecksum(key) {
		return &RecoveryKeyError{Reason: "has wrong characters"}
	}
	return nil
}

func formatRecoveryKey(key []byte) string {
	var acc, bits uint32
	values := make([]byte, 0, recoveryGroups*groupData)
	for _, b := range append(key[:recoveryBytes:recoveryBytes], recoveryChecksum(key)<<4) {
		acc, bits = acc<<8|uint32(b), bits+8
		for bits >= 5 && len(values) < cap(values) {
			bits -= 5
			values = append(values, byte(acc>>bits)&31)
		}
	}
	defer clear(values)
	var s strings.Builder
	for g := range recoveryGroups {
		if g > 0 {
			s.WriteByte('-')
		}
		group := values[g*groupData:][:groupData]
		for _, v := range group {
			s.WriteByte(recoveryAlphabet[v])
		}
		s.WriteByte(recoveryAlphabet[groupCheck(g, group)])
	}
	return s.String()
}

func recoveryChecksum(key []byte) byte {
	sum := sha256.Sum256(key)
	return sum[0] >> 4
}

// groupCheck is a^g + sum of a^(j+1) d_j in GF(32), a = x, modulo x^5+x^2+1.
func groupCheck(g int, data []byte) byte {
	check := gfShift(1, g)
	for j, d := range data {
		check ^= gfShift(d, j+1)
	}
	return check
}

// gfShift multiplies by a, n times.
func gfShift(v byte, n int) byte {
	for range n {
		v <<= 1
		if v&32 != 0 {
			v ^= 32 | 4 | 1
		}
	}
	return v
}
