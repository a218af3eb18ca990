package nbdsrv_test

import (
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/fsximg/fsx/pkg/nbdsrv"
)

// processorTime is what this process has used, server and clients together.
func processorTime(t *testing.T) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// TestSpinEnds: clients with one request in flight are waited for awake, as many
// as there are processors to spare; once they are silent nobody is.
func TestSpinEnds(t *testing.T) {
	s, _ := serveRAM(t, nbdsrv.Config{}, 1<<20)
	clients := make([]*client, 2*runtime.GOMAXPROCS(0)+1)
	for i := range clients {
		clients[i] = s.connect(t, "main", true)
	}
	for range 3 {
		var wg sync.WaitGroup
		for _, c := range clients {
			wg.Go(func() {
				for range 500 {
					c.must(cRead, 0, 0, 4096, nil)
				}
			})
		}
		wg.Wait()
		time.Sleep(10 * time.Millisecond)
		used := processorTime(t)
		time.Sleep(200 * time.Millisecond)
		if used = processorTime(t) - used; used > 50*time.Millisecond {
			t.Errorf("silent clients take %v of processor time in 200ms", used)
		}
	}
	for _, c := range clients {
		c.alive()
	}
}
