package main

import (
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// soak is one run: several links over one model.
type soak struct {
	socket, export string
	seed           uint64
	model          *model
	links          []*link
	began          time.Time

	pause    time.Duration // after a session that was broken off
	requests int64         // how many are wanted, 0 for no limit
	timeUp   atomic.Bool
	answered atomic.Int64
	bytes    atomic.Int64 // payload, both ways
	sessions atomic.Int64
	aborts   atomic.Int64

	over atomic.Bool // something failed
}

func (s *soak) elapsed() time.Duration { return time.Since(s.began) }

// stopping says that something failed.
func (s *soak) stopping() bool { return s.over.Load() }

// finished says whether enough was asked.
func (s *soak) finished() bool {
	return s.requests > 0 && s.answered.Load() >= s.requests || s.timeUp.Load() || s.stopping()
}

// fill writes most of the volume once, so that what follows overwrites, and what
// the server keeps in memory has its size.
func (s *soak) fill() error {
	return s.sweep(&sweep{cmd: cmdWrite, to: s.model.size, piece: 256 << 10, leaveOut: 8})
}

// verify reads the whole volume.
func (s *soak) verify() error {
	return s.sweep(&sweep{cmd: cmdRead, to: s.model.size, piece: maxRequest})
}

func (s *soak) sweep(src *sweep) error {
	for !s.stopping() && src.at < src.to {
		before := src.at
		if err := s.links[0].session(src, 1<<40, disconnect); err != nil {
			return err
		}
		if src.at == before {
			return fmt.Errorf("byte %d is taken by a request, though all have ended", src.at)
		}
	}
	return nil
}

// run is the soak itself: every link has session after session.
func (s *soak) run() error {
	var g errgroup.Group
	for _, l := range s.links {
		g.Go(func() error {
			err := s.runLink(l)
			if err != nil {
				s.over.Store(true)
			}
			return err
		})
	}
	return g.Wait()
}

// runLink lets sessions follow each other: the first ones short, so that a short
// run has some of every kind, and two in five ended without a word.
func (s *soak) runLink(l *link) error {
	for longest := 2000; !s.finished(); longest = min(2*longest, 1<<20) {
		end := []ending{disconnect, disconnect, disconnect, abort, abortTorn}[l.rng.IntN(5)]
		if err := l.session(mixture{1000, s.finished}, l.rng.IntN(longest)+1, end); err != nil {
			return err
		}
		s.sessions.Add(1)
		if end != disconnect {
			s.aborts.Add(1)
			time.Sleep(s.pause)
		}
	}
	if s.stopping() {
		return nil
	}
	return l.session(mixture{1000, s.finished}, 0, disconnect) // repairs what the last one left
}

// printFailure prints the history of the place that differs.
func (s *soak) printFailure(w io.Writer, err error) {
	var d *difference
	if errors.As(err, &d) {
		fmt.Fprintf(w, "FAILED: %v\n", err)
		printHistory(w, s.links, d.at)
	}
}
