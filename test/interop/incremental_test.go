package interop_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestIncrementalBackup brings a backup of one snapshot to the state of the next,
// with the script of docs/snapshots.md and by the ranges alone that the server
// calls dirty.
func TestIncrementalBackup(t *testing.T) {
	need(t, "nbdsh", "qemu-io", "cmp")
	rng := random(t)
	text, err := os.ReadFile("../../docs/snapshots.md")
	if err != nil {
		t.Fatal(err)
	}
	_, script, _ := strings.Cut(string(text), "```python\n")
	script, _, found := strings.Cut(script, "```")
	if !found {
		t.Fatal("docs/snapshots.md has no script")
	}
	dir := t.TempDir()
	raw := filepath.Join(dir, "in.raw")
	sparseFile(t, raw, 64<<20-512, rng)
	s := newStore(t, dir)
	s.load(raw)
	srv := s.serve()
	backup := filepath.Join(dir, "backup.img")
	s.fsximg(exitOK, "snapshot", "create", s.path+"@monday")
	must(t, "nbdcopy", strings.Replace(srv.uri, "nbd+unix:///", "nbd+unix:///main@monday", 1), backup)
	must(t, "qemu-io", "-f", "raw", "-c", "write -P 7 1000k 300k", "-c", "write -z 5M 2M", "-c", "discard 20M 1M", "-c", "write -P 9 40000000 999", "-c", "flush", srv.uri)
	s.fsximg(exitOK, "resize", s.path, "+1M")
	s.fsximg(exitOK, "snapshot", "create", s.path+"@tuesday")
	must(t, "qemu-io", "-f", "raw", "-c", "write -P 1 0 64M", srv.uri)

	// the module belongs to the system's Python, which may be shadowed
	said := must(t, "env", "PATH=/usr/bin:"+os.Getenv("PATH"), "nbdsh", "-c", "socket='"+srv.socket+"'; backup='"+backup+"'", "-c", script)
	want := filepath.Join(dir, "tuesday.img")
	must(t, "nbdcopy", strings.Replace(srv.uri, "nbd+unix:///", "nbd+unix:///main@tuesday", 1), want)
	sameFile(t, want, backup)
	var copied, size int64
	if _, err := fmt.Sscanf(said, "%d bytes copied of %d", &copied, &size); err != nil || copied == 0 || copied > 6<<20 || size != 65<<20-512 {
		t.Errorf("the script says: %s (%v)", said, err)
	}
	result(t, "%s", strings.TrimSpace(said))
}
