package powercut_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fsximg/fsx/test/crash"
)

// workerEnv is the configuration of a process that runs a script until it is
// killed.
const workerEnv = "FSX_POWERCUT_WORKER"

type workerConfig struct {
	Dir  string
	Seed uint64
	Size int64
	Mark bool // Dir is recorded: mark phase 0
}

// work is the worker's main function. It says on its standard output "start"
// when the store is open, "done k" after each operation, and "durable k".
func work(conf []byte) error {
	var c workerConfig
	if err := json.Unmarshal(conf, &c); err != nil {
		return err
	}
	mark := marker(c.Dir, 0)
	r := &runner{script: newScript(c.Seed, c.Size), path: c.Dir,
		done: func(k int) { fmt.Printf("done %d\n", k) },
		acked: func(k int, alone bool) error {
			fmt.Printf("durable %d\n", k)
			if !c.Mark {
				return nil
			}
			return mark(k, alone)
		}}
	if err := r.open(); err != nil {
		return err
	}
	fmt.Println("start")
	return r.run(1 << 30)
}

// worker is a started process.
type worker struct {
	cmd    *exec.Cmd
	stderr strings.Builder
	start  chan struct{} // closed when its store is open, or it has ended
	ended  chan struct{}

	floor, done int
}

func startWorker(t *testing.T, c workerConfig) *worker {
	t.Helper()
	conf, err := json.Marshal(c)
	must(t, err)
	w := &worker{cmd: exec.Command("/proc/self/exe", "-test.run=^$"), start: make(chan struct{}), ended: make(chan struct{}), done: -1}
	w.cmd.Env = append(os.Environ(), workerEnv+"="+string(conf))
	w.cmd.Stderr = &w.stderr
	out, err := w.cmd.StdoutPipe()
	must(t, err)
	must(t, w.cmd.Start())
	go func() {
		defer close(w.ended)
		started := false
		for s := bufio.NewScanner(out); s.Scan(); {
			var k int
			if n, _ := fmt.Sscanf(s.Text(), "done %d", &k); n == 1 {
				w.done = k
			} else if n, _ := fmt.Sscanf(s.Text(), "durable %d", &k); n == 1 {
				w.floor = max(w.floor, k)
			} else if s.Text() == "start" {
				started = true
				close(w.start)
			}
		}
		if !started {
			close(w.start)
		}
	}()
	return w
}

// kill ends the worker, which must not have ended by itself.
func (w *worker) kill(t *testing.T) {
	t.Helper()
	w.cmd.Process.Kill()
	<-w.ended
	if st, ok := w.wait().Sys().(syscall.WaitStatus); !ok || !st.Signaled() {
		t.Fatalf("the worker has ended by itself: %s", &w.stderr)
	}
}

func (w *worker) wait() *os.ProcessState {
	w.cmd.Wait()
	return w.cmd.ProcessState
}

// ceil is how many operations may have begun.
func (w *worker) ceil() int { return w.done + 2 }

// killSoon kills at a random moment: mostly while the worker works, and
// sometimes while it opens the store.
func (w *worker) killSoon(t *testing.T, rng *rand.Rand, most time.Duration) {
	t.Helper()
	if rng.IntN(6) == 0 {
		time.Sleep(time.Duration(rng.Int64N(int64(60 * time.Millisecond))))
	} else {
		<-w.start
		time.Sleep(time.Duration(rng.Int64N(int64(most))))
	}
	w.kill(t)
}

// killed runs a worker under a recorder and kills it, recovers what it left,
// and cuts the power during that and after: what the recovery saw may have been
// in the page cache only.
func killed(t *testing.T, rng *rand.Rand) {
	rec := crash.Mount(t, crash.Options{})
	must(t, createStore(filepath.Join(rec.Dir(), storeName), volumeSize))
	rec.Mark(startMark(0))
	seed := rng.Uint64()
	w := startWorker(t, workerConfig{rec.Dir(), seed, volumeSize, true})
	w.killSoon(t, rng, 1500*time.Millisecond)
	rec.Mark("killed")
	start := emptyState(volumeSize)
	m0 := modelOf(start, newScript(seed, volumeSize), w.ceil())
	m1 := recordRecovery(t, rec, 1, newScript(rng.Uint64(), volumeSize), 30)
	rec.Unmount()
	if err := m0.compare(m1.start(), w.floor, w.ceil(), nil); err != nil {
		t.Errorf("killed after operation %d: %v", w.done, err)
	}
	r := &recording{Recorder: rec, models: []*model{m0, m1}}
	from := rec.Trace().MarkAt("killed")
	r.verifyCuts(t, kindKilled, append(everySync(rec.Trace(), from, rng), somewhere(rec.Trace(), from, 20, rng)...))
}

// TestKill kills a process that works on a store, again and again.
func TestKill(t *testing.T) {
	rounds := 100
	if full() {
		rounds = 2000
	}
	seed := seedOf(t)
	rng := rand.New(rand.NewPCG(seed, 2))
	began, dir, operations := time.Now(), "", 0
	var start *state
	for round := range rounds {
		if round%20 == 0 {
			os.RemoveAll(dir)
			dir = crash.TempDir(t)
			must(t, createStore(filepath.Join(dir, storeName), volumeSize))
			start = emptyState(volumeSize)
		}
		c := workerConfig{dir, rng.Uint64(), volumeSize, false}
		w := startWorker(t, c)
		w.killSoon(t, rng, 150*time.Millisecond)
		p := promise{m: modelOf(start, newScript(c.Seed, c.Size), w.ceil()), floor: w.floor, ceil: w.ceil()}
		var err error
		if rng.IntN(4) == 0 { // and the next one recovers it
			start, err = verifyReadOnly(filepath.Join(dir, storeName), p)
		} else {
			var v verdict
			v, err = verify(dir, p, rng.Uint64())
			start = v.left
		}
		if err != nil {
			t.Fatalf("round %d, worker's seed %d, killed after operation %d (%v): %v", round, c.Seed, w.done, p, err)
		}
		operations += w.done + 1
	}
	results.kills = fmt.Sprintf("%d kills after %d operations, FSX_SEED=%d, %v", rounds, operations, seed, time.Since(began).Round(time.Second))
	t.Log("RESULT kills:", results.kills)
}
