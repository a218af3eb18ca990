package main

import (
	"sync"
	"time"
)

const (
	// lastClientGrace is how long a server of --exit-with-last-client waits for
	// another client when the last one has left: a device that is detached and
	// attached again finds it.
	lastClientGrace = time.Second
	// firstClientGrace is how long it waits for the first one.
	firstClientGrace = time.Minute
)

// lastClient counts the clients of a server, and tells when none is left. Its
// methods may be called concurrently; those of nil do nothing.
//
// A client that comes before the grace is over keeps the server. One that comes
// later finds it ending.
type lastClient struct {
	grace time.Duration
	left  func() // called in a goroutine of its own, once

	mu      sync.Mutex
	clients int
	ended   bool
	timer   *time.Timer // runs while there is no client
}

// newLastClient begins to wait for the first client. left is called when none has
// come within first, or when none is left and within grace none has come.
func newLastClient(first, grace time.Duration, left func()) *lastClient {
	l := &lastClient{grace: grace, left: left}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waitLocked(first)
	return l
}

func (l *lastClient) waitLocked(d time.Duration) {
	var t *time.Timer
	t = time.AfterFunc(d, func() {
		l.mu.Lock()
		// A client may have come while this waited for the lock, and left again.
		over := !l.ended && l.clients == 0 && l.timer == t
		l.ended = l.ended || over
		l.mu.Unlock()
		if over {
			l.left()
		}
	})
	l.timer = t
}

// enter counts a client in. leave must be called once.
func (l *lastClient) enter() (leave func()) {
	if l == nil {
		return func() {}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.clients++
	l.stopLocked()
	return l.leave
}

func (l *lastClient) leave() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.clients--; l.clients == 0 && !l.ended {
		l.waitLocked(l.grace)
	}
}

// stop ends the waiting; left is not called any more, but perhaps just now.
func (l *lastClient) stop() {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = true
	l.stopLocked()
}

func (l *lastClient) stopLocked() {
	if l.timer != nil {
		l.timer.Stop()
		l.timer = nil
	}
}
