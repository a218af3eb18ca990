package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"
)

// health is what the server's process needs at one moment.
type health struct {
	anonymous  int64 // bytes
	sockets    int
	files      int // all other descriptors
	threads    int
	goroutines int // -1 where nobody tells
}

func (h health) String() string {
	text := fmt.Sprintf("%d MiB anonymous, %d sockets, %d files, %d threads", h.anonymous>>20, h.sockets, h.files, h.threads)
	if h.goroutines >= 0 {
		text += fmt.Sprintf(", %d goroutines", h.goroutines)
	}
	return text
}

// process is a server that is watched from outside.
type process struct {
	dir     string // /proc/PID
	metrics string // socket of its metrics (fsxnbd serve --metrics), or empty
}

func (p *process) health() (h health, err error) {
	status, err := os.ReadFile(filepath.Join(p.dir, "status"))
	if err != nil {
		return h, err
	}
	h.anonymous = statusField(string(status), "RssAnon") << 10
	h.threads = int(statusField(string(status), "Threads"))
	descriptors, err := os.ReadDir(filepath.Join(p.dir, "fd"))
	if err != nil {
		return h, err
	}
	for _, d := range descriptors {
		// one that was closed meanwhile counts as a file
		if target, _ := os.Readlink(filepath.Join(p.dir, "fd", d.Name())); strings.HasPrefix(target, "socket:") {
			h.sockets++
		} else {
			h.files++
		}
	}
	h.goroutines, err = p.goroutines()
	return h, err
}

func statusField(status, name string) int64 {
	for line := range strings.Lines(status) {
		if rest, ok := strings.CutPrefix(line, name+":"); ok {
			n, _ := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return n
		}
	}
	return 0
}

var goroutineTotal = regexp.MustCompile(`(?m)^go_goroutines (\d+)$`)

func (p *process) goroutines() (int, error) {
	if p.metrics == "" {
		return -1, nil
	}
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", p.metrics)
	}
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}
	reply, err := client.Get("http://server/metrics")
	if err != nil {
		return -1, err
	}
	defer reply.Body.Close()
	text, err := io.ReadAll(io.LimitReader(reply.Body, 1<<20))
	found := goroutineTotal.FindSubmatch(text)
	if err != nil || found == nil {
		return -1, fmt.Errorf("no number of goroutines in the metrics: %v", err)
	}
	return strconv.Atoi(string(found[1]))
}

// sample is the memory at a moment of the run.
type sample struct {
	at        time.Duration
	anonymous int64
}

// Judging memory: the last quarter's maximum may be above the second quarter's
// by this much. The first quarter is not looked at: caches fill.
const (
	memoryPercent = 15
	memorySlack   = 16 << 20
	// shortest is the shortest run whose memory is judged.
	shortest = 60 * time.Second
)

// memory is what the samples say: the maxima of the second and the last quarter,
// and an error when the second does not bound the last.
func judgeMemory(samples []sample, length time.Duration) (second, last int64, err error) {
	for _, s := range samples {
		switch {
		case s.at >= length/4 && s.at < length/2:
			second = max(second, s.anonymous)
		case s.at >= length*3/4:
			last = max(last, s.anonymous)
		}
	}
	if length >= shortest && last > second+second*memoryPercent/100+memorySlack {
		err = fmt.Errorf("memory grows: %d MiB in the second quarter, %d MiB in the last (allowed are %d %% and %d MiB more)",
			second>>20, last>>20, memoryPercent, memorySlack>>20)
	}
	return second, last, err
}

// Judging what is left when the clients are gone: sockets and goroutines are as
// before. A store keeps a bounded number of its files open, more of them after
// work than before it.
const (
	fileSlack      = 128
	goroutineSlack = 2 // of who answers for the metrics
	leaveTime      = 15 * time.Second
)

// settled is the process without clients, a second after the last one left.
func (p *process) settled() (health, error) {
	time.Sleep(time.Second)
	return p.health()
}

// judgeLeft waits until the process is back to what it was without clients.
func (p *process) judgeLeft(before health) (after health, err error) {
	for deadline := time.Now().Add(leaveTime); ; time.Sleep(200 * time.Millisecond) {
		if after, err = p.health(); err != nil {
			return after, err
		}
		clean := after.sockets <= before.sockets && after.files <= before.files+fileSlack && after.goroutines <= before.goroutines+goroutineSlack
		if clean {
			return after, nil
		}
		if time.Now().After(deadline) {
			return after, fmt.Errorf("%v after the clients left something is open still: before %v; now %v", leaveTime, before, after)
		}
	}
}

// watch samples the process each second, prints a line every ten, and notices
// when nothing is answered any more.
type watch struct {
	soak    *soak
	process *process
	w       io.Writer
	silent  chan error // one error at the most
	stop    chan struct{}
	stopped chan struct{}

	mu      sync.Mutex
	begun   time.Duration // of what is judged; 0 before and after
	samples []sample
}

func newWatch(s *soak, p *process, w io.Writer) *watch {
	x := &watch{soak: s, process: p, w: w, silent: make(chan error, 1), stop: make(chan struct{}), stopped: make(chan struct{})}
	go x.loop()
	return x
}

// judge begins to keep samples, which count from begun; 0 ends that.
func (x *watch) judge(begun time.Duration) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.begun = begun
}

// end ends watching and returns the samples.
func (x *watch) end() []sample {
	close(x.stop)
	<-x.stopped
	return x.samples
}

func (x *watch) loop() {
	defer close(x.stopped)
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	var quiet time.Duration
	var last, lastLine int64
	for second := 1; ; second++ {
		select {
		case <-x.stop:
			return
		case <-tick.C:
		}
		h, err := x.sample()
		if err != nil {
			x.silent <- fmt.Errorf("watch the server: %w", err)
			return
		}
		now := x.soak.answered.Load()
		if quiet += time.Second; now != last {
			last, quiet = now, 0
		}
		if quiet >= silence {
			x.silent <- fmt.Errorf("nothing was answered for %v", silence)
			return
		}
		if second%10 == 0 {
			fmt.Fprintf(x.w, "%5d s: %.1fM requests, %.0f/s; %v\n", second, float64(now)/1e6, float64(now-lastLine)/10, h)
			lastLine = now
		}
	}
}

func (x *watch) sample() (health, error) {
	h, err := x.process.health()
	x.mu.Lock()
	defer x.mu.Unlock()
	if err == nil && x.begun > 0 {
		x.samples = append(x.samples, sample{x.soak.elapsed() - x.begun, h.anonymous})
	}
	return h, err
}
