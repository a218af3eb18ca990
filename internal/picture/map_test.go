package picture_test

import (
	"bytes"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/fsximg/fsx/internal/picture"
)

// randomMap has ascending runs of whole blocks with gaps between them.
func randomMap(rng *rand.Rand, blocks int64, class func() string) *picture.Map {
	m := &picture.Map{Title: "random", Size: blocks * 4096}
	for at := int64(0); at < blocks; {
		n := 1 + rng.Int64N(1+rng.Int64N(blocks))
		n = min(n, 1+rng.Int64N(30), blocks-at)
		m.Runs = append(m.Runs, picture.MapRun{Start: at * 4096, Length: n * 4096, Class: class(), Zero: rng.IntN(6) == 0})
		at += n
		if rng.IntN(3) == 0 {
			at += rng.Int64N(20)
		}
	}
	return m
}

// modelCells says what each cell of a map shows, block by block.
func modelCells(m *picture.Map, cells int64, total map[string]int64) (out []string) {
	blocks := make([]string, m.Size/4096)
	for _, r := range m.Runs {
		for b := r.Start / 4096; b < (r.Start+r.Length)/4096; b++ {
			blocks[b] = r.Class
			if r.Zero {
				blocks[b] = "\x00zeros"
			}
		}
	}
	for len(blocks) > 0 {
		cell := blocks[:min(int(cells), len(blocks))]
		blocks = blocks[len(cell):]
		count := map[string]int{}
		data, zero := 0, 0
		best := ""
		for _, class := range cell {
			switch class {
			case "":
			case "\x00zeros":
				zero++
			default:
				data++
				count[class]++
			}
		}
		for class, n := range count {
			if best == "" || n > count[best] || n == count[best] && (total[class] > total[best] || total[class] == total[best] && class < best) {
				best = class
			}
		}
		eighths := func(n int) int { return max(1, int(math.Floor(float64(n)*8/float64(len(cell))+0.5))) }
		switch {
		case data > 0:
			out = append(out, fmt.Sprintf("%s, %d/8 full", best, eighths(data)))
		case zero > 0:
			out = append(out, fmt.Sprintf("zeros, %d/8 full", eighths(zero)))
		default:
			out = append(out, "hole")
		}
	}
	return out
}

var cellElement = regexp.MustCompile(`<rect x="\d+" y="\d+" width="(\d+)" height="(\d+)" fill="#\w+"><title>.* to [^:]*: (.*)</title></rect>`)

// TestMapModel compares each cell's description, and the blocks of the text, with
// the model's.
func TestMapModel(t *testing.T) {
	rng := newRand(t)
	for range 200 {
		classes := 1 + rng.IntN(9)
		m := randomMap(rng, 1+rng.Int64N(3000), func() string {
			if n := rng.IntN(classes + 1); n > 0 {
				return fmt.Sprintf("c%d", n)
			}
			return ""
		})
		total := map[string]int64{}
		for _, r := range m.Runs {
			if !r.Zero {
				total[r.Class] += r.Length
			}
		}
		per := int64(1)
		for (m.Size/4096-1)/per >= 32*16 {
			per *= 2
		}
		var got []string
		for _, e := range cellElement.FindAllStringSubmatch(string(drawn(t, func(w io.Writer) error { return m.SVG(w, 32) })), -1) {
			size := numbers(e[1:3])
			for range int(size[0] / size[1]) {
				got = append(got, e[3])
			}
		}
		want := modelCells(m, per, total)
		if strings.Join(got, "|") != strings.Join(want, "|") {
			t.Fatalf("%+v\ngot  %q\nwant %q", m, got, want)
		}
		checkText(t, m, want)
	}
}

// checkText compares the text of 32 columns and 16 rows, as wide as the model's.
func checkText(t *testing.T, m *picture.Map, want []string) {
	t.Helper()
	var got, text []rune
	for line := range strings.Lines(string(drawn(t, func(w io.Writer) error { return m.Text(w, 32+13, false) }))) {
		if _, row, ok := strings.Cut(line, "│"); ok {
			got = append(got, []rune(strings.TrimSuffix(row, "│\n"))...)
		}
	}
	for _, cell := range want {
		r := ' '
		if what, full, ok := strings.Cut(cell, ", "); ok {
			r = []rune("▁▂▃▄▅▆▇█")[full[0]-'1']
			if what == "zeros" {
				r = '·'
			}
		}
		text = append(text, r)
	}
	if string(got) != string(text) {
		t.Fatalf("got  %q\nwant %q", string(got), string(text))
	}
}

func TestMapWellFormed(t *testing.T) {
	rng := newRand(t)
	for range 200 {
		m := &picture.Map{Title: randomName(rng), Size: rng.Int64() >> rng.IntN(64)}
		for range rng.IntN(50) { // in no order, and beyond all bounds
			m.Runs = append(m.Runs, picture.MapRun{Start: int64(rng.Uint64()) >> rng.IntN(64), Length: int64(rng.Uint64()) >> rng.IntN(64),
				Class: randomName(rng), Zero: rng.IntN(4) == 0})
		}
		columns := rng.IntN(100)
		wellFormed(t, drawn(t, func(w io.Writer) error { return m.SVG(w, columns) }))
		if text := drawn(t, func(w io.Writer) error { return m.Text(w, 60, false) }); !utf8.Valid(text) || bytes.ContainsAny(text, "\x00\x1b") {
			t.Fatalf("not fit for a terminal: %q", text)
		}
	}
}

// TestMapBounds: the largest map, columns and widths of all kinds, and runs that
// are not as they should be.
func TestMapBounds(t *testing.T) {
	const most = math.MaxInt64 &^ 4095
	for _, tt := range []struct {
		name string
		size int64
		runs []picture.MapRun
		want []string // in the legend
	}{
		{"largest", most, []picture.MapRun{{0, 1 << 62, "a", false}, {1 << 62, 1 << 61, "", true}}, []string{"a  4 EiB  50.0 %", "zeros  2 EiB  25.0 %", "holes  2 EiB  25.0 %"}},
		{"full", most, []picture.MapRun{{0, most, "a", false}}, []string{"a  8 EiB  100.0 %"}},
		{"over the end", most, []picture.MapRun{{most - 4096, math.MaxInt64, "a", false}}, []string{"a  4 KiB  <0.1 %", "holes  8 EiB  100.0 %"}},
		{"before the start", 8192, []picture.MapRun{{-4096, 8192, "a", false}}, []string{"a  4 KiB  50.0 %", "holes  4 KiB  50.0 %"}},
		{"negative", 8192, []picture.MapRun{{0, -4096, "a", false}, {math.MinInt64, 4096, "a", false}}, []string{"holes  8 KiB  100.0 %"}},
		{"overlapping", 16384, []picture.MapRun{{0, 8192, "a", false}, {4096, 8192, "b", false}, {0, 4096, "c", false}}, []string{"a  8 KiB  50.0 %", "b  4 KiB  25.0 %", "holes  4 KiB  25.0 %"}},
		{"one sector", 512, []picture.MapRun{{0, 512, "a", false}}, []string{"a  512 B  100.0 %"}},
		{"a class that is zeros only", 8192, []picture.MapRun{{0, 4096, "a", true}, {4096, 4096, "b", false}}, []string{"b  4 KiB  50.0 %", "zeros  4 KiB  50.0 %"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := &picture.Map{Title: tt.name, Size: tt.size, Runs: tt.runs}
			text := string(drawn(t, func(w io.Writer) error { return m.Text(w, 80, false) }))
			_, legend, _ := strings.Cut(text, "\n\n")
			var got []string
			for line := range strings.Lines(legend) {
				_, rest, _ := strings.Cut(line, " ")
				got = append(got, regexp.MustCompile(` {2,}`).ReplaceAllString(strings.TrimSpace(rest), "  "))
			}
			if strings.Join(got, "\n") != strings.Join(tt.want, "\n") {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(tt.want, "\n"))
			}
			for _, columns := range []int{-1, 0, 1, 7, 100, 512, 1 << 30} {
				wellFormed(t, drawn(t, func(w io.Writer) error { return m.SVG(w, columns) }))
				drawn(t, func(w io.Writer) error { return m.Text(w, columns, true) })
			}
		})
	}
}

// TestMapTextWidth: a terminal's lines are kept.
func TestMapTextWidth(t *testing.T) {
	m := randomMap(newRand(t), 100000, func() string { return "c" })
	for _, width := range []int{60, 80, 81, 200} {
		for line := range strings.Lines(string(drawn(t, func(w io.Writer) error { return m.Text(w, width, false) }))) {
			if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > width {
				t.Errorf("%d columns of %d: %s", n, width, line)
			}
		}
	}
}

// TestMapLarge: a million runs of thousands of classes in well under a second
// (here with room for a busy machine), in a file of bounded size.
func TestMapLarge(t *testing.T) {
	const runs = 1_000_000
	m := &picture.Map{Title: "large", Size: runs * 65536, Runs: make([]picture.MapRun, runs)}
	for i := range m.Runs {
		m.Runs[i] = picture.MapRun{Start: int64(i) * 65536, Length: 4096 * int64(1+i%16), Class: fmt.Sprintf("class %d", i*2654435761%5000), Zero: i%97 == 0}
	}
	for name, draw := range map[string]func(io.Writer) error{
		"svg": func(w io.Writer) error { return m.SVG(w, 0) }, "text": func(w io.Writer) error { return m.Text(w, 120, true) },
	} {
		began := time.Now()
		var b bytes.Buffer
		if err := draw(&b); err != nil {
			t.Fatal(err)
		}
		took := time.Since(began)
		t.Logf("%s: %v, %d bytes", name, took.Round(time.Millisecond), b.Len())
		if took > 5*time.Second || b.Len() > 2<<20 || !strings.Contains(b.String(), "4991 others") {
			t.Errorf("%s: %v, %d bytes", name, took, b.Len())
		}
	}
}
