package main

import (
	"fmt"
	"io"
	"slices"
	"sync"
	"time"
)

// remembered is how many requests of each connection are kept.
const remembered = 1 << 17

// entry is a request that was sent. Times count from the beginning of the soak.
type entry struct {
	sent, done time.Duration // done: 0 while unanswered
	off        int64
	n          int
	link       int
	cmd, flags uint16
	repair     bool
}

// history is the last requests of one connection. Safe for concurrent use.
type history struct {
	mu      sync.Mutex
	entries []entry // a ring
	count   int
}

func (h *history) add(e entry) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.entries) < remembered {
		h.entries = append(h.entries, e)
	} else {
		h.entries[h.count%remembered] = e
	}
	h.count++
	return h.count - 1
}

func (h *history) answered(index int, at time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.count-index <= remembered {
		h.entries[index%remembered].done = at
	}
}

// touching returns the requests kept that touch a byte, and the time from which
// on none was forgotten.
func (h *history) touching(at int64) (found []entry, since time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.count > remembered {
		since = h.entries[h.count%remembered].sent
	}
	for _, e := range h.entries {
		// what covers the whole unit may have changed the byte's neighbours
		if e.off < (at/unitSize+1)*unitSize && e.off+int64(e.n) > at/unitSize*unitSize {
			found = append(found, e)
		}
	}
	return found, since
}

var commandNames = map[uint16]string{cmdRead: "READ", cmdWrite: "WRITE", cmdFlush: "FLUSH", cmdTrim: "TRIM",
	cmdCache: "CACHE", cmdZero: "WRITE_ZEROES", cmdStatus: "BLOCK_STATUS", cmdDisc: "DISC"}

func (e entry) String() string {
	text := fmt.Sprintf("%12.6f connection %d %s %d+%d flags %#x", e.sent.Seconds(), e.link, commandNames[e.cmd], e.off, e.n, e.flags)
	if e.repair {
		text += ", again after its connection broke"
	}
	if e.done == 0 {
		return text + ", unanswered"
	}
	return text + fmt.Sprintf(", answered after %v", (e.done-e.sent).Round(time.Microsecond))
}

// printHistory prints the last requests that touched the unit of a byte.
func printHistory(w io.Writer, links []*link, at int64) {
	const shown = 60
	var all []entry
	var since time.Duration
	for _, l := range links {
		found, from := l.history.touching(at)
		all = append(all, found...)
		since = max(since, from)
	}
	slices.SortFunc(all, func(a, b entry) int { return int(a.sent - b.sent) })
	fmt.Fprintf(w, "requests that touched unit %d, complete from second %.6f on, the last %d of %d:\n", at/unitSize, since.Seconds(), min(shown, len(all)), len(all))
	for _, e := range all[max(0, len(all)-shown):] {
		fmt.Fprintf(w, "  %s\n", e)
	}
}
