package interop_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestContainers serves many clones of one filesystem at the same time, each
// under a key of its own, mounted and written by its own client while snapshots
// are taken. FSX_ROOTFS names the image of a real root filesystem.
func TestContainers(t *testing.T) {
	needMount(t)
	rng := random(t)
	image, tree := os.Getenv("FSX_ROOTFS"), map[string]string(nil)
	if image == "" {
		files := makeTree(t, rng, choose(400, 4000))
		tree = digest(t, files)
		image = filesystems[0].image(t, files)
	}
	s := newStore(t, t.TempDir())
	s.load(image)
	s.fsximg(exitOK, "snapshot", "create", "--key-file", s.key, s.path+"@golden")
	srv := s.serve()
	n := choose(6, 100)
	began := time.Now()
	for i := range n {
		key := filepath.Join(s.dir, fmt.Sprintf("key%d", i))
		if err := os.WriteFile(key, noise(rng, 32), 0o600); err != nil {
			t.Fatal(err)
		}
		s.fsximg(exitOK, "clone", "--new-key-file", key, s.path+"@golden", fmt.Sprintf("c%d", i))
	}
	result(t, "%d clones in %v, processes included", n, time.Since(began).Round(time.Millisecond))

	// All are mounted before any is written.
	containers := make([]*container, n)
	for i := range containers {
		c := &container{s: s, name: fmt.Sprintf("c%d", i), rng: rand.New(rand.NewPCG(rng.Uint64(), 5)), files: map[string][]byte{}}
		c.attachment = attach(t, strings.Replace(srv.uri, "nbd+unix:///", "nbd+unix:///"+c.name, 1))
		c.dir = c.mount()
		containers[i] = c
	}
	began = time.Now()
	for range choose(2, 3) {
		var wg sync.WaitGroup
		slots := make(chan struct{}, 8)
		for _, c := range containers {
			wg.Add(1)
			slots <- struct{}{}
			go func() {
				defer wg.Done()
				defer func() { <-slots }()
				if err := c.write(); err != nil {
					t.Errorf("%s: %v", c.name, err)
				}
			}()
		}
		wg.Wait()
	}
	written := int64(0)
	for _, c := range containers {
		c.verify(t, tree)
		c.unmount()
		c.detach()
		written += c.bytes
	}
	result(t, "%d containers wrote %d MiB in %v", n, written>>20, time.Since(began).Round(time.Second))
	srv.stop()
	s.check()
	s.space(containers)

	// What is left when a container's key is gone: nothing.
	s.fsximg(exitKey, "export", "--key-file", s.key, s.path+":c0", filepath.Join(s.dir, "no.img"))
	out := filepath.Join(s.dir, "c1.img")
	s.fsximg(exitOK, "export", "--key-file", filepath.Join(s.dir, "key1"), s.path+":c1", out)
	filesystems[0].fsck(t, out)
}

// container is a clone with its client, and what it wrote.
type container struct {
	*attachment
	s     *store
	name  string
	dir   string
	rng   *rand.Rand
	round int
	files map[string][]byte
	bytes int64
}

// write writes files of its own, removes some of before, and takes a snapshot in
// between.
func (c *container) write() error {
	for i := range 12 {
		name := filepath.Join(c.dir, fmt.Sprintf("%s-%d-%d", c.name, c.round, i))
		content := noise(c.rng, 1+c.rng.IntN(300_000))
		if err := writeSynced(c.dir, filepath.Base(name), content); err != nil {
			return err
		}
		c.files[name] = content
		c.bytes += int64(len(content))
		if i == 5 {
			out := execute(c.t, filepath.Join(programs, "fsximg"), "snapshot", "create", fmt.Sprintf("%s:%s@r%d", c.s.path, c.name, c.round))
			if out.code != exitOK {
				return fmt.Errorf("snapshot: exit %d, %s", out.code, out.stderr)
			}
		}
	}
	for name := range c.files {
		if c.rng.IntN(6) == 0 {
			if err := os.Remove(name); err != nil {
				return err
			}
			delete(c.files, name)
		}
	}
	c.round++
	return nil
}

// verify finds exactly the base, and what this container wrote.
func (c *container) verify(t *testing.T, tree map[string]string) {
	t.Helper()
	for name, want := range c.files {
		got, err := os.ReadFile(name)
		if err != nil || string(got) != string(want) {
			t.Fatalf("%s: %s is not what was written: %v", c.name, name, err)
		}
	}
	entries, err := os.ReadDir(c.dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		name := filepath.Join(c.dir, e.Name())
		if strings.HasPrefix(e.Name(), "c") && strings.Count(e.Name(), "-") == 2 && c.files[name] == nil {
			t.Errorf("%s has %s, which is another's, or was removed", c.name, e.Name())
		}
	}
	if tree == nil {
		return
	}
	got := digest(t, c.dir)
	for name := range c.files {
		delete(got, strings.TrimPrefix(name, c.dir+"/"))
	}
	sameTree(t, tree, got)
}

// space requires that clones take what they wrote, with what their filesystems
// add.
func (s *store) space(containers []*container) {
	s.t.Helper()
	var info struct {
		Volumes []struct {
			Name string
			Used int64
		}
	}
	if err := json.Unmarshal([]byte(s.fsximg(exitOK, "info", "--json", s.path).stdout), &info); err != nil {
		s.t.Fatal(err)
	}
	used := map[string]int64{}
	for _, v := range info.Volumes {
		used[v.Name] = v.Used
	}
	total, written := int64(0), int64(0)
	for _, c := range containers {
		total, written = total+used[c.name], written+c.bytes
		if limit := c.bytes*5/4 + 12<<20; used[c.name] > limit {
			s.t.Errorf("%s uses %d bytes and wrote %d", c.name, used[c.name], c.bytes)
		}
	}
	result(s.t, "clones use %d MiB for %d MiB written", total>>20, written>>20)
}
