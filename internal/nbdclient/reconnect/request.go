package reconnect

import (
	"errors"
	"sync/atomic"
	"syscall"

	"github.com/fsximg/fsx/internal/nbdclient"
	"github.com/fsximg/fsx/internal/nbdclient/unflushed"
)

// Op is what a request asks for.
type Op uint8

// Zero and Discard both leave zeros; Discard gives the space back.
const (
	Read Op = iota
	Write
	Zero
	Discard
	Flush
)

// Request is one request. Its fields are the client's from Submit until Done is
// called; then it can be used again.
type Request struct {
	Op       Op
	Off, Len int64 // bytes; of Flush 0
	// Data is Len bytes: what a Write writes, and where a Read puts what it reads. A
	// Write's data is copied: when Submit has returned, the buffer is the caller's.
	Data []byte
	// Done is called once, when Err is known: nil, or an error that wraps a
	// syscall.Errno if it came from the server. It is called by Submit itself or by the
	// receiver of replies, so it must not wait for other requests.
	Done func(*Request)
	Err  error

	cookie uint64
	slot   int
	place  int            // in Client.mu.changes
	ref    unflushed.Ref  // of a change
	mark   unflushed.Mark // of a flush
	own    bool           // a flush of the client's own
}

// slot is where a request under way is found by its cookie.
type slot struct {
	request atomic.Pointer[Request]
	uses    uint32 // guarded by Client.mu
}

func (r *Request) isChange() bool { return r.Op == Write || r.Op == Zero || r.Op == Discard }

func (r *Request) finish(err error) {
	r.Err = err
	r.Done(r)
}

// refuse is why a request is not sent at all.
func (c *Client) refuse(r *Request) error {
	size := c.export.Size
	switch {
	case r.Op == Flush:
		return nil
	case r.isChange() && c.export.ReadOnly():
		return syscall.EROFS
	case r.Off < 0 || r.Len <= 0 || r.Off > size-r.Len:
		return syscall.EINVAL
	case (r.Op == Read || r.Op == Write) && (r.Len > c.export.MaxPayload || r.Len != int64(len(r.Data))):
		return syscall.EINVAL
	case (r.Off|r.Len)&(c.export.MinBlock-1) != 0 || r.Len > 1<<31:
		return syscall.EINVAL
	case (r.Op == Zero || r.Op == Discard) && !c.export.Flags.Has(nbdclient.SendWriteZeroes):
		return syscall.EOPNOTSUPP
	}
	return nil
}

// Submit sends a request, or waits until it can. It returns before the request is
// done.
func (c *Client) Submit(r *Request) {
	for {
		taken, wait := c.try(r, true)
		if taken {
			return
		}
		<-wait
	}
}

// TrySubmit is Submit unless that would wait: then it does nothing and is false.
func (c *Client) TrySubmit(r *Request) bool {
	taken, _ := c.try(r, false)
	return taken
}

// try takes a request if it can be sent now, or fails now. Otherwise wait, if it was
// asked for, is closed when it is worth another try.
func (c *Client) try(r *Request, wantWait bool) (taken bool, wait <-chan struct{}) {
	if err := c.refuse(r); err != nil {
		r.finish(err)
		return true, nil
	}
	v, wait, err := c.send(r, wantWait)
	if v == answered {
		r.finish(err)
	}
	return v != later, wait
}

// send is try without telling the request's owner.
func (c *Client) send(r *Request, wantWait bool) (verdict, <-chan struct{}, error) {
	c.gate.RLock()
	defer c.gate.RUnlock()
	data, v, wait, err := c.admit(r, wantWait)
	if v != admitted {
		return v, wait, err
	}
	if r.Op == Write {
		copy(data, r.Data)
		r.Data = data // the log keeps it
	}
	c.link.send(r)
	return v, nil, nil
}

// verdict is what becomes of a request.
type verdict uint8

const (
	admitted verdict = iota
	later
	answered // without the server
)

// admit enters a request into the table, and a change into the log.
func (c *Client) admit(r *Request, wantWait bool) (data []byte, v verdict, wait <-chan struct{}, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.mu.closed:
		return nil, answered, nil, ErrClosed
	case c.mu.state == Failed:
		return nil, answered, nil, ErrServerGone
	case r.Op == Flush && !c.export.Flags.Has(nbdclient.SendFlush):
		return nil, answered, nil, nil
	case c.mu.state == Waiting || len(c.mu.free) == 0 || r.isChange() && c.overlapsLocked(r):
		return nil, later, c.waitLocked(wantWait), nil
	}
	switch {
	case r.isChange():
		var ok bool
		r.ref, data, ok = c.mu.log.Add(kindOf(r.Op), r.Off, r.Len)
		if !ok && c.mu.lost != nil {
			return nil, answered, nil, c.mu.lost
		}
		if !ok || c.mu.log.Used() > flushAt {
			c.flushLocked()
		}
		if !ok {
			return nil, later, c.waitLocked(wantWait), nil
		}
		r.place = len(c.mu.changes)
		c.mu.changes = append(c.mu.changes, r)
	case r.Op == Flush:
		r.mark = c.mu.log.Begin()
	}
	last := len(c.mu.free) - 1
	r.slot = c.mu.free[last]
	c.mu.free = c.mu.free[:last]
	s := &c.slots[r.slot]
	s.uses++
	r.cookie = uint64(s.uses)<<32 | uint64(r.slot)
	s.request.Store(r)
	return data, admitted, nil, nil
}

func kindOf(op Op) unflushed.Kind {
	switch op {
	case Zero:
		return unflushed.Zero
	case Discard:
		return unflushed.Discard
	}
	return unflushed.Write
}

func (c *Client) overlapsLocked(r *Request) bool {
	for _, other := range c.mu.changes {
		if r.Off < other.Off+other.Len && other.Off < r.Off+r.Len {
			return true
		}
	}
	return false
}

func (c *Client) waitLocked(want bool) <-chan struct{} {
	if want && c.mu.changed == nil {
		c.mu.changed = make(chan struct{})
	}
	return c.mu.changed
}

func (c *Client) wakeLocked() {
	if c.mu.changed != nil {
		close(c.mu.changed)
		c.mu.changed = nil
	}
}

// lookup finds the request that a reply is for.
func (c *Client) lookup(cookie uint64) *Request {
	i := uint32(cookie)
	if i >= MaxInFlight {
		return nil
	}
	r := c.slots[i].request.Load()
	if r == nil || r.cookie != cookie {
		return nil
	}
	return r
}

// complete ends a request with the server's verdict.
func (c *Client) complete(r *Request, err error) {
	c.mu.Lock()
	err = c.settleLocked(r, err)
	c.wakeLocked()
	c.mu.Unlock()
	r.finish(err)
}

// settleLocked takes a request out of the table and has the log know what became of
// it. What it returns is what the caller is to be told.
func (c *Client) settleLocked(r *Request, err error) error {
	c.slots[r.slot].request.Store(nil)
	c.mu.free = append(c.mu.free, r.slot)
	switch {
	case r.isChange():
		last := len(c.mu.changes) - 1
		moved := c.mu.changes[last]
		c.mu.changes[r.place], moved.place = moved, r.place
		c.mu.changes[last] = nil
		c.mu.changes = c.mu.changes[:last]
		if err == nil && c.export.Flags.Has(nbdclient.SendFlush) {
			c.mu.log.Done(r.ref)
		} else {
			c.mu.log.Failed(r.ref) // or durable, as the server cannot flush
		}
		if r.Op == Write {
			r.Data = nil // it was the log's
		}
	case r.Op == Flush && err == nil:
		c.mu.log.Flushed(r.mark)
		if !r.own {
			err, c.mu.lost = c.mu.lost, nil
		}
	}
	return err
}

// flushLocked has the client flush by itself, so that the log gets room.
func (c *Client) flushLocked() {
	if c.mu.flushing || c.mu.closed || c.mu.lost != nil {
		return
	}
	c.mu.flushing = true
	c.run.Go(func() {
		c.Submit(&Request{Op: Flush, own: true, Done: func(r *Request) {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.mu.flushing = false
			if r.Err != nil && !errors.Is(r.Err, ErrServerGone) { // then nothing is lost yet
				c.mu.lost = r.Err
			}
			c.wakeLocked()
		}})
	})
}
