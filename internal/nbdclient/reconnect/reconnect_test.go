package reconnect_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/fsximg/fsx/internal/nbdclient/reconnect"
)

const block = 512

// TestKills has writers with blocks of their own, while the server is killed again and
// again with all that was not flushed: nobody sees an error, or anything but what it
// wrote last.
func TestKills(t *testing.T) {
	d := newDisk(64 * 16 * block)
	m := newMachine(t, d)
	c := m.dial(reconnect.Options{Kept: 16 << 10}) // raised to what two requests need
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for w := range 16 {
		wg.Go(func() { scribble(t, c, int64(w*64), rand.New(rand.NewPCG(seed, uint64(w))), stop) })
	}
	rng := rand.New(rand.NewPCG(seed, 99))
	for range 40 {
		enough := d.writes.Load() + rng.Int64N(200)
		within(t, 20*time.Second, "some writes", func() bool { return d.writes.Load() >= enough || t.Failed() })
		m.kill()
		time.Sleep(time.Duration(rng.IntN(5)) * time.Millisecond)
		m.start()
	}
	close(stop)
	wg.Wait()
	must(t, flush(c))
	if !bytes.Equal(d.durable, d.memory) {
		t.Error("a flush left something behind")
	}
	if d.lost == 0 {
		t.Error("no kill took anything: nothing was tested")
	}
}

// scribble changes 64 blocks from first on, at random, and reads them.
func scribble(t *testing.T, c *reconnect.Client, first int64, rng *rand.Rand, stop <-chan struct{}) {
	want := make([]byte, 64*block)
	for {
		select {
		case <-stop:
			wantRead(t, c, first*block, want)
			return
		default:
		}
		b := rng.Int64N(64)
		n := 1 + rng.Int64N(64-b)
		part := want[b*block : (b+n)*block]
		var err error
		switch rng.IntN(40) {
		case 0:
			err = flush(c)
		case 1, 2:
			clear(part)
			err = do(c, reconnect.Discard, (first+b)*block, part)
		case 3:
			clear(part)
			err = do(c, reconnect.Zero, (first+b)*block, part)
		case 4, 5, 6:
			wantRead(t, c, (first+b)*block, part)
		default:
			for i := range part {
				part[i] = byte(rng.Uint32())
			}
			sent := bytes.Clone(part)
			done := submit(c, reconnect.Write, (first+b)*block, sent)
			clear(sent) // the buffer is ours again
			err = <-done
		}
		if err != nil {
			t.Error(err)
			return
		}
	}
}

// TestOverlapsKeepTheirOrder has changes of the same block under way together: the
// server has one of them at the end, and the same one after a kill.
func TestOverlapsKeepTheirOrder(t *testing.T) {
	m := newMachine(t, newDisk(1<<20))
	c := m.dial(reconnect.Options{})
	for round := range 50 {
		var all []<-chan error
		for i := range 20 {
			all = append(all, submit(c, reconnect.Write, 0, bytes.Repeat([]byte{byte(round), byte(i)}, 2048)))
			if i%5 == 4 {
				all = append(all, submit(c, reconnect.Flush, 0, nil))
			}
		}
		for _, done := range all {
			must(t, <-done)
		}
		got := make([]byte, 4096)
		must(t, do(c, reconnect.Read, 0, got))
		if want := bytes.Repeat([]byte{byte(round), 19}, 2048); !bytes.Equal(got, want) {
			t.Fatalf("round %d: %v is not the last", round, got[:2])
		}
		m.kill()
		m.start()
		wantRead(t, c, 0, got)
	}
}

// TestOverlapsWait has a change that the server does not answer.
func TestOverlapsWait(t *testing.T) {
	d := newDisk(1 << 20)
	d.stuck = make(chan struct{})
	c := newMachine(t, d).dial(reconnect.Options{})
	first := submit(c, reconnect.Write, 4096, make([]byte, 4096))
	done := make(chan error, 10)
	try := func(op reconnect.Op, off, n int64) bool {
		r := &reconnect.Request{Op: op, Off: off, Len: n, Done: func(r *reconnect.Request) { done <- r.Err }}
		if op == reconnect.Read {
			r.Data = make([]byte, n)
		}
		return c.TrySubmit(r)
	}
	for _, off := range []int64{1, 4096, 8191} {
		if try(reconnect.Discard, off, 4096) || try(reconnect.Zero, off, 4096) {
			t.Errorf("a change at %d was sent", off)
		}
	}
	if !try(reconnect.Discard, 0, 4096) || !try(reconnect.Zero, 8192, 1) || !try(reconnect.Read, 4096, 1) {
		t.Error("what does not overlap, or changes nothing, had to wait")
	}
	close(d.stuck)
	must(t, errors.Join(<-first, <-done, <-done, <-done))
	if !try(reconnect.Discard, 4096, 1) {
		t.Error("it waits for nothing")
	}
	must(t, <-done)
}

// TestCutWithoutLoss breaks connections while changes are on their way in a server
// that lives on.
func TestCutWithoutLoss(t *testing.T) {
	d := newDisk(1 << 20)
	m := newMachine(t, d)
	c := m.dial(reconnect.Options{})
	for i := range 50 {
		first := submit(c, reconnect.Write, 0, bytes.Repeat([]byte{byte(i)}, 4096))
		second := submit(c, reconnect.Write, 8192, bytes.Repeat([]byte{byte(i + 1)}, 4096))
		m.cut()
		m.start()
		must(t, <-first)
		must(t, <-second)
		wantRead(t, c, 0, bytes.Repeat([]byte{byte(i)}, 4096))
		wantRead(t, c, 8192, bytes.Repeat([]byte{byte(i + 1)}, 4096))
	}
}

func TestTimeout(t *testing.T) {
	m := newMachine(t, newDisk(1<<20))
	c := m.dial(reconnect.Options{Timeout: 100 * time.Millisecond})
	want := bytes.Repeat([]byte("kept"), 1024)
	must(t, write(c, 0, want))
	start := time.Now()
	m.kill()
	if err := <-submit2(c, 4096); !errors.Is(err, reconnect.ErrServerGone) {
		t.Errorf("after the time-out: %v", err)
	}
	if waited := time.Since(start); waited < 100*time.Millisecond || waited > 10*time.Second {
		t.Errorf("waited %v", waited)
	}
	r := &reconnect.Request{Op: reconnect.Flush, Done: func(*reconnect.Request) {}}
	if !c.TrySubmit(r) || !errors.Is(r.Err, reconnect.ErrServerGone) {
		t.Errorf("when it has failed: %v", r.Err)
	}
	if s, since := c.State(); s != reconnect.Failed || since.After(time.Now()) {
		t.Errorf("%v since %v", s, since)
	}
	m.start()
	within(t, 5*time.Second, "connected again", func() bool { s, _ := c.State(); return s == reconnect.Connected })
	wantRead(t, c, 0, want)
	must(t, flush(c))
}

// submit2 submits from a goroutine of its own, as Submit may wait.
func submit2(c *reconnect.Client, off int64) <-chan error {
	done := make(chan error, 1)
	go func() { done <- write(c, off, make([]byte, 512)) }()
	return done
}

// TestUnderWayWhenTimeIsOver fails what was sent and never answered.
func TestUnderWayWhenTimeIsOver(t *testing.T) {
	d := newDisk(1 << 20)
	d.stuck = make(chan struct{})
	m := newMachine(t, d)
	c := m.dial(reconnect.Options{Timeout: -1})
	sent := submit(c, reconnect.Write, 0, make([]byte, 512))
	close(d.stuck)
	d.mu.Lock()
	d.stuck = nil
	d.mu.Unlock()
	m.kill()
	if err := <-sent; err != nil && !errors.Is(err, reconnect.ErrServerGone) {
		t.Errorf("%v", err)
	}
	within(t, time.Second, "failed", func() bool { s, _ := c.State(); return s == reconnect.Failed })
	m.start()
	within(t, 5*time.Second, "connected again", func() bool { s, _ := c.State(); return s == reconnect.Connected })
	must(t, write(c, 0, make([]byte, 512))) // the slot and the place are free
}

func TestOtherExport(t *testing.T) {
	for name, change := range map[string]func(*disk){
		"size":      func(d *disk) { d.memory, d.durable = make([]byte, 1<<19), make([]byte, 1<<19) },
		"read-only": func(d *disk) { d.readOnly = true },
	} {
		t.Run(name, func(t *testing.T) {
			d := newDisk(1 << 20)
			m := newMachine(t, d)
			c := m.dial(reconnect.Options{Timeout: 50 * time.Millisecond})
			must(t, write(c, 0, bytes.Repeat([]byte{7}, 512)))
			m.kill()
			memory, durable := d.memory, d.durable
			change(d)
			m.start()
			if err := <-submit2(c, 0); !errors.Is(err, reconnect.ErrServerGone) {
				t.Errorf("another export: %v", err)
			}
			if bytes.Contains(d.memory, []byte{7}) {
				t.Error("it was written to")
			}
			m.kill()
			d.memory, d.durable, d.readOnly = memory, durable, false
			m.start()
			within(t, 5*time.Second, "connected again", func() bool { s, _ := c.State(); return s == reconnect.Connected })
			wantRead(t, c, 0, bytes.Repeat([]byte{7}, 512))
		})
	}
}

// TestGrownExport: a volume was resized before its server was killed.
func TestGrownExport(t *testing.T) {
	d := newDisk(1 << 20)
	m := newMachine(t, d)
	c := m.dial(reconnect.Options{})
	must(t, write(c, 0, bytes.Repeat([]byte{7}, 512)))
	m.kill()
	more := make([]byte, 1<<20)
	d.memory, d.durable = append(d.memory, more...), append(d.durable, more...)
	m.start()
	wantRead(t, c, 0, bytes.Repeat([]byte{7}, 512))
	if err := write(c, 1<<20, make([]byte, 512)); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("written behind the size that the device has: %v", err)
	}
}

func TestErrorsOfTheServer(t *testing.T) {
	d := newDisk(1 << 20)
	m := newMachine(t, d)
	c := m.dial(reconnect.Options{})
	for _, want := range []error{syscall.ENOSPC, syscall.EIO, syscall.EPERM} {
		d.mu.Lock()
		d.writeErr = want
		d.mu.Unlock()
		if err := write(c, 0, make([]byte, 512)); !errors.Is(err, want) {
			t.Errorf("%v instead of %v", err, want)
		}
	}
	d.mu.Lock()
	d.writeErr = nil
	d.mu.Unlock()
	m.kill()
	m.start() // a write that failed is not repeated
	wantRead(t, c, 0, make([]byte, 512))
	for what, r := range map[string]*reconnect.Request{
		"behind the end": {Op: reconnect.Read, Off: 1 << 20, Len: 1, Data: make([]byte, 1)},
		"before it":      {Op: reconnect.Write, Off: -1, Len: 1, Data: make([]byte, 1)},
		"too long":       {Op: reconnect.Write, Off: 1<<20 - 1, Len: 2, Data: make([]byte, 2)},
		"empty":          {Op: reconnect.Discard},
		"no data":        {Op: reconnect.Write, Len: 4},
	} {
		done := make(chan error, 1)
		r.Done = func(r *reconnect.Request) { done <- r.Err }
		if !c.TrySubmit(r) {
			t.Fatalf("%s: waits", what)
		}
		if err := <-done; !errors.Is(err, syscall.EINVAL) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestReadOnly(t *testing.T) {
	d := newDisk(1 << 20)
	d.readOnly = true
	c := newMachine(t, d).dial(reconnect.Options{})
	for _, op := range []reconnect.Op{reconnect.Write, reconnect.Zero, reconnect.Discard} {
		if err := do(c, op, 0, make([]byte, 512)); !errors.Is(err, syscall.EROFS) {
			t.Errorf("%d: %v", op, err)
		}
	}
	wantRead(t, c, 0, make([]byte, 512))
	must(t, flush(c))
}

// TestFlushesByItself writes more than is kept, and never flushes.
func TestFlushesByItself(t *testing.T) {
	d := newDisk(8 << 20)
	m := newMachine(t, d)
	c := m.dial(reconnect.Options{Kept: 1}) // raised to two requests: 64 MiB
	p := bytes.Repeat([]byte("x"), 8<<20)
	for range 32 {
		must(t, write(c, 0, p))
	}
	if n := d.flushes.Load(); n == 0 || n > 32 {
		t.Errorf("%d flushes", n)
	}
	for range 40_000 { // more changes than half of what is kept
		must(t, do(c, reconnect.Discard, 0, p[:512]))
	}
	m.kill()
	m.start()
	wantRead(t, c, 0, append(make([]byte, 512), p[512:1<<20]...))
}

// TestOwnFlushFails wants the error at the next flush, and writes to fail rather than
// to wait for ever.
func TestOwnFlushFails(t *testing.T) {
	d := newDisk(8 << 20)
	d.flushErr = syscall.EIO
	m := newMachine(t, d)
	c := m.dial(reconnect.Options{})
	p := make([]byte, 8<<20)
	var err error
	for i := 0; err == nil; i++ {
		if i > 100 {
			t.Fatal("there is no end to what is kept")
		}
		err = write(c, 0, p)
	}
	if !errors.Is(err, syscall.EIO) {
		t.Errorf("%v", err)
	}
	d.mu.Lock()
	d.flushErr = nil
	d.mu.Unlock()
	m.kill()
	m.start() // a server that can flush
	if err := flush(c); !errors.Is(err, syscall.EIO) {
		t.Errorf("the flush that should tell: %v", err)
	}
	must(t, flush(c))
	must(t, write(c, 0, p))
}

func TestClose(t *testing.T) {
	m := newMachine(t, newDisk(1<<20))
	c := m.dial(reconnect.Options{})
	m.kill()
	waiting := submit2(c, 0)
	time.Sleep(10 * time.Millisecond)
	must(t, c.Close())
	must(t, c.Close())
	if err := <-waiting; !errors.Is(err, reconnect.ErrClosed) {
		t.Errorf("%v", err)
	}
	if err := flush(c); !errors.Is(err, reconnect.ErrClosed) {
		t.Errorf("%v", err)
	}
}

func TestDialFails(t *testing.T) {
	want := errors.New("no server today")
	_, err := reconnect.Dial(context.Background(), reconnect.Options{Redial: func(context.Context) (string, error) { return "", want }})
	if !errors.Is(err, want) {
		t.Errorf("%v", err)
	}
}

// TestManyWait has more requests than can be under way.
func TestManyWait(t *testing.T) {
	d := newDisk(8 << 20)
	d.stuck = make(chan struct{})
	m := newMachine(t, d)
	c := m.dial(reconnect.Options{})
	var wg sync.WaitGroup
	for i := range 3 * reconnect.MaxInFlight {
		wg.Go(func() {
			if err := write(c, int64(i)*block, bytes.Repeat([]byte{byte(i)}, block)); err != nil {
				t.Error(err)
			}
		})
	}
	r := &reconnect.Request{Op: reconnect.Flush, Done: func(*reconnect.Request) {}}
	within(t, 5*time.Second, "full", func() bool { return !c.TrySubmit(r) })
	close(d.stuck)
	wg.Wait()
	for i := range 3 * reconnect.MaxInFlight {
		wantRead(t, c, int64(i)*block, bytes.Repeat([]byte{byte(i)}, block))
	}
}

// TestNoAllocations is about the path of a request that is carried out at once.
func TestNoAllocations(t *testing.T) {
	c := newMachine(t, newDisk(1<<20)).dial(reconnect.Options{})
	done := make(chan struct{}, 1)
	data := make([]byte, 4096)
	r := &reconnect.Request{Done: func(*reconnect.Request) { done <- struct{}{} }}
	for _, op := range []reconnect.Op{reconnect.Write, reconnect.Read, reconnect.Flush} {
		per := testing.AllocsPerRun(2000, func() {
			r.Op, r.Off, r.Len, r.Data = op, 0, 4096, data
			if op == reconnect.Flush {
				r.Len, r.Data = 0, nil
			}
			c.Submit(r)
			<-done
		})
		// The server is in the same process.
		if per > 2 {
			t.Errorf("%d: %v allocations", op, per)
		}
	}
}

func BenchmarkRoundTrip(b *testing.B) {
	for name, op := range map[string]reconnect.Op{"read": reconnect.Read, "write": reconnect.Write} {
		for _, size := range []int{4096, 1 << 20} {
			for _, depth := range []int{1, 32} {
				b.Run(fmt.Sprintf("%s/%dK/depth=%d", name, size>>10, depth), func(b *testing.B) {
					c := newMachine(b, newDisk(64<<20)).dial(reconnect.Options{})
					b.SetBytes(int64(size))
					b.ReportAllocs()
					free := make(chan *reconnect.Request, depth)
					for i := range depth {
						p := make([]byte, size)
						r := &reconnect.Request{Op: op, Off: int64(i * size), Len: int64(size), Done: func(r *reconnect.Request) { free <- r }}
						r.Data = p
						free <- r
					}
					buf := make([]byte, size)
					for b.Loop() {
						r := <-free
						if op == reconnect.Write {
							r.Data = buf
						}
						c.Submit(r)
					}
				})
			}
		}
	}
}
