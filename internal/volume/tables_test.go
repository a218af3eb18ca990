package volume_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/fsximg/fsx/internal/volume"
)

// TestSpoiledTables cuts, extends and alters the ends of the index's tables,
// where Badger's footer is: that is damage, or does not matter, and never other
// data.
func TestSpoiledTables(t *testing.T) {
	rng := rand.New(rand.NewPCG(seedOf(t), 5))
	path, data := tamperStore(t, rng)
	tables, err := filepath.Glob(filepath.Join(path, "meta", "*.sst"))
	if err != nil || len(tables) == 0 {
		t.Fatal(tables, err)
	}
	spoils := map[string]func([]byte) []byte{
		"ones behind":  func(b []byte) []byte { return append(b, 0xff, 0xff, 0xff, 0xff) },
		"zeros behind": func(b []byte) []byte { return append(b, 0, 0, 0, 0) },
		"empty":        func([]byte) []byte { return nil },
		"three bytes":  func(b []byte) []byte { return b[:3] },
		"half":         func(b []byte) []byte { return b[:len(b)/2] },
	}
	for n := 1; n <= 24; n++ {
		spoils["cut by "+string(rune('a'+n))] = func(b []byte) []byte { return b[:len(b)-n] }
		spoils["altered at "+string(rune('a'+n))] = func(b []byte) []byte {
			b[len(b)-n] ^= byte(1 + rng.IntN(255))
			return b
		}
	}
	refused := 0
	for _, name := range tables {
		whole, err := os.ReadFile(name)
		must(t, err)
		for what, spoil := range spoils {
			must(t, os.WriteFile(name, spoil(bytes.Clone(whole)), 0o600))
			o := readTampered(t, path, data)
			if o.refused != nil {
				refused++
				if !errors.Is(o.refused, volume.ErrDamaged) {
					t.Errorf("%s, %s: %v", filepath.Base(name), what, o.refused)
				}
			}
		}
		must(t, os.WriteFile(name, whole, 0o600))
	}
	if refused < 20*len(tables) {
		t.Errorf("%d refused", refused)
	}
	if o := readTampered(t, path, data); o != (outcome{}) {
		t.Errorf("after undoing everything: %+v", o)
	}
}
