package main

import (
	"bytes"
	"cmp"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

const (
	docFile = "docs/nbd.md"
	module  = "github.com/fsximg/fsx/"
	begin   = "<!-- begin: written by go run ./test/nbddoc -->\n"
	end     = "<!-- end -->\n"
)

// itemsText is a line for each point of the checklist: number, the date since
// which it is done, what is asked for, and the deviation, if any, separated by
// tabs.
//
//go:embed items.tsv
var itemsText string

// item is a point of the checklist.
type item struct {
	number      int
	since       string
	requirement string
	deviation   string
}

// itemTest is a test of the points whose number its name has.
type itemTest struct {
	dir  string // below the module's root, with slashes
	name string
}

func (t itemTest) item() int {
	n, _ := strconv.Atoi(itemName.FindStringSubmatch("func " + t.name + "(")[2])
	return n
}

var itemName = regexp.MustCompile(`(?m)^func (TestItem([0-9]{2})[A-Za-z0-9_]*)\(`)

// parseItems reads items.tsv, whose numbers are 1, 2, 3 and so on.
func parseItems(text string) (items []item, err error) {
	for i, line := range strings.Split(strings.TrimSuffix(text, "\n"), "\n") {
		f := strings.Split(line, "\t")
		if len(f) < 3 || len(f) > 4 {
			return nil, fmt.Errorf("items.tsv:%d: %d fields", i+1, len(f))
		}
		n, err := strconv.Atoi(f[0])
		if err != nil || n != i+1 {
			return nil, fmt.Errorf("items.tsv:%d: item %q out of order", i+1, f[0])
		}
		it := item{number: n, since: f[1], requirement: f[2]}
		if len(f) == 4 {
			it.deviation = f[3]
		}
		items = append(items, it)
	}
	return items, nil
}

// findTests returns the tests of the tree, sorted by item, folder and name.
func findTests(root string) (tests []itemTest, err error) {
	err = filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && name != root && strings.HasPrefix(d.Name(), "."):
			return fs.SkipDir
		case d.IsDir() || !strings.HasSuffix(name, "_test.go"):
			return nil
		}
		source, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, filepath.Dir(name))
		if err != nil {
			return err
		}
		for _, m := range itemName.FindAllSubmatch(source, -1) {
			tests = append(tests, itemTest{filepath.ToSlash(rel), string(m[1])})
		}
		return nil
	})
	slices.SortFunc(tests, func(a, b itemTest) int {
		if a.item() != b.item() {
			return a.item() - b.item()
		}
		return strings.Compare(a.dir+" "+a.name, b.dir+" "+b.name)
	})
	return tests, err
}

// readResults reads what go test -json printed: pass, fail or skip by test.
func readResults(r io.Reader) (map[itemTest]string, error) {
	results := map[itemTest]string{}
	for d := json.NewDecoder(r); ; {
		var event struct{ Action, Package, Test string }
		if err := d.Decode(&event); errors.Is(err, io.EOF) {
			return results, nil
		} else if err != nil {
			return nil, fmt.Errorf("results: %w", err)
		}
		switch event.Action {
		case "pass", "fail", "skip":
			results[itemTest{strings.TrimPrefix(event.Package, module), event.Test}] = event.Action
		}
	}
}

// allPassed names the tests that did not.
func allPassed(tests []itemTest, results map[itemTest]string) error {
	var errs []error
	for _, t := range tests {
		if r := results[t]; r != "pass" {
			errs = append(errs, fmt.Errorf("%s in %s: %s", t.name, t.dir, cmp.Or(r, "did not run")))
		}
	}
	return errors.Join(errs...)
}

// makeTable is the table that belongs to tests, all of which passed.
func makeTable(tests []itemTest) ([]byte, error) {
	items, err := parseItems(itemsText)
	if err != nil {
		return nil, err
	}
	by := map[int][]string{}
	for _, t := range tests {
		if t.item() < 1 || t.item() > len(items) {
			return nil, fmt.Errorf("%s: there is no such item", t.name)
		}
		by[t.item()] = append(by[t.item()], testName(t))
	}
	var b bytes.Buffer
	fmt.Fprint(&b, "| | what is asked for | since | tested by `TestItem…` | deviation, and why |\n| --- | --- | --- | --- | --- |\n")
	for _, it := range items {
		since, how := it.since, strings.Join(by[it.number], ", ")
		if len(by[it.number]) == 0 {
			since, how = "no", "–"
		}
		fmt.Fprintf(&b, "| %d | %s | %s | %s | %s |\n", it.number, it.requirement, since, how, it.deviation)
	}
	return b.Bytes(), nil
}

// testName is how the table names a test: without what all names begin with,
// and with its folder if that is not the server's own.
func testName(t itemTest) string {
	name := "`" + strings.TrimPrefix(t.name, "TestItem") + "`"
	if t.dir != "pkg/nbdsrv" {
		name += " (" + path.Clean(t.dir) + ")"
	}
	return name
}

// replaceTable puts table between the markers of doc.
func replaceTable(doc, table []byte) ([]byte, error) {
	from := bytes.Index(doc, []byte(begin))
	if from < 0 || bytes.Count(doc, []byte(begin)) != 1 || bytes.Count(doc, []byte(end)) != 1 {
		return nil, fmt.Errorf("%s: want each marker once", docFile)
	}
	from += len(begin)
	to := bytes.Index(doc, []byte(end))
	if to < from {
		return nil, fmt.Errorf("%s: markers are the wrong way round", docFile)
	}
	return slices.Concat(doc[:from], table, doc[to:]), nil
}
