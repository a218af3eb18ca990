// Package powercut_test cuts the power of whole stores, and kills the processes
// that have them open: everything that was acknowledged is there afterwards.
//
// A script makes operations from a seed; a runner does them to a store, alone
// or under the recorder of test/crash; a model knows which contents a block had
// since the last acknowledged flush; verify opens what is left. FSX_SEED
// repeats the scripts and choices of a run (not its timing); FSX_CUTS is how
// many cuts there are; FSX_KEEP is a folder for the images that fail;
// FSX_TEST_LOG shows the engine's log.
package powercut_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/fsximg/fsx/test/crash"
)

func TestMain(m *testing.M) {
	if conf := os.Getenv(workerEnv); conf != "" {
		if err := work([]byte(conf)); err != nil {
			fmt.Fprintln(os.Stderr, "worker:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if dir := os.Getenv(indexEnv); dir != "" {
		fmt.Fprintln(os.Stderr, "index:", spoilIndex(dir))
		os.Exit(1)
	}
	crash.Main(m)
}

func seedOf(t *testing.T) uint64 {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if e := os.Getenv("FSX_SEED"); e != "" {
		n, err := strconv.ParseUint(e, 0, 64)
		must(t, err)
		seed = n
	}
	t.Logf("FSX_SEED=%d", seed)
	return seed
}

func full() bool { return os.Getenv("FSX_FULL") != "" }

// wanted is how many cuts a run makes.
func wanted(t *testing.T) int {
	t.Helper()
	if e := os.Getenv("FSX_CUTS"); e != "" {
		n, err := strconv.Atoi(e)
		must(t, err)
		return n
	}
	if full() {
		return 10_000
	}
	return 360
}

const (
	kindSync    = "beside every sync"
	kindRandom  = "anywhere"
	kindCompact = "in a compaction"
	kindSecond  = "during or after a recovery from a cut"
	kindKilled  = "after a kill, during or after the recovery"
)

// volumeSize is odd: the last block is cut short.
const volumeSize = 8<<20 - 1536

func TestPowerCuts(t *testing.T) {
	seed, n := seedOf(t), wanted(t)
	began, tested := time.Now(), commit()
	rng := rand.New(rand.NewPCG(seed, 1))
	for round := 0; results.cuts() < n && !t.Failed(); round++ {
		t.Run(fmt.Sprint("syncs", round), func(t *testing.T) {
			r := record(t, rng.Uint64(), volumeSize, 60)
			r.verifyCuts(t, kindSync, everySync(r.Trace(), 0, rng))
		})
		t.Run(fmt.Sprint("random", round), func(t *testing.T) {
			r := record(t, rng.Uint64(), volumeSize, 400)
			r.verifyCuts(t, kindRandom, somewhere(r.Trace(), 0, 80, rng))
			second(t, r, rng)
		})
		t.Run(fmt.Sprint("compaction", round), func(t *testing.T) { compaction(t, rng) })
		t.Run(fmt.Sprint("killed", round), func(t *testing.T) { killed(t, rng) })
	}
	results.report(t, tested, seed, time.Since(began))
}

// second cuts a recording, recovers what is left under another recorder, and
// cuts that.
func second(t *testing.T, r *recording, rng *rand.Rand) {
	for _, c := range somewhere(r.Trace(), r.Trace().MarkAt(startMark(0)), 2, rng) {
		img := r.Image(c.at, c.seed, c.Policy)
		rec := crash.Mount(t, crash.Options{Base: img})
		m := recordRecovery(t, rec, 0, newScript(rng.Uint64(), volumeSize), 12)
		rec.Unmount()
		first := r.promiseAt(c.at)
		if err := first.m.compare(m.start(), first.floor, first.ceil, nil); err != nil {
			t.Errorf("%v (%v): %v", c, first, err)
		}
		again := &recording{Recorder: rec, models: []*model{m}, before: promise{m: newModel(m.start())}}
		again.verifyCuts(t, kindSecond, append(everySync(rec.Trace(), 0, rng), somewhere(rec.Trace(), 0, 10, rng)...))
		os.RemoveAll(img)
	}
}

// compaction cuts while the live half of a volume is moved: several segments
// have become mostly dead, in different ways.
func compaction(t *testing.T, rng *rand.Rand) {
	rec := crash.Mount(t, crash.Options{})
	must(t, createStore(filepath.Join(rec.Dir(), storeName), volumeSize))
	rec.Mark(startMark(0))
	start := emptyState(volumeSize)
	m := newModel(start)
	r := &runner{script: newScript(rng.Uint64(), volumeSize), path: rec.Dir(), acked: marker(rec.Dir(), 0)}
	must(t, r.open())
	do := func(a action, off, n int64) {
		o := operation{a, r.next, off * blockSize, n * blockSize}
		r.next++
		must(t, r.do(o))
		m.apply(r.script, o)
	}
	for at := int64(0); at < r.strict()-128; at += 128 {
		do(writeBlocks, at, 128)
	}
	do(flush, 0, 0)
	do(checkpoint, 0, 0)
	for at := int64(0); at < r.strict()-128; at += 32 {
		n := 17 + rng.Int64N(15)
		do([]action{writeBlocks, trim, zero}[rng.IntN(3)], at+rng.Int64N(32-n+1), n)
	}
	do(flush, 0, 0)
	rec.Mark("compact")
	do(compact, 0, 0)
	rec.Mark("compacted")
	must(t, r.close())
	rec.Unmount()
	c := &recording{Recorder: rec, models: []*model{m}}
	tr := rec.Trace()
	from, to := tr.MarkAt("compact"), tr.MarkAt("compacted")
	cuts := append(everySync(tr, from, rng), somewhere(tr, from, 20, rng)...)
	c.verifyCuts(t, kindCompact, slices.DeleteFunc(cuts, func(c cut) bool { return c.at > to }))
}
