package picture_test

import (
	"bytes"
	"encoding/xml"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/fsximg/fsx/internal/picture"
)

var update = flag.Bool("update", false, "write testdata anew; look at the pictures before a commit")

const (
	kib = int64(1) << 10
	mib = int64(1) << 20
	gib = int64(1) << 30
)

var noon = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

// newRand draws from FSX_SEED, or the time, which is printed.
func newRand(t testing.TB) *rand.Rand {
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("FSX_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 0, 64)
		if err != nil {
			t.Fatal(err)
		}
		seed = n
	}
	t.Logf("FSX_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 1))
}

// drawn is what draw writes; the second time must be the same.
func drawn(t testing.TB, draw func(io.Writer) error) []byte {
	t.Helper()
	var a, b bytes.Buffer
	if err := errors.Join(draw(&a), draw(&b)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a.Bytes(), b.Bytes()) {
		t.Fatal("drawn twice, not the same")
	}
	return a.Bytes()
}

// wellFormed decodes all of an SVG.
func wellFormed(t testing.TB, svg []byte) {
	t.Helper()
	d := xml.NewDecoder(bytes.NewReader(svg))
	for {
		if _, err := d.Token(); err == io.EOF {
			return
		} else if err != nil {
			t.Fatalf("%v\n%s", err, svg)
		}
	}
}

// exampleTree has one of everything, and names that want to be escaped.
func exampleTree() *picture.Tree {
	day := func(n int) time.Time { return noon.AddDate(0, 0, n) }
	return &picture.Tree{Store: `<b&"ase'>.fsx`, Size: 64 * gib, Used: 12*gib + 345*mib, Volumes: []picture.TreeVolume{
		{Name: "main", Size: 64 * gib, Own: 3 * gib, Key: "3fa9c1d2", Snapshots: []picture.TreeSnapshot{
			{Name: "daily-2026-05-02", Created: day(1), Size: 64 * gib, Freed: 123456789}, // not in order of time
			{Name: "install", Created: day(0), Size: 32 * gib, Freed: gib},
			{Name: "a-name-that-is-much-too-long-for-its-place-in-the-picture", Created: day(2), Size: 64 * gib, Freed: 1 << 62},
			{Name: "gone", Created: day(3), Size: 64 * gib, Hidden: true},
		}},
		{Name: "web", Size: 64 * gib, Own: 500 * mib, Key: "77aa00b1", Parent: "main", ParentSnapshot: "install", Snapshots: []picture.TreeSnapshot{
			{Name: `<&">`, Created: day(9), Size: 64 * gib, Freed: 5 * mib}}},
		{Name: "db", Size: 128 * gib, Own: 5 * gib, Key: "0badcafe", Parent: "main", ParentSnapshot: "install"},
		{Name: "of-a-deleted-snapshot-and-long", Size: 64 * gib, Key: "3fa9c1d2", Parent: "main", ParentSnapshot: "gone"},
		{Name: "direct", Size: 64 * gib, Key: "3fa9c1d2", Parent: "main"},
		{Name: "lost", Size: 64 * gib, Key: "3fa9c1d2", Parent: "main", ParentSnapshot: "unknown"},
		{Name: "web-blue", Size: 64 * gib, Key: "77aa00b2", Parent: "web", ParentSnapshot: `<&">`},
		{Name: "old", Size: 64 * gib, Own: 10 * gib, Key: "12345678", Hidden: true, Snapshots: []picture.TreeSnapshot{{Name: "s", Size: 64 * gib}}},
		{Name: "scratch", Size: 64 * gib, Parent: "old", ParentSnapshot: "s"},
		{Name: "orphan", Size: 64 * gib, Parent: "nowhere", ParentSnapshot: "s"},
	}}
}

// exampleMap is 16 MiB, with more classes than there are colours.
func exampleMap() *picture.Map {
	m := &picture.Map{Title: `store.fsx:main@<&">`, Size: 16*mib - 4*kib}
	add := func(start, length int64, class string, zero bool) {
		m.Runs = append(m.Runs, picture.MapRun{Start: start, Length: length, Class: class, Zero: zero})
	}
	add(0, 3*mib, "daily-1", false)
	add(3*mib, 1*mib, "", true)
	add(4*mib, 2*mib, `<&">`, false)
	add(6*mib, 1*mib, "", false) // a hole that is told
	for i := range int64(13) {   // each of them fills its cells in another way
		add(8*mib+i*512*kib, (i+1)*36*kib, fmt.Sprintf("class %02d", i), false)
	}
	add(15*mib, 1*mib, "daily-1", false) // goes over the end
	return m
}

func TestGolden(t *testing.T) {
	tree, m := exampleTree(), exampleMap()
	noVolumes, one := &picture.Tree{Store: "empty.fsx"}, &picture.Tree{Store: "one.fsx", Size: gib, Volumes: []picture.TreeVolume{{Name: "main", Size: gib, Key: "3fa9c1d2"}}}
	empty := &picture.Map{Title: "empty.fsx:main"}
	text := func(m *picture.Map, width int, colour bool) func(io.Writer) error {
		return func(w io.Writer) error { return m.Text(w, width, colour) }
	}
	svg := func(m *picture.Map, columns int) func(io.Writer) error {
		return func(w io.Writer) error { return m.SVG(w, columns) }
	}
	for name, draw := range map[string]func(io.Writer) error{
		"tree.svg": tree.SVG, "tree.txt": tree.Text, "tree-empty.svg": noVolumes.SVG, "tree-empty.txt": noVolumes.Text,
		"tree-one.svg": one.SVG, "tree-one.txt": one.Text, "map.svg": svg(m, 32), "map.txt": text(m, 80, false),
		"map-colour.txt": text(m, 40, true), "map-empty.svg": svg(empty, 0), "map-empty.txt": text(empty, 80, true),
	} {
		t.Run(name, func(t *testing.T) {
			got := drawn(t, draw)
			if filepath.Ext(name) == ".svg" {
				wellFormed(t, got)
			}
			path := filepath.Join("testdata", name)
			if *update {
				if err := os.WriteFile(path, got, 0o666); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("not as in testdata; got\n%s", got)
			}
		})
	}
}

// randomName is any bytes, often XML's own, now and then long.
func randomName(rng *rand.Rand) string {
	pieces := []string{"<", "&", `"`, "'", ">", "]]>", "\x00", "\x1b[2J", "\xff", "\n", "é", "世界", "\ufffe", "\u202e", "a", "daily-", "-->", "&amp;"}
	var s string
	for range rng.IntN(1 + rng.IntN(30)) {
		s += pieces[rng.IntN(len(pieces))]
	}
	return s
}

// failing accepts some bytes only.
type failing struct{ left int }

var errFull = errors.New("full")

func (f *failing) Write(p []byte) (int, error) {
	if f.left -= len(p); f.left < 0 {
		return 0, errFull
	}
	return len(p), nil
}

// TestWriteErrors: a picture that is not whole is an error.
func TestWriteErrors(t *testing.T) {
	tree, m := exampleTree(), exampleMap()
	for name, draw := range map[string]func(io.Writer) error{
		"tree svg": tree.SVG, "tree text": tree.Text,
		"map svg":  func(w io.Writer) error { return m.SVG(w, 0) },
		"map text": func(w io.Writer) error { return m.Text(w, 80, true) },
	} {
		size := len(drawn(t, draw))
		if err := draw(&failing{size - 1}); !errors.Is(err, errFull) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
