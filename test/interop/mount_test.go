package interop_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// attachment is an NBD export as a loop device of this machine: nbdfuse shows
// the export as a file, losetup makes that file a block device. It stands in for
// the kernel's own NBD client where that is missing.
type attachment struct {
	t       *testing.T
	fuse    *exec.Cmd
	dir     string // nbdfuse's mount point
	device  string
	mounted string
}

// attach shows the export as a block device; the test's end undoes it.
func attach(t *testing.T, uri string) *attachment {
	t.Helper()
	needMount(t)
	a := &attachment{t: t, dir: t.TempDir()}
	file := filepath.Join(a.dir, "disk")
	a.fuse = exec.Command("nbdfuse", file, uri)
	if err := a.fuse.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.detach)
	waitFor(t, 20*time.Second, "nbdfuse", func() bool {
		_, err := os.Stat(file)
		return err == nil
	})
	a.device = strings.TrimSpace(must(t, "losetup", "-f", "--show", file))
	return a
}

// mount mounts the device's filesystem and returns where.
func (a *attachment) mount() string {
	a.t.Helper()
	dir := a.t.TempDir()
	must(a.t, "mount", a.device, dir)
	a.mounted = dir
	return dir
}

// unmount unmounts; the device stays.
func (a *attachment) unmount() {
	a.t.Helper()
	must(a.t, "umount", a.mounted)
	a.mounted = ""
}

// detach undoes attach, in whatever state it is; again is harmless.
func (a *attachment) detach() {
	if a.mounted != "" {
		if execute(a.t, "umount", a.mounted).code != 0 {
			execute(a.t, "umount", "-l", a.mounted)
		}
		a.mounted = ""
	}
	if a.device != "" {
		execute(a.t, "losetup", "-d", a.device)
		a.device = ""
	}
	if a.fuse != nil {
		if execute(a.t, "fusermount3", "-u", a.dir).code != 0 {
			execute(a.t, "fusermount3", "-uz", a.dir)
		}
		done := make(chan struct{})
		go func() { a.fuse.Wait(); close(done) }()
		select {
		case <-done:
		case <-time.After(20 * time.Second):
			a.fuse.Process.Kill()
			<-done
		}
		a.fuse = nil
	}
}

// waitFor polls until the condition holds.
func waitFor(t *testing.T, limit time.Duration, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(limit); !condition(); {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v", what, limit)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
