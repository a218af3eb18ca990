// nbddoc writes the table of docs/nbd.md: what the protocol asks for, point by
// point, since when it is done, the tests that show it, and where the server
// does otherwise.
//
// usage: go run ./test/nbddoc [RESULTS]
//
// It runs every test named TestItemNN… (or reads the output of such a
// `go test -json` run from the file RESULTS), and writes the table only if all
// of them passed: a test that failed, was skipped or did not run shows nothing.
// items.tsv has the words.
package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "nbddoc:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	root, err := moduleRoot()
	if err != nil {
		return err
	}
	tests, err := findTests(root)
	if err != nil {
		return err
	}
	results, err := testResults(root, tests, args)
	if err != nil {
		return err
	}
	if err := allPassed(tests, results); err != nil {
		return err
	}
	table, err := makeTable(tests)
	if err != nil {
		return err
	}
	path := filepath.Join(root, docFile)
	doc, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if doc, err = replaceTable(doc, table); err != nil {
		return err
	}
	return os.WriteFile(path, doc, 0o644)
}

func moduleRoot() (string, error) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return "", fmt.Errorf("go list: %w", err)
	}
	return string(bytes.TrimSpace(out)), nil
}

// testResults reads the file of args, or runs the tests.
func testResults(root string, tests []itemTest, args []string) (map[itemTest]string, error) {
	switch len(args) {
	case 0:
		return runTests(root, tests)
	case 1:
		f, err := os.Open(args[0])
		if err != nil {
			return nil, err
		}
		defer f.Close()
		return readResults(f)
	}
	return nil, fmt.Errorf("want one file of results, not %d", len(args))
}

// runTests runs the tests in the packages that have some.
func runTests(root string, tests []itemTest) (map[itemTest]string, error) {
	args := []string{"test", "-json", "-count=1", "-run", "^TestItem[0-9]", "-timeout", "60m"}
	seen := map[string]bool{}
	for _, t := range tests {
		if !seen[t.dir] {
			seen[t.dir] = true
			args = append(args, "./"+t.dir)
		}
	}
	cmd := exec.Command("go", args...)
	cmd.Dir, cmd.Stderr = root, os.Stderr
	// Its exit code says less than its output.
	out, err := cmd.Output()
	if len(out) == 0 {
		return nil, fmt.Errorf("go test: %w", err)
	}
	return readResults(io.Reader(bytes.NewReader(out)))
}
