// Package clitest runs the commands' tests: scripts (testscript), the examples
// of docs/cli.md, and the JSON that --json prints against docs/schema.
package clitest

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// waitLimit is how long a script waits for a file.
const waitLimit = 60 * time.Second

// root is the module's folder.
func root() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(file), "..", "..", "..")
}

// Run runs the scripts in testdata/script. extra are programs of the module
// that they need besides the test's own.
//
// A script finds the key file "key" and the passphrase file "pw", and these
// commands besides testscript's:
//
//	exits CODE PROGRAM ARG...   run a program that must exit with CODE
//	json                        the last stdout is one object that fits its schema
//	random FILE SIZE            make a file of random bytes
//	keyfile FILE                make a key file
//	damage GLOB OFFSET          flip one bit of each byte of 4 KiB, in files that have them
//	mode FILE MODE              a file has these permissions
//	waitfor FILE                wait until a file exists
//	absent GLOB                 no file matches
//
// and the condition [root].
func Run(t *testing.T, extra ...string) {
	bin := Build(t, extra...)
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		Setup: func(e *testscript.Env) error {
			e.Setenv("PATH", bin+string(os.PathListSeparator)+e.Getenv("PATH"))
			e.Setenv("TMPDIR", os.TempDir())
			e.Setenv("FSX_TRUST_FILE", filepath.Join(e.WorkDir, ".trust.json"))
			// $exe is a folder with the program alone: a PATH without anything else.
			exe, err := onlyProgram(e.WorkDir, e.Getenv("PATH"))
			if err != nil {
				return err
			}
			e.Setenv("exe", exe)
			if err := writeKey(filepath.Join(e.WorkDir, "key")); err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(e.WorkDir, "pw"), []byte("correct horse\n"), 0o600)
		},
		Condition: func(cond string) (bool, error) {
			if cond == "root" {
				return os.Geteuid() == 0, nil
			}
			return false, fmt.Errorf("unknown condition %q", cond)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": exits, "json": checkJSON, "random": random, "keyfile": keyfile,
			"damage": damage, "mode": mode, "waitfor": waitFor, "absent": absent,
		},
	})
}

// onlyProgram makes a folder with a link to the test's own fsximg.
func onlyProgram(dir, path string) (string, error) {
	only := filepath.Join(dir, ".only")
	if err := os.Mkdir(only, 0o755); err != nil {
		return "", err
	}
	for _, p := range filepath.SplitList(path) {
		if _, err := os.Stat(filepath.Join(p, "fsximg")); err == nil {
			return only, os.Symlink(filepath.Join(p, "fsximg"), filepath.Join(only, "fsximg"))
		}
	}
	return only, nil
}

// Build builds programs of the module and returns the folder they are in.
func Build(t *testing.T, names ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, n := range names {
		cmd := exec.Command("go", "build", "-o", filepath.Join(dir, n), "./cmd/"+n)
		cmd.Dir = root()
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("build %s: %v\n%s", n, err, out)
		}
	}
	return dir
}

func writeKey(path string) error {
	key := make([]byte, 32)
	rand.Read(key)
	key[0] |= 0x80 // surely not printable
	return os.WriteFile(path, key, 0o600)
}

func usage(ts *testscript.TestScript, neg bool, args []string, n int, text string) {
	if neg || len(args) < n {
		ts.Fatalf("usage: %s", text)
	}
}

func exits(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, args, 2, "exits CODE PROGRAM ARG...")
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	var exit *exec.ExitError
	code := 0
	if errors.As(err, &exit) {
		code = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if code != want {
		ts.Fatalf("%s: exit %d, want %d", args[1], code, want)
	}
}

func checkJSON(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, args, 0, "json")
	if err := CheckJSON([]byte(ts.ReadFile("stdout"))); err != nil {
		ts.Fatalf("%v", err)
	}
}

func random(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, args, 2, "random FILE SIZE")
	n, err := strconv.Atoi(args[1])
	ts.Check(err)
	b := make([]byte, n)
	rand.Read(b)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), b, 0o644))
}

func keyfile(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, args, 1, "keyfile FILE")
	ts.Check(writeKey(ts.MkAbs(args[0])))
}

func damage(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, args, 2, "damage GLOB OFFSET")
	off, err := strconv.ParseInt(args[1], 10, 64)
	ts.Check(err)
	files, err := filepath.Glob(ts.MkAbs(args[0]))
	ts.Check(err)
	done := 0
	for _, name := range files {
		f, err := os.OpenFile(name, os.O_RDWR, 0)
		ts.Check(err)
		defer f.Close()
		b := make([]byte, 4096)
		if n, _ := f.ReadAt(b, off); n < len(b) {
			continue
		}
		for i := range b {
			b[i] ^= 1
		}
		_, err = f.WriteAt(b, off)
		ts.Check(err)
		done++
	}
	if done == 0 {
		ts.Fatalf("no file %s reaches to %s", args[0], args[1])
	}
}

func mode(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, args, 2, "mode FILE MODE")
	st, err := os.Stat(ts.MkAbs(args[0]))
	ts.Check(err)
	if got := fmt.Sprintf("%04o", st.Mode().Perm()); got != args[1] {
		ts.Fatalf("%s has mode %s, want %s", args[0], got, args[1])
	}
}

func waitFor(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, args, 1, "waitfor FILE")
	for end := time.Now().Add(waitLimit); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(ts.MkAbs(args[0])); err == nil {
			return
		}
	}
	ts.Fatalf("%s did not appear", args[0])
}

func absent(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, args, 1, "absent GLOB")
	files, err := filepath.Glob(ts.MkAbs(args[0]))
	ts.Check(err)
	if len(files) > 0 {
		ts.Fatalf("there are %s", strings.Join(files, ", "))
	}
}
