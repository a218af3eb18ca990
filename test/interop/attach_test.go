package interop_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestAttachStory: attach, use, kill the server amid writes, attach again, detach.
func TestAttachStory(t *testing.T) {
	a := newAttachStore(t, "256M")
	device := a.attach(a.path)
	d := a.device()
	if d.Device != device || d.Kind != "loop" || d.State != "attached" || d.Clients == 0 || !alive(d.ServerPID) || !alive(d.KeeperPID) {
		t.Fatalf("%s: %+v", device, d)
	}
	out := a.command(exitBusy, "attach", a.path)
	if !strings.Contains(out.stderr, device) {
		t.Errorf("a second attach does not name %s: %s", device, out.stderr)
	}
	must(t, "mkfs.ext4", "-q", device)
	dir := t.TempDir()
	must(t, "mount", device, dir)
	if out := a.fsximg(exitBusy, "detach", a.path); !strings.Contains(out.stderr, dir) {
		t.Errorf("detach does not name the mount point: %s", out.stderr)
	}
	w := startWriter(t, dir)
	waitFor(t, 30*time.Second, "first files", func() bool { return w.count() > 20 })
	a.kill(d.ServerPID)
	if got := a.device(); got.ServerPID != 0 {
		t.Errorf("the server was killed: %+v", got)
	}
	if again := a.attach(a.path); again != device {
		t.Errorf("attached again as %s, was %s", again, device)
	}
	before := w.count()
	waitFor(t, 30*time.Second, "files after the kill", func() bool { return w.count() > before+20 })
	w.stop()
	w.check(t, dir)
	must(t, "umount", dir)
	must(t, "e2fsck", "-fn", device)
	must(t, "mount", "-o", "ro", device, dir)
	w.check(t, dir)
	must(t, "umount", dir)
	a.fsximg(exitOK, "detach", device)
	if left := a.left(); len(left) > 0 {
		t.Errorf("detach has returned, and there is left:\n%s", strings.Join(left, "\n"))
	}
	a.check()
	a.fsximg(3, "detach", a.path)
}

// TestMountStory: mount makes a file system, plain umount leaves nothing behind, and
// a snapshot is mounted beside its volume.
func TestMountStory(t *testing.T) {
	a := newAttachStore(t, "64M")
	if out := a.command(1, "mount", "--device", "loop", a.path, t.TempDir()); !strings.Contains(out.stderr, "--mkfs") {
		t.Errorf("an empty volume: %s", out.stderr)
	}
	a.nothingLeft()
	dir := a.mount("--mkfs", "ext4", "-o", "noatime")
	if err := os.WriteFile(filepath.Join(dir, "diary"), []byte("monday"), 0o600); err != nil {
		t.Fatal(err)
	}
	a.fsximg(exitOK, "snapshot", "create", "--freeze", dir, a.path+"@s")
	if err := os.WriteFile(filepath.Join(dir, "diary"), []byte("tuesday"), 0o600); err != nil {
		t.Fatal(err)
	}
	beside := t.TempDir()
	a.command(exitOK, "mount", "--device", "loop", a.path+"@s", beside)
	for where, want := range map[string]string{dir: "tuesday", beside: "monday"} {
		if got, err := os.ReadFile(filepath.Join(where, "diary")); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v; want %s", where, got, err, want)
		}
	}
	if err := os.WriteFile(filepath.Join(beside, "x"), nil, 0o600); err == nil {
		t.Error("a snapshot was written")
	}
	a.fsximg(exitOK, "unmount", beside)
	if devices := a.devices(); len(devices) != 1 || devices[0].Snapshot != "" {
		t.Errorf("after unmounting the snapshot: %+v", devices)
	}
	must(t, "umount", dir) // by no command of ours
	a.nothingLeft()
	if out := a.command(1, "mount", "--device", "loop", "--mkfs", "ext4", a.path, dir); !strings.Contains(out.stderr, "would be lost") {
		t.Errorf("mkfs of what has a file system: %s", out.stderr)
	}
	a.nothingLeft()
	a.check()
	// Mounted again at once, while the last one ends.
	for range choose(3, 20) {
		a.command(exitOK, "mount", "--device", "loop", a.path, dir)
		must(t, "umount", dir)
	}
	a.nothingLeft()
}

// TestMountHelper calls mount.fsx as mount(8) does.
func TestMountHelper(t *testing.T) {
	a := newAttachStore(t, "32M")
	helper := filepath.Join(t.TempDir(), "mount.fsx")
	if err := os.Symlink(filepath.Join(programs, "fsximg"), helper); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	options := "trust-file=none,rw,_netdev,nofail,x-systemd.automount,device=loop,fstype=ext4,noatime,key-file=" + a.key
	if out := execute(t, helper, a.path, dir, "-o", options); out.code != 32 {
		t.Errorf("an empty volume: exit %d\n%s", out.code, out.stderr)
	}
	a.nothingLeft()
	// mount(8) gives its helpers no environment
	if out := execute(t, "env", "-i", helper, a.path, dir, "-n", "-o", options+",mkfs=ext4", "-t", "fsx"); out.code != 0 {
		t.Fatalf("exit %d\n%s", out.code, out.stderr)
	}
	if mounts := must(t, "findmnt", "-n", "-o", "FSTYPE,OPTIONS", dir); !strings.HasPrefix(mounts, "ext4") || !strings.Contains(mounts, "noatime") {
		t.Errorf("mounted: %s", mounts)
	}
	must(t, "umount", dir)
	a.nothingLeft()
	for _, args := range [][]string{{a.path}, {a.path, dir, "-o", "key-file"}, {a.path, dir + "/none"}} {
		if out := execute(t, helper, args...); out.code != 1 {
			t.Errorf("%q: exit %d\n%s", args, out.code, out.stderr)
		}
	}
	if out := execute(t, helper, a.path, dir, "-f", "-o", options); out.code != 0 {
		t.Errorf("fake: exit %d\n%s", out.code, out.stderr)
	}
	a.nothingLeft()
}

// TestAttachKeeperKilled: with the keeper its FUSE file is gone. What is said about
// it helps, and all can be taken away.
func TestAttachKeeperKilled(t *testing.T) {
	a := newAttachStore(t, "64M")
	dir := a.mount("--mkfs", "ext4")
	device := a.device()
	a.kill(device.KeeperPID)
	if d := a.device(); d.State != "abandoned" || d.Device != device.Device {
		t.Errorf("after the keeper's end: %+v", d)
	}
	if out := a.command(exitBusy, "attach", "--device", "loop", a.path); !strings.Contains(out.stderr, dir) || !strings.Contains(out.stderr, "umount") {
		t.Errorf("attach while it is mounted: %s", out.stderr)
	}
	a.fsximg(exitBusy, "detach", device.Device)
	if out := execute(t, "umount", dir); out.code != 0 {
		must(t, "umount", "-l", dir)
	}
	a.attach(a.path)
	if d := a.device(); d.State != "attached" {
		t.Errorf("attached again: %+v", d)
	}
	a.kill(a.device().KeeperPID)
	a.fsximg(exitOK, "detach", a.path)
	a.nothingLeft()
	a.check()
}

// TestAttachServerGone: without a server the device waits; detach does not lose what
// is not flushed, unless it is told to.
func TestAttachServerGone(t *testing.T) {
	a := newAttachStore(t, "32M")
	a.attach(a.path)
	a.kill(a.device().ServerPID)
	waitFor(t, 10*time.Second, "state waiting", func() bool { return a.device().State == "waiting" })
	if out := a.fsximg(1, "detach", a.path); !strings.Contains(out.stderr, "--force") {
		t.Errorf("detach: %s", out.stderr)
	}
	a.fsximg(exitOK, "detach", "--force", a.path)
	a.nothingLeft()

	device := a.attach("--reattach-timeout", "1s", a.path)
	a.kill(a.device().ServerPID)
	waitFor(t, 10*time.Second, "state failed", func() bool { return a.device().State == "failed" })
	if again := a.attach(a.path); again != device {
		t.Errorf("attached again as %s, was %s", again, device)
	}
	must(t, "dd", "if="+device, "of=/dev/null", "bs=64k", "count=16", "iflag=direct", "status=none")
	// By hand, and by a signal.
	must(t, "losetup", "-d", device)
	a.nothingLeft()
	a.attach(a.path)
	if err := syscall.Kill(a.device().KeeperPID, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	a.nothingLeft()
	a.check()
}

// TestAttachServed: a server that is there is used, and stays.
func TestAttachServed(t *testing.T) {
	a := newAttachStore(t, "32M")
	a.fsximg(exitOK, "clone", "--key-file", a.key, "--new-passphrase-file", a.pw, a.snapshot("s"), "locked")
	pid := filepath.Join(a.dir, "pid")
	must(t, filepath.Join(programs, "fsxnbd"), "serve", "--daemon", "--pid-file", pid, "--key-file", a.key, "--socket", filepath.Join(a.dir, "s"), a.path)
	text, err := os.ReadFile(pid)
	if err != nil {
		t.Fatal(err)
	}
	server, _ := strconv.Atoi(strings.TrimSpace(string(text)))
	t.Cleanup(func() { syscall.Kill(server, syscall.SIGKILL) })
	a.fsximg(exitOK, "attach", "--device", "loop", a.path)
	if d := a.device(); d.ServerPID != server {
		t.Errorf("another server: %+v, want %d", d, server)
	}
	a.fsximg(exitOK, "attach", "--device", "loop", a.path+"@s")
	if out := a.fsximg(exitKey, "attach", "--device", "loop", a.path+":locked"); !strings.Contains(out.stderr, "fsxnbd key add") {
		t.Errorf("a volume whose key the server lacks: %s", out.stderr)
	}
	a.fsximg(3, "attach", a.path+":none")
	a.fsximg(exitOK, "detach", a.path+"@s")
	a.fsximg(exitOK, "detach", a.path)
	if !alive(server) {
		t.Error("the server has ended, which was not started by attach")
	}
	syscall.Kill(server, syscall.SIGTERM)
	a.nothingLeft()
	a.check()
}

// snapshot makes one.
func (a *attachStore) snapshot(name string) string {
	a.fsximg(exitOK, "snapshot", "create", "--key-file", a.key, a.path+"@"+name)
	return a.path + "@" + name
}

// TestAttachKeys: keys go to the server as they were given.
func TestAttachKeys(t *testing.T) {
	a := newAttachStore(t, "16M")
	fsximg := filepath.Join(programs, "fsximg")
	for name, line := range map[string]string{
		"stdin":      fmt.Sprintf("%s attach --device loop --passphrase-file - %s < %s", fsximg, a.path, a.pw),
		"descriptor": fmt.Sprintf("%s attach --device loop --key-file <(cat %s) %s", fsximg, a.key, a.path),
		"credential": fmt.Sprintf("mkdir %[1]s && cp %[2]s %[1]s/fsx.key && CREDENTIALS_DIRECTORY=%[1]s %[3]s attach --device loop %[4]s", a.dir+"/creds", a.key, fsximg, a.path),
	} {
		must(t, "bash", "-c", line)
		for _, pid := range a.processes() {
			for _, file := range []string{"cmdline", "environ"} {
				text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file))
				if err == nil && bytes.Contains(text, []byte(passphrase)) {
					t.Errorf("%s: the passphrase is in %s of process %d", name, file, pid)
				}
			}
		}
		a.fsximg(exitOK, "detach", a.path)
		a.nothingLeft()
	}
	if out := execute(t, fsximg, "attach", "--device", "loop", a.path); out.code != exitKey {
		t.Errorf("without a key: exit %d\n%s", out.code, out.stderr)
	}
	a.nothingLeft()
}

// TestAttachCycles leaks nothing.
func TestAttachCycles(t *testing.T) {
	a := newAttachStore(t, "16M")
	count := choose(5, 200)
	for range count {
		device := a.attach(a.path)
		must(t, "dd", "if=/dev/urandom", "of="+device, "bs=64k", "count=4", "status=none")
		a.fsximg(exitOK, "detach", device)
		if left := a.left(); len(left) > 0 {
			t.Fatalf("left:\n%s", strings.Join(left, "\n"))
		}
	}
	a.check()
	result(t, "%d cycles, nothing left", count)
}
