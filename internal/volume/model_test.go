package volume_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/fsximg/fsx/internal/volume"
	"github.com/fsximg/fsx/pkg/crypt"
)

// secret is the key file of all stores in these tests.
func secret(t testing.TB) crypt.Secret {
	t.Helper()
	s, err := crypt.NewKeyFile(bytes.Repeat([]byte{0xa5, 1, 2, 0xff}, 8))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func create(t testing.TB, path string, size int64) *volume.Store {
	t.Helper()
	s, err := volume.Create(path, createOptions(t, size))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func createOptions(t testing.TB, size int64) volume.CreateOptions {
	t.Helper()
	return volume.CreateOptions{Options: options(t), Size: size, Secrets: []crypt.Secret{secret(t)}}
}

func options(t testing.TB) volume.Options {
	o := volume.Options{Program: "test"}
	if os.Getenv("FSX_TEST_LOG") != "" {
		o.Log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return o
}

func open(t testing.TB, path string) *volume.Store {
	t.Helper()
	return openWith(t, path, options(t))
}

// openWith opens and unlocks a store.
func openWith(t testing.TB, path string, o volume.Options) *volume.Store {
	t.Helper()
	s, err := volume.Open(path, o)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Unlock([]crypt.Secret{secret(t)}); err != nil {
		t.Fatal(err)
	}
	return s
}

func mainVolume(t testing.TB, s *volume.Store) *volume.Volume {
	t.Helper()
	v, err := s.Volume("main")
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func checkClean(t testing.TB, s *volume.Store) {
	t.Helper()
	r, err := s.Check(context.Background(), volume.CheckOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range r.Problems {
		t.Errorf("check: %v", p)
	}
	for _, v := range r.Volumes {
		if v.Leaked != 0 {
			t.Errorf("check: volume %s leaks %d of %d blocks", v.Name, v.Leaked, v.Blocks)
		}
		if v.Verified != v.Blocks {
			t.Errorf("check: volume %s: %d of %d blocks verified", v.Name, v.Verified, v.Blocks)
		}
	}
}

// seedOf is FSX_SEED, or the time; it is printed.
func seedOf(t testing.TB) uint64 {
	seed := uint64(time.Now().UnixNano())
	if e := os.Getenv("FSX_SEED"); e != "" {
		n, err := strconv.ParseUint(e, 0, 64)
		if err != nil {
			t.Fatal(err)
		}
		seed = n
	}
	t.Logf("FSX_SEED=%d", seed)
	return seed
}

// operations is how many operations a model test does: with -short, without,
// and in a full run. FSX_MODEL_OPS overrides.
func operations(t testing.TB, short, normal, full int) int {
	t.Helper()
	if e := os.Getenv("FSX_MODEL_OPS"); e != "" {
		n, err := strconv.Atoi(e)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	switch {
	case os.Getenv("FSX_FULL") != "":
		return full
	case testing.Short():
		return short
	}
	return normal
}

// TestModel runs random operations against a volume and a plain array.
func TestModel(t *testing.T) {
	ops := operations(t, 15_000, 60_000, 4_000_000)
	seed, began := seedOf(t), time.Now()
	for i, size := range []int64{512, 4096 * 3, 1<<20 + 512, 24<<20 - 1536} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			m := &model{t: t, rng: rand.New(rand.NewPCG(seed, uint64(i))), path: filepath.Join(t.TempDir(), "s.fsx"), size: size, data: make([]byte, size)}
			m.s = create(t, m.path, size)
			m.v = mainVolume(t, m.s)
			m.run(ops / 4)
			m.verify()
			checkClean(t, m.s)
			m.reopen()
			m.verify()
			if err := m.s.Close(); err != nil {
				t.Fatal(err)
			}
		})
	}
	t.Logf("RESULT model: %d operations, FSX_SEED=%d, %v", ops, seed, time.Since(began).Round(time.Second))
}

type model struct {
	t    *testing.T
	rng  *rand.Rand
	path string
	size int64
	data []byte
	s    *volume.Store
	v    *volume.Volume
}

func (m *model) span() (off, n int64) {
	max := min(m.size, 300<<10)
	if m.rng.IntN(4) > 0 {
		max = min(m.size, 9000)
	}
	n = 1 + m.rng.Int64N(max)
	off = m.rng.Int64N(m.size - n + 1)
	if m.rng.IntN(2) == 0 { // aligned
		off &^= 4095
		n = min((n+4095)&^4095, m.size-off)
	}
	return off, n
}

func (m *model) fill(p []byte) {
	switch m.rng.IntN(8) {
	case 0:
		clear(p)
	default:
		for i := 0; i < len(p); i += 8 {
			var w [8]byte
			x := m.rng.Uint64()
			for j := range w {
				w[j] = byte(x >> (8 * j))
			}
			copy(p[i:], w[:])
		}
	}
}

func (m *model) run(ops int) {
	for i := range ops {
		off, n := m.span()
		var err error
		switch k := m.rng.IntN(1000); {
		case k < 500:
			m.fill(m.data[off : off+n])
			err = m.v.WriteAt(m.data[off:off+n], off, false)
		case k < 800:
			m.compare(off, n)
		case k < 870:
			clear(m.data[off : off+n])
			err = m.v.ZeroAt(off, n, m.rng.IntN(2) == 0)
		case k < 940:
			err = m.v.TrimAt(off, n)
			// Only whole blocks are trimmed.
			lo, hi := (off+4095)&^4095, (off+n)&^4095
			if off+n == m.size {
				hi = m.size
			}
			if lo < hi {
				clear(m.data[lo:hi])
			}
		case k < 990:
			err = m.v.Flush()
		case k < 994:
			err = m.v.Checkpoint(context.Background())
		case k < 995:
			m.reopen()
		case k < 996:
			_, err = m.s.Compact(context.Background())
		}
		if err != nil {
			m.t.Fatalf("operation %d at %d+%d: %v", i, off, n, err)
		}
	}
}

func (m *model) compare(off, n int64) {
	m.t.Helper()
	got := make([]byte, n, n+int64(m.rng.IntN(2)*16))
	if err := m.v.ReadAt(got, off, false); err != nil {
		m.t.Fatalf("read %d+%d: %v", off, n, err)
	}
	if !bytes.Equal(got, m.data[off:off+n]) {
		for i := range got {
			if got[i] != m.data[off+int64(i)] {
				m.t.Fatalf("read %d+%d differs at %d", off, n, off+int64(i))
			}
		}
	}
}

func (m *model) verify() {
	m.t.Helper()
	for off := int64(0); off < m.size; off += 1 << 20 {
		m.compare(off, min(1<<20, m.size-off))
	}
	// Block status never calls data a zero.
	off := int64(0)
	err := m.v.Status(0, m.size, func(n int64, hole, zero bool) bool {
		if zero && len(bytes.Trim(m.data[off:off+n], "\x00")) != 0 {
			m.t.Errorf("status says %d+%d is zero, but it is data", off, n)
		}
		off += n
		return true
	})
	if err != nil || off != m.size {
		m.t.Errorf("status covers %d of %d: %v", off, m.size, err)
	}
}

func (m *model) reopen() {
	m.t.Helper()
	if err := m.s.Close(); err != nil {
		m.t.Fatal(err)
	}
	m.s = open(m.t, m.path)
	m.v = mainVolume(m.t, m.s)
}
