package picture_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/fsximg/fsx/internal/picture"
)

// randomTree has n volumes, most of them clones of what comes before them or, in a
// damaged store, after them.
func randomTree(rng *rand.Rand, n int, name func(i int) string) *picture.Tree {
	t := &picture.Tree{Store: name(0), Size: rng.Int64(), Used: rng.Int64()}
	for i := range n {
		v := picture.TreeVolume{Name: name(i), Size: rng.Int64(), Own: rng.Int64(), Key: name(rng.IntN(60)), Hidden: rng.IntN(5) == 0}
		if rng.IntN(6) == 0 {
			v.Key = ""
		}
		snapshots := rng.IntN(5)
		if rng.IntN(20) == 0 {
			snapshots = rng.IntN(80)
		}
		for j := range snapshots {
			v.Snapshots = append(v.Snapshots, picture.TreeSnapshot{Name: name(j), Size: rng.Int64(), Freed: rng.Int64(), Hidden: rng.IntN(5) == 0,
				Created: noon.Add(time.Duration(rng.Int64N(int64(1000 * time.Hour))))})
		}
		t.Volumes = append(t.Volumes, v)
	}
	for i := range t.Volumes {
		p := &t.Volumes[rng.IntN(min(n, i+2))]
		if rng.IntN(5) > 0 {
			t.Volumes[i].Parent = p.Name
		}
		if len(p.Snapshots) > 0 && rng.IntN(5) > 0 {
			t.Volumes[i].ParentSnapshot = p.Snapshots[rng.IntN(len(p.Snapshots))].Name
		}
	}
	return t
}

func volumeName(i int) string { return fmt.Sprintf("vm-%03d%s", i, strings.Repeat("x", i%37)) }

func TestTreeWellFormed(t *testing.T) {
	rng := newRand(t)
	for range 100 {
		tree := randomTree(rng, 1+rng.IntN(40), func(int) string { return randomName(rng) })
		wellFormed(t, drawn(t, tree.SVG))
		for line := range strings.Lines(string(drawn(t, tree.Text))) {
			if !utf8.ValidString(line) || strings.ContainsAny(line, "\x00\x1b\u202e") {
				t.Fatalf("not fit for a terminal: %q", line)
			}
		}
	}
}

// TestTreeComplete: every volume and snapshot is drawn once, whatever the parents.
func TestTreeComplete(t *testing.T) {
	rng := newRand(t)
	for range 100 {
		tree := randomTree(rng, 1+rng.IntN(60), volumeName)
		snapshots := 0
		for _, v := range tree.Volumes {
			snapshots += len(v.Snapshots)
		}
		svg, text := drawn(t, tree.SVG), drawn(t, tree.Text)
		if got := bytes.Count(svg, []byte("<circle")) - 2; got != snapshots { // two are the legend's
			t.Fatalf("%d dots for %d snapshots", got, snapshots)
		}
		if got := bytes.Count(svg, []byte(`rx="5"`)); got != len(tree.Volumes) {
			t.Fatalf("%d boxes for %d volumes", got, len(tree.Volumes))
		}
		if got := bytes.Count(text, []byte("\n")) - 1; got != snapshots+len(tree.Volumes) {
			t.Fatalf("%d lines for %d volumes and %d snapshots\n%s", got, len(tree.Volumes), snapshots, text)
		}
	}
}

// box is an area of a picture, for the test of overlaps.
type box struct {
	what           string
	x0, y0, x1, y1 float64
}

func (a box) overlaps(b box) bool { return a.x0 < b.x1 && b.x0 < a.x1 && a.y0 < b.y1 && b.y0 < a.y1 }

var (
	textElement = regexp.MustCompile(`<text x="(\d+)" y="(\d+)" class="(\w+)[^"]*">([^<]*)</text>`)
	boxElement  = regexp.MustCompile(`<rect x="(\d+)" y="(\d+)" width="(\d+)" height="(\d+)" rx="5"`)
	stemElement = regexp.MustCompile(`<path d="M(\d+),(\d+)V(\d+)q0,8 8,8H(\d+)"`)
	sizeOfSVG   = regexp.MustCompile(`<svg [^>]* width="(\d+)" height="(\d+)"`)
)

func numbers(s []string) (n []float64) {
	for _, x := range s {
		v, _ := strconv.ParseFloat(x, 64)
		n = append(n, v)
	}
	return n
}

// TestTreeOverlaps: no text covers another or leaves the picture, and no stem
// crosses a volume or a text.
func TestTreeOverlaps(t *testing.T) {
	size := map[string]float64{"title": 17, "name": 12, "volume": 12, "small": 10}
	rng := newRand(t)
	for _, n := range []int{1, 2, 5, 20, 100, 300} {
		svg := string(drawn(t, randomTree(rng, n, volumeName).SVG))
		page := numbers(sizeOfSVG.FindStringSubmatch(svg)[1:])
		_, lanes, _ := strings.Cut(svg, "<g transform")
		var texts, volumes, stems []box
		for _, m := range textElement.FindAllStringSubmatch(lanes, -1) {
			at, font := numbers(m[1:3]), size[m[3]]
			texts = append(texts, box{m[4], at[0], at[1] - font*0.8, at[0] + 0.602*font*float64(utf8.RuneCountInString(m[4])), at[1] + font*0.2})
		}
		for _, m := range boxElement.FindAllStringSubmatch(lanes, -1) {
			at := numbers(m[1:])
			volumes = append(volumes, box{"a volume's box", at[0], at[1], at[0] + at[2], at[1] + at[3]})
		}
		for _, m := range stemElement.FindAllStringSubmatch(lanes, -1) {
			at := numbers(m[1:])
			stems = append(stems, box{"a stem", at[0] - 1, at[1], at[0] + 1, at[2]})
		}
		if len(volumes) != n || len(texts) < 2*n {
			t.Fatalf("found %d boxes and %d texts of %d volumes", len(volumes), len(texts), n)
		}
		for i, a := range texts {
			if a.x1 > page[0] || a.y1 > page[1] {
				t.Fatalf("%d volumes: %q is outside", n, a.what)
			}
			for _, b := range append(texts[i+1:len(texts):len(texts)], stems...) {
				if a.overlaps(b) {
					t.Fatalf("%d volumes: %v and %v", n, a, b)
				}
			}
		}
		for i, a := range volumes {
			for _, b := range append(volumes[i+1:len(volumes):len(volumes)], stems...) {
				if a.overlaps(b) {
					t.Fatalf("%d volumes: %v and %v", n, a, b)
				}
			}
		}
	}
}

// TestKeyColours: a key keeps its colour when volumes are added, and no two have
// the same while there are 30.
func TestKeyColours(t *testing.T) {
	swatch := regexp.MustCompile(`fill="(#\w+)"/>\n<text [^>]*>key (\w+)<`)
	var tree picture.Tree
	have := map[string]string{}
	for i := range 30 {
		tree.Volumes = append(tree.Volumes, picture.TreeVolume{Name: volumeName(i), Key: fmt.Sprintf("%08x", uint32(i)*2654435761)})
		legend := map[string]string{}
		for _, m := range swatch.FindAllStringSubmatch(string(drawn(t, tree.SVG)), -1) {
			legend[m[2]] = m[1]
		}
		if len(legend) != i+1 {
			t.Fatalf("%d keys in the legend of %d", len(legend), i+1)
		}
		used := map[string]bool{}
		for key, colour := range legend {
			if old := have[key]; old != "" && old != colour {
				t.Errorf("%s was %s and is %s", key, old, colour)
			}
			if used[colour] {
				t.Errorf("%d keys, and %s is used twice", i+1, colour)
			}
			have[key], used[colour] = colour, true
		}
	}
}
