package relay_test

import (
	"context"
	"os"
	"sync"
	"testing"

	"github.com/fsximg/fsx/internal/attach/relay"
	"github.com/fsximg/fsx/internal/nbdclient"
)

// benchServer is the server of FSX_RELAY_URI, or one in this process that does nothing.
func benchServer(b *testing.B) func(context.Context) (*nbdclient.Socket, error) {
	if uri := os.Getenv("FSX_RELAY_URI"); uri != "" {
		return func(ctx context.Context) (*nbdclient.Socket, error) { return nbdclient.Negotiate(ctx, uri) }
	}
	return newKillable(16 << 20).dial
}

// BenchmarkRequests compares a kernel that is connected with the server (direct) with
// one whose relay is: what the relay costs.
func BenchmarkRequests(b *testing.B) {
	for _, c := range []struct {
		name  string
		kind  uint16
		size  int
		depth int
	}{
		{"read4k-qd1", read, 4096, 1}, {"write4k-qd1", write, 4096, 1},
		{"read4k-qd32", read, 4096, 32}, {"write4k-qd32", write, 4096, 32},
		{"read128k-qd8", read, 128 << 10, 8}, {"write128k-qd8", write, 128 << 10, 8},
	} {
		for _, way := range []string{"direct", "relay"} {
			b.Run(c.name+"/"+way, func(b *testing.B) {
				dial := benchServer(b)
				first, err := dial(b.Context())
				if err != nil {
					b.Fatal(err)
				}
				file := first.File
				if way == "relay" {
					r, files, err := relay.New(first, 1, relay.Config{Dial: dial})
					if err != nil {
						b.Fatal(err)
					}
					file = files[0]
					ctx, cancel := context.WithCancel(b.Context())
					var ended sync.WaitGroup
					ended.Go(func() { _ = r.Run(ctx) })
					defer ended.Wait()
					defer cancel()
				}
				k := newKernel(b, file)
				b.SetBytes(int64(c.size))
				b.ResetTimer()
				var all sync.WaitGroup
				for i := range c.depth {
					all.Go(func() {
						buf := make([]byte, c.size)
						for n := i; n < b.N; n += c.depth {
							off := (n * 7919 * c.size) % (16<<20 - c.size) / c.size * c.size
							var into, payload []byte
							if into = buf; c.kind == write {
								into, payload = nil, buf
							}
							if errno := k.do(c.kind, off, c.size, into, payload); errno != 0 {
								b.Error(errno)
								return
							}
						}
					})
				}
				all.Wait()
				b.StopTimer()
			})
		}
	}
}
