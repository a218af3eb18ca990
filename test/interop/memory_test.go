package interop_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"
)

// Goals of the project for a volume of 1 TiB with 4M blocks at random homes.
const (
	anonymousLimit = 256 << 20
	openLimit      = 300 * time.Millisecond
)

// TestMemory serves a huge volume whose blocks lie at random homes, and watches
// the server's anonymous memory under random reads and writes. FSX_MEMORY_BLOCKS
// sets the number of blocks.
func TestMemory(t *testing.T) {
	need(t, "fio")
	blocks := choose(int64(150_000), 4<<20)
	if n := os.Getenv("FSX_MEMORY_BLOCKS"); n != "" {
		var err error
		if blocks, err = strconv.ParseInt(n, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	seconds := choose(10, 60)
	s := newStore(t, t.TempDir())
	s.create("1T")

	srv := s.serve()
	peak := watchMemory(srv)
	began := time.Now()
	fio(t, srv, "--rw=randwrite", "--iodepth=64", fmt.Sprintf("--number_ios=%d", blocks))
	result(t, "filled %d blocks at random homes in %.1f s, peak RssAnon %d MiB", blocks, time.Since(began).Seconds(), peak()>>20)
	srv.stop()

	srv = s.serve()
	for _, rw := range []string{"randread", "randwrite", "randrw"} {
		peak = watchMemory(srv)
		// random homes of the same generator: reads find the blocks that were written
		rate := fio(t, srv, "--rw="+rw, "--iodepth=32", "--time_based", fmt.Sprintf("--runtime=%d", seconds))
		most := peak()
		result(t, "%s QD32 %d s: %.0f requests/s, peak RssAnon %d MiB", rw, seconds, rate, most>>20)
		if most > anonymousLimit {
			t.Errorf("%s: %d MiB of anonymous memory, the limit is %d MiB", rw, most>>20, anonymousLimit>>20)
		}
	}
	began = time.Now()
	srv.stop()
	result(t, "clean close in %.2f s", time.Since(began).Seconds())
	openTime(t, s)
}

// openTime measures from the server's start to its first answer.
func openTime(t *testing.T, s *store) {
	t.Helper()
	best := time.Hour
	for range 3 {
		began := time.Now()
		srv := s.serve()
		c := dial(t, srv.socket, "main")
		if err := c.readAt(make([]byte, 4096), 0); err != nil {
			t.Fatal(err)
		}
		best = min(best, time.Since(began))
		c.close()
		srv.stop()
	}
	result(t, "open after a clean close, until the first read is answered: %v", best.Round(time.Millisecond))
	if best > openLimit {
		t.Errorf("opening took %v, the limit is %v", best, openLimit)
	}
}

// TestRecoveryTime kills the server with a log that no checkpoint has covered,
// and measures the next start.
func TestRecoveryTime(t *testing.T) {
	need(t, "fio")
	s := newStore(t, t.TempDir())
	s.create("4G")
	for _, load := range []struct{ name, rw, bs string }{
		{"random 4K", "randwrite", "4k"},
		{"sequential 1M", "write", "1m"},
	} {
		srv := s.serve()
		mib := int64(choose(256, 768)) // under the log length that starts a checkpoint
		fio(t, srv, "--rw="+load.rw, "--bs="+load.bs, "--iodepth=32", "--size=4g", fmt.Sprintf("--io_size=%dm", mib), "--end_fsync=1")
		srv.kill()
		began := time.Now()
		srv = s.serve()
		c := dial(t, srv.socket, "main")
		if err := c.readAt(make([]byte, 4096), 0); err != nil {
			t.Fatal(err)
		}
		took := time.Since(began).Seconds()
		result(t, "%s: %d MiB written after the last clean close, recovered in %.2f s: %.2f s per GiB",
			load.name, mib, took, took/float64(mib)*1024)
		c.close()
		srv.stop()
		s.check()
	}
}

// fio runs one job on the whole volume without a record of what it touched, and
// returns its requests per second.
func fio(t *testing.T, srv *server, options ...string) float64 {
	t.Helper()
	out := filepath.Join(t.TempDir(), "fio.json")
	args := []string{"--name=job", "--ioengine=nbd", "--uri=" + srv.uri, "--bs=4k", "--size=1t", "--norandommap",
		"--random_generator=tausworthe64", "--output-format=json", "--output=" + out}
	must(t, "fio", append(args, options...)...)
	text, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	var report struct {
		Jobs []struct {
			Read, Write struct{ IOPS float64 }
		}
	}
	if err := json.Unmarshal(text, &report); err != nil || len(report.Jobs) != 1 {
		t.Fatalf("fio's report: %v\n%s", err, text)
	}
	return report.Jobs[0].Read.IOPS + report.Jobs[0].Write.IOPS
}

// watchMemory samples the server's anonymous memory until the returned function
// is called, which gives the peak.
func watchMemory(srv *server) (peak func() int64) {
	stop, done := make(chan struct{}), make(chan int64)
	go func() {
		var most int64
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				done <- most
				return
			case <-tick.C:
				if n, err := srv.status("RssAnon"); err == nil {
					most = max(most, n)
				}
			}
		}
	}()
	return func() int64 { close(stop); return <-done }
}
