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
