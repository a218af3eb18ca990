package main

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestLastClient(t *testing.T) {
	const first, grace = time.Minute, time.Second
	for _, tt := range []struct {
		name  string
		steps func(*lastClient)
		after time.Duration // from the start; 0: never
	}{
		{"no client", func(*lastClient) {}, first},
		{"one client", func(l *lastClient) {
			leave := l.enter()
			time.Sleep(2 * first)
			leave()
		}, 2*first + grace},
		{"one that stays", func(l *lastClient) { l.enter() }, 0},
		{"two clients", func(l *lastClient) {
			one, two := l.enter(), l.enter()
			one()
			time.Sleep(5 * grace)
			two()
		}, 6 * grace},
		{"one that comes back", func(l *lastClient) {
			l.enter()()
			time.Sleep(grace - 1)
			leave := l.enter()
			time.Sleep(grace)
			leave()
		}, 3*grace - 1},
		{"many that come and go", func(l *lastClient) {
			for range 10 {
				l.enter()()
				time.Sleep(grace / 2)
			}
		}, 5*grace + grace/2},
		{"stopped", func(l *lastClient) {
			l.enter()()
			l.stop()
		}, 0},
		{"stopped, then a client", func(l *lastClient) {
			l.stop()
			l.enter()()
		}, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began, calls, at := time.Now(), 0, time.Duration(0)
				l := newLastClient(first, grace, func() { calls, at = calls+1, time.Since(began) })
				tt.steps(l)
				time.Sleep(10 * first)
				synctest.Wait()
				if tt.after == 0 && calls != 0 || tt.after != 0 && (calls != 1 || at != tt.after) {
					t.Errorf("told %d times, at %v; want at %v", calls, at, tt.after)
				}
			})
		})
	}
}

func TestNoLastClient(t *testing.T) {
	var l *lastClient
	l.enter()()
	l.stop()
}
