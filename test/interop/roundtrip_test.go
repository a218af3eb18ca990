package interop_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

// TestRoundTrip takes a filesystem image through the store and back, reads it
// with another project's client, then uses it through a mount.
func TestRoundTrip(t *testing.T) {
	need(t, "nbdcopy", "cmp")
	needMount(t)
	rng := random(t)
	tree := makeTree(t, rng, choose(1500, 8000))
	want := digest(t, tree)
	for _, kind := range filesystems {
		t.Run(kind.name, func(t *testing.T) {
			image := kind.image(t, tree)
			dir := t.TempDir()
			s := newStore(t, dir)
			s.load(image)
			s.check()
			exported, copied := filepath.Join(dir, "exported.img"), filepath.Join(dir, "nbdcopy.img")
			s.export(exported)
			sameFile(t, image, exported)
			onlyOwner(t, exported)
			os.Remove(exported)

			srv := s.serve()
			must(t, "nbdcopy", srv.uri, copied)
			sameFile(t, image, copied)
			useMounted(t, srv, want, rng)
			srv.stop()
			s.check()
			s.export(exported)
			kind.fsck(t, exported)
		})
	}
}

// onlyOwner requires that a file of plaintext is readable by its owner alone.
func onlyOwner(t *testing.T, file string) {
	t.Helper()
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("%s has mode %v, want 0600", file, info.Mode().Perm())
	}
}

// useMounted mounts the export, requires the tree that was put into it, changes
// it, and requires after another mount exactly what the changes made of it.
func useMounted(t *testing.T, srv *server, want map[string]string, rng *rand.Rand) {
	t.Helper()
	a := attach(t, srv.uri)
	dir := a.mount()
	sameTree(t, want, digest(t, dir))
	changeTree(t, dir, rng)
	changed := digest(t, dir)
	a.unmount()
	a.detach()

	b := attach(t, srv.uri)
	sameTree(t, changed, digest(t, b.mount()))
	b.unmount()
	b.detach()
}

// changeTree adds, overwrites, truncates and removes files.
func changeTree(t *testing.T, root string, rng *rand.Rand) {
	t.Helper()
	steps := []func() error{
		func() error { return os.RemoveAll(filepath.Join(root, "d03")) },
		func() error { return os.Rename(filepath.Join(root, "d04"), filepath.Join(root, "moved")) },
		func() error { return os.Truncate(filepath.Join(root, "d08/e3/file-8"), 12345) },
		func() error { return os.WriteFile(filepath.Join(root, "large"), noise(rng, 24<<20), 0o644) },
	}
	for i, step := range steps {
		if err := step(); err != nil {
			t.Fatalf("change %d: %v", i, err)
		}
	}
	for i := range 300 {
		name := filepath.Join(root, "d00", fmt.Sprintf("new-%d", i))
		if err := os.WriteFile(name, noise(rng, rng.IntN(9000)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// TestImportQcow2 takes a qcow2 image in and out again.
func TestImportQcow2(t *testing.T) {
	need(t, "qemu-img", "cmp")
	rng := random(t)
	dir := t.TempDir()
	raw, qcow := filepath.Join(dir, "in.raw"), filepath.Join(dir, "in.qcow2")
	sparseFile(t, raw, 64<<20, rng)
	must(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, qcow)

	s := newStore(t, dir)
	s.load(qcow)
	out, outQcow := filepath.Join(dir, "out.raw"), filepath.Join(dir, "out.qcow2")
	s.export(out)
	sameFile(t, raw, out)
	s.export(outQcow, "--format", "qcow2")
	must(t, "qemu-img", "compare", "-f", "raw", "-F", "qcow2", raw, outQcow)
	onlyOwner(t, outQcow)
}

// sparseFile writes a file of the size with data in about a tenth of it.
func sparseFile(t *testing.T, name string, size int64, rng *rand.Rand) {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	for range size / (640 << 10) {
		p := noise(rng, rng.IntN(128<<10)+1)
		if _, err := f.WriteAt(p, rng.Int64N(size-int64(len(p)))); err != nil {
			t.Fatal(err)
		}
	}
}
