package relay_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fsximg/fsx/internal/attach/relay"
	"github.com/fsximg/fsx/internal/nbdclient"
)

// device is a relay that runs, and the kernel's ends of its lanes.
type device struct {
	*relay.Relay
	lanes  []*kernel
	ended  chan error
	cancel context.CancelFunc
}

func attach(t *testing.T, s *killable, lanes int, cfg relay.Config) *device {
	t.Helper()
	if cfg.Dial == nil {
		cfg.Dial = s.dial
	}
	first, err := s.dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	r, files, err := relay.New(first, lanes, cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	d := &device{Relay: r, ended: make(chan error, 1), cancel: cancel}
	for _, f := range files {
		d.lanes = append(d.lanes, newKernel(t, f))
	}
	go func() { d.ended <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case <-d.ended:
		case <-time.After(10 * time.Second):
			t.Error("the relay does not end")
		}
	})
	return d
}

func (d *device) must(t *testing.T, kind uint16, off, n int, into, payload []byte) {
	t.Helper()
	if errno := d.lanes[0].do(kind, off, n, into, payload); errno != 0 {
		t.Fatalf("request %d at %d: error %d", kind, off, errno)
	}
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

func TestWhatWasNotFlushedSurvivesTheServer(t *testing.T) {
	s := newKillable(1 << 20)
	d := attach(t, s, 1, relay.Config{Timeout: time.Minute})
	old, now, got := bytes.Repeat([]byte{1}, 4096), bytes.Repeat([]byte{2}, 4096), make([]byte, 4096)
	d.must(t, write, 0, 4096, nil, old)
	d.must(t, write, 8192, 4096, nil, old)
	d.must(t, write, 16384, 4096, nil, old)
	d.must(t, flush, 0, 0, nil, nil)
	d.must(t, write, 0, 4096, nil, now)
	d.must(t, trim, 8192, 4096, nil, nil)
	d.must(t, zeroes, 16384, 2048, nil, nil)
	s.kill()
	s.start()
	want := [][]byte{now, make([]byte, 4096), append(make([]byte, 2048), old[:2048]...)}
	for i, off := range []int{0, 8192, 16384} {
		d.must(t, read, off, 4096, got, nil)
		if !bytes.Equal(got, want[i]) {
			t.Errorf("at %d: % x…, want % x…", off, got[:4], want[i][:4])
		}
	}
}

// worker writes and reads blocks of its own, and knows what they hold.
type worker struct {
	k      *kernel
	rng    *rand.Rand
	base   int
	blocks [8][]byte
}

const blockSize = 1536 // no power of two, so that the log's ring has odd ends

func (w *worker) step(t *testing.T) bool {
	i := w.rng.IntN(len(w.blocks))
	off, kind := w.base+i*blockSize, w.rng.IntN(10)
	errno := uint32(0)
	switch {
	case kind < 5:
		b := make([]byte, blockSize)
		for j := range b {
			b[j] = byte(w.rng.Uint32())
		}
		errno = w.k.do(write, off, blockSize, nil, b)
		w.blocks[i] = b
	case kind == 5:
		errno = w.k.do(trim, off, blockSize, nil, nil)
		w.blocks[i] = make([]byte, blockSize)
	case kind == 6:
		errno = w.k.do(zeroes, off, blockSize, nil, nil)
		w.blocks[i] = make([]byte, blockSize)
	case kind == 7 && w.rng.IntN(4) == 0:
		errno = w.k.do(flush, 0, 0, nil, nil)
	default:
		got := make([]byte, blockSize)
		errno = w.k.do(read, off, blockSize, got, nil)
		if errno == 0 && !bytes.Equal(got, w.blocks[i]) {
			t.Errorf("at %d: % x…, want % x…", off, got[:8], w.blocks[i][:8])
			return false
		}
	}
	if errno != 0 {
		t.Errorf("request at %d: error %d", off, errno)
	}
	return errno == 0
}

func TestModel(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	steps, workers := 200, 12
	if testing.Short() {
		steps = 60
	}
	s := newKillable(workers * 8 * blockSize)
	d := attach(t, s, 2, relay.Config{Timeout: time.Minute})
	stop := make(chan struct{})
	var killer, all sync.WaitGroup
	kills := 0
	killer.Go(func() {
		rng := rand.New(rand.NewPCG(seed, 0))
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Duration(rng.IntN(20000)) * time.Microsecond):
			}
			s.kill()
			kills++
			time.Sleep(time.Duration(rng.IntN(3000)) * time.Microsecond)
			s.start()
		}
	})
	for i := range workers {
		w := &worker{k: d.lanes[i%2], rng: rand.New(rand.NewPCG(seed, uint64(i+1))), base: i * 8 * blockSize}
		for j := range w.blocks {
			w.blocks[j] = make([]byte, blockSize)
		}
		all.Go(func() {
			for range steps {
				if !w.step(t) {
					return
				}
			}
		})
	}
	all.Wait()
	close(stop)
	killer.Wait()
	t.Logf("%d kills", kills)
	if kills < 3 {
		t.Errorf("only %d kills", kills)
	}
}

func TestTimeOut(t *testing.T) {
	s := newKillable(1 << 20)
	d := attach(t, s, 1, relay.Config{Timeout: 300 * time.Millisecond})
	data, got := bytes.Repeat([]byte{7}, 4096), make([]byte, 4096)
	d.must(t, write, 0, 4096, nil, data)
	began := time.Now()
	s.kill()
	if errno := d.lanes[0].do(write, 4096, 4096, nil, data); errno != 5 {
		t.Errorf("error %d, want EIO", errno)
	}
	if waited := time.Since(began); waited < 200*time.Millisecond {
		t.Errorf("failed after %s", waited)
	}
	if d.State() != relay.Failed {
		t.Errorf("state %s", d.State())
	}
	if errno := d.lanes[0].do(read, 0, 4096, got, nil); errno != 5 {
		t.Errorf("later: error %d, want EIO", errno)
	}
	s.start()
	eventually(t, "up again", func() bool { return d.State() == relay.Up })
	d.must(t, read, 0, 4096, got, nil)
	if !bytes.Equal(got, data) {
		t.Error("what was answered before the server died is lost")
	}
	d.must(t, read, 4096, 4096, got, nil)
	if !bytes.Equal(got, make([]byte, 4096)) {
		t.Error("a write that failed was carried out")
	}
}

func TestMemoryIsUsedUp(t *testing.T) {
	if testing.Short() {
		t.Skip("tens of MiB are slow under the race detector")
	}
	s := newKillable(40 << 20)
	d := attach(t, s, 1, relay.Config{Timeout: time.Minute, Memory: 33 << 20})
	data := bytes.Repeat([]byte{9}, 1<<20)
	for i := range 40 {
		d.must(t, write, i<<20, 1<<20, nil, data)
	}
	if s.flushes == 0 {
		t.Error("the server was not told to flush")
	}
	s.kill()
	s.start()
	got := make([]byte, 1<<20)
	for i := range 40 {
		d.must(t, read, i<<20, 1<<20, got, nil)
		if !bytes.Equal(got, data) {
			t.Fatalf("MiB %d is lost", i)
		}
	}
	// A server that cannot flush: writes fail, they do not hang.
	s.set(func(kind uint16, _ uint64) uint32 {
		if kind == flush {
			return 5
		}
		return 0
	})
	failed := false
	for i := 0; i < 40 && !failed; i++ {
		failed = d.lanes[0].do(write, i<<20, 1<<20, nil, data) == 5
	}
	if !failed {
		t.Error("more was kept than there is memory")
	}
}

func TestAServerThatShutsDownIsWaitedFor(t *testing.T) {
	s := newKillable(1 << 20)
	d := attach(t, s, 1, relay.Config{Timeout: time.Minute})
	var refused atomic.Int32
	s.set(func(kind uint16, _ uint64) uint32 {
		if refused.Add(1) <= 3 {
			return 108
		}
		return 0
	})
	d.must(t, write, 0, 4096, nil, make([]byte, 4096))
	if n := refused.Load(); n != 4 {
		t.Errorf("asked %d times", n)
	}
}

func TestErrorsAndUnknownRequests(t *testing.T) {
	s := newKillable(1 << 20)
	d := attach(t, s, 1, relay.Config{Timeout: time.Minute})
	s.set(func(kind uint16, off uint64) uint32 {
		if off == 4096 {
			return 28
		}
		return 0
	})
	if errno := d.lanes[0].do(write, 4096, 512, nil, make([]byte, 512)); errno != 28 {
		t.Errorf("error %d, want ENOSPC", errno)
	}
	if errno := d.lanes[0].do(7, 0, 512, nil, nil); errno != 22 {
		t.Errorf("block status: error %d, want EINVAL", errno)
	}
	d.must(t, write, 0, 512, nil, make([]byte, 512))
}

func TestAnotherExportIsNotUsed(t *testing.T) {
	s, other := newKillable(1<<20), newKillable(1<<19)
	use := atomic.Pointer[killable]{}
	use.Store(other)
	d := attach(t, s, 1, relay.Config{Timeout: 200 * time.Millisecond, Dial: func(ctx context.Context) (*nbdclient.Socket, error) {
		return use.Load().dial(ctx)
	}})
	s.kill()
	if errno := d.lanes[0].do(read, 0, 512, make([]byte, 512), nil); errno != 5 {
		t.Errorf("error %d, want EIO", errno)
	}
	s.start()
	use.Store(s)
	eventually(t, "up again", func() bool { return d.State() == relay.Up })
	d.must(t, read, 0, 512, make([]byte, 512), nil)
}

func TestReadOnly(t *testing.T) {
	s := newKillable(1 << 20)
	s.flags = 1 | nbdclient.ReadOnly // it cannot even flush
	d := attach(t, s, 1, relay.Config{Timeout: time.Minute})
	d.must(t, read, 0, 512, make([]byte, 512), nil)
	if errno := d.lanes[0].do(write, 0, 512, nil, make([]byte, 512)); errno != 5 {
		t.Errorf("write: error %d, want EIO", errno)
	}
	s.kill()
	s.start()
	d.must(t, read, 0, 512, make([]byte, 512), nil)
}

func TestNewRefuses(t *testing.T) {
	s := newKillable(1 << 20)
	s.flags = 1
	first, err := s.dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer first.File.Close()
	if _, _, err := relay.New(first, 1, relay.Config{Dial: s.dial}); err == nil {
		t.Error("a server that cannot flush was accepted")
	}
	first.Flags = flags
	if _, _, err := relay.New(first, 1, relay.Config{Dial: s.dial, Memory: 1 << 20}); err == nil {
		t.Error("memory that one request fills was accepted")
	}
}

func TestEnd(t *testing.T) {
	s := newKillable(1 << 20)
	d := attach(t, s, 2, relay.Config{Timeout: time.Minute})
	d.must(t, write, 0, 512, nil, make([]byte, 512))
	for _, k := range d.lanes {
		k.begin(leave, 0, 0, nil, nil)
	}
	select {
	case err := <-d.ended:
		if err != nil {
			t.Error(err)
		}
		d.ended <- nil // for the clean-up
	case <-time.After(10 * time.Second):
		t.Fatal("it goes on after the kernel has left")
	}
	eventually(t, "goodbye", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.left == 1
	})
}

func TestEndWithoutAServer(t *testing.T) {
	s := newKillable(1 << 20)
	d := attach(t, s, 1, relay.Config{Timeout: time.Minute})
	s.kill()
	eventually(t, "waiting", func() bool { return d.State() == relay.Waiting })
	d.lanes[0].begin(write, 0, 512, nil, make([]byte, 512))
	d.cancel()
	select {
	case err := <-d.ended:
		if !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		d.ended <- nil
	case <-time.After(10 * time.Second):
		t.Fatal("it does not end")
	}
}
