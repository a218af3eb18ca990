// Package crash records, through a FUSE mount, everything that programs do to
// a directory, and makes the directories that a power cut may have left
// behind. It sees what a library does on its own, such as Badger with its
// mapped files: a page that was written through a mapping arrives when it is
// synced, as on a disk.
//
//	func TestMain(m *testing.M) { crash.Main(m) }
//
//	rec := crash.Mount(t, crash.Options{})
//	... run the program in rec.Dir(), call rec.Mark("flush 1 acknowledged") ...
//	rec.Unmount()
//	tr := rec.Trace()
//	for _, cut := range tr.SyncCuts() {
//		img := rec.Image(cut, seed, trace.RandomMixed)
//		... tr.Marks(cut) says what img must have ...
//		os.RemoveAll(img)
//	}
//
// The file system is served by another process, a second run of the test's own
// program: a page fault on a mapping blocks its thread where Go's collector
// cannot stop it, and a process that serves its own faults would deadlock.
package crash

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fsximg/fsx/internal/vfs/faultfs"
	"github.com/fsximg/fsx/internal/vfs/trace"
)

// Options configure a Recorder; the zero value starts with an empty directory.
type Options struct {
	// Base is the directory to start from; it is copied, and must not change
	// while the trace is in use.
	Base string
	// Seed drives the chances of faults.
	Seed uint64
}

// Recorder is a mounted, recording file system. Its methods are safe for
// concurrent use, but Unmount and Trace.
type Recorder struct {
	t      testing.TB
	opts   Options
	work   string // trace, objects and mount point
	child  *exec.Cmd
	stdin  io.Closer
	stderr bytes.Buffer
	gone   bool // unmounted

	mu     sync.Mutex
	tr     *trace.Trace
	images int
}

// Main is the test program's main function: it runs the tests or, when Mount
// has started this process, serves a file system.
func Main(m *testing.M) {
	if conf := os.Getenv(childEnv); conf != "" {
		if err := serve([]byte(conf)); err != nil {
			fmt.Fprintln(os.Stderr, "crash recorder:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// Mount starts recording. The test is skipped where FUSE is not available, and
// the mount goes away with the test.
func Mount(t testing.TB, o Options) *Recorder {
	t.Helper()
	if f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0); err != nil {
		t.Skip("NOT TESTED: power cuts need FUSE:", err)
	} else {
		f.Close()
	}
	r := &Recorder{t: t, opts: o, work: TempDir(t)}
	conf, err := json.Marshal(childConfig{Work: r.work, Base: o.Base, Seed: o.Seed})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(r.Dir(), 0o700); err != nil {
		t.Fatal(err)
	}
	r.child = exec.Command("/proc/self/exe", "-test.run=^$")
	r.child.Env = append(os.Environ(), childEnv+"="+string(conf))
	r.child.Stderr = &r.stderr
	if err := r.start(); err != nil {
		t.Fatalf("start the crash recorder (does TestMain call crash.Main?): %v\n%s", err, &r.stderr)
	}
	t.Cleanup(r.cleanup)
	return r
}

func (r *Recorder) start() error {
	stdin, err := r.child.StdinPipe()
	if err != nil {
		return err
	}
	r.stdin = stdin
	stdout, err := r.child.StdoutPipe()
	if err != nil {
		return err
	}
	if err := r.child.Start(); err != nil {
		return err
	}
	ready := make([]byte, len(readyLine))
	if _, err := io.ReadFull(stdout, ready); err != nil || string(ready) != readyLine {
		stdin.Close()
		r.child.Wait()
		return fmt.Errorf("it is not ready: %q", ready)
	}
	return nil
}

// Dir is the recorded directory.
func (r *Recorder) Dir() string { return filepath.Join(r.work, "mnt") }

// Mark notes the text in the trace; when it returns, everything that completed
// before lies before the mark.
func (r *Recorder) Mark(text string) {
	r.t.Helper()
	if err := Mark(r.Dir(), text); err != nil {
		r.t.Fatal(err)
	}
}

// Mark is Recorder.Mark for another process, by the recorded directory.
func Mark(dir, text string) error { return control(dir, command{Mark: text}) }

// Arm puts a rule of faults in force. The trace shows the operations that it
// made fail.
func (r *Recorder) Arm(rule faultfs.Rule) {
	r.t.Helper()
	r.control(command{Arm: &rule})
}

// DisarmAll ends all rules.
func (r *Recorder) DisarmAll() {
	r.t.Helper()
	r.control(command{Disarm: true})
}

// SetFree limits the free space to n bytes; n < 0 lifts the limit.
func (r *Recorder) SetFree(n int64) {
	r.t.Helper()
	r.control(command{Free: &n})
}

func (r *Recorder) control(c command) {
	r.t.Helper()
	if err := control(r.Dir(), c); err != nil {
		r.t.Fatal(err)
	}
}

// Unmount ends the recording. Nothing may be open in the directory.
func (r *Recorder) Unmount() {
	r.t.Helper()
	if r.gone {
		return
	}
	r.gone = true
	r.stdin.Close()
	if err := r.child.Wait(); err != nil {
		r.t.Fatalf("stop the crash recorder: %v\n%s", err, &r.stderr)
	}
}

func (r *Recorder) cleanup() {
	if r.tr != nil {
		r.tr.Close()
	}
	if r.gone {
		return
	}
	// The test has failed or forgotten to unmount; files may be open.
	unix.Unmount(r.Dir(), unix.MNT_DETACH)
	r.child.Process.Kill()
	r.stdin.Close()
	r.child.Wait()
}

// Trace returns the record: of everything, once unmounted, and otherwise of
// what has happened by the first call.
func (r *Recorder) Trace() *trace.Trace {
	r.t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.tr != nil {
		return r.tr
	}
	if !r.gone {
		r.control(command{Flush: true})
	}
	count, err := os.ReadFile(filepath.Join(r.work, countFile))
	if err != nil {
		r.t.Fatal(err)
	}
	n, err := strconv.Atoi(string(count))
	if err != nil {
		r.t.Fatal(err)
	}
	tr, err := trace.Load(r.work, r.opts.Base, n)
	if err != nil {
		r.t.Fatal(err)
	}
	if r.gone {
		r.tr = tr
	} else {
		r.t.Cleanup(func() { tr.Close() })
	}
	return tr
}

// Image returns a new directory as a power cut at that place may have left it;
// see trace.Trace.CrashImage. Remove it after use: many fill the memory.
func (r *Recorder) Image(cut int, seed uint64, p trace.Policy) string {
	r.t.Helper()
	tr := r.Trace()
	r.mu.Lock()
	r.images++
	dir := filepath.Join(r.work, fmt.Sprint("image", r.images))
	r.mu.Unlock()
	if err := tr.CrashImage(dir, cut, seed, p); err != nil {
		r.t.Fatal(err)
	}
	return dir
}

// TempDir returns a directory that goes with the test, in memory if there is
// room for it.
func TempDir(t testing.TB) string {
	t.Helper()
	const shm, enough = "/dev/shm", 2 << 30
	var st unix.Statfs_t
	if unix.Statfs(shm, &st) == nil && st.Type == unix.TMPFS_MAGIC && int64(st.Bavail)*st.Bsize >= enough {
		if dir, err := os.MkdirTemp(shm, "fsx-crash"); err == nil {
			t.Cleanup(func() { os.RemoveAll(dir) })
			return dir
		}
	}
	return t.TempDir()
}
