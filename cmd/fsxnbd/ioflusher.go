package main

import (
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// When the client is this machine's kernel, and a file system is on its device, the
// kernel may write that file system's dirty pages back to get memory, and the server
// needs memory to take them. If its own allocation then waits for the same pages,
// both wait for ever. PR_SET_IO_FLUSHER (Linux 5.6) is for such programs: what they
// allocate never starts I/O, and they are not held back for dirty pages.

// kernelRisk is why a device of this machine's kernel may hang, if it may. Its zero
// value is no risk.
type kernelRisk struct {
	why    error
	warned atomic.Bool
}

// becomeFlusher makes the process one. The state is each thread's; a new thread gets
// it from the one that made it, as fork(2) does, so that once all have it all that
// come have it.
func (r *kernelRisk) becomeFlusher(log *slog.Logger) {
	err := setFlusher()
	switch {
	case errors.Is(err, syscall.EINVAL):
		err = errors.New("this kernel has no PR_SET_IO_FLUSHER, which is of Linux 5.6")
	case errors.Is(err, syscall.ENOTSUP):
		err = errors.New("PR_SET_IO_FLUSHER: this program was built with cgo")
	case errors.Is(err, syscall.EPERM):
		err = errors.New("PR_SET_IO_FLUSHER: CAP_SYS_RESOURCE is missing")
	}
	if r.why = err; err != nil {
		log.Info("not an IO flusher", "err", err)
	}
}

// warn is called when a client comes. It warns, once, if that may be the kernel: one
// of the paths exists where the kernel's NBD client is loaded or built in.
func (r *kernelRisk) warn(log *slog.Logger, paths ...string) {
	if r.why == nil || r.warned.Load() {
		return
	}
	for _, path := range paths {
		if _, err := os.Stat(path); err == nil && r.warned.CompareAndSwap(false, true) {
			log.Warn("if a client is this machine's kernel, it may hang when memory is short", "err", r.why)
		}
	}
}

// setFlusher sets the state of all threads.
func setFlusher() error {
	_, _, errno := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_SET_IO_FLUSHER, 1, 0, 0, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// startOrdinary starts a command from a thread that is no flusher, so that the
// command is none. The thread ends with that.
func startOrdinary(cmd *exec.Cmd) error {
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // for ever: nothing else may run on it
		if state, err := unix.PrctlRetInt(unix.PR_GET_IO_FLUSHER, 0, 0, 0, 0); err == nil && state == 1 {
			_ = unix.Prctl(unix.PR_SET_IO_FLUSHER, 0, 0, 0, 0)
		}
		started <- cmd.Start()
	}()
	return <-started
}
