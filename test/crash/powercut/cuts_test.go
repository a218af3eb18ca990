package powercut_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/fsximg/fsx/internal/vfs/trace"
	"github.com/fsximg/fsx/test/crash"
)

// policy is a named way in which unsynced changes survive. A store's index
// relies on what file systems do for names of synced files; see trace.Policy.
type policy struct {
	name string
	trace.Policy
}

var policies = []policy{
	{"drop unsynced", journaled(trace.DropUnsynced)},
	{"random mixed", journaled(trace.RandomMixed)},
	{"random torn", journaled(trace.RandomTorn)},
	{"random names", journaled(trace.RandomNames)},
	{"random writes", journaled(trace.RandomWrites)},
	{"keep all", journaled(trace.KeepAll)},
}

func journaled(p trace.Policy) trace.Policy {
	p.Journaled = "meta"
	return p
}

// cut is one power cut: before which operation, and what survives.
type cut struct {
	at   int
	seed uint64
	policy
}

func (c cut) String() string {
	return fmt.Sprintf("cut before operation %d of the trace, %s, seed %d", c.at, c.name, c.seed)
}

// everySync cuts before and after every sync from the operation on, with one
// policy after the other.
func everySync(tr *trace.Trace, from int, rng *rand.Rand) (cuts []cut) {
	p := rng.IntN(len(policies))
	for _, at := range tr.SyncCuts() {
		if at >= from {
			cuts = append(cuts, cut{at, rng.Uint64(), policies[p%len(policies)]})
			p++
		}
	}
	return cuts
}

// somewhere cuts n times after any change from the operation on, half of the
// times beside a sync.
func somewhere(tr *trace.Trace, from, n int, rng *rand.Rand) (cuts []cut) {
	after := func(l []int) []int { return slices.DeleteFunc(l, func(at int) bool { return at < from }) }
	syncs, changes := after(tr.SyncCuts()), after(tr.ChangeCuts(1))
	p := rng.IntN(len(policies))
	for i := range n {
		from := changes
		if i%2 == 0 && len(syncs) > 0 {
			from = syncs
		}
		cuts = append(cuts, cut{from[rng.IntN(len(from))], rng.Uint64(), policies[(p+i/2)%len(policies)]})
	}
	return cuts
}

// verifiers is how many images are verified at the same time.
const verifiers = 2

// maxFailures ends the verification of a recording.
const maxFailures = 5

// verifyCuts makes the images of all cuts and verifies them. It returns how
// many failed.
func (r *recording) verifyCuts(t *testing.T, kind string, cuts []cut) int {
	t.Helper()
	slices.SortFunc(cuts, func(a, b cut) int { return a.at - b.at })
	type job struct {
		cut
		img string
		promise
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	failed := 0
	jobs := make(chan job)
	for range verifiers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for j := range jobs {
				v, err := verify(j.img, j.promise, j.seed)
				os.RemoveAll(j.img)
				results.add(kind, j.name, v, err)
				if err == nil {
					continue
				}
				t.Errorf("%s: %v (%v): %v", kind, j.cut, j.promise, err)
				mu.Lock()
				failed++
				r.keep(t, j.cut, failed)
				mu.Unlock()
			}
		}()
	}
	for _, c := range cuts {
		mu.Lock()
		enough := failed >= maxFailures
		mu.Unlock()
		if enough {
			break
		}
		jobs <- job{c, r.Image(c.at, c.seed, c.Policy), r.promiseAt(c.at)}
	}
	close(jobs)
	wg.Wait()
	return failed
}

// keep puts the image of a failure, and the trace, where FSX_KEEP says.
func (r *recording) keep(t *testing.T, c cut, n int) {
	dir := os.Getenv("FSX_KEEP")
	if dir == "" {
		return
	}
	dir = filepath.Join(dir, fmt.Sprintf("%s-%d-%d", filepath.Base(t.Name()), c.at, c.seed))
	os.MkdirAll(dir, 0o755)
	if err := r.Trace().CrashImage(filepath.Join(dir, "image"), c.at, c.seed, c.Policy); err != nil {
		t.Log(err)
	}
	f, err := os.Create(filepath.Join(dir, "trace"))
	if err != nil {
		t.Log(err)
		return
	}
	defer f.Close()
	if err := r.Trace().Dump(f); err != nil {
		t.Log(err)
	}
	t.Logf("kept in %s", dir)
}

// record runs n operations of a script on a new store under a recorder.
func record(t *testing.T, seed uint64, size int64, n int) *recording {
	t.Helper()
	rec := crash.Mount(t, crash.Options{})
	must(t, createStore(filepath.Join(rec.Dir(), storeName), size))
	rec.Mark(startMark(0))
	start := emptyState(size)
	m := phase(t, rec, 0, start, newScript(seed, size), n)
	rec.Unmount()
	return &recording{Recorder: rec, models: []*model{m}, before: promise{m: newModel(start), none: true}}
}

// phase opens the store, runs n operations and closes it.
func phase(t *testing.T, rec *crash.Recorder, number int, start *state, s *script, n int) *model {
	t.Helper()
	r := &runner{script: s, path: rec.Dir(), acked: marker(rec.Dir(), number)}
	must(t, r.open())
	must(t, r.run(n))
	must(t, r.close())
	return modelOf(start, s.again(), n)
}

// recordRecovery recovers what is in the recorder's directory as phase number,
// goes on for n operations, and returns the model of that: it starts with what
// the recovery found.
func recordRecovery(t *testing.T, rec *crash.Recorder, number int, s *script, n int) *model {
	t.Helper()
	r := &runner{script: s, path: rec.Dir(), acked: marker(rec.Dir(), number)}
	must(t, r.open())
	found, err := observe(r.v)
	must(t, err)
	rec.Mark(startMark(number))
	must(t, r.run(n))
	must(t, r.close())
	return modelOf(found, s.again(), n)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
