package crypt

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// HardenProcess forbids core dumps, and ptrace and /proc/PID/mem for anyone but
// root, for the whole process. A command calls it before it reads a secret. It
// does all it can and returns what failed; the caller warns and goes on.
func HardenProcess() error {
	var errs []error
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		errs = append(errs, fmt.Errorf("forbid dumping of process: %w", err))
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		errs = append(errs, fmt.Errorf("set core size limit: %w", err))
	}
	return errors.Join(errs...)
}
