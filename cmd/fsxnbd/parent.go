package main

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// endWithParent has the kernel send SIGTERM when the process that started this one
// ends: PR_SET_PDEATHSIG(2const).
func endWithParent() error {
	parent := os.Getppid()
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGTERM), 0, 0, 0); err != nil {
		return err
	}
	if os.Getppid() != parent {
		return errors.New("that process has ended")
	}
	return nil
}
