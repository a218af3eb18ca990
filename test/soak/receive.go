package main

import (
	"bytes"
	"errors"
	"fmt"
)

// receive takes replies until the session ends. Its error says what the server
// did wrong.
func (l *link) receive(in *inbox) error {
	err := l.replies(in)
	l.tell()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = true
	l.changed.Broadcast()
	var broken *brokenError
	if errors.As(err, &broken) && (l.leaving || l.soak.stopping()) {
		return nil // this side ended it
	}
	return err
}

// brokenError is a connection that ended.
type brokenError struct{ err error }

func (e *brokenError) Error() string { return "connection: " + e.err.Error() }

func (l *link) replies(in *inbox) error {
	for {
		p, err := in.next(4)
		if err != nil {
			return &brokenError{err}
		}
		switch magic := be.Uint32(p); {
		case magic == simpleMagic:
			err = l.simple(in)
		case magic == structuredMagic && l.structured:
			err = l.chunk(in)
		default:
			err = fmt.Errorf("reply with magic %#x", magic)
		}
		if err != nil {
			return err
		}
	}
}

// slot finds the request that a cookie belongs to.
func (l *link) slot(cookie uint64) (int, *request, error) {
	i := int(cookie & 0xffff)
	if i >= len(l.slots) || l.slots[i].cookie != cookie || cookie == 0 {
		return 0, nil, fmt.Errorf("reply to cookie %#x, which waits for none", cookie)
	}
	return i, &l.slots[i], nil
}

func (l *link) simple(in *inbox) error {
	p, err := in.next(12)
	if err != nil {
		return &brokenError{err}
	}
	errno := be.Uint32(p)
	i, r, err := l.slot(be.Uint64(p[4:]))
	if err != nil {
		return err
	}
	if r.cmd == cmdRead && l.structured {
		return l.wrong(r, "a simple reply to a READ, though structured replies were negotiated")
	}
	if errno != 0 {
		return l.refused(i, r, errno, "")
	}
	if r.cmd == cmdStatus {
		return l.wrong(r, "a simple reply without an error")
	}
	if r.cmd == cmdRead {
		data, err := in.next(r.n)
		if err != nil {
			return &brokenError{err}
		}
		if err := l.compare(r, data, r.off); err != nil {
			return err
		}
	}
	l.complete(i, r)
	return nil
}

// chunk takes one chunk of a structured reply.
func (l *link) chunk(in *inbox) error {
	p, err := in.next(16)
	if err != nil {
		return &brokenError{err}
	}
	flags, kind, cookie, length := be.Uint16(p), be.Uint16(p[2:]), be.Uint64(p[4:]), int(be.Uint32(p[12:]))
	i, r, err := l.slot(cookie)
	if err != nil {
		return err
	}
	if length > maxRequest+8 {
		return l.wrong(r, fmt.Sprintf("a chunk of %d bytes", length))
	}
	body, err := in.next(length)
	if err != nil {
		return &brokenError{err}
	}
	if kind&chunkError != 0 {
		if length < 6 || flags&chunkDone == 0 {
			return l.wrong(r, fmt.Sprintf("an error chunk of %d bytes and flags %#x", length, flags))
		}
		return l.refused(i, r, be.Uint32(body), string(body[6:]))
	}
	if err := l.content(r, kind, body); err != nil {
		return err
	}
	if flags&chunkDone == 0 {
		if r.flags&flagDF != 0 && r.cmd == cmdRead {
			return l.wrong(r, "more than one chunk despite DF")
		}
		return nil
	}
	if r.cmd == cmdRead && r.covered != r.n || r.cmd == cmdStatus && r.covered == 0 {
		return l.wrong(r, fmt.Sprintf("a reply that covers %d bytes", r.covered))
	}
	l.complete(i, r)
	return nil
}

// content judges a chunk that is no error. The chunks of a READ come in order,
// which is more than the protocol asks for.
func (l *link) content(r *request, kind uint16, body []byte) error {
	switch {
	case kind == chunkNone && len(body) == 0 && r.cmd != cmdStatus:
		return nil
	case kind == chunkData && r.cmd == cmdRead && len(body) > 8:
		data, off := body[8:], int64(be.Uint64(body))
		if off != r.off+int64(r.covered) || r.covered+len(data) > r.n {
			return l.wrong(r, fmt.Sprintf("data for %d+%d", off, len(data)))
		}
		if err := l.compare(r, data, off); err != nil {
			return err
		}
		r.covered += len(data)
		return nil
	case kind == chunkHole && r.cmd == cmdRead && len(body) == 12:
		off, n := int64(be.Uint64(body)), int(be.Uint32(body[8:]))
		if off != r.off+int64(r.covered) || n == 0 || r.covered+n > r.n {
			return l.wrong(r, fmt.Sprintf("a hole at %d+%d", off, n))
		}
		if err := l.compare(r, make([]byte, n), off); err != nil {
			return err
		}
		r.covered += n
		return nil
	case kind == chunkStatus && r.cmd == cmdStatus && r.covered == 0:
		return l.status(r, body)
	}
	return l.wrong(r, fmt.Sprintf("a chunk of type %d with %d bytes", kind, len(body)))
}

// status judges the extents of a BLOCK_STATUS: zero is said only of what reads as
// zeros now.
func (l *link) status(r *request, body []byte) error {
	if len(body) < 12 || len(body)%8 != 4 || be.Uint32(body) != l.context || r.flags&flagOne != 0 && len(body) != 12 {
		return l.wrong(r, fmt.Sprintf("a status chunk of %d bytes", len(body)))
	}
	at, end := r.off, r.off+int64(r.n)
	for p := body[4:]; len(p) > 0; p = p[8:] {
		n, state := int64(be.Uint32(p)), be.Uint32(p[4:])
		over := at+n > end
		if n == 0 || at >= end || over && (r.flags&flagOne != 0 || at+n > l.soak.model.size) {
			return l.wrong(r, fmt.Sprintf("an extent at %d of %d bytes", at, n))
		}
		known := min(n, end-at)
		if state&stateZero != 0 && !l.soak.model.zeros(at, known) {
			return l.differs(&difference{at: at, got: fmt.Sprintf("an extent of %d bytes that is said to be zero", n), want: "data"})
		}
		at += n
	}
	r.covered = int(at - r.off)
	return nil
}

func (l *link) compare(r *request, data []byte, off int64) error {
	l.bytes += int64(len(data))
	var old *content
	if r.either {
		old = &r.old
	}
	if err := l.soak.model.check(data, off, old); err != nil {
		return l.differs(err)
	}
	return nil
}

func (l *link) differs(err error) error { return fmt.Errorf("connection %d: %w", l.id, err) }

func (l *link) wrong(r *request, what string) error {
	return fmt.Errorf("%s %d+%d flags %#x on connection %d was answered with %s", commandNames[r.cmd], r.off, r.n, r.flags, l.id, what)
}

// refused judges an error of the server. The one that is allowed is to a fast
// zero, which then has changed nothing.
func (l *link) refused(i int, r *request, errno uint32, text string) error {
	if errno != errNotSupported || r.cmd != cmdZero || r.flags&flagFast == 0 {
		return l.wrong(r, fmt.Sprintf("error %d %s", errno, bytes.ToValidUTF8([]byte(text), nil)))
	}
	l.soak.model.restore(&r.old, r.off, r.n)
	l.complete(i, r)
	return nil
}

// complete gives back an answered request's units and its slot.
func (l *link) complete(i int, r *request) {
	l.history.answered(r.entry, l.batch)
	if r.cmd == cmdWrite {
		l.bytes += int64(r.n)
	}
	switch {
	case r.either: // the units stay taken for the repair
		l.mu.Lock()
		l.repairs = append(l.repairs, request{cmd: cmdWrite, off: r.off, n: r.n, taken: true, change: true, repair: true})
		l.mu.Unlock()
	case r.taken:
		from, to := span(r.off, r.n)
		l.soak.model.give(from, to, r.change)
	}
	if r.repair && !r.either {
		l.mu.Lock()
		l.repairing--
		l.mu.Unlock()
	}
	r.cookie = 0
	l.done = append(l.done, i)
}

// tick is called when something has come.
func (l *link) tick() { l.batch = l.soak.elapsed() }

// tell lets the sender know of free slots; called before the receiver waits.
func (l *link) tell() {
	if len(l.done) == 0 {
		return
	}
	l.soak.answered.Add(int64(len(l.done)))
	l.soak.bytes.Add(l.bytes)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.idle = append(l.idle, l.done...)
	l.done, l.bytes = l.done[:0], 0
	l.changed.Broadcast()
}
