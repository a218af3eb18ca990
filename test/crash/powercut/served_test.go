package powercut_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fsximg/fsx/internal/cliutil"
	"github.com/fsximg/fsx/internal/control"
	"github.com/fsximg/fsx/internal/nbdclient"
	"github.com/fsximg/fsx/internal/volume"
	"github.com/fsximg/fsx/test/crash"
)

// TestServedKills kills fsxnbd (SIGKILL), again and again, while commands change
// through its control socket what volumes and snapshots there are and a client
// writes to main. What is left is the state before the command that was under way
// or the one after it, with all that was flushed to main; and a snapshot of main has
// what main had at one moment. There is a kill for every twelve cuts of FSX_CUTS.
func TestServedKills(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIP: -short")
	}
	rounds := wanted(t) / 12
	if full() {
		rounds = 1000
	}
	seed := seedOf(t)
	rng := rand.New(rand.NewPCG(seed, 4))
	k := &servedKills{program: serverProgram(t), keys: servedKeys(t), under: map[string]int{}}
	began, path := time.Now(), ""
	var now inventory
	for round := range rounds {
		if round%20 == 0 {
			os.RemoveAll(filepath.Dir(path))
			path = filepath.Join(crash.TempDir(t), storeName)
			must(t, createStore(path, familySize))
			now = inventory{data: map[string][]byte{"main": make([]byte, familySize)}, snaps: map[string][]string{"main": nil}}
		}
		var err error
		if now, err = k.round(t, path, now, rand.New(rand.NewPCG(rng.Uint64(), 5))); err != nil {
			t.Errorf("round %d: %v", round, err)
			if keep := os.Getenv("FSX_KEEP"); keep != "" {
				os.Remove(filepath.Join(path, control.SocketName)) // CopyFS takes files only
				must(t, os.CopyFS(filepath.Join(keep, fmt.Sprint("served", seed)), os.DirFS(filepath.Dir(path))))
			}
			return
		}
	}
	t.Logf("RESULT served kills: %d kills of fsxnbd after %d changes and %d writes, FSX_SEED=%d, %v; under way were %v",
		rounds, k.changes, k.writes, seed, time.Since(began).Round(time.Second), k.under)
	if k.changes == 0 || k.writes == 0 {
		t.Error("nothing was done before the kills")
	}
}

// serverProgram is fsxnbd, of FSX_BIN or built here.
func serverProgram(t *testing.T) string {
	t.Helper()
	if dir := os.Getenv("FSX_BIN"); dir != "" {
		return filepath.Join(dir, "fsxnbd")
	}
	program := filepath.Join(t.TempDir(), "fsxnbd")
	out, err := exec.Command("go", "build", "-o", program, "../../../cmd/fsxnbd").CombinedOutput()
	if err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return program
}

// servedKeys are the options for the key files of secrets and of otherSecret.
func servedKeys(t *testing.T) (args []string) {
	t.Helper()
	for i, key := range [][]byte{bytes.Repeat([]byte{0xa5, 1, 2, 0xff}, 8), otherKey} {
		file := filepath.Join(t.TempDir(), fmt.Sprint("key", i))
		must(t, os.WriteFile(file, key, 0o600))
		args = append(args, "--key-file", file)
	}
	return args
}

// servedKills counts what was done.
type servedKills struct {
	program         string
	keys            []string
	changes, writes int
	under           map[string]int // what was under way at the kills
}

// round serves a store that has what now says, kills the server, and finds out
// what is left, which it returns.
func (k *servedKills) round(t *testing.T, path string, now inventory, rng *rand.Rand) (inventory, error) {
	srv := startServer(t, k.program, path, k.keys)
	defer srv.kill()
	c := &changer{path: path, rng: rng, now: now, next: now, diary: &diary{base: now.data["main"]}, srv: srv, what: "start"}
	idle := rng.IntN(8) == 0 // killed while it starts
	ended := make(chan error, 2)
	life := time.Duration(rng.Int64N(int64(300 * time.Millisecond)))
	if idle {
		life /= 4
		ended <- nil
		ended <- nil
	} else {
		if err := srv.ready(); err != nil {
			return now, err
		}
		go func() { ended <- c.write(rand.New(rand.NewPCG(rng.Uint64(), 6))) }()
		go func() { ended <- c.change() }()
	}
	time.Sleep(life)
	srv.kill()
	if err := errors.Join(<-ended, <-ended); err != nil {
		return now, fmt.Errorf("%w\n%s", err, &srv.stderr)
	}
	k.changes += c.done
	k.writes += c.diary.acked
	k.under[c.what]++
	left, err := c.verify()
	if err != nil {
		return now, fmt.Errorf("killed in \"%s %s\" after %d changes (%s): %w", c.what, c.with, c.done, strings.Join(c.did, ", "), err)
	}
	return left, nil
}

// verify compares what is left with what may be there. One store in four is only
// looked at, so that the next server recovers it.
func (c *changer) verify() (inventory, error) {
	o := options()
	o.ReadOnly = c.rng.IntN(4) == 0
	s, err := openFamilyWith(c.path, o)
	if err != nil {
		return c.now, fmt.Errorf("open: %w", err)
	}
	got := map[string][]byte{}
	err = visit(s, func(name string, p []byte) { got[name] = p })
	var left inventory
	if err == nil {
		left, err = settle(got, c.diary, c.now, c.next)
	}
	if err == nil {
		err = checkFamily(s, true)
	}
	if err == nil && !o.ReadOnly {
		if _, err = s.Compact(context.Background()); err == nil {
			err = checkFamily(s, false)
		}
	}
	return left, errors.Join(err, s.Close())
}

// server is a fsxnbd process.
type server struct {
	cmd    *exec.Cmd
	out    *bufio.Reader
	stderr bytes.Buffer
	dying  atomic.Bool
}

func startServer(t *testing.T, program, path string, keys []string) *server {
	t.Helper()
	return startServerAt(t, program, path, filepath.Join(t.TempDir(), "s"), keys)
}

func startServerAt(t *testing.T, program, path, socket string, keys []string) *server {
	t.Helper()
	args := append([]string{"serve", "--socket", socket}, keys...)
	s := &server{cmd: exec.Command(program, append(args, path)...)}
	s.cmd.Stderr = &s.stderr
	out, err := s.cmd.StdoutPipe()
	must(t, err)
	s.out = bufio.NewReader(out)
	must(t, s.cmd.Start())
	return s
}

// ready waits until it serves.
func (s *server) ready() error {
	if _, err := s.out.ReadString('\n'); err != nil {
		s.kill()
		return fmt.Errorf("the server does not start: %s", &s.stderr)
	}
	return nil
}

// kill kills the server, once; what its clients fail at from now on is no failure.
func (s *server) kill() {
	if s.dying.Swap(true) {
		return
	}
	s.cmd.Process.Kill()
	s.cmd.Wait()
}

// unlessDying is err, or nil if the server is being killed.
func (s *server) unlessDying(err error) error {
	if s.dying.Load() {
		return nil
	}
	return err
}

// visit reads all volumes and snapshots of a store.
func visit(s *volume.Store, fn func(name string, p []byte)) error {
	read := func(name string, r reader) error {
		p := make([]byte, r.Size(), r.Size()+16)
		err := r.ReadAt(p, 0, false)
		fn(name, p)
		return err
	}
	for _, name := range s.Names() {
		v, err := s.Volume(name)
		if err == nil {
			err = read(name, v)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		for _, snap := range v.Snapshots() {
			d, err := v.Snapshot(snap.Name)
			if err == nil {
				err = read(name+"@"+snap.Name, d)
			}
			if err != nil {
				return fmt.Errorf("%s@%s: %w", name, snap.Name, err)
			}
		}
	}
	return nil
}

// see is what all volumes and snapshots hold, as sums.
func see(s *volume.Store) (content, error) {
	c := content{}
	err := visit(s, func(name string, p []byte) { c[name] = sumOf(p) })
	if err != nil {
		return nil, err
	}
	volumes, err := s.Volumes()
	for _, v := range volumes {
		c["volume key of "+v.Name] = sumOf(v.VolumeKey[:])
	}
	c["slots"] = sumOf(fmt.Append(nil, s.Keyring().Slots()))
	return c, err
}

// dialServed connects to a volume or a snapshot of the store at path.
func dialServed(ctx context.Context, c *control.Client, volume, snapshot string) (*nbdclient.Client, error) {
	uri, err := c.URI(ctx, volume, snapshot)
	if err != nil {
		return nil, err
	}
	return nbdclient.Dial(ctx, uri)
}

// write is the client that writes to main until the server is killed.
func (c *changer) write(rng *rand.Rand) error {
	ctx := context.Background()
	server, err := control.Dial(ctx, c.path)
	if err != nil {
		return c.srv.unlessDying(err)
	}
	client, err := dialServed(ctx, server, "main", "")
	if err != nil {
		return c.srv.unlessDying(err)
	}
	defer client.Close()
	seed := rng.Uint64()
	for i := 0; ; i++ {
		b := rng.Int64N(blocksOf(familySize))
		w := blockWrite{b * blockSize, make([]byte, min(blockSize, familySize-b*blockSize))}
		fill(w.data, seed, b, i)
		c.diary.begin(w)
		if err := client.WriteAt(w.data, w.off); err != nil {
			return c.srv.unlessDying(err)
		}
		c.diary.answered()
		if rng.IntN(16) > 0 {
			continue
		}
		if err := client.Flush(); err != nil {
			return c.srv.unlessDying(err)
		}
		c.diary.flushed()
	}
}

// again repeats what is refused because a client has not quite left.
func again(do func() error) error {
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if err := do(); !errors.Is(err, cliutil.ErrInUse) || time.Now().After(end) {
			return err
		}
	}
}
