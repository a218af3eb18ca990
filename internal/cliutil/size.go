package cliutil

import (
	"fmt"
	"math/big"
	"strconv"
	"strings"
)

// MaxSize is the largest size of a volume: 8 EiB - 4 KiB.
const MaxSize = 1<<63 - 4096

// SectorSize is what sizes of volumes are multiples of.
const SectorSize = 512

const suffixes = "KMGTPE"

// ParseSize reads the size of a volume: a number, perhaps with a decimal
// fraction, and K, M, G, T, P or E for powers of 1024 ("iB" may follow). The
// result is positive, a multiple of 512 and at most MaxSize.
func ParseSize(s string) (int64, error) {
	n, err := parseBytes(s)
	if err != nil {
		return 0, err
	}
	switch {
	case n == 0:
		return 0, UsageErrorf("size %q: must be more than zero", s)
	case n%SectorSize != 0:
		return 0, UsageErrorf("size %q: must be a multiple of %d bytes", s, SectorSize)
	}
	return n, nil
}

// minRate is the least that somebody can mean, in bytes per second.
const minRate = 64 << 10

// ParseRate reads a number of bytes per second, with the suffixes of sizes.
func ParseRate(s string) (int64, error) {
	n, err := parseBytes(strings.TrimSuffix(s, "/s"))
	if err == nil && n < minRate {
		err = WithHint(UsageErrorf("%q is too slow a rate", s), "bytes per second with K, M or G, say 100M")
	}
	return n, err
}

// parseBytes is ParseSize without the rules for volumes.
func parseBytes(s string) (int64, error) {
	num, mult := splitSuffix(s)
	if mult == 0 {
		return 0, UsageErrorf("size %q: use a number and K, M, G, T, P or E (powers of 1024)", s)
	}
	if num == "" || strings.Trim(num, "0123456789.") != "" || strings.HasPrefix(num, ".") ||
		strings.HasSuffix(num, ".") || strings.Count(num, ".") > 1 || len(num) > 40 {
		return 0, UsageErrorf("size %q: not a number", s)
	}
	r, ok := new(big.Rat).SetString(num)
	if !ok {
		return 0, UsageErrorf("size %q: not a number", s)
	}
	r.Mul(r, new(big.Rat).SetInt64(mult))
	if !r.IsInt() {
		return 0, UsageErrorf("size %q: not a whole number of bytes", s)
	}
	if r.Num().Cmp(big.NewInt(MaxSize)) > 0 {
		return 0, UsageErrorf("size %q: the largest is 8 EiB - 4 KiB", s)
	}
	return r.Num().Int64(), nil
}

// splitSuffix returns the number and the multiplier; 0 for an unknown suffix.
func splitSuffix(s string) (num string, mult int64) {
	end := len(s)
	for end > 0 && (s[end-1] < '0' || s[end-1] > '9') && s[end-1] != '.' {
		end--
	}
	num, suffix := s[:end], strings.TrimPrefix(s[end:], " ")
	if suffix == "" {
		return num, 1
	}
	i := strings.Index(suffixes, strings.ToUpper(suffix[:1]))
	if i < 0 || (len(suffix) > 1 && suffix[1:] != "iB") {
		return num, 0
	}
	return num, 1 << (10 * (i + 1))
}

// FormatSize writes a size for people: "1.5 GiB".
func FormatSize(n int64) string {
	if n < 0 {
		return "-" + FormatSize(-n)
	}
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	v, unit := float64(n)/1024, 0
	for v >= 1023.95 && unit < len(suffixes)-1 {
		v /= 1024
		unit++
	}
	text := strings.TrimSuffix(strconv.FormatFloat(v, 'f', 1, 64), ".0")
	return text + " " + suffixes[unit:unit+1] + "iB"
}

// Count is a number of things for people: 1 slot, 2 slots.
func Count(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return strconv.Itoa(n) + " " + thing + "s"
}
