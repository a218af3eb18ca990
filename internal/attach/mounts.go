package attach

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// mountInfo is where the kernel lists this process's mounts: proc_pid_mountinfo(5).
const mountInfo = "/proc/self/mountinfo"

// mount is one mounted file system.
type mount struct {
	number string // MAJOR:MINOR of its device; file systems of several devices have one of their own
	dir    string
	fstype string
	source string
}

// parseMounts reads mountinfo, in the order in which things were mounted. Lines that
// are none are left out.
func parseMounts(r io.Reader) (out []mount) {
	s := bufio.NewScanner(r)
	s.Buffer(nil, 1<<20) // options may be long
	for s.Scan() {
		// 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
		before, after, found := strings.Cut(s.Text(), " - ")
		w, v := strings.Fields(before), strings.Fields(after)
		if !found || len(w) < 6 || len(v) < 2 {
			continue
		}
		out = append(out, mount{number: w[2], dir: unescape(w[4]), fstype: v[0], source: unescape(v[1])})
	}
	return out
}

// unescape undoes the kernel's \040 and the like.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func readMounts() ([]mount, error) {
	f, err := os.Open(mountInfo)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return parseMounts(f), nil
}

// blockNames are the names of a device and of its partitions: loop7, loop7p1.
func blockNames(device string) []string {
	name := filepath.Base(device)
	names := []string{name}
	parts, _ := filepath.Glob(filepath.Join("/sys/block", name, name+"*", "partition"))
	for _, p := range parts {
		names = append(names, filepath.Base(filepath.Dir(p)))
	}
	return names
}

// numberOf is the MAJOR:MINOR of a device or partition.
func numberOf(name string) string {
	b, err := os.ReadFile(filepath.Join("/sys/class/block", name, "dev"))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// mountsOf are the mounts of a device and its partitions.
func mountsOf(all []mount, device string) (out []mount) {
	for _, name := range blockNames(device) {
		number := numberOf(name)
		for _, m := range all {
			if number != "" && m.number == number || m.source == "/dev/"+name {
				out = append(out, m)
			}
		}
	}
	return out
}

// mountedDirs are where a device or a partition of it is mounted, as far as this
// process sees.
func mountedDirs(device string) ([]string, error) {
	all, err := readMounts()
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	var dirs []string
	for _, m := range mountsOf(all, device) {
		dirs = append(dirs, m.dir)
	}
	return dirs, nil
}

// usersOf names what has a device in use, or nothing that can be found.
func usersOf(device string) (users []string) {
	if dirs, err := mountedDirs(device); err == nil {
		for _, dir := range dirs {
			users = append(users, "mounted on "+dir)
		}
	}
	names := blockNames(device)
	for _, name := range names {
		holders, _ := os.ReadDir(filepath.Join("/sys/class/block", name, "holders"))
		for _, h := range holders {
			users = append(users, "used by /dev/"+h.Name())
		}
	}
	if swaps, err := os.ReadFile("/proc/swaps"); err == nil {
		for line := range strings.Lines(string(swaps)) {
			if w := strings.Fields(line); len(w) > 0 && slices.Contains(names, filepath.Base(w[0])) {
				users = append(users, "used as swap")
			}
		}
	}
	if len(users) == 0 {
		users = processesOf(names)
	}
	return users
}

// processesOf names processes that have one of the devices open, or files of a file
// system on it: one that was unmounted lazily has no other trace.
func processesOf(names []string) (users []string) {
	numbers := map[uint64]bool{}
	for _, name := range names {
		var major, minor uint32
		if n, _ := fmt.Sscanf(numberOf(name), "%d:%d", &major, &minor); n == 2 {
			numbers[unix.Mkdev(major, minor)] = true
		}
	}
	processes, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range processes {
		if pid, err := strconv.Atoi(filepath.Base(p)); err == nil && pid != os.Getpid() && hasOpen(p, numbers) {
			comm, _ := os.ReadFile(filepath.Join(p, "comm"))
			users = append(users, fmt.Sprintf("in use by %s (pid %d)", strings.TrimSpace(string(comm)), pid))
		}
	}
	return users
}

// hasOpen says whether a process has one of the devices, or something on it.
func hasOpen(process string, numbers map[uint64]bool) bool {
	links := []string{filepath.Join(process, "cwd"), filepath.Join(process, "root")}
	fds, _ := os.ReadDir(filepath.Join(process, "fd"))
	for _, fd := range fds {
		links = append(links, filepath.Join(process, "fd", fd.Name()))
	}
	for _, link := range links {
		// Without asking a file system that lives elsewhere, which may not answer.
		var st unix.Statx_t
		if unix.Statx(unix.AT_FDCWD, link, unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE, &st) != nil {
			continue
		}
		if numbers[unix.Mkdev(st.Dev_major, st.Dev_minor)] || st.Mode&unix.S_IFMT == unix.S_IFBLK && numbers[unix.Mkdev(st.Rdev_major, st.Rdev_minor)] {
			return true
		}
	}
	return false
}

// mountWatch tells that something was mounted or unmounted.
type mountWatch struct {
	file *os.File
	stop *os.File // its other end is closed by close
	own  *os.File
	C    chan struct{}
	done chan struct{}
}

// watchMounts begins to watch. What happens from now on is told, several changes
// perhaps once.
func watchMounts() (*mountWatch, error) {
	f, err := os.Open(mountInfo)
	if err != nil {
		return nil, err
	}
	stop, own, err := os.Pipe()
	if err != nil {
		f.Close()
		return nil, err
	}
	w := &mountWatch{f, stop, own, make(chan struct{}, 1), make(chan struct{})}
	go w.run()
	return w, nil
}

// run waits for the kernel's word, which is that of an exceptional condition: poll(2).
func (w *mountWatch) run() {
	defer close(w.done)
	fds := []unix.PollFd{
		{Fd: int32(w.file.Fd()), Events: unix.POLLPRI},
		{Fd: int32(w.stop.Fd()), Events: unix.POLLIN},
	}
	for {
		_, err := unix.Poll(fds, -1)
		if err != nil && !errors.Is(err, unix.EINTR) || fds[1].Revents != 0 {
			return
		}
		if fds[0].Revents&unix.POLLPRI == 0 {
			continue
		}
		select {
		case w.C <- struct{}{}:
		default:
		}
	}
}

func (w *mountWatch) close() {
	w.own.Close()
	<-w.done
	w.file.Close()
	w.stop.Close()
}
