package interop_test

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TestEphemeralKeyNowhere looks for the volume key of a clone with an ephemeral one:
// it is in the server's locked memory, and neither in the store, nor in the log, nor
// in a core dump, nor in a swap file to which all of the server's memory was pushed
// out. After a SIGKILL nothing that the clone wrote is read by any other key.
func TestEphemeralKeyNowhere(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, dir)
	source := filepath.Join(dir, "source")
	if err := os.WriteFile(source, noise(random(t), 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	s.load(source)
	s.fsximg(exitOK, "snapshot", "create", "--key-file", s.key, s.path+"@golden")
	srv := s.serve()
	s.fsximg(exitOK, "clone", "--new-ephemeral-key", s.path+"@golden", "web")
	var info struct {
		Volumes []struct {
			Name      string `json:"name"`
			VolumeKey string `json:"volume_key"`
		} `json:"volumes"`
	}
	if err := json.Unmarshal([]byte(s.fsximg(exitOK, "info", "--json", s.path).stdout), &info); err != nil {
		t.Fatal(err)
	}
	id, err := hex.DecodeString(info.Volumes[1].VolumeKey)
	if err != nil || info.Volumes[1].Name != "web" {
		t.Fatalf("info: %+v", info)
	}
	c := dial(t, srv.socket, "web")
	canary := []byte("FSX-CANARY-51ad-ephemeral-clone!")
	if err := c.writeAt(bytes.Repeat(canary, 1<<20/len(canary)), 0, 0); err != nil {
		t.Fatal(err)
	}
	if err := c.flush(); err != nil {
		t.Fatal(err)
	}
	key := keyInLockedMemory(t, srv.pid(), id)
	swap := pushOut(t, srv.pid(), filepath.Join(dir, "swapfile"))
	srv.end(syscall.SIGABRT, time.Minute) // a core dump, if there were one
	for _, root := range []string{dir, "/run/fsx"} {
		if found := findBytes(t, root, key); len(found) > 0 {
			t.Errorf("the ephemeral key is in %v", found)
		}
	}
	if bytes.Contains([]byte(srv.log.String()), key) {
		t.Error("the ephemeral key is in the log")
	}
	if cores, _ := filepath.Glob("core*"); len(cores) > 0 {
		t.Errorf("core dumps: %v", cores)
	}
	if swap != nil {
		swap()
	}

	// What the clone wrote is lost, with the base's key and without.
	out := s.fsximg(exitKey, "export", "--key-file", s.key, s.path+":web", filepath.Join(dir, "stolen"))
	if !strings.Contains(out.stderr, "ephemeral") {
		t.Errorf("export: %s", out.stderr)
	}
	s.fsximg(exitOK, "check", "--key-file", s.key, s.path)
	back := filepath.Join(dir, "back")
	s.export(back)
	sameFile(t, source, back)
	if found := findBytes(t, dir, canary); len(found) > 0 {
		t.Errorf("what the clone wrote is in %v", found)
	}
	s.fsximg(exitOK, "volume", "delete", "--force", s.path+":web")
	s.check()
}

// keyInLockedMemory finds the volume key that has an identifier (docs/crypto.md, 2).
func keyInLockedMemory(t *testing.T, pid int, id []byte) []byte {
	t.Helper()
	smaps, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		t.Skipf("SKIP: the memory of another process cannot be read here: %v", err)
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		t.Skipf("SKIP: the memory of another process cannot be read here: %v", err)
	}
	defer mem.Close()
	var from, to, locked int64
	for line := range strings.Lines(string(smaps)) {
		var first, last int64
		var mode string
		if n, _ := fmt.Sscanf(line, "%x-%x %s", &first, &last, &mode); n == 3 {
			from, to = first, last
			continue
		}
		if n, _ := fmt.Sscanf(line, "Locked: %d kB", &locked); n != 1 || locked == 0 || to-from > 64<<20 {
			continue
		}
		b := make([]byte, to-from)
		n, _ := mem.ReadAt(b, from)
		for at := 0; at+32 <= n; at += 8 {
			if w := b[at : at+32]; !bytes.Equal(w[:8], make([]byte, 8)) && bytes.Equal(volumeKeyID(w), id) {
				return bytes.Clone(w)
			}
		}
	}
	t.Fatal("the ephemeral key is not in the server's locked memory, so looking for it elsewhere proves nothing")
	return nil
}

func volumeKeyID(key []byte) []byte {
	extract := hmac.New(sha512.New, make([]byte, 64))
	extract.Write(key)
	expand := hmac.New(sha512.New, extract.Sum(nil))
	expand.Write([]byte("fsx\x00\x20\x01"))
	return expand.Sum(nil)[:16]
}

// pushOut makes a swap file and has the kernel push a process's memory out to it. It
// returns a function that removes the file, and nil where that cannot be done.
func pushOut(t *testing.T, pid int, file string) func() {
	t.Helper()
	if os.Getuid() != 0 {
		t.Log("SKIP: no swap file: swapon needs root")
		return nil
	}
	must(t, "dd", "if=/dev/zero", "of="+file, "bs=1M", "count=256", "status=none")
	must(t, "chmod", "600", file)
	must(t, "mkswap", file)
	if o := execute(t, "swapon", file); o.code != 0 {
		t.Logf("SKIP: no swap file: %s", o.stderr)
		return nil
	}
	off := func() { execute(t, "swapoff", file) }
	t.Cleanup(off)
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(maps)) {
		var from, to uint64
		var mode string
		if n, _ := fmt.Sscanf(line, "%x-%x %s", &from, &to, &mode); n != 3 || !strings.HasPrefix(mode, "rw") {
			continue
		}
		iov := struct{ base, length uint64 }{from, to - from} // an iovec of the other process
		// What is locked stays, and is refused.
		_, _, _ = unix.Syscall6(unix.SYS_PROCESS_MADVISE, uintptr(fd), uintptr(unsafe.Pointer(&iov)), 1, unix.MADV_PAGEOUT, 0, 0)
	}
	time.Sleep(time.Second)
	if out := must(t, "cat", fmt.Sprintf("/proc/%d/status", pid)); !strings.Contains(out, "VmSwap") || strings.Contains(out, "VmSwap:\t       0 kB") {
		t.Errorf("nothing was pushed out:\n%s", out)
	}
	must(t, "sync", file)
	return off
}
