package main

import (
	"context"
	"sync"
	"time"
)

// pulse finds out whether something still returns. However often it is asked, only
// one look is under way.
type pulse struct {
	look func()

	mu     sync.Mutex
	inside chan struct{} // closed when the look that is under way returns
}

// beats says whether a look returned in time.
func (p *pulse) beats(ctx context.Context, within time.Duration) bool {
	p.mu.Lock()
	if p.inside == nil {
		inside := make(chan struct{})
		p.inside = inside
		go func() {
			p.look()
			p.mu.Lock()
			p.inside = nil
			p.mu.Unlock()
			close(inside)
		}()
	}
	inside := p.inside
	p.mu.Unlock()
	t := time.NewTimer(within)
	defer t.Stop()
	select {
	case <-inside:
		return true
	case <-t.C:
	case <-ctx.Done():
	}
	return false
}
