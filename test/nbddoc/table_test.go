package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const root = "../.."

// TestTableIsCurrent: the committed table is what the tests of the tree make of
// it. With FSX_FULL=1 they are run for it; otherwise the part `unit` of
// scripts/test, which runs them all, says that they pass.
func TestTableIsCurrent(t *testing.T) {
	tests, err := findTests(root)
	if err != nil {
		t.Fatal(err)
	}
	if os.Getenv("FSX_FULL") != "" {
		results, err := runTests(root, tests)
		if err != nil {
			t.Fatal(err)
		}
		if err := allPassed(tests, results); err != nil {
			t.Fatal(err)
		}
	}
	table, err := makeTable(tests)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := os.ReadFile(filepath.Join(root, docFile))
	if err != nil {
		t.Fatal(err)
	}
	want, err := replaceTable(doc, table)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(doc, want) {
		t.Errorf("the table of %s is not what the tests say: go run ./test/nbddoc", docFile)
	}
}

// TestResultsDecide: a test that failed, was skipped or is missing is no proof.
func TestResultsDecide(t *testing.T) {
	results, err := readResults(strings.NewReader(`
		{"Action":"run","Package":"github.com/fsximg/fsx/pkg/nbdsrv","Test":"TestItem01A"}
		{"Action":"pass","Package":"github.com/fsximg/fsx/pkg/nbdsrv","Test":"TestItem01A"}
		{"Action":"fail","Package":"github.com/fsximg/fsx/pkg/nbdsrv","Test":"TestItem02B"}
		{"Action":"skip","Package":"github.com/fsximg/fsx/pkg/nbdsrv","Test":"TestItem03C"}
		{"Action":"pass","Package":"github.com/fsximg/fsx/internal/volume","Test":"TestItem04D"}
		{"Action":"fail","Package":"github.com/fsximg/fsx/pkg/nbdsrv"}`))
	if err != nil {
		t.Fatal(err)
	}
	in := func(name string) itemTest { return itemTest{"pkg/nbdsrv", name} }
	if err := allPassed([]itemTest{in("TestItem01A"), {"internal/volume", "TestItem04D"}}, results); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"TestItem02B", "TestItem03C", "TestItem04D", "TestItem05E"} {
		if err := allPassed([]itemTest{in("TestItem01A"), in(name)}, results); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s passes for proof: %v", name, err)
		}
	}
}

func TestTable(t *testing.T) {
	table, err := makeTable([]itemTest{{"pkg/nbdsrv", "TestItem02B"}, {"test/interop", "TestItem02C"}})
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(table), "\n")
	if !strings.Contains(lines[2], "| no | – |") || !strings.Contains(lines[3], "`02B`, `02C` (test/interop)") {
		t.Errorf("table:\n%s", strings.Join(lines[:5], "\n"))
	}
	if _, err := makeTable([]itemTest{{"pkg/nbdsrv", "TestItem99B"}}); err == nil {
		t.Error("a test of no item is accepted")
	}
	for _, doc := range []string{"", begin, end, end + begin, begin + begin + end} {
		if _, err := replaceTable([]byte(doc), table); err == nil {
			t.Errorf("markers %q are accepted", doc)
		}
	}
	got, err := replaceTable([]byte("before\n"+begin+"old\n"+end+"behind\n"), []byte("new\n"))
	if want := "before\n" + begin + "new\n" + end + "behind\n"; err != nil || string(got) != want {
		t.Errorf("%q, %v", got, err)
	}
}
