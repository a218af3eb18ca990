package nbdsrv

import (
	"runtime"
	"sync/atomic"
	"time"
)

const (
	// spinMax is how long a connection looks at its empty socket before it
	// sleeps, and the longest gap between requests that makes it do so.
	spinMax = 100 * time.Microsecond
	// spinShort is a gap so short that the client must have sent the request
	// before it had the last reply: it has several in flight.
	spinShort = 8 * time.Microsecond
	// spinPause is for how many receipts such a client is not spun for.
	spinPause = 64
)

// spinner decides whether a connection, when its socket is empty, looks again
// instead of sleeping. A client with one request in flight sends the next one some
// ten microseconds after it has its reply; to be put to sleep and woken takes the
// server, and the client that has to wake it, longer than that. A client with many
// in flight gains nothing: a server that sleeps finds several requests when it
// wakes, and answers them in one call.
//
// It is like the adaptive polling of QEMU's event loop (poll-max-ns), with one
// length. It belongs to the receiving goroutine.
type spinner struct {
	near     bool      // the last gap was short enough
	pause    int       // receipts until one may be
	requests int       // since the socket was last found empty
	began    time.Time // when it was; zero: it has something
	places   *spinPlaces
	holds    bool // one of the places
}

// spinPlaces bounds the connections that spin at a time, so that one processor is
// always free of them.
type spinPlaces struct {
	taken atomic.Int64
	most  int64
}

func newSpinPlaces() *spinPlaces { return &spinPlaces{most: int64(runtime.GOMAXPROCS(0) - 1)} }

func (p *spinPlaces) take() bool {
	if p.taken.Add(1) <= p.most {
		return true
	}
	p.taken.Add(-1)
	return false
}

// again is called when the socket is empty, and says whether to look once more.
func (s *spinner) again() bool {
	if !s.began.IsZero() {
		if s.holds && time.Since(s.began) < spinMax {
			return true
		}
		s.stop()
		return false
	}
	s.began = time.Now()
	s.holds = s.near && s.requests == 1 && s.places.take()
	s.requests = 0
	return s.holds
}

// found is called when the socket had something.
func (s *spinner) found() {
	if s.began.IsZero() {
		return
	}
	gap, spun := time.Since(s.began), s.holds
	s.stop()
	s.began = time.Time{}
	switch {
	case spun && gap < spinShort:
		s.near, s.pause = false, spinPause
	case s.pause > 0:
		s.pause--
	default:
		s.near = gap < spinMax
	}
}

// stop gives the place back.
func (s *spinner) stop() {
	if s.holds {
		s.holds = false
		s.places.taken.Add(-1)
	}
}
