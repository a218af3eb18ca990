// Package interop_test drives the built programs the way users do: real
// filesystem images, other people's NBD clients, mounts, SIGKILL, full disks.
//
// The programs are taken from FSX_BIN, or built by TestMain. FSX_FULL=1 runs the
// large counts. FSX_SEED repeats a run of the random tests. Nothing here runs
// under -short. A test that this machine cannot run is skipped with its reason;
// with CI=true a missing program is a failure instead, because scripts/setup
// installs it.
package interop_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Exit codes of fsximg and fsxnbd that the tests expect (docs/cli.md).
const (
	exitOK      = 0
	exitKey     = 4
	exitBusy    = 5
	exitDamaged = 6
)

const passphrase = "correct horse battery staple"

// programs is the folder with fsximg and fsxnbd.
var programs string

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	// mkfs and losetup are often not in a user's path
	os.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin")
	os.Setenv("FSX_TRUST_FILE", "none") // not this user's
	if programs = os.Getenv("FSX_BIN"); programs != "" {
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "fsx-interop")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	programs = dir
	build := exec.Command("go", "build", "-o", dir+"/", "../../cmd/...")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// full says whether the large counts are wanted.
func full() bool { return os.Getenv("FSX_FULL") == "1" }

// choose returns the small count for every change or the large one for --full.
func choose[T any](small, large T) T {
	if full() {
		return large
	}
	return small
}

// need skips the test under -short and when a program is missing.
func need(t *testing.T, tools ...string) {
	t.Helper()
	if testing.Short() {
		t.Skip("SKIP: -short")
	}
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err == nil {
			continue
		}
		if os.Getenv("CI") == "true" {
			t.Fatalf("%s is missing; scripts/setup test installs it", tool)
		}
		t.Skipf("SKIP: %s is missing; scripts/setup test installs it", tool)
	}
}

// needMount skips the test where it may not mount through nbdfuse and a loop device.
func needMount(t *testing.T) {
	t.Helper()
	need(t, "nbdfuse", "losetup", "mount", "umount", "fusermount3")
	if os.Getuid() != 0 {
		t.Skip("SKIP: mounting needs root")
	}
	for _, dev := range []string{"/dev/fuse", "/dev/loop-control"} {
		if _, err := os.Stat(dev); err != nil {
			t.Skipf("SKIP: no %s on this machine", dev)
		}
	}
}

// random returns a generator and logs the seed that repeats it.
func random(t *testing.T) *rand.Rand {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("FSX_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatalf("FSX_SEED: %v", err)
		}
	}
	t.Logf("seed: FSX_SEED=%d go test -run '^%s$' ./test/interop", seed, t.Name())
	return rand.New(rand.NewPCG(seed, 1))
}

// result reports a measured figure; scripts/test --full collects these lines.
func result(t *testing.T, format string, args ...any) {
	t.Helper()
	t.Logf("RESULT %s: %s", t.Name(), fmt.Sprintf(format, args...))
}

// outcome is how a program ended.
type outcome struct {
	stdout, stderr string
	code           int
}

// execute runs a program to its end, at most ten minutes.
func execute(t *testing.T, name string, args ...string) outcome {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%s: %v", name, err)
	}
	return outcome{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// must runs a program that has to succeed and returns its standard output.
func must(t *testing.T, name string, args ...string) string {
	t.Helper()
	out := execute(t, name, args...)
	if out.code != 0 {
		t.Fatalf("%s %s: exit %d\n%s%s", name, strings.Join(args, " "), out.code, out.stdout, out.stderr)
	}
	return out.stdout
}

// store is a store of this test, with a passphrase slot and a key file slot.
type store struct {
	t         *testing.T
	dir, path string
	pw, key   string // files
}

// newStore names a store in an existing folder; import or create makes it.
func newStore(t *testing.T, dir string) *store {
	t.Helper()
	s := &store{t: t, dir: dir, path: filepath.Join(dir, "test.fsx")}
	s.pw, s.key = secretFiles(t)
	return s
}

// secretFiles writes a passphrase file and a key file outside of the store's disk.
func secretFiles(t *testing.T) (pw, key string) {
	t.Helper()
	dir := t.TempDir()
	pw, key = filepath.Join(dir, "pw"), filepath.Join(dir, "key")
	secret := make([]byte, 32)
	for i := range secret {
		secret[i] = byte(i*37 + 200)
	}
	for file, content := range map[string][]byte{pw: []byte(passphrase + "\n"), key: secret} {
		if err := os.WriteFile(file, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return pw, key
}

// fsximg runs `fsximg COMMAND ARG...` and requires the exit code.
func (s *store) fsximg(want int, args ...string) outcome {
	s.t.Helper()
	out := execute(s.t, filepath.Join(programs, "fsximg"), args...)
	if out.code != want {
		s.t.Fatalf("fsximg %s: exit %d, want %d\n%s%s", strings.Join(args, " "), out.code, want, out.stdout, out.stderr)
	}
	return out
}

// create makes the store with an empty volume.
func (s *store) create(size string) {
	s.t.Helper()
	s.fsximg(exitOK, "create", "--size", size, "--passphrase-file", s.pw, "--key-file", s.key, s.path)
}

// load makes the store from an image.
func (s *store) load(source string, options ...string) {
	s.t.Helper()
	args := append([]string{"import", "--passphrase-file", s.pw, "--key-file", s.key}, options...)
	s.fsximg(exitOK, append(args, source, s.path)...)
}

// export writes the volume to a file.
func (s *store) export(file string, options ...string) {
	s.t.Helper()
	args := append([]string{"export", "--key-file", s.key}, options...)
	s.fsximg(exitOK, append(args, s.path, file)...)
}

// check requires a clean store, without and with the key.
func (s *store) check() {
	s.t.Helper()
	s.fsximg(exitOK, "check", s.path)
	s.fsximg(exitOK, "check", "--key-file", s.key, s.path)
}

// sameFile requires two files of equal content.
func sameFile(t *testing.T, a, b string) {
	t.Helper()
	if out := execute(t, "cmp", a, b); out.code != 0 {
		t.Fatalf("%s and %s differ: %s%s", a, b, out.stdout, out.stderr)
	}
}

// findBytes returns the files under root that contain the text, reading each
// in overlapping pieces.
func findBytes(t *testing.T, root string, text []byte) []string {
	t.Helper()
	var hits []string
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		found, err := fileContains(path, text)
		if found {
			hits = append(hits, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return hits
}

func fileContains(path string, text []byte) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	buf := make([]byte, 1<<20)
	kept := 0
	for {
		n, err := io.ReadFull(f, buf[kept:])
		if bytes.Contains(buf[:kept+n], text) {
			return true, nil
		}
		if err != nil {
			if err == io.EOF || err == io.ErrUnexpectedEOF {
				return false, nil
			}
			return false, err
		}
		kept = copy(buf, buf[len(buf)-len(text)+1:])
	}
}
