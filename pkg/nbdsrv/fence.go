package nbdsrv

import (
	"reflect"
	"sync"
	"sync/atomic"
)

// served is what the connections to one device share.
//
// Its fence keeps changes of the same bytes in the order in which the server
// took them off different sockets. A client whose connection hangs sends its
// requests again on another one (Linux does), then writes something newer; the
// stuck original must not come last. So a change that leaves the receiving
// goroutine is registered, and one that overlaps it, from another connection,
// waits until it has been carried out. Within a connection there is no order
// ("Ordering of messages and writes").
//
// Tickets are given in the order in which connections enqueue, workers take
// tasks in that order, and a change waits for lower tickets only: the lowest
// one outstanding never waits, so all get their turn.
type served struct {
	dev      Device
	refs     int      // guarded by Server.mu
	siblings siblings // guarded by Server.mu

	failed atomic.Pointer[error] // of the first Flush that failed

	busy   atomic.Int64 // how many changes are registered
	mu     sync.Mutex   // guards the following
	left   sync.Cond    // a change was removed
	first  *task        // the registered changes, lowest ticket first
	newest *task
}

// register gives t, a change of connection t.c, its ticket.
func (d *served) register(t *task) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.busy.Add(1)
	t.before, t.after = d.newest, nil
	if d.newest == nil {
		d.first = t
	} else {
		d.newest.after = t
	}
	d.newest = t
}

// await returns once no change with a lower ticket is in t's way.
func (d *served) await(t *task) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for d.blockedLocked(t.c, t.r, t) {
		d.left.Wait()
	}
}

// remove takes t from the fence.
func (d *served) remove(t *task) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if t.before == nil {
		d.first = t.after
	} else {
		t.before.after = t.after
	}
	if t.after == nil {
		d.newest = t.before
	} else {
		t.after.before = t.before
	}
	t.before, t.after = nil, nil
	d.busy.Add(-1)
	d.left.Broadcast()
}

// contested says whether a change of another connection is registered for
// bytes of r. It costs one load while no change waits for a worker.
func (d *served) contested(c *conn, r request) bool {
	if d.busy.Load() == 0 {
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.blockedLocked(c, r, nil)
}

// blockedLocked looks at the changes registered before end.
func (d *served) blockedLocked(c *conn, r request, end *task) bool {
	for t := d.first; t != end; t = t.after {
		if t.c != c && t.r.offset < r.offset+uint64(r.length) && r.offset < t.r.offset+uint64(t.r.length) {
			return true
		}
	}
	return false
}

// flush makes completed writes durable. Once it has failed it is never tried
// again: what was lost stays lost, and a later success would hide it.
func (d *served) flush() error {
	if err := d.failed.Load(); err != nil {
		return *err
	}
	if err := d.dev.Flush(); err != nil {
		d.failed.CompareAndSwap(nil, &err)
	}
	if err := d.failed.Load(); err != nil {
		return *err
	}
	return nil
}

// acquire returns what connections to dev share. Devices that cannot be
// compared share nothing.
func (s *Server) acquire(dev Device) *served {
	s.mu.Lock()
	defer s.mu.Unlock()
	comparable := reflect.ValueOf(dev).Comparable()
	if comparable {
		if d, ok := s.devices[dev]; ok {
			d.refs++
			return d
		}
	}
	d := &served{dev: dev, refs: 1, siblings: newSiblings()}
	d.left.L = &d.mu
	if comparable {
		s.devices[dev] = d
	}
	return d
}

// release undoes acquire.
func (s *Server) release(d *served) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if d.refs--; d.refs > 0 {
		return
	}
	d.siblings.close()
	if reflect.ValueOf(d.dev).Comparable() {
		delete(s.devices, d.dev)
	}
}
