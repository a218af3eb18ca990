package trace

import (
	"math/rand/v2"
	"slices"
)

// SyncCuts returns the cuts just before and just after every sync.
func (t *Trace) SyncCuts() []int {
	var cuts []int
	for i := range t.Ops {
		if t.Ops[i].IsSync() {
			cuts = append(cuts, i, i+1)
		}
	}
	return MergeCuts(cuts)
}

// ChangeCuts returns the cuts after every k-th operation that changed
// something.
func (t *Trace) ChangeCuts(k int) []int {
	var cuts []int
	n := 0
	for i := range t.Ops {
		if op := &t.Ops[i]; op.Err == 0 && (op.changesNames() || op.changesFile()) {
			if n++; n%k == 0 {
				cuts = append(cuts, i+1)
			}
		}
	}
	return cuts
}

// MergeCuts returns all cuts once, in ascending order.
func MergeCuts(cuts ...[]int) []int {
	all := slices.Concat(cuts...)
	slices.Sort(all)
	return slices.Compact(all)
}

// SampleCuts returns at most n of the cuts, chosen by the seed, in ascending
// order.
func SampleCuts(cuts []int, n int, seed uint64) []int {
	if len(cuts) <= n {
		return cuts
	}
	rng := rand.New(rand.NewPCG(seed, 0))
	var chosen []int
	for _, i := range rng.Perm(len(cuts))[:n] {
		chosen = append(chosen, cuts[i])
	}
	slices.Sort(chosen)
	return chosen
}

// Marks returns the texts of the marks before the cut, in order.
func (t *Trace) Marks(cut int) []string {
	var marks []string
	for _, op := range t.Ops[:cut] {
		if op.Kind == Mark {
			marks = append(marks, op.Text)
		}
	}
	return marks
}

// MarkAt returns the index of the first mark with that text, or -1.
func (t *Trace) MarkAt(text string) int {
	return slices.IndexFunc(t.Ops, func(op Op) bool { return op.Kind == Mark && op.Text == text })
}
