package interop_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestBridgeSurvivesKills kills the server while several write, read and flush: nobody
// sees an error or anything but what it wrote, flushed or not.
func TestBridgeSurvivesKills(t *testing.T) {
	needBridge(t)
	rng := random(t)
	s := newStore(t, t.TempDir())
	s.create("64M")
	srv := s.serve()
	var uri atomic.Pointer[string]
	uri.Store(&srv.uri)
	b := makeBridge(t, func() string { return *uri.Load() })
	var wg sync.WaitGroup
	var written atomic.Int64
	var files []*os.File
	stop := make(chan struct{})
	for i := range 8 {
		f := b.open(os.O_RDWR | unix.O_DIRECT)
		files = append(files, f)
		seed := rng.Uint64()
		wg.Go(func() {
			r := &rewriter{f: f, base: int64(i) * 8 << 20, rng: rand.New(rand.NewPCG(seed, uint64(i))), versions: make([]uint64, 2048), written: &written}
			if err := r.run(stop); err != nil {
				t.Errorf("writer %d: %v", i, err)
			}
		})
	}
	for range choose(5, 40) {
		enough := written.Load() + 200 + rng.Int64N(2000)
		waitFor(t, time.Minute, "writes", func() bool { return written.Load() > enough || t.Failed() })
		srv.kill()
		uri.Store(new(string))
		time.Sleep(time.Duration(rng.IntN(300)) * time.Millisecond)
		srv = s.serve()
		uri.Store(&srv.uri)
	}
	close(stop)
	wg.Wait()
	if n := strings.Count(b.log.String(), "broke"); n == 0 {
		t.Error("no connection broke")
	}
	for _, f := range files {
		f.Close()
	}
	b.detach()
	result(t, "%d writes of 4 KiB, %d breaks, no error", written.Load(), strings.Count(b.log.String(), "broke"))
}

// rewriter owns 8 MiB of a device: blocks of 4 KiB, each with a version.
type rewriter struct {
	f        *os.File
	base     int64
	rng      *rand.Rand
	versions []uint64
	written  *atomic.Int64
}

func (r *rewriter) content(p []byte, b int64) {
	version := r.versions[b]
	if version == 0 {
		clear(p)
		return
	}
	copy(p, noise(rand.New(rand.NewPCG(version, uint64(r.base+b))), len(p)))
}

// run writes and compares until stop, and compares everything at the end.
func (r *rewriter) run(stop <-chan struct{}) error {
	p := aligned(make([]byte, 4096))
	want := make([]byte, 4096)
	for version := uint64(1); ; version++ {
		select {
		case <-stop:
			for b := range r.versions {
				if err := r.compare(p, want, int64(b)); err != nil {
					return err
				}
			}
			return nil
		default:
		}
		b := r.rng.Int64N(int64(len(r.versions)))
		if r.rng.IntN(4) == 0 {
			if err := r.compare(p, want, b); err != nil {
				return err
			}
			continue
		}
		r.versions[b] = version
		r.content(p, b)
		if _, err := r.f.WriteAt(p, r.base+b*4096); err != nil {
			return err
		}
		r.written.Add(1)
		if r.rng.IntN(100) == 0 {
			if err := r.f.Sync(); err != nil {
				return err
			}
		}
	}
}

func (r *rewriter) compare(p, want []byte, b int64) error {
	if _, err := r.f.ReadAt(p, r.base+b*4096); err != nil {
		return err
	}
	r.content(want, b)
	if !bytes.Equal(p, want) {
		return fmt.Errorf("block %d is not what was written last", r.base/4096+b)
	}
	return nil
}

// TestBridgeFilesystemSurvivesKills does the same below a mounted filesystem.
func TestBridgeFilesystemSurvivesKills(t *testing.T) {
	needBridge(t, "mkfs.ext4", "fsck.ext4", "mount", "umount")
	rng := random(t)
	s := newStore(t, t.TempDir())
	s.create("256M")
	srv := s.serve()
	var uri atomic.Pointer[string]
	uri.Store(&srv.uri)
	b := makeBridge(t, func() string { return *uri.Load() })
	must(t, "mkfs.ext4", "-q", b.device.Path)
	b.mounted = t.TempDir()
	must(t, "mount", b.device.Path, b.mounted)
	tree := makeTree(t, rng, 500)
	for i := range choose(2, 10) {
		to := filepath.Join(b.mounted, fmt.Sprint(i))
		copied := make(chan error, 1)
		go func() { copied <- exec.Command("sh", "-ec", `cp -a "$1" "$2"; sync -f "$2"`, "sh", tree, to).Run() }()
		time.Sleep(time.Duration(rng.IntN(100)) * time.Millisecond)
		srv.kill()
		srv = s.serve()
		uri.Store(&srv.uri)
		if err := <-copied; err != nil {
			t.Fatal(err)
		}
		sameTree(t, digest(t, tree), digest(t, to))
	}
	must(t, "umount", b.mounted)
	b.mounted = ""
	must(t, "fsck.ext4", "-fn", b.device.Path)
	b.detach()
}
