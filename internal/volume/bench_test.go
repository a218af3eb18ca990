package volume_test

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/fsximg/fsx/internal/volume"
)

const benchSize = 1 << 30

// benchVolume is a 1 GiB volume on a tmpfs, filled with random data.
func benchVolume(b *testing.B, fill bool) *volume.Volume {
	dir, err := os.MkdirTemp("/dev/shm", "fsx-bench-")
	if err != nil {
		b.Skip(err)
	}
	b.Cleanup(func() { os.RemoveAll(dir) })
	s := create(b, filepath.Join(dir, "s.fsx"), benchSize)
	b.Cleanup(func() { s.Close() })
	v := mainVolume(b, s)
	if fill {
		p := make([]byte, 1<<20)
		r := rand.NewChaCha8([32]byte{1})
		for off := int64(0); off < benchSize; off += int64(len(p)) {
			r.Read(p)
			if err := v.WriteAt(p, off, false); err != nil {
				b.Fatal(err)
			}
		}
		if err := v.Checkpoint(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
	return v
}

func BenchmarkRead4K(b *testing.B) {
	v := benchVolume(b, true)
	p := make([]byte, 4096, 4096+16)
	b.SetBytes(4096)
	b.ReportAllocs()
	for b.Loop() {
		if err := v.ReadAt(p, rand.Int64N(benchSize/4096)*4096, true); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRead1M(b *testing.B) {
	v := benchVolume(b, true)
	p := make([]byte, 1<<20, 1<<20+16)
	b.SetBytes(1 << 20)
	b.ReportAllocs()
	for b.Loop() {
		if err := v.ReadAt(p, rand.Int64N(benchSize>>20)<<20, true); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkWrite4K(b *testing.B) {
	v := benchVolume(b, true)
	p := make([]byte, 4096)
	rand.NewChaCha8([32]byte{2}).Read(p)
	b.SetBytes(4096)
	b.ReportAllocs()
	for b.Loop() {
		if err := v.WriteAt(p, rand.Int64N(benchSize/4096)*4096, false); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkWrite1M(b *testing.B) {
	v := benchVolume(b, true)
	p := make([]byte, 1<<20)
	rand.NewChaCha8([32]byte{2}).Read(p)
	b.SetBytes(1 << 20)
	off := int64(0)
	for b.Loop() {
		if err := v.WriteAt(p, off, false); err != nil {
			b.Fatal(err)
		}
		off = (off + 1<<20) % benchSize
	}
}
