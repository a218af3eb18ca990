package volume_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/fsximg/fsx/internal/vfs/trace"
	"github.com/fsximg/fsx/internal/volume"
)

// killed is the store as it is on disk now: what a process finds after this
// one was killed. Nothing may be under way.
func killed(t testing.TB, path string) string {
	t.Helper()
	to := filepath.Join(fastDir(t), "killed.fsx")
	for range 50 {
		// Badger may be moving tables, and a copy takes a while.
		before := indexFiles(t, path)
		err := trace.CopyTree(to, path)
		if slices.Equal(before, indexFiles(t, path)) {
			if err != nil {
				t.Fatal(err)
			}
			return to
		}
		if err := os.RemoveAll(to); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatal("the index does not come to rest")
	return ""
}

// indexFiles are the names and sizes of the index's files.
func indexFiles(t testing.TB, path string) (l []string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(path, "meta"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if info, err := e.Info(); err == nil {
			l = append(l, fmt.Sprint(e.Name(), info.Size()))
		}
	}
	return l
}

// block is a block's content that tells its number.
func block(n int) []byte {
	p := make([]byte, blockBytes)
	for i := 0; i < len(p); i += 8 {
		binary.LittleEndian.PutUint64(p[i:], uint64(n)+1)
	}
	return p
}

// numberOf is the number of a block's content, from 1; 0 for zeros.
func numberOf(p []byte) int64 { return int64(binary.LittleEndian.Uint64(p)) }

func put(t testing.TB, v *volume.Volume, at int64, n int) {
	t.Helper()
	if err := v.WriteAt(block(n), at*blockBytes, false); err != nil {
		t.Fatal(err)
	}
}

func flush(t testing.TB, v *volume.Volume) {
	t.Helper()
	if err := v.Flush(); err != nil {
		t.Fatal(err)
	}
}

// expect reads a block that put wrote.
func expect(t testing.TB, v *volume.Volume, at int64, n int) {
	t.Helper()
	p := make([]byte, blockBytes)
	if err := v.ReadAt(p, at*blockBytes, false); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(p, block(n)) {
		t.Fatalf("block %d is not what was written: %x", at, p[:16])
	}
}

func closeStore(t testing.TB, s *volume.Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// segmentFiles are the names and sizes on disk of a volume's segments.
func segmentFiles(t testing.TB, path string) (names []string, allocated int64) {
	t.Helper()
	dir := filepath.Join(path, "vol", "00000001")
	entries, err := os.ReadDir(dir)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
		allocated += allocatedOf(t, filepath.Join(dir, e.Name()))
	}
	return names, allocated
}

// TestKilledAnywhereInSegment kills at every commit around the change from one
// segment to the next, and opens what is left twice without writing.
func TestKilledAnywhereInSegment(t *testing.T) {
	watchdog(t, 6*time.Minute)
	path := filepath.Join(fastDir(t), "s.fsx")
	s := create(t, path, 64<<20)
	v := mainVolume(t, s)
	for i := range 238 {
		put(t, v, int64(i), i)
	}
	for i := range 10 {
		flush(t, v)
		put(t, v, 1000, i)
		flush(t, v)
		names, _ := segmentFiles(t, path)
		t.Run(fmt.Sprint(i, len(names)), func(t *testing.T) {
			left := killed(t, path)
			for range 2 {
				s := open(t, left)
				v := mainVolume(t, s)
				expect(t, v, 1000, i)
				expect(t, v, 237, 237)
				closeStore(t, s)
			}
			for j := range 2 {
				s := open(t, left)
				put(t, mainVolume(t, s), 1001, j)
				closeStore(t, s)
			}
			s := open(t, left)
			v := mainVolume(t, s)
			expect(t, v, 1000, i)
			expect(t, v, 1001, 1)
			checkClean(t, s)
			closeStore(t, s)
		})
	}
	closeStore(t, s)
}

// TestManySessions leaves no files behind, nor space: neither sessions that
// close nor those that are killed.
func TestManySessions(t *testing.T) {
	watchdog(t, 6*time.Minute)
	n := 100
	if testing.Short() {
		n = 30
	}
	for _, kill := range []bool{false, true} {
		t.Run(fmt.Sprintf("kill=%v", kill), func(t *testing.T) {
			path := filepath.Join(fastDir(t), "s.fsx")
			closeStore(t, create(t, path, 64<<20))
			for i := range n {
				s := open(t, path)
				v := mainVolume(t, s)
				if i > 0 {
					expect(t, v, 7, i-1)
				}
				put(t, v, 7, i)
				put(t, v, int64(100+i), i)
				if kill {
					flush(t, v)
					left := killed(t, path)
					closeStore(t, s)
					path = left
				} else {
					closeStore(t, s)
				}
			}
			s := open(t, path)
			v := mainVolume(t, s)
			for i := range n {
				expect(t, v, int64(100+i), i)
			}
			checkClean(t, s)
			closeStore(t, s)
			names, allocated := segmentFiles(t, path)
			if len(names) > n+2 || allocated > int64(n)*64<<10 {
				t.Errorf("%d sessions left %d segments that take %d bytes", n, len(names), allocated)
			}
			s = open(t, path)
			mainVolume(t, s)
			if _, err := s.Compact(ctx0); err != nil {
				t.Fatal(err)
			}
			checkClean(t, s)
			closeStore(t, s)
			names, allocated = segmentFiles(t, path)
			if len(names) > 4 || allocated > int64(n)*16<<10 {
				t.Errorf("after compaction: %d segments, %d bytes", len(names), allocated)
			}
		})
	}
}

// TestSpaceComesBack trims everything: the store is as small as a fresh one.
func TestSpaceComesBack(t *testing.T) {
	watchdog(t, 6*time.Minute)
	const size = 64 << 20
	path := filepath.Join(fastDir(t), "s.fsx")
	s := create(t, path, size)
	v := mainVolume(t, s)
	fresh, err := s.Info()
	if err != nil {
		t.Fatal(err)
	}
	for round := range 3 {
		for i := range int64(size / blockBytes) {
			put(t, v, i, int(i)+round)
		}
		if err := v.TrimAt(0, size); err != nil {
			t.Fatal(err)
		}
		flush(t, v)
		if _, err := s.Compact(ctx0); err != nil {
			t.Fatal(err)
		}
		used, err := s.Info()
		if err != nil {
			t.Fatal(err)
		}
		if used.Allocated > fresh.Allocated+4<<20 || used.Volumes[0].Live != 0 {
			t.Errorf("after trimming all: %d bytes on disk, %d live, fresh were %d", used.Allocated, used.Volumes[0].Live, fresh.Allocated)
		}
	}
	checkClean(t, s)
	closeStore(t, s)
	if names, allocated := segmentFiles(t, path); len(names) > 2 || allocated > 1<<20 {
		t.Errorf("closed: %d segments, %d bytes", len(names), allocated)
	}
}
