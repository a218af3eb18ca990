package powercut_test

import (
	"fmt"

	"github.com/fsximg/fsx/internal/vfs/trace"
	"github.com/fsximg/fsx/test/crash"
)

// A trace has phases, each with a model of its own: a run, and what comes after
// a recovery. The marks of phase p are "p start", when its store is there (or
// recovered); "p durable k", when all operations before k are; and "p begun k",
// when those before k have begun and no other has.

// marker marks the acknowledgements of a phase of a runner.
func marker(dir string, phase int) func(k int, alone bool) error {
	return func(k int, alone bool) error {
		if err := crash.Mark(dir, fmt.Sprintf("%d durable %d", phase, k)); err != nil || !alone {
			return err
		}
		return crash.Mark(dir, fmt.Sprintf("%d begun %d", phase, k))
	}
}

// promise is what a volume must have after a cut.
type promise struct {
	m           *model
	floor, ceil int
	// none: the store was not created yet; there may be none.
	none bool
}

func (p promise) String() string { return fmt.Sprintf("durable %d, begun %d", p.floor, p.ceil) }

// recording is a trace with what was promised in it.
type recording struct {
	*crash.Recorder
	models []*model // one for each phase
	before promise  // until the first phase starts
}

// promiseAt is the promise for a cut.
func (r *recording) promiseAt(cut int) promise {
	tr := r.Trace()
	phase, floor := -1, 0
	for _, text := range tr.Marks(cut) {
		var p, k int
		if n, _ := fmt.Sscanf(text, "%d durable %d", &p, &k); n == 2 && p == phase {
			floor = max(floor, k)
		} else if n, _ := fmt.Sscanf(text, "%d start", &p); n == 1 && text == startMark(p) {
			phase, floor = p, 0
		}
	}
	if phase < 0 {
		return r.before
	}
	ceil := r.models[phase].ops
	for _, op := range tr.Ops[cut:] {
		var p, k int
		if n, _ := fmt.Sscanf(op.Text, "%d begun %d", &p, &k); op.Kind == trace.Mark && n == 2 {
			if p == phase {
				ceil = k
			}
			break
		}
	}
	return promise{m: r.models[phase], floor: floor, ceil: ceil}
}

func startMark(phase int) string { return fmt.Sprintf("%d start", phase) }
