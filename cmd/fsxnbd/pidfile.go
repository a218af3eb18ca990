package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/fsximg/fsx/internal/cliutil"
)

// checkPIDFile refuses a --pid-file that would replace anything else than a pid
// file. The empty name is fine.
func checkPIDFile(file string) error {
	if file == "" {
		return nil
	}
	if err := cliutil.NotInStore(file); err != nil {
		return fmt.Errorf("--pid-file: %w", err)
	}
	st, err := os.Lstat(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("--pid-file: %w", err)
	}
	pid, ok := readPID(file)
	if ok && pid != os.Getpid() && isServer(pid) {
		return cliutil.WithHint(cliutil.Errorf(cliutil.ErrInUse, "--pid-file: %s is of a server that runs, pid %d", file, pid), "end that server, or name another file")
	}
	if !ok || !st.Mode().IsRegular() {
		return cliutil.WithHint(cliutil.UsageErrorf("--pid-file: %s exists and is no pid file", file), "it would be overwritten; name another file")
	}
	return nil
}

// isServer says whether a process runs this program. Another one may have got
// the number of a server that is gone.
func isServer(pid int) bool {
	theirs, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return false
	}
	ours, err := os.ReadFile("/proc/self/comm")
	return err == nil && string(theirs) == string(ours) && !isDead(pid)
}

// isDead says whether a process has ended, and only waits for its parent to take
// notice: proc_pid_stat(5).
func isDead(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	_, rest, ok := strings.Cut(string(stat[bytes.LastIndexByte(stat, ')')+1:]), " ")
	return ok && (rest[0] == 'Z' || rest[0] == 'X')
}

// readPID is the process id in a pid file: a number and a newline.
func readPID(file string) (pid int, ok bool) {
	st, err := os.Stat(file)
	if err != nil || !st.Mode().IsRegular() || st.Size() > 20 {
		return 0, false
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, false
	}
	pid, err = strconv.Atoi(strings.TrimSuffix(string(text), "\n"))
	return pid, err == nil && pid > 0
}

// writePID writes our process id to a file that appears whole.
func writePID(file string) error {
	if err := checkPIDFile(file); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file)+".*")
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(f, os.Getpid())
	err = errors.Join(err, f.Chmod(0o644), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), file)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// removePID removes our pid file, and nothing that has taken its place.
func removePID(file string) {
	if pid, ok := readPID(file); ok && pid == os.Getpid() {
		os.Remove(file)
	}
}
