package interop_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

const chunk = 64 << 10

// smallDisk mounts a filesystem of its own of the given MiB and returns where.
func smallDisk(t *testing.T, kind string, mib int) string {
	t.Helper()
	needMount(t)
	dir := t.TempDir()
	if kind == "tmpfs" {
		must(t, "mount", "-t", "tmpfs", "-o", fmt.Sprintf("size=%dm", mib), "tmpfs", dir)
	} else {
		need(t, "mkfs."+kind)
		image := filepath.Join(t.TempDir(), "disk.img")
		must(t, "truncate", "-s", fmt.Sprintf("%dM", mib), image)
		must(t, "mkfs."+kind, "-q", image)
		must(t, "mount", "-o", "loop", image, dir)
	}
	t.Cleanup(func() {
		if execute(t, "umount", dir).code != 0 {
			execute(t, "umount", "-l", dir)
		}
	})
	return dir
}

// journal is what a client wrote: the version of each chunk, 0 for never.
type journal struct {
	acked    []uint64
	attempts map[int]uint64 // refused writes: their chunk may hold either version
	next     uint64
}

func chunkContent(i int, version uint64) []byte {
	if version == 0 {
		return make([]byte, chunk)
	}
	return noise(rand.New(rand.NewPCG(version, uint64(i))), chunk)
}

// fill writes chunks with flushes between until one is refused, which it
// returns. A flush must never be what reports the full disk.
func (j *journal) fill(t *testing.T, c *client, pick func() int, most int) error {
	t.Helper()
	for n := range most {
		i := pick()
		j.next++
		if err := c.writeAt(chunkContent(i, j.next), int64(i)*chunk, 0); err != nil {
			j.attempts[i] = j.next
			return err
		}
		j.acked[i] = j.next
		delete(j.attempts, i)
		if n%16 == 15 {
			if err := c.flush(); err != nil {
				t.Fatalf("flush %d on a filling disk: %v", n/16, err)
			}
		}
	}
	return nil
}

// verify requires every acknowledged chunk.
func (j *journal) verify(t *testing.T, c *client) {
	t.Helper()
	got := make([]byte, chunk)
	for i, version := range j.acked {
		if err := c.readAt(got, int64(i)*chunk); err != nil {
			t.Fatalf("read chunk %d: %v", i, err)
		}
		if bytes.Equal(got, chunkContent(i, version)) {
			continue
		}
		if tried, ok := j.attempts[i]; ok && mixOf(got, chunkContent(i, version), chunkContent(i, tried)) {
			continue
		}
		t.Fatalf("chunk %d does not hold version %d, which was acknowledged", i, version)
	}
}

// TestFullDisk fills the disk under a store from the client's side.
func TestFullDisk(t *testing.T) {
	for _, kind := range []string{"tmpfs", "ext4"} {
		t.Run(kind, func(t *testing.T) {
			rng := random(t)
			disk := smallDisk(t, kind, 256)
			s := newStore(t, disk)
			s.create("512M")
			filler := filepath.Join(disk, "filler")
			writeFiller(t, filler, 40<<20)
			srv := s.serve()
			c := dial(t, srv.socket, "main")
			j := &journal{acked: make([]uint64, c.size/chunk), attempts: map[int]uint64{}}
			anywhere := func() int { return rng.IntN(len(j.acked)) }

			wantFull(t, j.fill(t, c, anywhere, len(j.acked)))
			wantFull(t, j.fill(t, c, anywhere, len(j.acked))) // and again
			if err := c.flush(); err != nil {
				t.Fatalf("flush on the full disk: %v", err)
			}
			j.verify(t, c)
			worksWhenFull(t, s, srv, j)

			// another owner's space is freed: the same server goes on
			srv = s.serve()
			c = dial(t, srv.socket, "main")
			j.verify(t, c)
			if err := os.Remove(filler); err != nil {
				t.Fatal(err)
			}
			goesOn(t, c, j, anywhere, 300)
			j.verify(t, c)

			// the volume's own space is freed
			wantFull(t, j.fill(t, c, anywhere, len(j.acked)))
			j.trimHalf(t, c)
			goesOn(t, c, j, func() int { return rng.IntN(len(j.acked) / 2) }, 300)
			j.verify(t, c)
			srv.stop()
			s.check()
		})
	}
}

// worksWhenFull stops the server on the full disk, which must be a clean close,
// and runs what has to work there.
func worksWhenFull(t *testing.T, s *store, srv *server, j *journal) {
	t.Helper()
	srv.stop()
	s.check()
	s.fsximg(exitOK, "info", s.path)
	s.fsximg(exitOK, "compact", s.path)
	s.check()
	srv = s.serve() // and after a kill, too
	j.verify(t, dial(t, srv.socket, "main"))
	srv.kill()
}

func (j *journal) trimHalf(t *testing.T, c *client) {
	t.Helper()
	half := len(j.acked) / 2
	for i := range half {
		if err := c.trim(int64(i)*chunk, chunk); err != nil {
			t.Fatalf("trim %d of %d on the full disk: %v", i, half, err)
		}
		j.acked[i] = 0
		delete(j.attempts, i)
	}
	if err := c.flush(); err != nil {
		t.Fatalf("flush after trim on the full disk: %v", err)
	}
}

// goesOn requires that within a minute of freed space n writes succeed.
func goesOn(t *testing.T, c *client, j *journal, pick func() int, n int) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		err := j.fill(t, c, pick, n)
		if err == nil {
			return
		}
		wantFull(t, err)
		if time.Now().After(deadline) {
			t.Fatal("a minute after space was freed, writes are still refused")
		}
		time.Sleep(200 * time.Millisecond)
	}
}

func wantFull(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("a write to the full disk: %v, want ENOSPC", err)
	}
}

// TestDiskFilledByOthers lets something else take the whole disk while a client
// writes, and give it back.
func TestDiskFilledByOthers(t *testing.T) {
	rng := random(t)
	disk := smallDisk(t, "ext4", 320)
	s := newStore(t, disk)
	s.create("256M")
	srv := s.serve()
	c := dial(t, srv.socket, "main")
	j := &journal{acked: make([]uint64, c.size/chunk), attempts: map[int]uint64{}}
	anywhere := func() int { return rng.IntN(len(j.acked)) }
	if err := j.fill(t, c, anywhere, 400); err != nil {
		t.Fatal(err)
	}
	filler := filepath.Join(disk, "filler")
	for round := range choose(2, 8) {
		writeFiller(t, filler, 1<<40)
		wantFull(t, j.fill(t, c, anywhere, 1<<20))
		if err := c.flush(); err != nil {
			t.Fatalf("flush on the full disk: %v", err)
		}
		j.verify(t, c)
		if round%2 == 1 { // recovery needs no space it has not got
			srv.kill()
			srv = s.serve()
			c = dial(t, srv.socket, "main")
			j.verify(t, c)
		}
		if err := os.Remove(filler); err != nil {
			t.Fatal(err)
		}
		goesOn(t, c, j, anywhere, 100)
		j.verify(t, c)
	}
	srv.stop()
	s.check()
}

// writeFiller writes a file of the size, or as much as fits.
func writeFiller(t *testing.T, name string, size int64) {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	block := bytes.Repeat([]byte{0x5a}, 1<<20)
	for piece := len(block); size > 0; size -= int64(piece) {
		_, err := f.Write(block[:piece])
		if errors.Is(err, syscall.ENOSPC) {
			if piece == 4096 {
				return
			}
			piece = 4096
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Sync(); err != nil && !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
}
