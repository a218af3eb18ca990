package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/fsximg/fsx/internal/nbdclient"
	"github.com/fsximg/fsx/internal/nbdclient/unflushed"
)

var (
	errLeaving = errors.New("the server is shutting down")
	errOther   = errors.New("the server has another export than before")
	errAnswer  = errors.New("an answer to no request")
)

const (
	redialFirst = 20 * time.Millisecond
	redialLast  = time.Second
	// batch is how many changes are repeated before their answers are read: their
	// answers fit into any socket's buffer, so neither side waits for the other.
	batch = 32
)

// link is a connection with a server.
type link struct {
	*socket
	export nbdclient.Export
}

func newLink(s *nbdclient.Socket) (*link, error) {
	sock, err := newSocket(s.File)
	if err != nil {
		return nil, err
	}
	return &link{socket: sock, export: s.Export}, nil
}

// request writes a request; flush sends what was written. Errors are not reported:
// who reads the link sees them, too, or is made to.
func (l *link) request(q request, cookie uint64) {
	var b [requestSize]byte
	h := q.header
	h.cookie = cookie
	h.put(b[:])
	if err := l.write(b[:], q.data); err != nil {
		l.close()
	}
}

func (l *link) flush() {
	if err := l.out.Flush(); err != nil {
		l.close()
	}
}

// serveLinks keeps a link to a server until the relay ends.
func (r *Relay) serveLinks(ctx context.Context) {
	for l := r.first; l != nil; l = r.redial(ctx) {
		err := r.serveLink(ctx, l)
		if r.lost(err) {
			return
		}
	}
}

// serveLink uses a link until it breaks.
func (r *Relay) serveLink(ctx context.Context, l *link) error {
	defer l.close()
	defer context.AfterFunc(ctx, l.close)()
	if err := r.repeat(l); err != nil {
		return fmt.Errorf("send again what the server may have lost: %w", err)
	}
	resumed := make(chan struct{})
	go func() {
		defer close(resumed)
		r.resume(l)
	}()
	err := r.receive(l)
	l.close() // who writes to it stops
	<-resumed
	r.send.Lock()
	r.mu.Lock()
	r.mu.link = nil
	r.mu.Unlock()
	r.send.Unlock()
	return err
}

// repeat sends the changes that may be lost, and waits until each was carried out.
// Nobody else uses the link yet, and nothing leaves the log: no flush is under way
// that could succeed.
func (r *Relay) repeat(l *link) error {
	if !r.keeps {
		return nil
	}
	changes := r.pending()
	if len(changes) > 0 {
		r.cfg.Log.Info("sending again what the server may have lost", "changes", len(changes))
	}
	for part := range slices.Chunk(changes, batch) {
		for i, c := range part {
			l.request(repetition(c), uint64(i))
		}
		l.flush()
		for range part {
			var b [replySize]byte
			if _, err := io.ReadFull(l.in, b[:]); err != nil {
				return err
			}
			errno, _, err := parseReply(b[:])
			if err != nil {
				return err
			}
			if errno != 0 {
				return fmt.Errorf("the server's error %d", errno)
			}
		}
	}
	return nil
}

// pending are the changes that the server may have lost.
func (r *Relay) pending() []unflushed.Change {
	r.mu.Lock()
	defer r.mu.Unlock()
	var l []unflushed.Change
	c, next, ok := r.mu.log.Pending(0)
	for ; ok; c, next, ok = r.mu.log.Pending(next) {
		l = append(l, c)
	}
	return l
}

func repetition(c unflushed.Change) request {
	kind := [...]uint16{unflushed.Write: cmdWrite, unflushed.Zero: cmdZeroes, unflushed.Discard: cmdTrim}[c.Kind]
	return request{header: header{kind: kind, off: uint64(c.Off), length: uint32(c.Len)}, data: c.Data}
}

// resume makes the link the one in use, and sends what was not answered. A flush
// begins anew: everything that it must cover has just been answered.
func (r *Relay) resume(l *link) {
	r.send.Lock()
	defer r.send.Unlock()
	r.mu.Lock()
	r.mu.link, r.mu.state, r.mu.flushError = l, Up, false
	cookies := r.mu.table.all()
	waiting := make([]request, len(cookies))
	for i, cookie := range cookies {
		q := r.mu.table.at(cookie)
		if q.kind == cmdFlush && r.keeps {
			q.began = r.mu.log.Begin()
		}
		waiting[i] = *q
	}
	ending := r.mu.ending
	r.mu.Unlock()
	if ending {
		l.close()
		return
	}
	if len(waiting) > 0 {
		r.cfg.Log.Info("sending again what was not answered", "requests", len(waiting))
	}
	for i, q := range waiting {
		l.request(q, cookies[i])
	}
	l.flush()
}

// receive passes answers back until the link breaks.
func (r *Relay) receive(l *link) error {
	var payload []byte
	var dirty []*lane // have answers in their buffers
	flush := func() {
		for _, lane := range dirty {
			lane.flush()
		}
		dirty = dirty[:0]
	}
	defer flush() // those answers were settled; nobody would give them again
	for {
		if l.in.Buffered() < replySize {
			flush()
		}
		var b [replySize]byte
		if _, err := io.ReadFull(l.in, b[:]); err != nil {
			return err
		}
		errno, cookie, err := parseReply(b[:])
		if err != nil {
			return err
		}
		if errno == errShutdown {
			return errLeaving // the next server carries it out
		}
		q, err := r.find(cookie)
		if err != nil {
			return err
		}
		// A read's answer is passed on when it is whole: the kernel could not be told to
		// forget the half of one.
		payload = payload[:0]
		if q.kind == cmdRead && errno == 0 {
			payload = slices.Grow(payload, int(q.length))[:q.length]
			if _, err := io.ReadFull(l.in, payload); err != nil {
				return err
			}
		}
		if !r.settle(cookie, errno) || q.lane == nil {
			continue // it was given up meanwhile, or is our own
		}
		q.lane.answer(errno, q.cookie, payload)
		if !slices.Contains(dirty, q.lane) {
			dirty = append(dirty, q.lane)
		}
	}
}

// find returns the request of an answer. One that was given up is found no more;
// then the link was lost, and its answers with it.
func (r *Relay) find(cookie uint64) (request, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	q := r.mu.table.at(cookie)
	if q == nil {
		return request{}, errAnswer
	}
	return *q, nil
}

// settle notes the outcome of a request, before the kernel hears of it.
func (r *Relay) settle(cookie uint64, errno uint32) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	q := r.mu.table.at(cookie)
	if q == nil {
		return false
	}
	r.settleLocked(q, errno)
	r.mu.table.leave(cookie)
	return true
}

func (r *Relay) settleLocked(q *request, errno uint32) {
	switch {
	case q.logged && errno == 0:
		r.mu.log.Done(q.ref)
	case q.logged:
		r.mu.log.Failed(q.ref)
	case q.kind == cmdFlush && errno == 0 && r.keeps:
		r.mu.log.Flushed(q.began)
		r.mu.flushError = false
	}
	if q.kind == cmdFlush && q.lane == nil {
		r.mu.flushing, r.mu.flushError = false, errno != 0
	}
	r.changed.Broadcast()
}

// lost notes that a link broke, and returns whether that is the end.
func (r *Relay) lost(err error) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mu.ending {
		return true
	}
	r.cfg.Log.Warn("the server is gone", "error", err, "requests", len(r.mu.table.all()))
	if r.mu.state != Up { // the same loss: the time goes on
		return false
	}
	r.mu.state = Waiting
	r.mu.losses++
	loss := r.mu.losses
	time.AfterFunc(r.cfg.Timeout, func() { r.giveUp(loss) })
	return false
}

// giveUp fails the requests that waited too long for a server.
func (r *Relay) giveUp(loss int) {
	r.mu.Lock()
	if r.mu.state != Waiting || r.mu.losses != loss || r.mu.ending {
		r.mu.Unlock()
		return
	}
	r.mu.state = Failed
	var failed []request
	for _, cookie := range r.mu.table.all() {
		q := r.mu.table.at(cookie)
		r.settleLocked(q, errIO)
		failed = append(failed, *q)
		r.mu.table.leave(cookie)
	}
	r.changed.Broadcast()
	r.mu.Unlock()
	r.cfg.Log.Error("no server came: requests fail from now on", "after", r.cfg.Timeout, "requests", len(failed))
	for _, q := range failed {
		if q.lane != nil {
			q.lane.refuse(q, errIO)
		}
	}
}

// redial connects with a server again; nil: the relay ends.
func (r *Relay) redial(ctx context.Context) *link {
	said := ""
	for wait := redialFirst; ; wait = min(wait*2, redialLast) {
		l, err := r.dial(ctx)
		if err == nil {
			r.cfg.Log.Info("there is a server again")
			return l
		}
		if ctx.Err() != nil {
			return nil
		}
		if text := err.Error(); text != said {
			r.cfg.Log.Warn("no server yet", "error", err)
			said = text
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

// dial connects to a server whose export is the one that was there before. It may have
// grown: a volume was resized meanwhile.
func (r *Relay) dial(ctx context.Context) (*link, error) {
	s, err := r.cfg.Dial(ctx)
	if err != nil {
		return nil, err
	}
	if s.Size < r.export.Size || s.Flags != r.export.Flags {
		return nil, errors.Join(fmt.Errorf("%w: %d bytes, flags %#x; it was %d, %#x",
			errOther, s.Size, s.Flags, r.export.Size, r.export.Flags), s.File.Close())
	}
	return newLink(s)
}
