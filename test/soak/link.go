package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"time"
)

// link is one of the soak's connections: a sender and a receiver, and the
// requests in flight between them. It outlives its socket: sessions follow each
// other, some of which end in the middle of everything.
type link struct {
	soak    *soak
	id      int
	rng     *rand.Rand // the sender's
	history history
	out     []byte
	in      []byte

	conn       net.Conn
	structured bool
	context    uint32 // base:allocation's id

	// Requests in flight: the sender fills a slot before it sends, the receiver
	// empties it. Between the two it is the receiver's alone.
	slots []request

	mu        sync.Mutex
	changed   sync.Cond
	idle      []int     // free slots
	repairs   []request // to be sent before all others
	repairing int       // ranges whose content is unknown still
	leaving   bool      // the end of the session is this side's wish
	ended     bool      // nothing will be received any more

	sent  uint64
	clock time.Duration // when the sender's batch began

	// The receiver's.
	done  []int         // slots that are free, not yet told to the sender
	bytes int64         // payload since it last told
	batch time.Duration // when what it works on came
}

func newLink(s *soak, id, depth int) *link {
	l := &link{soak: s, id: id, rng: rand.New(rand.NewPCG(s.seed, uint64(id)+1)), slots: make([]request, depth), in: make([]byte, 2*maxRequest)}
	l.changed.L = &l.mu
	return l
}

// ending is how a session ends.
type ending int

const (
	disconnect ending = iota // DISC: every request must be answered first
	abort                    // the socket is closed with requests in flight
	abortTorn                // the same in the middle of a WRITE
)

// session connects, sends what the source gives, at most quota requests, and
// leaves. What it leaves unanswered is repaired in the next one.
func (l *link) session(src source, quota int, end ending) error {
	conn, size, context, err := dial(l.soak.socket, l.soak.export, l.rng.IntN(3) > 0)
	if err != nil {
		return err
	}
	if size != l.soak.model.size {
		return fmt.Errorf("the export has %d bytes, it had %d", size, l.soak.model.size)
	}
	l.begin(conn, context)
	var wg sync.WaitGroup
	var received error
	wg.Go(func() {
		received = l.receive(&inbox{conn: conn, buf: l.in, idle: l.tell, woke: l.tick})
		conn.Close() // ends a sender that nobody reads from
	})
	err = l.send(src, quota)
	if err == nil {
		err = l.leave(end)
	}
	if err != nil {
		conn.Close()
	}
	wg.Wait()
	if received != nil {
		return received // says more than what the sender saw of it
	}
	if err != nil {
		return err
	}
	return l.lost(end)
}

func (l *link) begin(conn net.Conn, context uint32) {
	l.conn, l.context, l.structured = conn, context, context != 0
	l.mu.Lock()
	defer l.mu.Unlock()
	l.idle, l.done, l.leaving, l.ended = l.idle[:0], l.done[:0], false, false
	for i := range l.slots {
		l.slots[i].cookie = 0
		l.idle = append(l.idle, i)
	}
}

// claim waits for free slots and returns them all; none when the session is over.
func (l *link) claim(into []int) []int {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.idle) == 0 && !l.ended {
		l.changed.Wait()
	}
	if l.ended {
		return into[:0]
	}
	into = append(into[:0], l.idle...)
	l.idle = l.idle[:0]
	return into
}

func (l *link) unclaim(slots []int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.idle = append(l.idle, slots...)
}

// nextRepair is the next request that repairs; ok is false when there is none.
func (l *link) nextRepair() (r request, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.repairs) == 0 {
		return r, false
	}
	r = l.repairs[0]
	l.repairs = l.repairs[1:]
	return r, true
}

func (l *link) unknown() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.repairing > 0
}

// send keeps every slot busy, until the source or the quota ends, the soak stops,
// or the connection is gone.
func (l *link) send(src source, quota int) error {
	var claimed []int
	for more := true; more || l.unknown(); {
		if claimed = l.claim(claimed); len(claimed) == 0 {
			return errGone
		}
		l.clock = l.soak.elapsed()
		used := 0
		for _, slot := range claimed {
			r, ok := l.nextRepair()
			if !ok && more {
				if more = quota > 0 && !l.soak.stopping(); more {
					r, more = src.next(l.soak.model, l.rng, l.structured)
				}
				quota--
				ok = more
			}
			if !ok {
				break
			}
			used++
			l.put(slot, r)
			if len(l.out) >= maxRequest {
				if err := l.flushOut(); err != nil {
					return err
				}
			}
		}
		l.unclaim(claimed[used:])
		if err := l.flushOut(); err != nil {
			return err
		}
		if used == 0 && !more {
			time.Sleep(time.Millisecond) // for the answers to repairs
		}
	}
	return nil
}

var errGone = errors.New("the server closed the connection")

// put encodes a request into the output and its slot.
func (l *link) put(slot int, r request) {
	l.sent++
	r.cookie = l.sent<<16 | uint64(slot)
	r.entry = l.history.add(entry{sent: l.clock, off: r.off, n: r.n, link: l.id, cmd: r.cmd, flags: r.flags, repair: r.repair})
	l.out = appendRequest(l.out, r.cmd, r.flags, r.cookie, r.off, r.n)
	if !r.either {
		r.old = l.slots[slot].old // its memory
		if r.change {
			l.out = l.soak.model.apply(l.out, &r, l.rng.Uint64())
		}
	}
	l.slots[slot] = r
}

func (l *link) flushOut() error {
	_, err := l.conn.Write(l.out)
	l.out = l.out[:0]
	return err
}

// leave ends the session on this side.
func (l *link) leave(end ending) error {
	l.mu.Lock()
	l.leaving = true
	l.mu.Unlock()
	switch end {
	case disconnect:
		l.out = appendRequest(l.out, cmdDisc, 0, ^uint64(0), 0, 0)
		return l.flushOut()
	case abortTorn: // half a WRITE, which may not be carried out: it is in no model
		l.out = append(appendRequest(l.out, cmdWrite, 0, ^uint64(0), 0, maxRequest), make([]byte, 1000)...)
		l.flushOut()
	}
	return l.conn.Close()
}

// lost gives back the units of unanswered reads and plans the repair of changes
// whose outcome is unknown: half of them are read first, and must be as before
// or as after, and half are sent again at once, as a kernel does. After the answer
// to that, the earlier one may never be carried out any more.
func (l *link) lost(end ending) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.slots {
		r := &l.slots[i]
		switch {
		case r.cookie == 0:
			continue
		case end == disconnect:
			return fmt.Errorf("DISC: %s %d+%d was never answered", commandNames[r.cmd], r.off, r.n)
		case r.change:
			again := request{cmd: cmdWrite, off: r.off, n: r.n, taken: true, change: true, repair: true}
			if l.rng.IntN(2) == 0 {
				again.cmd, again.either = cmdRead, true
				again.old, r.old = r.old, content{}
			}
			l.repairs = append(l.repairs, again)
			l.repairing++
		case r.taken:
			from, to := span(r.off, r.n)
			l.soak.model.give(from, to, false)
		}
		r.cookie = 0
	}
	return nil
}
