package powercut_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
)

// tally counts what was tested.
type tally struct {
	mu       sync.Mutex
	counts   map[string]map[string]int // kind, policy
	failures int
	none     int // cuts before there was a store
	leaks    int // cuts that left blocks to be compacted
	leaked   uint64
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
