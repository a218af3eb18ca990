package trust_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/fsximg/fsx/internal/trust"
)

func TestRemember(t *testing.T) {
	f := trust.At(filepath.Join(t.TempDir(), "state", "fsx", "trust.json"))
	if s, err := f.Store("a"); err != nil || s.Trusts("k1") {
		t.Fatalf("without a file: %v, %v", s, err)
	}
	remember := func(r trust.Record) {
		t.Helper()
		if err := f.Remember(r); err != nil {
			t.Fatal(err)
		}
	}
	epoch := func() uint64 {
		t.Helper()
		s, err := f.Store("a")
		if err != nil {
			t.Fatal(err)
		}
		return s.Epochs["v"]
	}
	remember(trust.Record{Store: "a", VolumeKeys: []string{"k2", "k1"}, Epochs: map[string]uint64{"v": 5}})
	remember(trust.Record{Store: "b", VolumeKeys: []string{"k3"}})
	if s, err := f.Store("a"); err != nil || !s.Trusts("k1") || !s.Trusts("k2") || s.Trusts("k3") {
		t.Errorf("remembered: %v, %v", s, err)
	}
	remember(trust.Record{Store: "a", Epochs: map[string]uint64{"v": 4}})
	if epoch() != 5 {
		t.Errorf("an older head was taken note of: %d", epoch())
	}
	remember(trust.Record{Store: "a", Epochs: map[string]uint64{"v": 4}, Lower: true})
	if epoch() != 4 {
		t.Errorf("an older head was accepted, and is %d", epoch())
	}
	before, err := os.Stat(f.Path())
	if err != nil || before.Mode().Perm() != 0o600 {
		t.Fatalf("%v, %v", before.Mode(), err)
	}
	remember(trust.Record{Store: "a", VolumeKeys: []string{"k1"}, Epochs: map[string]uint64{"v": 3}})
	if after, err := os.Stat(f.Path()); err != nil || !os.SameFile(before, after) {
		t.Errorf("the file was replaced for nothing: %v", err)
	}
}

// TestConcurrent: no writer's record is lost.
func TestConcurrent(t *testing.T) {
	path := filepath.Join(t.TempDir(), "trust.json")
	var wg sync.WaitGroup
	for i := range 30 {
		wg.Go(func() {
			if err := trust.At(path).Remember(trust.Record{Store: fmt.Sprint(i % 3), VolumeKeys: []string{fmt.Sprint(i)}}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for i := range 30 {
		if s, err := trust.At(path).Store(fmt.Sprint(i % 3)); err != nil || !s.Trusts(fmt.Sprint(i)) {
			t.Errorf("key %d: %v, %v", i, s, err)
		}
	}
}

// TestFormat: a file that is something else is neither believed nor replaced.
func TestFormat(t *testing.T) {
	for _, text := range []string{"", "{", "[]", `{"version":2,"stores":{}}`, `{"version":1}`, `{"version":1,"stores":{"a":null}}`, `{"version":1,"stores":{},"x":1}`} {
		f := trust.At(filepath.Join(t.TempDir(), "trust.json"))
		if err := os.WriteFile(f.Path(), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := f.Store("a"); !errors.Is(err, trust.ErrFormat) {
			t.Errorf("%q: %v", text, err)
		}
		if err := f.Remember(trust.Record{Store: "a", VolumeKeys: []string{"k"}}); !errors.Is(err, trust.ErrFormat) {
			t.Errorf("%q: %v", text, err)
		}
		if b, err := os.ReadFile(f.Path()); err != nil || string(b) != text {
			t.Errorf("%q became %q, %v", text, b, err)
		}
	}
}

func TestDefault(t *testing.T) {
	for _, c := range []struct {
		uid             int
		xdg, home, want string
	}{
		{0, "/x", "/root", "/var/lib/fsx/trust.json"},
		{7, "/x", "/home/u", "/x/fsx/trust.json"},
		{7, "x", "/home/u", "/home/u/.local/state/fsx/trust.json"},
		{7, "", "/home/u", "/home/u/.local/state/fsx/trust.json"},
		{7, "", "", ""},
	} {
		got := trust.Default(func(name string) string { return map[string]string{"XDG_STATE_HOME": c.xdg, "HOME": c.home}[name] }, c.uid)
		if got != c.want {
			t.Errorf("%+v: %s", c, got)
		}
	}
}

// TestGone: a volume key that was replaced is accepted no more, until its user says so.
func TestGone(t *testing.T) {
	f := trust.At(filepath.Join(t.TempDir(), "trust.json"))
	trusts := func(want bool) {
		t.Helper()
		s, err := f.Store("store")
		if err != nil || s.Trusts("key") != want {
			t.Errorf("trusted: %v, %v", s.Trusts("key"), err)
		}
	}
	for _, step := range []struct {
		r    trust.Record
		want bool
	}{
		{trust.Record{VolumeKeys: []string{"key"}}, true},
		{trust.Record{Gone: []string{"key"}, VolumeKeys: []string{"next"}}, false},
		{trust.Record{VolumeKeys: []string{"key"}}, false},
		{trust.Record{VolumeKeys: []string{"key"}, Accept: true}, true},
	} {
		step.r.Store = "store"
		if err := f.Remember(step.r); err != nil {
			t.Fatal(err)
		}
		trusts(step.want)
	}
}
