package volume

import (
	"sync"
	"sync/atomic"
)

// gate counts the calls that are inside something, so that closing it can wait
// for them. A call may enter again while it is inside.
type gate struct {
	inside atomic.Int64
	shut   atomic.Bool
	once   sync.Once
	idle   chan struct{} // closed when shut and nobody is inside
}

func newGate() gate { return gate{idle: make(chan struct{})} }

// enter says whether the caller may go on; if so, it calls leave afterwards.
func (g *gate) enter() bool {
	g.inside.Add(1)
	if g.shut.Load() {
		g.leave()
		return false
	}
	return true
}

func (g *gate) leave() {
	if g.inside.Add(-1) == 0 && g.shut.Load() {
		g.once.Do(func() { close(g.idle) })
	}
}

// close lets nobody in any more and returns when everybody has left.
func (g *gate) close() {
	g.shut.Store(true)
	if g.inside.Load() == 0 {
		g.once.Do(func() { close(g.idle) })
	}
	<-g.idle
}
