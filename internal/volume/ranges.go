package volume

import (
	"slices"
	"sort"

	"github.com/fsximg/fsx/pkg/layout"
)

// zeroRange is a range of blocks that reads as zeros.
type zeroRange struct {
	start, end layout.BlockNo
	kind       layout.Kind // Hole or Zero
}

// zeroRanges is a sorted set of ranges that do not overlap; neighbours of one
// kind are merged.
type zeroRanges []zeroRange

// find returns the kind of the range that covers b.
func (z zeroRanges) find(b layout.BlockNo) (layout.Kind, bool) {
	if len(z) == 0 {
		return 0, false
	}
	i := sort.Search(len(z), func(i int) bool { return z[i].end > b })
	if i < len(z) && z[i].start <= b {
		return z[i].kind, true
	}
	return 0, false
}

// add sets [start, end) to kind, over whatever was there.
func (z zeroRanges) add(start, end layout.BlockNo, kind layout.Kind) zeroRanges {
	lo := sort.Search(len(z), func(i int) bool { return z[i].end >= start })
	hi := sort.Search(len(z), func(i int) bool { return z[i].start > end })
	mid := make([]zeroRange, 0, 3)
	n := zeroRange{start, end, kind}
	for _, r := range z[lo:hi] {
		if r.kind == kind {
			n.start, n.end = min(n.start, r.start), max(n.end, r.end)
			continue
		}
		if r.start < start {
			mid = append(mid, zeroRange{r.start, min(r.end, start), r.kind})
		}
	}
	mid = append(mid, n)
	for _, r := range z[lo:hi] {
		if r.kind != kind && r.end > end {
			mid = append(mid, zeroRange{max(r.start, end), r.end, r.kind})
		}
	}
	return slices.Replace(z, lo, hi, mid...)
}
