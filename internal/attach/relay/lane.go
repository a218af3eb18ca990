package relay

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"github.com/fsximg/fsx/internal/nbdclient/unflushed"
	"golang.org/x/sys/unix"
)

// lane is one of the kernel's connections.
type lane struct {
	*socket
	answers sync.Mutex // held by who writes
}

// answer writes one answer; payload follows a read that succeeded. An error is not
// reported: the reader of this lane sees it, too.
func (l *lane) answer(errno uint32, cookie uint64, payload []byte) {
	var b [replySize]byte
	putReply(b[:], errno, cookie)
	l.answers.Lock()
	defer l.answers.Unlock()
	_ = l.write(b[:], payload)
}

func (l *lane) flush() {
	l.answers.Lock()
	defer l.answers.Unlock()
	_ = l.out.Flush()
}

func (l *lane) refuse(q request, errno uint32) {
	l.answer(errno, q.cookie, nil)
	l.flush()
}

// serveLane passes the requests of a lane on until the kernel ends it.
func (r *Relay) serveLane(l *lane) error {
	for {
		var b [requestSize]byte
		if _, err := io.ReadFull(l.in, b[:]); err != nil {
			return ended(err)
		}
		h, err := parseHeader(b[:])
		if err != nil {
			return err
		}
		q := request{header: h, lane: l}
		switch h.kind {
		case cmdLeave:
			return nil
		case cmdWrite, cmdTrim, cmdZeroes:
			err = r.change(q)
		case cmdRead, cmdFlush:
			if h.length > maxPayload {
				return fmt.Errorf("a request for %d bytes", h.length)
			}
			r.submit(q)
		default:
			l.refuse(q, errInvalid)
		}
		if err != nil {
			return ended(err)
		}
	}
}

// ended is nil for the ways in which the kernel, or end, closes a connection.
func ended(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// change passes a change on, after it has a record in the log. An error is one of
// reading the payload.
func (r *Relay) change(q request) error {
	kind, payload := unflushed.Discard, int64(0)
	switch q.kind {
	case cmdWrite:
		kind, payload = unflushed.Write, int64(q.length)
		if q.length > maxPayload {
			return fmt.Errorf("a write of %d bytes", q.length)
		}
	case cmdZeroes:
		kind = unflushed.Zero
	}
	if r.keeps {
		q.ref, q.data, q.logged = r.room(kind, int64(q.off), int64(q.length))
	}
	if !q.logged { // a write to a device that is read-only, or there is no room and no hope for it
		if _, err := q.lane.in.Discard(int(payload)); err != nil {
			return err
		}
		q.lane.refuse(q, errIO)
		return nil
	}
	if _, err := io.ReadFull(q.lane.in, q.data); err != nil {
		r.mu.Lock()
		r.settleLocked(&q, errIO)
		r.mu.Unlock()
		return err
	}
	r.submit(q)
	r.relieve()
	return nil
}

// room makes a record of a change. It waits while the log is full, and has the
// server flush then.
func (r *Relay) room(kind unflushed.Kind, off, n int64) (unflushed.Ref, []byte, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		if ref, data, ok := r.mu.log.Add(kind, off, n); ok {
			return ref, data, true
		}
		switch {
		case r.mu.ending, r.mu.state == Failed, r.mu.flushError:
			return 0, nil, false
		case r.mu.flushing:
			r.changed.Wait()
		default:
			r.flushLocked()
		}
	}
}

// relieve has the server flush before the log is full.
func (r *Relay) relieve() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.mu.flushing && !r.mu.flushError && r.mu.log.Used() >= flushAt {
		r.flushLocked()
	}
}

// flushLocked sends a flush of the relay's own; it gives mu up meanwhile.
func (r *Relay) flushLocked() {
	r.mu.flushing = true
	r.mu.Unlock()
	r.submit(request{header: header{kind: cmdFlush}})
	r.mu.Lock()
}

// submit enters a request into the table and passes it on, if there is a link.
// Otherwise it waits in the table, or fails if it is too late to wait.
func (r *Relay) submit(q request) {
	r.send.Lock()
	defer r.send.Unlock()
	r.mu.Lock()
	if r.mu.state == Failed {
		r.settleLocked(&q, errIO)
		r.mu.Unlock()
		if q.lane != nil {
			q.lane.refuse(q, errIO)
		}
		return
	}
	if q.kind == cmdFlush && r.keeps {
		q.began = r.mu.log.Begin()
	}
	cookie, l := r.mu.table.enter(q), r.mu.link
	r.mu.Unlock()
	if l == nil {
		return
	}
	l.request(q, cookie)
	if q.lane == nil || !q.lane.more() {
		l.flush()
	}
}

// more is whether another request is in the buffer, whole: it will be sent at once,
// and need not be waited for.
func (l *lane) more() bool {
	if l.in.Buffered() < requestSize {
		return false
	}
	b, err := l.in.Peek(requestSize)
	if err != nil {
		return false
	}
	h, err := parseHeader(b)
	if err != nil || h.kind == cmdLeave {
		return false
	}
	return h.kind != cmdWrite || l.in.Buffered() >= requestSize+int(h.length)
}
