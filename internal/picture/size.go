package picture

import (
	"fmt"
	"strconv"
	"strings"
)

// sizeText writes a size for people, as the commands do: "1.5 GiB".
func sizeText(n int64) string { return inUnit(n, 1) }

func inUnit(n int64, decimals int) string {
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	const units = "KMGTPE"
	v, unit := float64(n)/1024, 0
	for v >= 1023.95 && unit < len(units)-1 {
		v /= 1024
		unit++
	}
	text := strings.TrimRight(strconv.FormatFloat(v, 'f', decimals, 64), "0")
	return strings.TrimSuffix(text, ".") + " " + units[unit:unit+1] + "iB"
}

// offsetText writes an offset with the decimals that make it exact where a map has
// its marks: "1.125 TiB".
func offsetText(n int64) string { return inUnit(n, 3) }

// percentText is a part of a whole: "12.5 %". What is there is never "0.0 %".
func percentText(part, whole int64) string {
	p := 100 * float64(part) / float64(max(whole, 1))
	if part > 0 && p < 0.05 {
		return "<0.1 %"
	}
	return fmt.Sprintf("%.1f %%", p)
}
