package picture

import (
	"strings"
	"unicode"
)

// printable is s with U+FFFD for all that has no glyph: controls, which a terminal
// would obey and XML does not allow, marks of direction, and broken UTF-8.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return unicode.ReplacementChar
		}
		return r
	}, s)
}

// cellsOf is how many columns r takes in a fixed-width face.
func cellsOf(r rune) int {
	if r >= 0x1100 && r != unicode.ReplacementChar {
		return 2 // most of what is there is, and too much room does no harm
	}
	return 1
}

// cells is how many columns s takes.
func cells(s string) (n int) {
	for _, r := range s {
		n += cellsOf(r)
	}
	return n
}

// clip shortens s to at most n columns (n > 2), in its middle: names that differ
// often do so at the end.
func clip(s string, n int) string {
	s = printable(s)
	if cells(s) <= n {
		return s
	}
	runes := []rune(s)
	left, right, room := 0, len(runes), n-1
	for turn := 0; ; turn++ {
		r := runes[left]
		if turn%2 == 1 {
			r = runes[right-1]
		}
		if room -= cellsOf(r); room < 0 {
			return string(runes[:left]) + "…" + string(runes[right:])
		}
		if turn%2 == 1 {
			right--
		} else {
			left++
		}
	}
}

// pad fills s with spaces on its right up to n columns.
func pad(s string, n int) string { return s + strings.Repeat(" ", max(0, n-cells(s))) }
