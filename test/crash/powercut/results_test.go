package powercut_test

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// tally counts what was tested.
type tally struct {
	mu       sync.Mutex
	counts   map[string]map[string]int // kind, policy
	failures int
	none     int // cuts before there was a store
	leaks    int // cuts that left blocks to be compacted
	leaked   uint64
	kills    string // what TestKill did
}

var results = tally{counts: map[string]map[string]int{}}

func (r *tally) add(kind, policy string, v verdict, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.counts[kind] == nil {
		r.counts[kind] = map[string]int{}
	}
	r.counts[kind][policy]++
	switch {
	case err != nil:
		r.failures++
	case v.none:
		r.none++
	case v.leaked > 0:
		r.leaks++
		r.leaked += v.leaked
	}
}

// cuts is how many cuts were tested.
func (r *tally) cuts() (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, kind := range r.counts {
		for _, k := range kind {
			n += k
		}
	}
	return n
}

// table is the counts as a Markdown table.
func (r *tally) table() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var s strings.Builder
	s.WriteString("| |")
	for _, p := range policies {
		fmt.Fprintf(&s, " %s |", p.name)
	}
	s.WriteString(" all |\n| --- |" + strings.Repeat(" ---: |", len(policies)+1) + "\n")
	for _, kind := range slices.Sorted(maps.Keys(r.counts)) {
		fmt.Fprintf(&s, "| %s |", kind)
		all := 0
		for _, p := range policies {
			fmt.Fprintf(&s, " %d |", r.counts[kind][p.name])
		}
		for _, n := range r.counts[kind] {
			all += n
		}
		fmt.Fprintf(&s, " %d |\n", all)
	}
	return s.String()
}

// commit is what is tested.
func commit() string {
	out, err := exec.Command("git", "describe", "--always", "--dirty").Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}

// reportFile is where a full run leaves its results.
const reportFile = "../../../docs/powercut.md"

// report prints the results, and after a full run writes them down.
func (r *tally) report(t *testing.T, commit string, seed uint64, took time.Duration) {
	t.Helper()
	text := fmt.Sprintf("%d cuts, %d failures, FSX_SEED=%d, %v", r.cuts(), r.failures, seed, took.Round(time.Second))
	t.Logf("RESULT power cuts: %s; %d before there was a store, %d left %d blocks to compact\n%s", text, r.none, r.leaks, r.leaked, r.table())
	if !full() {
		return
	}
	old, _ := os.ReadFile(reportFile)
	_, kept, _ := strings.Cut(string(old), keptFrom)
	if kept != "" {
		kept = keptFrom + kept
	}
	must(t, os.WriteFile(reportFile, fmt.Appendf(nil, reportText+"%s", time.Now().UTC().Format("2006-01-02"), commit,
		runtime.NumCPU(), runtime.Version(), text, r.table(), r.none, r.leaks, r.leaked, r.kills, kept), 0o644))
}

// keptFrom begins what is written by hand, and stays: the runs of other tests.
const keptFrom = "\n## Changes of volumes and snapshots\n"

const reportText = `# Power cuts and kills: the last full run

Written by the test itself (test/crash/powercut):

    FSX_FULL=1 go test -v -timeout 0 ./test/crash/powercut

%s, commit %s, %d CPUs, %s.

## Power cuts

**%s.**

%s
Each row is a kind of place, each column what survives of the changes that were
not synced: nothing, an arbitrary part of the writes, an arbitrary part of their
512-byte sectors, another of these for every file, changes of names in any order,
everything. ` + "`anywhere`" + ` is half beside a sync and half after any change of the
disk. %d of the cuts lay before the store was finished; %d were in a compaction
or behind one that was cut short, and left %d blocks in all that a later compaction
gave back.

Of every image: the volume opens; each block has a content that it had since the
last flush that was acknowledged before the cut, and none that was written later;
` + "`check`" + ` finds nothing wrong with every tag verified; what is accounted and not
needed goes back by a compaction; then it is written to, closed, opened again,
compared and checked again. One in eight is first opened read-only.

## Kills

**%s.**

A process works on a store and is killed (SIGKILL) at a random moment, also while
it recovers from the kill before; what it left is verified in the same way.
`
