package interop_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// attached is one device of `fsximg attached --json`.
type attached struct {
	Device    string   `json:"device"`
	Kind      string   `json:"kind"`
	UUID      string   `json:"uuid"`
	Volume    string   `json:"volume"`
	Snapshot  string   `json:"snapshot"`
	State     string   `json:"state"`
	Mounts    []string `json:"mounts"`
	KeeperPID int      `json:"keeper_pid"`
	ServerPID int      `json:"server_pid"`
	Clients   int      `json:"clients"`
}

// attachStore is a store whose volumes are attached by fsximg itself, as loop
// devices. Whatever is left of them at the end of the test is removed, and if the
// test has not failed, that there is something left fails it.
type attachStore struct {
	*store
	uuid string
	keys []string
}

func newAttachStore(t *testing.T, size string) *attachStore {
	t.Helper()
	need(t, "mkfs.ext4", "e2fsck", "blkid", "mount", "umount")
	if os.Getuid() != 0 {
		t.Skip("SKIP: attaching needs root")
	}
	for _, dev := range []string{"/dev/fuse", "/dev/loop-control"} {
		if _, err := os.Stat(dev); err != nil {
			t.Skipf("SKIP: no %s on this machine", dev)
		}
	}
	a := &attachStore{store: newStore(t, t.TempDir())}
	a.create(size)
	a.keys = []string{"--key-file", a.key}
	var info struct {
		UUID string `json:"uuid"`
	}
	a.json(&info, "info", "--json", a.path)
	a.uuid = info.UUID
	t.Cleanup(a.cleanUp)
	return a
}

func (a *attachStore) json(v any, args ...string) {
	a.t.Helper()
	if err := json.Unmarshal([]byte(a.fsximg(exitOK, args...).stdout), v); err != nil {
		a.t.Fatal(err)
	}
}

// devices are those of this store.
func (a *attachStore) devices() (out []attached) {
	a.t.Helper()
	var all struct {
		Devices []attached `json:"devices"`
	}
	a.json(&all, "attached", "--json")
	for _, d := range all.Devices {
		if d.UUID == a.uuid {
			out = append(out, d)
		}
	}
	return out
}

// device is the one device there is.
func (a *attachStore) device() attached {
	a.t.Helper()
	all := a.devices()
	if len(all) != 1 {
		a.t.Fatalf("%d devices: %+v", len(all), all)
	}
	return all[0]
}

// command runs fsximg with the keys behind the command's name.
func (a *attachStore) command(want int, name string, args ...string) outcome {
	a.t.Helper()
	return a.fsximg(want, append(append([]string{name}, a.keys...), args...)...)
}

// attach attaches and returns the device.
func (a *attachStore) attach(args ...string) string {
	a.t.Helper()
	return strings.TrimSpace(a.command(exitOK, "attach", append([]string{"--device", "loop"}, args...)...).stdout)
}

// mount mounts the store's main volume by fsximg mount, on a new folder.
func (a *attachStore) mount(args ...string) string {
	a.t.Helper()
	dir := a.t.TempDir()
	a.command(exitOK, "mount", append([]string{"--device", "loop"}, append(args, a.path, dir)...)...)
	return dir
}

// kill kills a process and waits until it has ended.
func (a *attachStore) kill(pid int) {
	a.t.Helper()
	if pid <= 1 {
		a.t.Fatalf("no process: %d", pid)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		a.t.Fatal(err)
	}
	waitFor(a.t, 20*time.Second, fmt.Sprintf("end of process %d", pid), func() bool { return !alive(pid) })
}

// alive is false for a process that is only waited for.
func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, _ := bytes.Cut(stat, []byte(") "))
	return len(rest) > 0 && rest[0] != 'Z' && rest[0] != 'X'
}

// left is all that there is of the store in this machine: mounts, devices, processes
// and files of the run directory.
func (a *attachStore) left() (out []string) {
	files, _ := filepath.Glob("/run/fsx/" + a.uuid + "*")
	out = append(out, files...)
	if mounts, err := os.ReadFile("/proc/self/mountinfo"); err == nil {
		for line := range strings.Lines(string(mounts)) {
			if strings.Contains(line, a.uuid) {
				out = append(out, "mount "+strings.TrimSpace(line))
			}
		}
	}
	backing, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, file := range backing {
		if text, err := os.ReadFile(file); err == nil && strings.Contains(string(text), a.uuid) {
			out = append(out, file)
		}
	}
	for _, pid := range a.processes() {
		out = append(out, fmt.Sprintf("process %d", pid))
	}
	if files, _ := filepath.Glob(filepath.Join(a.path, "*.sock")); len(files) > 0 {
		out = append(out, files...)
	}
	return out
}

// processes are those that have the store in their command line.
func (a *attachStore) processes() (pids []int) {
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range lines {
		text, err := os.ReadFile(file)
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err == nil && bytes.Contains(text, []byte(a.path)) && pid != os.Getpid() && alive(pid) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// nothingLeft requires that, within a moment: a server ends by itself a second after
// its last client.
func (a *attachStore) nothingLeft() {
	a.t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		left := a.left()
		if len(left) == 0 {
			return
		}
		if time.Now().After(end) {
			a.t.Fatalf("left:\n%s", strings.Join(left, "\n"))
		}
	}
}

// cleanUp takes away what is left, by other means than fsximg's.
func (a *attachStore) cleanUp() {
	if len(a.left()) == 0 {
		return
	}
	if !a.t.Failed() {
		a.t.Errorf("left at the end:\n%s", strings.Join(a.left(), "\n"))
	}
	for _, log := range []string{"/log", "/keeper/main/log"} {
		if text, err := os.ReadFile("/run/fsx/" + a.uuid + log); err == nil {
			a.t.Logf("%s:\n%s", log, text)
		}
	}
	var devices []string
	backing, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, file := range backing {
		if text, err := os.ReadFile(file); err == nil && strings.Contains(string(text), a.uuid) {
			devices = append(devices, "/dev/"+filepath.Base(filepath.Dir(filepath.Dir(file))))
		}
	}
	for _, pid := range a.processes() {
		syscall.Kill(pid, syscall.SIGKILL)
	}
	for _, d := range devices {
		for exec.Command("umount", "-l", d).Run() == nil {
		}
		exec.Command("losetup", "-d", d).Run()
	}
	mounts, _ := filepath.Glob("/run/fsx/" + a.uuid + "/attach/*")
	for _, m := range mounts {
		syscall.Unmount(m, syscall.MNT_DETACH)
	}
	files, _ := filepath.Glob("/run/fsx/" + a.uuid + "*")
	for _, f := range files {
		os.RemoveAll(f)
	}
}

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

// writer writes and syncs numbered files.
type writer struct {
	dir   string
	ends  chan struct{}
	done  chan struct{}
	mu    chan struct{}
	files int
	err   error
}

func startWriter(t *testing.T, dir string) *writer {
	w := &writer{dir: dir, ends: make(chan struct{}), done: make(chan struct{}), mu: make(chan struct{}, 1)}
	go func() {
		defer close(w.done)
		for i := 0; ; i++ {
			select {
			case <-w.ends:
				return
			default:
			}
			if err := w.write(i); err != nil {
				w.err = err
				return
			}
			w.mu <- struct{}{}
			w.files = i + 1
			<-w.mu
		}
	}()
	t.Cleanup(w.stop)
	return w
}

// content is what the file i has.
func (w *writer) content(i int) []byte {
	return bytes.Repeat([]byte(fmt.Sprintf("file %d\n", i)), 1+i*37%3000)
}

// write syncs every third file: the others wait in the page cache and in the server.
func (w *writer) write(i int) error {
	f, err := os.Create(filepath.Join(w.dir, strconv.Itoa(i)))
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(w.content(i)); err != nil {
		return err
	}
	if i%3 == 0 {
		return f.Sync()
	}
	return nil
}

func (w *writer) count() int {
	w.mu <- struct{}{}
	defer func() { <-w.mu }()
	return w.files
}

func (w *writer) stop() {
	select {
	case <-w.ends:
	default:
		close(w.ends)
	}
	<-w.done
}

// check requires every file, from the device and not from the page cache.
func (w *writer) check(t *testing.T, dir string) {
	t.Helper()
	if w.err != nil {
		t.Errorf("a write failed: %v", w.err)
	}
	syscall.Sync()
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("1"), 0); err != nil {
		t.Logf("page cache is not dropped: %v", err)
	}
	for i := range w.files {
		got, err := os.ReadFile(filepath.Join(dir, strconv.Itoa(i)))
		if err != nil || !bytes.Equal(got, w.content(i)) {
			t.Fatalf("file %d of %d: %d bytes, %v", i, w.files, len(got), err)
		}
	}
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
	options := "rw,_netdev,nofail,x-systemd.automount,device=loop,fstype=ext4,noatime,key-file=" + a.key
	if out := execute(t, helper, a.path, dir, "-o", options); out.code != 32 {
		t.Errorf("an empty volume: exit %d\n%s", out.code, out.stderr)
	}
	a.nothingLeft()
	if out := execute(t, helper, a.path, dir, "-n", "-o", options+",mkfs=ext4", "-t", "fsx"); out.code != 0 {
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
