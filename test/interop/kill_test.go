package interop_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// regionSize is the part of the volume that one writer of TestKill owns.
const regionSize = 1 << 20

// operation is one request of a writer. Its effect is known without the server.
type operation struct {
	kind byte // 'w' write, 'z' zero, 't' trim
	off  int64
	n    int
	seed uint64
}

func (o operation) apply(p []byte) {
	part := p[o.off : o.off+int64(o.n)]
	if o.kind == 'w' {
		copy(part, noise(rand.New(rand.NewPCG(o.seed, 2)), o.n))
	} else {
		clear(part)
	}
}

func (o operation) send(c *client, base int64) error {
	switch o.kind {
	case 'w':
		return c.writeAt(noise(rand.New(rand.NewPCG(o.seed, 2)), o.n), base+o.off, 0)
	case 'z':
		return c.zero(base+o.off, o.n)
	}
	return c.trim(base+o.off, o.n)
}

// region is the model of one writer's part: what is certainly durable, and what
// was sent after that, in order.
type region struct {
	base int64

	mu      sync.Mutex
	durable []byte
	settled int         // operations in durable
	pending []operation // those after; the last one may not have been acknowledged
	acked   int         // operations acknowledged, settled ones included
}

// begin records an operation before it is sent.
func (r *region) begin(o operation) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pending = append(r.pending, o)
}

func (r *region) acknowledge() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.acked++
}

// mark is how many operations a flush that is sent now must cover.
func (r *region) mark() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.acked
}

// settle makes all operations up to the mark durable; flushes that ran at the
// same time may be settled in any order.
func (r *region) settle(mark int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.settled < mark {
		r.pending[0].apply(r.durable)
		r.pending = r.pending[1:]
		r.settled++
	}
}

// recovered requires that what the server has after a crash is no older than the
// last flush, block by block: each block must be as it was after some of the
// pending operations, in their order. Between flushes NBD promises no order
// among blocks. The region goes on from what was read.
func (r *region) recovered(got []byte) (lost int, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	const blocks = regionSize / 4096
	var matched, newest [blocks]bool
	state := bytes.Clone(r.durable)
	for i := 0; ; i++ {
		for b := range blocks {
			newest[b] = bytes.Equal(got[b*4096:(b+1)*4096], state[b*4096:(b+1)*4096])
			matched[b] = matched[b] || newest[b]
		}
		if i == len(r.pending) {
			break
		}
		r.pending[i].apply(state)
	}
	for b := range blocks {
		if !matched[b] {
			return 0, fmt.Errorf("block at %d holds neither what was flushed nor what any of the %d later operations left there%s",
				r.base+int64(b)*4096, len(r.pending), r.history(b))
		}
		if !newest[b] {
			lost++
		}
	}
	r.durable, r.pending, r.settled = bytes.Clone(got), nil, r.acked
	return lost, nil
}

// history names the pending operations that touched a block; the caller holds mu.
func (r *region) history(block int) string {
	text := ", touched by"
	for i, o := range r.pending {
		if o.off < int64(block+1)*4096 && o.off+int64(o.n) > int64(block)*4096 {
			text += fmt.Sprintf(" %d%c[%d+%d]", i+1, o.kind, o.off, o.n)
		}
	}
	return text
}

// mixOf says whether every block of got is that of a or that of b.
func mixOf(got, a, b []byte) bool {
	for at := 0; at < len(got); at += 4096 {
		p := got[at : at+4096]
		if !bytes.Equal(p, a[at:at+4096]) && !bytes.Equal(p, b[at:at+4096]) {
			return false
		}
	}
	return true
}

// fleet is several writers, each with its region, on one volume.
type fleet struct{ regions []*region }

// write sends random operations and flushes until the connection breaks.
func (f *fleet) write(c *client, own *region, rng *rand.Rand) (flushes int) {
	for {
		if rng.IntN(24) == 0 {
			if !f.flush(c) {
				return flushes
			}
			flushes++
			continue
		}
		o := randomOperation(rng)
		own.begin(o)
		if o.send(c, own.base) != nil {
			return flushes
		}
		own.acknowledge()
	}
}

// flush covers every operation of every writer that was complete before it.
func (f *fleet) flush(c *client) bool {
	marks := make([]int, len(f.regions))
	for i, r := range f.regions {
		marks[i] = r.mark()
	}
	if c.flush() != nil {
		return false
	}
	for i, r := range f.regions {
		r.settle(marks[i])
	}
	return true
}

func randomOperation(rng *rand.Rand) operation {
	o := operation{kind: 'w', seed: rng.Uint64()}
	switch k := rng.IntN(20); {
	case k == 0:
		o.kind, o.n = 'z', rng.IntN(200000)+1
	case k == 1: // a trim may round inwards, so its range is whole blocks
		o.kind, o.n = 't', (rng.IntN(40)+1)*4096
	case k < 10:
		o.n = 4096
	case k < 15:
		o.n = rng.IntN(9000) + 1
	default:
		o.n = (rng.IntN(16) + 1) * 4096
	}
	o.off = rng.Int64N(regionSize - int64(o.n))
	if o.kind == 't' || o.n%4096 == 0 {
		o.off &^= 4095
	}
	return o
}

// TestKill ends the server with SIGKILL at random moments, while several
// connections write and flush. After each restart every block must be at least
// as new as the last flush, on whichever connection that was.
func TestKill(t *testing.T) {
	need(t)
	rng := random(t)
	const writers = 3
	s := newStore(t, t.TempDir())
	s.create("64M")
	f := &fleet{}
	for i := range writers {
		f.regions = append(f.regions, &region{base: int64(i) * (17 << 20), durable: make([]byte, regionSize)})
	}
	rounds := choose(25, 500)
	flushes, lost := 0, 0
	for round := range rounds {
		srv := s.serve()
		lost += f.verify(t, srv, round)
		flushes += f.round(t, srv, rng)
		if rng.IntN(3) == 0 { // without a server before the next one recovers
			t.Logf("round %d: check without a server", round)
			s.fsximg(exitOK, "check", s.path)
		}
		if rng.IntN(3) == 0 { // in the middle of the recovery, or behind it
			delay := time.Duration(rng.IntN(150)) * time.Millisecond
			t.Logf("round %d: kill the next server after %v", round, delay)
			srv, _ := s.launch("--key-file", s.key)
			time.Sleep(delay)
			srv.kill()
		}
	}
	srv := s.serve()
	f.verify(t, srv, rounds)
	srv.stop()
	s.check()
	result(t, "%d kills, %d flushes acknowledged, %d blocks older than the last write to them, none older than a flush", rounds, flushes, lost)
	if flushes < rounds {
		t.Errorf("only %d flushes in %d rounds prove little", flushes, rounds)
	}
}

// round lets all writers write, kills the server under them and waits for them.
func (f *fleet) round(t *testing.T, srv *server, rng *rand.Rand) (flushes int) {
	t.Helper()
	var wg sync.WaitGroup
	counts := make([]int, len(f.regions))
	for i, r := range f.regions {
		c := dial(t, srv.socket, "main")
		own := rand.New(rand.NewPCG(rng.Uint64(), 3))
		wg.Go(func() { counts[i] = f.write(c, r, own) })
	}
	time.Sleep(time.Duration(rng.IntN(700)+5) * time.Millisecond)
	srv.kill()
	wg.Wait()
	for _, n := range counts {
		flushes += n
	}
	return flushes
}

// verify reads every region from a restarted server.
func (f *fleet) verify(t *testing.T, srv *server, round int) (lost int) {
	t.Helper()
	c := dial(t, srv.socket, "main")
	defer c.close()
	for _, r := range f.regions {
		got, err := c.readAll(r.base, regionSize)
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		n, err := r.recovered(got)
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		lost += n
	}
	return lost
}

// TestKillMounted kills the server under a mounted filesystem. Every file that
// was fsynced before must be there after a restart, and the filesystem clean
// once its journal was replayed.
func TestKillMounted(t *testing.T) {
	needMount(t)
	need(t, "mkfs.ext4", "e2fsck")
	rng := random(t)
	s := newStore(t, t.TempDir())
	s.create("128M")
	srv := s.serve()
	a := attach(t, srv.uri)
	must(t, "mkfs.ext4", "-q", "-F", a.device)
	synced := make(map[string][]byte)
	for round := range choose(3, 30) {
		killMounted(t, srv, a.mount(), rng, synced, round)
		a.detach()
		srv = s.serve()
		a = attach(t, srv.uri)
		dir := a.mount() // replays the journal
		for name, want := range synced {
			got, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil || !bytes.Equal(got, want) {
				t.Fatalf("round %d: %s was fsynced and is lost: %v", round, name, err)
			}
		}
		a.unmount()
		must(t, "e2fsck", "-fn", a.device)
	}
	a.detach()
	srv.stop()
	s.check()
	result(t, "%d files fsynced before kills, all there", len(synced))
}

// killMounted writes and fsyncs files until the server, killed meanwhile, fails it.
func killMounted(t *testing.T, srv *server, dir string, rng *rand.Rand, synced map[string][]byte, round int) {
	t.Helper()
	killed := make(chan struct{})
	delay := time.Duration(rng.IntN(1200)+300) * time.Millisecond
	go func() {
		defer close(killed)
		time.Sleep(delay)
		srv.kill()
	}()
	defer func() { <-killed }()
	deadline := time.Now().Add(time.Minute)
	for i := 0; time.Now().Before(deadline); i++ {
		name := fmt.Sprintf("r%d-f%d", round, i)
		content := noise(rng, rng.IntN(20000)+1)
		if writeSynced(dir, name, content) != nil {
			return
		}
		synced[name] = content
		if i > 40 { // makes room: the volume is small
			old := fmt.Sprintf("r%d-f%d", round, i-40)
			delete(synced, old)
			if os.Remove(filepath.Join(dir, old)) != nil {
				return
			}
		}
	}
	t.Fatal("writing went on for a minute without the server")
}

// writeSynced writes a file and syncs it and its folder.
func writeSynced(dir, name string, content []byte) error {
	f, err := os.Create(filepath.Join(dir, name))
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(content); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
