package interop_test

import (
	"crypto/sha256"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// filesystem is a kind of filesystem that images are made of.
type filesystem struct {
	name  string
	size  string
	tools []string
	// make puts the tree into a new filesystem on the image file.
	make func(t *testing.T, image, tree string)
	// check is the command that must find nothing wrong, without changing anything.
	check []string
}

var filesystems = []filesystem{
	{
		name: "ext4", size: "256M", tools: []string{"mkfs.ext4", "e2fsck"},
		make: func(t *testing.T, image, tree string) {
			must(t, "mkfs.ext4", "-q", "-F", "-d", tree, image)
		},
		check: []string{"e2fsck", "-fn"},
	},
	{
		name: "xfs", size: "320M", tools: []string{"mkfs.xfs", "xfs_repair"},
		make: func(t *testing.T, image, tree string) {
			must(t, "mkfs.xfs", "-q", "-f", image)
			copyInto(t, image, tree)
		},
		check: []string{"xfs_repair", "-n", "-f"},
	},
	{
		name: "btrfs", size: "256M", tools: []string{"mkfs.btrfs", "btrfs"},
		make: func(t *testing.T, image, tree string) {
			must(t, "mkfs.btrfs", "-q", "-f", image)
			copyInto(t, image, tree)
		},
		check: []string{"btrfs", "check", "--readonly"},
	},
}

// image makes an image of the filesystem, filled with the tree.
func (f filesystem) image(t *testing.T, tree string) string {
	t.Helper()
	need(t, f.tools...)
	needMount(t)
	file := filepath.Join(t.TempDir(), f.name+".img")
	must(t, "truncate", "-s", f.size, file)
	f.make(t, file, tree)
	return file
}

// fsck requires that the filesystem's own checker finds the image clean.
func (f filesystem) fsck(t *testing.T, image string) {
	t.Helper()
	must(t, f.check[0], append(f.check[1:], image)...)
}

// copyInto mounts an image file and copies the tree into it.
func copyInto(t *testing.T, image, tree string) {
	t.Helper()
	dir := t.TempDir()
	must(t, "mount", "-o", "loop", image, dir)
	defer must(t, "umount", dir)
	must(t, "cp", "-a", tree+"/.", dir)
}

// makeTree makes a folder of files as they occur: many small ones, some large,
// text and noise, holes, hard and symbolic links.
func makeTree(t *testing.T, rng *rand.Rand, files int) string {
	t.Helper()
	root := t.TempDir()
	// umask must not make the tree differ between machines
	if err := os.Chmod(root, 0o755); err != nil {
		t.Fatal(err)
	}
	for i := range files {
		dir := filepath.Join(root, fmt.Sprintf("d%02d", i%37), fmt.Sprintf("e%d", i%5))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		name := filepath.Join(dir, fmt.Sprintf("file-%d", i))
		if err := makeFile(rng, name, i); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func makeFile(rng *rand.Rand, name string, i int) error {
	switch {
	case i%50 == 7:
		return os.Symlink("../somewhere", name)
	case i%50 == 8:
		return os.WriteFile(name, noise(rng, 1<<20), 0o644)
	case i%50 == 9: // a hole between two pieces
		f, err := os.Create(name)
		if err != nil {
			return err
		}
		defer f.Close()
		if _, err := f.WriteAt(noise(rng, 5000), 0); err != nil {
			return err
		}
		_, err = f.WriteAt(noise(rng, 5000), 300<<10)
		return err
	case i%3 == 0:
		return os.WriteFile(name, []byte(strings.Repeat("a line of text\n", rng.IntN(3000))), 0o600)
	}
	if err := os.WriteFile(name, noise(rng, rng.IntN(20000)), 0o755); err != nil {
		return err
	}
	if i%50 == 10 {
		return os.Link(name, name+"-again")
	}
	return nil
}

// noise returns n bytes that do not compress and are not zero as a whole.
func noise(rng *rand.Rand, n int) []byte {
	p := make([]byte, n)
	for i := 0; i < n; i += 8 {
		v := rng.Uint64()
		for j := i; j < min(i+8, n); j++ {
			p[j] = byte(v)
			v >>= 8
		}
	}
	return p
}

// digest is the content of a tree, file by file; lost+found is the filesystem's own.
func digest(t *testing.T, root string) map[string]string {
	t.Helper()
	sums := make(map[string]string)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		switch {
		case rel == "lost+found":
			return fs.SkipDir
		case d.Type()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			sums[rel] = "-> " + target
			return err
		case d.Type().IsRegular():
			content, err := os.ReadFile(path)
			sums[rel] = fmt.Sprintf("%x", sha256.Sum256(content))
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return sums
}

// sameTree requires that got has exactly what want has.
func sameTree(t *testing.T, want, got map[string]string) {
	t.Helper()
	for name, sum := range want {
		if got[name] != sum {
			t.Fatalf("%s: %q, want %q", name, got[name], sum)
		}
	}
	if len(got) != len(want) {
		t.Fatalf("%d files, want %d", len(got), len(want))
	}
}
