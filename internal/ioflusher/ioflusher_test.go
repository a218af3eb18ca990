package ioflusher_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/fsximg/fsx/internal/ioflusher"
)

// Flags of include/linux/sched.h that PR_SET_IO_FLUSHER sets (kernel/sys.c).
const (
	memallocNoIO  = 0x00080000
	localThrottle = 0x00100000
	flusherFlags  = memallocNoIO | localThrottle
)

// taskFlags are a task's flags, field 9 of proc_pid_stat(5).
func taskFlags(t *testing.T, stat string) uint64 {
	t.Helper()
	b, err := os.ReadFile(stat)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
		return flusherFlags // the thread is gone
	}
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), ") ") // behind the program's name
	fields := strings.Fields(rest)
	flags, err := strconv.ParseUint(fields[6], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return flags
}

// noResource is why a machine, or its container, cannot run it.
const noResource = "this process is not given CAP_SYS_RESOURCE"

// TestEveryThreadIsAFlusher makes many threads before and after, and a command that
// must not be one.
func TestEveryThreadIsAFlusher(t *testing.T) {
	if os.Getenv("FSX_TEST_FLUSHER") == "" { // threads stay what they are: in a process of its own
		// Built like the program: with cgo the runtime does not reach all threads.
		program := filepath.Join(t.TempDir(), "test")
		build := exec.Command("go", "test", "-c", "-o", program, ".")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		cmd := exec.Command(program, "-test.run=^TestEveryThreadIsAFlusher$", "-test.v")
		cmd.Env = append(os.Environ(), "FSX_TEST_FLUSHER=1")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if strings.Contains(string(out), noResource) {
			t.Skip(noResource)
		}
		return
	}
	busy := func(n int) (release func()) {
		var ready, end sync.WaitGroup
		hold := make(chan struct{})
		for range n {
			ready.Add(1)
			end.Add(1)
			go func() {
				defer end.Done()
				runtime.LockOSThread()
				ready.Done()
				<-hold
			}()
		}
		ready.Wait()
		return func() { close(hold); end.Wait() }
	}
	defer busy(20)()
	err := ioflusher.Become()
	if errors.Is(err, ioflusher.ErrCapability) {
		t.Skip(noResource)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer busy(20)()
	threads, err := filepath.Glob("/proc/self/task/*/stat")
	if err != nil || len(threads) < 40 {
		t.Fatalf("%d threads, %v", len(threads), err)
	}
	for _, stat := range threads {
		if f := taskFlags(t, stat); f&flusherFlags != flusherFlags {
			t.Errorf("%s has flags %#x", stat, f)
		}
	}
	cmd := exec.Command("sleep", "60")
	if err := ioflusher.Start(cmd); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	if f := taskFlags(t, fmt.Sprintf("/proc/%d/stat", cmd.Process.Pid)); f&flusherFlags != 0 {
		t.Errorf("a command has flags %#x", f)
	}
}
