package nbddev_test

import (
	"encoding/hex"
	"strings"
	"testing"

	"github.com/fsximg/fsx/internal/attach/nbddev"
)

// vector is the bytes of lines of hexadecimal digits; what follows # is a comment.
// Netlink is in the machine's byte order; the vectors are for little-endian ones.
func vector(t *testing.T, text string) []byte {
	t.Helper()
	var digits strings.Builder
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		digits.WriteString(strings.Join(strings.Fields(line), ""))
	}
	b, err := hex.DecodeString(digits.String())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestParseIndex(t *testing.T) {
	index, err := nbddev.ParseIndex(vector(t, "0800 0100 07000000 # NBD_ATTR_INDEX 7"))
	if err != nil || index != 7 {
		t.Errorf("%d, %v", index, err)
	}
	for name, text := range map[string]string{
		"empty":         "",
		"another":       "0800 0200 07000000",
		"short":         "0600 0100 0700 0000",
		"longer length": "ff00 0100 07000000",
	} {
		if index, err := nbddev.ParseIndex(vector(t, text)); err == nil {
			t.Errorf("%s: %d without an error", name, index)
		}
	}
}

func TestParseStatus(t *testing.T) {
	got, err := nbddev.ParseStatus(vector(t, `
		2c00 0900                # NBD_ATTR_DEVICE_LIST
		1400 0100                # NBD_DEVICE_ITEM
		0800 0100 00000000       # NBD_DEVICE_INDEX 0
		0500 0200 01 000000      # NBD_DEVICE_CONNECTED
		1400 0100                # NBD_DEVICE_ITEM
		0800 0100 0b000000       # NBD_DEVICE_INDEX 11
		0500 0200 00 000000      # NBD_DEVICE_CONNECTED`))
	if err != nil || len(got) != 2 || !got[0] || got[11] {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := nbddev.ParseStatus(vector(t, "1000 0900 0c00 0100 0500 0200 01 000000")); err == nil {
		t.Error("a device without a number was accepted")
	}
	if got, err := nbddev.ParseStatus(vector(t, "0400 0900")); err != nil || len(got) != 0 {
		t.Errorf("no devices: %v, %v", got, err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte{8, 0, 1, 0, 7, 0, 0, 0})
	f.Add([]byte{0x1c, 0, 9, 0, 0x18, 0, 1, 0, 8, 0, 1, 0, 0, 0, 0, 0, 5, 0, 2, 0, 1, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		if index, err := nbddev.ParseIndex(b); err == nil && index < 0 {
			t.Error(index)
		}
		_, _ = nbddev.ParseStatus(b)
	})
}
