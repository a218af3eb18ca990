// Soak sends a server of NBD a hundred million mixed requests over several
// connections that come and go, and verifies every byte it reads, while it
// watches the server's memory, descriptors and goroutines from outside.
//
// scripts/soak prepares a store and a server for it. The last line it prints
// begins with RESULT. Exit 1 on any difference, refusal or leak.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// silence is how long the server may answer nothing at all.
const silence = 60 * time.Second

type options struct {
	socket, export, metrics string
	pid                     int
	requests                int64
	seconds                 int
	connections, depth      int
	pause                   time.Duration
	seed                    uint64
}

func main() {
	var o options
	flag.StringVar(&o.socket, "socket", "", "the server's unix socket")
	flag.StringVar(&o.export, "export", "main", "the export; all its content is overwritten, and it must be new (all zeros)")
	flag.IntVar(&o.pid, "pid", 0, "the server's process, to be watched")
	flag.StringVar(&o.metrics, "metrics", "", "the socket of the server's metrics, for the number of goroutines")
	flag.Int64Var(&o.requests, "requests", 100_000_000, "how many requests, 0 for no limit")
	flag.IntVar(&o.seconds, "seconds", 0, "how long at the most, 0 for no limit")
	flag.IntVar(&o.connections, "connections", 4, "how many connections")
	flag.IntVar(&o.depth, "depth", 64, "requests in flight of each connection")
	flag.DurationVar(&o.pause, "pause", 0, "from a connection that was broken off to the next; what was lost is sent again then")
	flag.Uint64Var(&o.seed, "seed", uint64(time.Now().UnixNano()), "of the random choices")
	flag.Parse()
	if err := run(o, os.Stdout); err != nil {
		fmt.Fprintf(os.Stderr, "soak: %v\n", err)
		os.Exit(1)
	}
}

// run soaks as the options say. What it finds wrong is its error; the history of
// a difference and the RESULT go to w.
func run(o options, w io.Writer) error {
	s, err := newSoak(o)
	if err != nil {
		return err
	}
	watched := &process{dir: filepath.Join("/proc", strconv.Itoa(o.pid)), metrics: o.metrics}
	if o.pid == 0 {
		watched.dir = "/proc/self"
	}
	fmt.Fprintf(w, "seed %d, %d connections with %d requests in flight, %d MiB\n", o.seed, o.connections, o.depth, s.model.size>>20)
	watch := newWatch(s, watched, w)
	var before, after health
	var length time.Duration
	ended := make(chan error, 1)
	go func() {
		err := s.fill()
		if err == nil {
			before, err = watched.settled()
		}
		if err == nil {
			length, err = s.judged(watch, time.Duration(o.seconds)*time.Second)
		}
		if err == nil {
			err = s.verify()
		}
		ended <- err
	}()
	select {
	case err = <-ended:
		if err == nil {
			after, err = watched.judgeLeft(before)
		}
	case err = <-watch.silent: // what waits for the server ends with this process
	}
	second, last, memoryErr := judgeMemory(watch.end(), length)
	err = errors.Join(err, memoryErr)
	s.printFailure(w, err)
	errs := 0
	if err != nil {
		errs = 1
	}
	fmt.Fprintf(w, "without clients: before %v; after %v\n", before, after)
	fmt.Fprintf(w, "RESULT soak: %d requests, %.1f GB verified or written, %.0f s, %.0f requests/s, %d sessions (%d broken off), %d errors, memory %d MiB in the second quarter and %d MiB in the last, seed %d\n",
		s.answered.Load(), float64(s.bytes.Load())/1e9, s.elapsed().Seconds(), float64(s.answered.Load())/s.elapsed().Seconds(),
		s.sessions.Load(), s.aborts.Load(), errs, second>>20, last>>20, o.seed)
	return err
}

// judged runs the soak while the watch keeps samples, and returns how long it took.
func (s *soak) judged(w *watch, limit time.Duration) (time.Duration, error) {
	begun := s.elapsed()
	if limit > 0 {
		defer time.AfterFunc(limit, func() { s.timeUp.Store(true) }).Stop()
	}
	w.judge(begun)
	defer w.judge(0)
	err := s.run()
	return s.elapsed() - begun, err
}

func newSoak(o options) (*soak, error) {
	conn, size, _, err := dial(o.socket, o.export, false)
	if err != nil {
		return nil, err
	}
	conn.Close()
	const least = 16 * maxRequest
	if size < least || size%blockSize != 0 {
		return nil, fmt.Errorf("the export has %d bytes; %d are the least, in whole blocks", size, least)
	}
	s := &soak{socket: o.socket, export: o.export, seed: o.seed, requests: o.requests, pause: o.pause, began: time.Now(),
		model: newModel(size, min(size/64, 4<<20)&^(blockSize-1), o.seed)}
	for i := range o.connections {
		s.links = append(s.links, newLink(s, i, o.depth))
	}
	return s, nil
}
