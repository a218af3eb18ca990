package volume_test

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/fsximg/fsx/internal/volume"
	"github.com/fsximg/fsx/pkg/crypt"
)

const tamperSize = 1 << 20

// tamperStore makes a cleanly closed store whose every block holds data, some
// of it overwritten once, and returns its path and content.
func tamperStore(t *testing.T, r *rand.Rand) (string, []byte) {
	path := filepath.Join(t.TempDir(), "s.fsx")
	s := create(t, path, tamperSize)
	v := mainVolume(t, s)
	data := make([]byte, tamperSize)
	for round := range 2 {
		for off := 0; off < tamperSize; off += 32 << 10 {
			if round == 1 && r.IntN(3) == 0 {
				continue
			}
			p := data[off : off+32<<10]
			for i := range p {
				p[i] = byte(r.Uint32())
			}
			if err := v.WriteAt(p, int64(off), false); err != nil {
				t.Fatal(err)
			}
			if err := v.Flush(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return path, data
}

// outcome is what a tampered store does.
type outcome struct {
	refused error // to open, unlock or recover
	broken  int   // blocks that cannot be read
	found   bool  // check reports a problem
}

// readTampered reads everything: each block is right or an error.
func readTampered(t *testing.T, path string, data []byte) (o outcome) {
	t.Helper()
	s, err := volume.Open(path, volume.Options{ReadOnly: true})
	if err != nil {
		return outcome{refused: err}
	}
	defer s.Close()
	if err := s.Unlock([]crypt.Secret{secret(t)}); err != nil {
		return outcome{refused: err}
	}
	v, err := s.Volume("main")
	if err != nil {
		return outcome{refused: err}
	}
	buf := make([]byte, 4096)
	for off := int64(0); off < tamperSize; off += 4096 {
		if err := v.ReadAt(buf, off, false); err != nil {
			o.broken++
		} else if !bytes.Equal(buf, data[off:off+4096]) {
			t.Fatalf("offset %d: other data", off)
		}
	}
	rep, err := s.Check(context.Background(), volume.CheckOptions{})
	o.found = err != nil || !rep.Clean()
	return o
}

// flip inverts one bit of a file and returns how to undo it.
func flip(t *testing.T, name string, off int64, bit uint) func() {
	t.Helper()
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], off); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1 << bit
	if _, err := f.WriteAt(b[:], off); err != nil {
		t.Fatal(err)
	}
	return func() { flip(t, name, off, bit) }
}

// TestFlippedBlock flips a bit in every block of every segment. A live block
// then is an I/O error, of that block alone, and check finds it; the record
// that the head names refuses the volume; anything else is dead.
func TestFlippedBlock(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: one goroutine, and it takes long")
	}
	r := rand.New(rand.NewPCG(seedOf(t), 1))
	path, data := tamperStore(t, r)
	if o := readTampered(t, path, data); o != (outcome{}) {
		t.Fatalf("untouched: %+v", o)
	}
	files, err := filepath.Glob(filepath.Join(path, "vol", "*", "*.seg"))
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	broken, refused, dead := 0, 0, 0
	for _, name := range files {
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		for at := int64(0); at < info.Size(); at += 4096 {
			// Of a record only its first bytes are certain to mean something.
			undo := flip(t, name, at+r.Int64N(192), uint(r.IntN(8)))
			o := readTampered(t, path, data)
			undo()
			switch {
			case o.refused != nil:
				refused++
			case o.broken == 1 && o.found:
				broken++
			case o.broken == 0 && !o.found:
				dead++
			default:
				t.Fatalf("%s, block %d: %+v", filepath.Base(name), at/4096, o)
			}
		}
	}
	t.Logf("%d blocks unreadable, %d refused, %d dead", broken, refused, dead)
	if broken != tamperSize/4096 || refused == 0 {
		t.Errorf("%d of %d live blocks were found, %d refused", broken, tamperSize/4096, refused)
	}
	if o := readTampered(t, path, data); o != (outcome{}) {
		t.Errorf("after undoing everything: %+v", o)
	}
}

// TestFlippedFiles flips bits all over the other files. What is not refused
// reads right or not at all.
func TestFlippedFiles(t *testing.T) {
	r := rand.New(rand.NewPCG(seedOf(t), 2))
	path, data := tamperStore(t, r)
	rounds := 150
	if testing.Short() {
		rounds = 40
	}
	for _, pattern := range []string{"fsx", "keyring"} {
		name := filepath.Join(path, pattern)
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		size := min(info.Size(), 4096)
		starts := []int64{0}
		if pattern == "keyring" { // the two areas have the same body
			starts, size = []int64{64, 16<<20 + 64}, info.Size()-16<<20-64
		}
		refused := 0
		for range rounds {
			at, bit := r.Int64N(size), uint(r.IntN(8))
			var undo []func()
			for _, start := range starts {
				if o := readTampered(t, path, data); len(undo) > 0 && o != (outcome{}) {
					t.Fatalf("%s, in one of two areas: %+v", pattern, o)
				}
				undo = append(undo, flip(t, name, start+at, bit))
			}
			if o := readTampered(t, path, data); o.refused != nil {
				refused++
			} else if o.broken != 0 {
				t.Fatalf("%s: %+v", pattern, o)
			}
			for _, u := range undo {
				u()
			}
		}
		if refused == 0 || refused != rounds {
			t.Errorf("%s: %d of %d flips refused", pattern, refused, rounds)
		}
	}
}

// TestMissingFiles takes files away, and swaps them.
func TestMissingFiles(t *testing.T) {
	r := rand.New(rand.NewPCG(seedOf(t), 3))
	path, data := tamperStore(t, r)
	other, _ := tamperStore(t, r)
	files, _ := filepath.Glob(filepath.Join(path, "vol", "*", "*.seg"))
	for _, name := range files {
		away := name + ".away"
		if err := os.Rename(name, away); err != nil {
			t.Fatal(err)
		}
		if o := readTampered(t, path, data); o.refused == nil && !o.found && o.broken > 0 {
			t.Errorf("%s missing: %+v", filepath.Base(name), o)
		}
		// The same segment of another store, and one cut short.
		foreign, err := os.ReadFile(filepath.Join(other, "vol", "00000001", filepath.Base(name)))
		if err == nil {
			if err := os.WriteFile(name, foreign, 0o600); err != nil {
				t.Fatal(err)
			}
			if o := readTampered(t, path, data); o.refused == nil && (o.broken == 0) == o.found {
				t.Errorf("%s of another store: %+v", filepath.Base(name), o)
			}
		}
		if err := os.Rename(away, name); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"fsx", "keyring"} {
		content, err := os.ReadFile(filepath.Join(other, name))
		if err != nil {
			t.Fatal(err)
		}
		own, err := os.ReadFile(filepath.Join(path, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(path, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
		if o := readTampered(t, path, data); o.refused == nil {
			t.Errorf("%s of another store is accepted", name)
		}
		if err := os.WriteFile(filepath.Join(path, name), own, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if o := readTampered(t, path, data); o != (outcome{}) {
		t.Errorf("after undoing everything: %+v", o)
	}
}
