package crypt_test

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/fsximg/fsx/pkg/crypt"
)

func TestMemoryIsReusedWipedAndReturned(t *testing.T) {
	v := crypt.NewVault(func([]byte) error { return nil })
	keep, _ := v.Alloc(16)
	keep[0] = 1
	b, free := v.Alloc(64)
	copy(b, "secret")
	free()
	free() // a second time does nothing
	if string(b[:6]) != "\x00\x00\x00\x00\x00\x00" {
		t.Fatalf("freed memory holds %q", b[:6])
	}
	one := v.Status().Bytes
	var frees []func()
	for range 1000 {
		b, free := v.Alloc(512)
		if b[0] != 0 || cap(b) != 512 {
			t.Fatal("a cell is not fresh")
		}
		b[0] = 0xff
		frees = append(frees, free)
	}
	if got := v.Status().Bytes; got < 1000*512 {
		t.Fatalf("1000 cells in %d bytes", got)
	}
	big, freeBig := v.Alloc(100_000)
	big[99_999] = 1
	freeBig()
	for _, f := range frees {
		f()
	}
	if got := v.Status().Bytes; got > one {
		t.Fatalf("%d bytes stay mapped, there were %d", got, one)
	}
	if keep[0] != 1 {
		t.Fatal("another cell was touched")
	}
}

func TestMemoryWorksUnlockedAndSaysSo(t *testing.T) {
	limit := errors.New("limit")
	v := crypt.NewVault(func([]byte) error { return limit })
	b, free := v.Alloc(32)
	b[31] = 7
	s := v.Status()
	if s.Locked() || s.Unlocked != s.Bytes || !errors.Is(s.Err, limit) {
		t.Fatalf("status = %+v", s)
	}
	free()
}

// The kernel's own view: secrets are locked (lo) and left out of dumps (dd).
func TestMemoryFlags(t *testing.T) {
	v := crypt.NewVault(unix.Mlock)
	b, free := v.Alloc(32)
	defer free()
	if !v.Status().Locked() {
		t.Skip("the lock limit is too small here")
	}
	flags := vmFlags(t, uintptr(unsafe.Pointer(&b[0])))
	for _, f := range []string{"lo", "dd"} {
		if !strings.Contains(flags, " "+f) {
			t.Errorf("flags of secret memory are %q, want %s", flags, f)
		}
	}
}

func vmFlags(t *testing.T, addr uintptr) string {
	t.Helper()
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		t.Skip(err)
	}
	defer f.Close()
	inside := false
	for sc := bufio.NewScanner(f); sc.Scan(); {
		var lo, hi uintptr
		if n, _ := fmt.Sscanf(sc.Text(), "%x-%x ", &lo, &hi); n == 2 {
			inside = lo <= addr && addr < hi
		}
		if flags, ok := strings.CutPrefix(sc.Text(), "VmFlags:"); ok && inside {
			return flags
		}
	}
	t.Skip("smaps has no flags")
	return ""
}

// A key that nobody wiped is wiped when it is collected.
func TestForgottenKeysAreReturned(t *testing.T) {
	for range 500 {
		must(crypt.NewDataKey(crypt.AES256GCM))
	}
	before := crypt.Memory().Bytes
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		runtime.GC()
		if crypt.Memory().Bytes < before/2 {
			return
		}
	}
	t.Fatalf("%d bytes before, %d after collection", before, crypt.Memory().Bytes)
}

func TestHardenProcess(t *testing.T) {
	if os.Getenv("CRYPT_TEST_HARDEN") == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^TestHardenProcess$")
		cmd.Env = append(os.Environ(), "CRYPT_TEST_HARDEN=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	if err := crypt.HardenProcess(); err != nil {
		t.Fatal(err)
	}
	dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	var core unix.Rlimit
	if err != nil || unix.Getrlimit(unix.RLIMIT_CORE, &core) != nil || dumpable != 0 || core.Cur|core.Max != 0 {
		t.Fatalf("dumpable = %d, %v; core limit %+v", dumpable, err, core)
	}
}
