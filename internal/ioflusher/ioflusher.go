// Package ioflusher makes the process one that the kernel may need to get memory.
//
// When the kernel's client of a server is on the same machine, or a process is what a
// block device of it is made of, and a file system is on that device, the kernel may
// write the file system's dirty pages back to get memory, and the process needs memory
// to take them. If its own allocation then waits for the same pages, both wait for
// ever. PR_SET_IO_FLUSHER (Linux 5.6) is for such programs: what they allocate never
// starts I/O, and they are not held back for dirty pages.
package ioflusher

import (
	"errors"
	"os/exec"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// Why a process cannot become one.
var (
	// ErrKernel is returned by kernels without it.
	ErrKernel = errors.New("this kernel has no PR_SET_IO_FLUSHER, which is of Linux 5.6")
	// ErrCgo is returned in a program that was built with cgo, where the runtime does
	// not reach all threads.
	ErrCgo = errors.New("PR_SET_IO_FLUSHER: this program was built with cgo")
	// ErrCapability is returned without the right.
	ErrCapability = errors.New("PR_SET_IO_FLUSHER: CAP_SYS_RESOURCE is missing")
)

// Become makes the process one. The state is each thread's; a new thread gets it from
// the one that made it, as fork(2) does, so that once all have it all that come have
// it, and so have programs that are started, unless Start does that.
func Become() error {
	_, _, errno := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_SET_IO_FLUSHER, 1, 0, 0, 0, 0)
	switch errno {
	case 0:
		return nil
	case syscall.EINVAL:
		return ErrKernel
	case syscall.ENOTSUP:
		return ErrCgo
	case syscall.EPERM:
		return ErrCapability
	}
	return errno
}

// Start starts a command from a thread that is no flusher, so that the command is none.
// The thread ends with that.
func Start(cmd *exec.Cmd) error {
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
