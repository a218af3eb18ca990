package nbdsrv_test

import (
	"context"
	"net"
	"runtime"
	"testing"
	"time"

	"github.com/fsximg/fsx/pkg/nbdsrv"
)

// Clients that keep the server's receiving goroutines, and their buffers, waiting.

// heapInUse is what the process holds, apart from garbage.
func heapInUse() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// TestHostileSlowReaders: many clients that ask for small replies and take none
// hold a bounded amount of memory; who is cut off for it makes room for others.
func TestHostileSlowReaders(t *testing.T) {
	for name, say := range map[string]func(c *client){
		"replies": func(c *client) {
			for i := range uint64(40) { // more than the kernel takes
				c.request(cRead, 0, i, 0, 64<<10, nil)
			}
		},
		"refused payload": func(c *client) {
			c.send(header(cWrite, 0, 1, 1<<40, 1<<30), make([]byte, 5000))
		},
	} {
		t.Run(name, func(t *testing.T) { slowClients(t, say) })
	}
}

func slowClients(t *testing.T, say func(c *client)) {
	const most = 64 + 65<<20>>19 // buffers of 512 KiB
	s, _ := serveRAM(t, nbdsrv.Config{Memory: 65 << 20, StallTimeout: 400 * time.Millisecond}, 4<<20)
	stop := s.bystander(t, 8*time.Second)
	goroutines, before := runtime.NumGoroutine(), heapInUse()
	var slow []*client
	for range 2 * most {
		c := s.connect(t, "main", false)
		say(c)
		slow = append(slow, c)
		if st := s.Stats(); st.Memory > most*5/4<<19 { // some end while they are counted
			t.Fatalf("%d MiB are in flight", st.Memory>>20)
		}
	}
	grown := heapInUse() - before
	if limit := int64(most)<<19 + int64(len(slow))*(20<<10) + 8<<20; grown > limit {
		t.Errorf("%d slow clients cost %d MiB, want at most %d", len(slow), grown>>20, limit>>20)
	}
	t.Logf("%d clients: %d MiB", len(slow), grown>>20)
	waitFor(t, "stalled clients to be cut", func() bool { return s.exports.inUse() <= most+1 })
	c := s.connect(t, "main", true)
	c.alive()
	stop()
	for _, c := range slow {
		_ = c.Close()
	}
	waitFor(t, "all of them to be forgotten", func() bool {
		return s.exports.inUse() <= 2 && runtime.NumGoroutine() <= goroutines+2 && s.Stats().Memory == 0
	})
	c.alive()
	if left := heapInUse() - before; left > 16<<20 {
		t.Errorf("%d MiB are left", left>>20)
	}
}

// TestManyBusyClients: more clients than there are buffers, none of which ever
// lets its socket run empty, have their turns all the same.
func TestManyBusyClients(t *testing.T) {
	s, _ := serveRAM(t, nbdsrv.Config{Memory: 65 << 20}, 1<<20)
	const clients, rounds = 250, 40
	end := make(chan struct{}, clients)
	for range clients {
		c := s.connect(t, "main", false)
		go func() {
			for i := range uint64(rounds * 8) {
				if _, err := c.Write(join(header(cWrite, 0, i, 4096, 4096), make([]byte, 4096))); err != nil {
					t.Error(err)
					return
				}
			}
		}()
		go func() {
			defer func() { end <- struct{}{} }()
			for range rounds * 8 {
				if a := c.answer(0); a.errno != 0 {
					t.Error(a.errno)
				}
			}
		}()
	}
	for range clients {
		<-end
	}
}

// TestIdlePipesHoldNoBuffers: a transport that is no socket does not keep them
// from others either.
func TestIdlePipesHoldNoBuffers(t *testing.T) {
	s, _ := serveRAM(t, nbdsrv.Config{Memory: 65 << 20}, 1<<20)
	for range 250 {
		near, far := net.Pipe()
		go func() { _ = s.ServeConn(far) }()
		t.Cleanup(func() { _ = near.Close() })
		c := &client{t: t, Conn: near, contexts: []uint32{1}}
		_ = near.SetDeadline(time.Now().Add(20 * time.Second))
		c.expect(be64(magicGreeting), be64(magicOption), be16(3))
		c.send(be32(3))
		c.enter("main")
		c.must(cWrite, 0, 0, 4096, make([]byte, 4096))
	}
	s.connect(t, "main", false).alive()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := s.Shutdown(ctx); err != nil {
		t.Error(err)
	}
}
