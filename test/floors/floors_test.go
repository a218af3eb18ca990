// Package floors checks who imports whom: the import graph is a set of floors,
// and a package may lean only on those named for it here.
package floors

import (
	"encoding/json"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/fsximg/fsx/"

// floors names for every package of the product the packages of ours that it
// may import. A package that is not here fails the test: a new room is put
// where it belongs on purpose.
var floors = map[string][]string{
	// Keys and ciphers see nothing of ours.
	"pkg/crypt": {},
	// What keeps a slot's key outside the process.
	"pkg/crypt/ageslot": {"pkg/crypt"},
	"pkg/crypt/tpmslot": {"pkg/crypt"},
	// The format: byte maps, files, index, map. No key, no plaintext.
	"internal/vfs":       {},
	"pkg/layout":         {},
	"pkg/layout/metadb":  {},
	"pkg/layout/maptree": {"pkg/layout", "pkg/layout/metadb"},
	"pkg/layout/seglog":  {"internal/vfs", "pkg/layout"},
	"pkg/layout/store":   {"internal/vfs", "pkg/layout"},
	// Volumes, snapshots and clones, as far as heads tell.
	"pkg/snapshot": {"pkg/layout"},
	// The server knows a block device and no store.
	"pkg/nbdsrv": {},
	// The engine: the only room where plaintext and placement meet.
	"internal/volume": {"internal/vfs", "pkg/crypt", "pkg/layout", "pkg/layout/maptree", "pkg/layout/metadb", "pkg/layout/seglog", "pkg/layout/store", "pkg/snapshot"},
	// Devices of the machine's kernel; they know no store.
	"internal/attach/nbddev": {},
	// Between the kernel's device and an NBD server that may die.
	"internal/attach/relay": {"internal/nbdclient", "internal/nbdclient/unflushed"},
	// What the commands are made of.
	"internal/trust":               {},
	"internal/nbdclient":           {},
	"internal/nbdclient/unflushed": {},
	"internal/nbdclient/reconnect": {"internal/nbdclient", "internal/nbdclient/unflushed"},
	"internal/convert":             {"internal/nbdclient"},
	"internal/picture":             {},
	"internal/ioflusher":           {},
	"docs":                         {},
	"internal/manual":              {},
	"internal/cliutil":             {"docs", "internal/manual", "internal/trust", "internal/volume", "pkg/crypt", "pkg/crypt/ageslot", "pkg/crypt/tpmslot", "pkg/layout"},
	"internal/attach":              {"internal/attach/bridge", "internal/attach/loopdev", "internal/attach/nbddev", "internal/attach/relay", "internal/cliutil", "internal/control", "internal/ioflusher", "internal/nbdclient", "internal/nbdclient/reconnect", "internal/volume"},
	"internal/control":             {"internal/cliutil", "internal/volume", "pkg/crypt", "pkg/crypt/ageslot", "pkg/crypt/tpmslot", "pkg/layout"},
	// Block devices of this machine that are somebody's volume.
	"internal/attach/loopdev": {},
	"internal/attach/bridge":  {"internal/nbdclient/reconnect"},
	"internal/export":         {"internal/cliutil", "internal/volume", "pkg/nbdsrv"},
	"cmd/fsximg":              {"internal/attach", "internal/cliutil", "internal/control", "internal/convert", "internal/export", "internal/nbdclient", "internal/picture", "internal/volume", "pkg/crypt", "pkg/layout", "pkg/nbdsrv", "pkg/snapshot"},
	"cmd/fsxnbd":              {"internal/cliutil", "internal/control", "internal/export", "internal/ioflusher", "internal/volume", "pkg/crypt", "pkg/layout", "pkg/nbdsrv"},
	// Only tests use these.
	"internal/vfs/trace":       {"internal/vfs"},
	"internal/vfs/faultfs":     {"internal/vfs", "internal/vfs/trace"},
	"internal/vfs/vfstest":     {"internal/vfs"},
	"internal/cliutil/clitest": {},
	"test/nbddoc":              {},
	"test/soak":                {},
	"test/benchchart":          {},
	"test/kernel/nbddev":       {"internal/attach/nbddev", "internal/attach/relay", "internal/nbdclient"},
	"test/crash":               {"internal/vfs", "internal/vfs/faultfs", "internal/vfs/trace"},
}

// testOnly may not be imported by the product.
var testOnly = []string{"internal/vfs/trace", "internal/vfs/faultfs", "internal/vfs/vfstest", "internal/cliutil/clitest", "test/"}

type goPackage struct {
	ImportPath string
	GoFiles    []string
	Imports    []string
}

func packages(t *testing.T) []goPackage {
	out, err := exec.Command("go", "list", "-json=ImportPath,GoFiles,Imports", module+"...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var l []goPackage
	for d := json.NewDecoder(strings.NewReader(string(out))); d.More(); {
		var p goPackage
		if err := d.Decode(&p); err != nil {
			t.Fatal(err)
		}
		if len(p.GoFiles) > 0 {
			l = append(l, p)
		}
	}
	return l
}

func TestFloors(t *testing.T) {
	found := 0
	for _, p := range packages(t) {
		name := strings.TrimPrefix(p.ImportPath, module)
		allowed, known := floors[name]
		if !known {
			t.Errorf("%s has no floor: name what it may import in test/floors", name)
			continue
		}
		found++
		for _, imp := range p.Imports {
			ours, ok := strings.CutPrefix(imp, module)
			if ok && !slices.Contains(allowed, ours) {
				t.Errorf("%s imports %s, which is not below it", name, ours)
			}
		}
	}
	if found < 10 {
		t.Errorf("only %d packages were looked at", found)
	}
}

func TestProductHasNoTests(t *testing.T) {
	for _, p := range packages(t) {
		name := strings.TrimPrefix(p.ImportPath, module)
		isTest := slices.ContainsFunc(testOnly, func(s string) bool { return strings.HasPrefix(name, s) })
		if isTest {
			continue
		}
		for _, imp := range p.Imports {
			ours, _ := strings.CutPrefix(imp, module)
			if imp == "testing" || slices.ContainsFunc(testOnly, func(s string) bool { return strings.HasPrefix(ours, s) }) {
				t.Errorf("%s, which is no test, imports %s", name, imp)
			}
		}
	}
}
