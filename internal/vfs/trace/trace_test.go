package trace_test

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/fsximg/fsx/internal/vfs/trace"
)

const (
	regular   = syscall.S_IFREG | 0o600
	directory = syscall.S_IFDIR | 0o700
)

func create(id, dir trace.ID, name string) trace.Op {
	return trace.Op{Kind: trace.Create, File: id, Dir: dir, Name: name, Mode: regular}
}

func mkdir(id, dir trace.ID, name string) trace.Op {
	return trace.Op{Kind: trace.Create, File: id, Dir: dir, Name: name, Mode: directory}
}

func sync(id trace.ID) trace.Op { return trace.Op{Kind: trace.Datasync, File: id} }

// write is a write of the text at off; record fills in the rest.
func write(id trace.ID, off int64, text string) trace.Op {
	return trace.Op{Kind: trace.Write, File: id, Off: off, Text: text}
}

func truncate(id trace.ID, size int64) trace.Op {
	return trace.Op{Kind: trace.Truncate, File: id, Off: size}
}

func rename(id, dir trace.ID, name string, dir2 trace.ID, name2 string, over trace.ID) trace.Op {
	return trace.Op{Kind: trace.Rename, File: id, Dir: dir, Name: name, Dir2: dir2, Name2: name2, Over: over}
}

func unlink(id, dir trace.ID, name string) trace.Op {
	return trace.Op{Kind: trace.Unlink, File: id, Dir: dir, Name: name}
}

func record(t *testing.T, base string, ops ...trace.Op) *trace.Trace {
	t.Helper()
	dir := t.TempDir()
	w, err := trace.NewWriter(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, op := range ops {
		var data []byte
		if op.Kind == trace.Write {
			data, op.Text = []byte(op.Text), ""
		}
		if _, err := w.Append(op, data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	tr, err := trace.Load(dir, base, len(ops))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tr.Close() })
	return tr
}

// image returns what a crash left as "path=content" words, runs of one letter
// abbreviated: a512 is 512 times a.
func image(t *testing.T, tr *trace.Trace, cut int, seed uint64, p trace.Policy) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "img")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := tr.CrashImage(dir, cut, seed, p); err != nil {
		t.Fatal(err)
	}
	return listing(t, dir)
}

func listing(t *testing.T, dir string) string {
	t.Helper()
	tree, paths, err := trace.ReadTree(dir)
	if err != nil {
		t.Fatal(err)
	}
	var words []string
	tree.Walk(func(path string, n *trace.Node) error {
		if n.IsDir() {
			words = append(words, path+"/")
			return nil
		}
		data, err := os.ReadFile(filepath.Join(dir, paths[n.ID]))
		if err != nil {
			t.Fatal(err)
		}
		words = append(words, path+"="+runs(data))
		return nil
	})
	return strings.Join(words, " ")
}

func runs(data []byte) string {
	var s strings.Builder
	for len(data) > 0 {
		n := len(data) - len(bytes.TrimLeft(data, string(data[:1])))
		c := string(data[:1])
		if c == "\x00" {
			c = "."
		}
		s.WriteString(c)
		if n > 1 {
			fmt.Fprint(&s, n)
		}
		data = data[n:]
	}
	return s.String()
}

func rep(c string, n int) string { return strings.Repeat(c, n) }

// outcomes collects what many seeds give.
func outcomes(t *testing.T, tr *trace.Trace, cut int, p trace.Policy, seeds int) []string {
	set := map[string]bool{}
	for seed := range seeds {
		set[image(t, tr, cut, uint64(seed), p)] = true
	}
	return slices.Sorted(maps.Keys(set))
}

func expect(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("%s:\n got %q\nwant %q", what, got, want)
	}
}

// The outcomes of small programs, cut at their ends, are known exactly.
func TestOutcomes(t *testing.T) {
	a1k, b1k := rep("a", 1024), rep("b", 1024)
	named := []trace.Op{create(2, 1, "f"), write(2, 0, a1k), sync(2), sync(1)}
	add := func(ops ...trace.Op) []trace.Op { return append(slices.Clone(named), ops...) }
	tests := []struct {
		name string
		ops  []trace.Op
		p    trace.Policy
		want []string
	}{
		{"synced file, unsynced name", named[:3], trace.RandomTorn, []string{"", "f=a1024"}},
		{"synced file and name", named, trace.DropUnsynced, []string{"f=a1024"}},
		{"synced name, unsynced data", []trace.Op{create(2, 1, "f"), sync(1), write(2, 0, a1k)}, trace.RandomTorn,
			[]string{"f=", "f=.1024", "f=a1024", "f=a512.512", "f=.512a512"}},
		{"overwrite dropped", add(write(2, 0, b1k)), trace.DropUnsynced, []string{"f=a1024"}},
		{"overwrite kept", add(write(2, 0, b1k)), trace.KeepAll, []string{"f=b1024"}},
		{"overwrite whole or not", add(write(2, 0, b1k)), trace.RandomWrites, []string{"f=a1024", "f=b1024"}},
		{"overwrite torn", add(write(2, 0, b1k)), trace.RandomTorn,
			[]string{"f=a1024", "f=b1024", "f=a512b512", "f=b512a512"}},
		{"unaligned write is cut at sectors", add(write(2, 510, "bbbb")), trace.RandomTorn,
			[]string{"f=a1024", "f=a510b2a512", "f=a512b2a510", "f=a510b4a510"}},
		{"two overwrites in any order", add(write(2, 0, rep("b", 512)), write(2, 0, rep("c", 512))), trace.RandomWrites,
			[]string{"f=a1024", "f=b512a512", "f=c512a512"}},
		{"growth", add(write(2, 1024, rep("b", 512))), trace.RandomTorn,
			[]string{"f=a1024", "f=a1024.512", "f=a1024b512"}},
		{"truncate", add(truncate(2, 512)), trace.RandomTorn, []string{"f=a1024", "f=a512"}},
		{"truncate then grow", add(truncate(2, 0), truncate(2, 1024)), trace.RandomTorn,
			[]string{"f=a1024", "f=", "f=.1024"}},
		{"allocate", add(trace.Op{Kind: trace.Allocate, File: 2, Len: 2048}), trace.RandomTorn,
			[]string{"f=a1024", "f=a1024.1024"}},
		{"punch", add(trace.Op{Kind: trace.Punch, File: 2, Len: 512}), trace.RandomTorn,
			[]string{"f=a1024", "f=.512a512"}},
		{"synced after all", add(write(2, 0, b1k), sync(2)), trace.RandomTorn, []string{"f=b1024"}},
		{"ignored sync", add(write(2, 0, b1k), trace.Op{Kind: trace.SyncIgnored, File: 2}), trace.DropUnsynced,
			[]string{"f=a1024"}},
		{"refused write", add(trace.Op{Kind: trace.Punch, File: 2, Len: 512, Err: syscall.EIO}, sync(2)),
			trace.KeepAll, []string{"f=a1024"}},
		{"failed sync loses data for good", add(write(2, 1024, b1k), trace.Op{Kind: trace.SyncLost, File: 2, Err: syscall.EIO},
			write(2, 0, "c"), sync(2)), trace.KeepAll, []string{"f=ca1023.1024"}},
		{"unlink", add(unlink(2, 1, "f")), trace.RandomTorn, []string{"", "f=a1024"}},
		{"unlink synced", add(unlink(2, 1, "f"), sync(1)), trace.RandomTorn, []string{""}},
		{"rename over", add(create(3, 1, "new"), write(3, 0, "n"), sync(3), rename(3, 1, "new", 1, "f", 2)), trace.RandomTorn,
			[]string{"f=a1024", "f=a1024 new=n", "f=n"}},
		{"rename over, any names", add(create(3, 1, "new"), write(3, 0, "n"), sync(3), rename(3, 1, "new", 1, "f", 2)),
			trace.RandomNames, []string{"f=a1024", "f=a1024 new=n", "f=n"}},
		{"prefix of names", []trace.Op{create(2, 1, "a"), create(3, 1, "b")}, trace.RandomTorn,
			[]string{"", "a=", "a= b="}},
		{"subset of names", []trace.Op{create(2, 1, "a"), create(3, 1, "b")}, trace.RandomNames,
			[]string{"", "a=", "b=", "a= b="}},
		{"file in an unsynced directory", []trace.Op{mkdir(2, 1, "d"), create(3, 2, "f"), write(3, 0, "x"), sync(3), sync(2)},
			trace.RandomTorn, []string{"", "d/ d/f=x"}},
		{"rename between directories", []trace.Op{mkdir(2, 1, "d"), mkdir(3, 1, "e"), create(4, 2, "f"), sync(2), sync(1),
			rename(4, 2, "f", 3, "g", 0)}, trace.RandomTorn, []string{"d/ d/f= e/", "d/ e/ e/g="}},
		{"one sync carries a rename in both directories", []trace.Op{mkdir(2, 1, "d"), mkdir(3, 1, "e"), create(4, 2, "f"),
			sync(2), sync(1), rename(4, 2, "f", 3, "g", 0), sync(3)}, trace.RandomTorn, []string{"d/ e/ e/g="}},
		{"hard link", add(trace.Op{Kind: trace.Link, File: 2, Dir: 1, Name: "g"}, sync(1), write(2, 0, "b"), sync(2)),
			trace.DropUnsynced, []string{"f=ba1023 g=ba1023"}},
	}
	for _, test := range tests {
		tr := record(t, "", test.ops...)
		expect(t, test.name, outcomes(t, tr, len(test.ops), test.p, 100), test.want...)
	}
}

func TestCutsInAnyOrderAgree(t *testing.T) {
	ops := []trace.Op{create(2, 1, "f"), sync(1), write(2, 0, rep("a", 4096)), sync(2), write(2, 100, rep("b", 4096)),
		create(3, 1, "g"), write(3, 0, "xyz"), sync(3), rename(3, 1, "g", 1, "f", 2), sync(1), unlink(3, 1, "f")}
	up, down := record(t, "", ops...), record(t, "", ops...)
	var ascending []string
	for cut := range len(ops) + 1 {
		ascending = append(ascending, image(t, up, cut, 7, trace.RandomMixed))
	}
	for cut := len(ops); cut >= 0; cut-- {
		if got := image(t, down, cut, 7, trace.RandomMixed); got != ascending[cut] {
			t.Errorf("cut %d: %q one way, %q the other", cut, ascending[cut], got)
		}
	}
	if err := up.CrashImage(t.TempDir(), len(ops)+1, 0, trace.KeepAll); err == nil {
		t.Error("a cut past the end gave an image")
	}
}

// A trace may start from a directory; its files are durable and stay as they are.
func TestBase(t *testing.T) {
	base := t.TempDir()
	os.Mkdir(filepath.Join(base, "d"), 0o700)
	os.WriteFile(filepath.Join(base, "d", "f"), []byte("old"), 0o600)
	os.WriteFile(filepath.Join(base, "x"), []byte("x"), 0o640)
	os.Link(filepath.Join(base, "x"), filepath.Join(base, "y"))
	_, paths, err := trace.ReadTree(base)
	if err != nil {
		t.Fatal(err)
	}
	var f, x trace.ID
	for id, path := range paths {
		switch path {
		case "d/f":
			f = id
		case "x":
			x = id
		}
	}
	tr := record(t, base, write(f, 0, "new"), sync(f), write(x, 0, "z"))
	for cut, want := range map[int]string{
		0: "d/ d/f=old x=x y=x", 2: "d/ d/f=new x=x y=x", 3: "d/ d/f=new x=x y=x",
	} {
		if got := image(t, tr, cut, 0, trace.DropUnsynced); got != want {
			t.Errorf("cut %d: %q, want %q", cut, got, want)
		}
	}
	if got := listing(t, base); got != "d/ d/f=old x=x y=x" {
		t.Errorf("the base became %q", got)
	}
	dir := filepath.Join(t.TempDir(), "img")
	if err := tr.CrashImage(dir, 3, 0, trace.KeepAll); err != nil {
		t.Fatal(err)
	}
	if st, _ := os.Stat(filepath.Join(dir, "x")); st.Mode().Perm() != 0o640 {
		t.Errorf("mode %v", st.Mode())
	}
}

func TestJournaled(t *testing.T) {
	ops := []trace.Op{mkdir(2, 1, "meta"), mkdir(3, 1, "vol"), sync(1),
		create(4, 2, "f"), write(4, 0, "x"), sync(4), create(5, 3, "g"), write(5, 0, "y"), sync(5)}
	tr := record(t, "", ops...)
	for journaled, want := range map[string]string{
		"": "meta/ vol/", "meta": "meta/ meta/f=x vol/", "*": "meta/ meta/f=x vol/ vol/g=y",
	} {
		p := trace.Policy{Journaled: journaled}
		if got := image(t, tr, len(ops), 0, p); got != want {
			t.Errorf("journaled %q: %q, want %q", journaled, got, want)
		}
	}
}

func TestImagesStaySparse(t *testing.T) {
	const size = 1 << 30
	tr := record(t, "", create(2, 1, "f"), sync(1), truncate(2, size), write(2, size/2, "x"), sync(2), write(2, 0, "y"))
	dir := filepath.Join(t.TempDir(), "img")
	if err := tr.CrashImage(dir, 6, 0, trace.KeepAll); err != nil {
		t.Fatal(err)
	}
	var st syscall.Stat_t
	if err := syscall.Stat(filepath.Join(dir, "f"), &st); err != nil || st.Size != size {
		t.Fatal(st.Size, err)
	}
	if st.Blocks*512 > 1<<20 {
		t.Errorf("a file with two bytes takes %d", st.Blocks*512)
	}
}

func TestCuts(t *testing.T) {
	mark := func(s string) trace.Op { return trace.Op{Kind: trace.Mark, Text: s} }
	tr := record(t, "", create(2, 1, "f"), mark("one"), sync(2), sync(1), write(2, 0, "a"), mark("two"))
	if got := tr.SyncCuts(); !slices.Equal(got, []int{2, 3, 4}) {
		t.Errorf("SyncCuts = %v", got)
	}
	if got := tr.ChangeCuts(1); !slices.Equal(got, []int{1, 5}) {
		t.Errorf("ChangeCuts(1) = %v", got)
	}
	if got := tr.ChangeCuts(2); !slices.Equal(got, []int{5}) {
		t.Errorf("ChangeCuts(2) = %v", got)
	}
	if got := tr.Marks(5); !slices.Equal(got, []string{"one"}) {
		t.Errorf("Marks(5) = %v", got)
	}
	if got := tr.MarkAt("two"); got != 5 {
		t.Errorf("MarkAt = %d", got)
	}
	if got := trace.MergeCuts([]int{3, 1}, []int{2, 3}); !slices.Equal(got, []int{1, 2, 3}) {
		t.Errorf("MergeCuts = %v", got)
	}
	all := []int{1, 2, 3, 4, 5, 6, 7, 8}
	if got := trace.SampleCuts(all, 3, 1); len(got) != 3 || !slices.IsSorted(got) {
		t.Errorf("SampleCuts = %v", got)
	}
}

func TestDump(t *testing.T) {
	tr := record(t, "", mkdir(2, 1, "d"), create(3, 2, "f"), write(3, 0, "ab"), write(3, 2, "c"), sync(3),
		rename(2, 1, "d", 1, "e", 0), sync(2), truncate(3, 1), unlink(3, 2, "f"),
		trace.Op{Kind: trace.Write, File: 3, Err: syscall.ENOSPC}, trace.Op{Kind: trace.Mark, Text: "end"})
	var got strings.Builder
	if err := tr.Dump(&got); err != nil {
		t.Fatal(err)
	}
	want := `create d
create d/f
write d/f 3 bytes in 2
datasync d/f
rename d e
datasync e
truncate e/f 1
unlink e/f
write e/f 0 bytes in 1: no space left on device
mark "end"
`
	if got.String() != want {
		t.Errorf("got\n%s\nwant\n%s", got.String(), want)
	}
}
