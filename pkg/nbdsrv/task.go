package nbdsrv

import "time"

// taskReplyLen is room for any reply but a READ's or BLOCK_STATUS's success.
const taskReplyLen = 384

// task is a request that has left the receiving goroutine: it waits for a
// worker, for a Flush or to be sent. It counts against the budgets until then.
type task struct {
	c             *conn
	before, after *task // in the fence, guarded by served.mu

	r      request
	buf    *buffer // payload, or nil
	reply  []byte  // what to send; in buf or in small
	size   int64   // bytes of the connection's budget
	global int64   // the part of size that the server's budget lent
	next   *task
	small  [taskReplyLen]byte

	arrived time.Time // when the request was there, whole
	errno   uint32    // that the reply carries; 0 for a success
}

// taskList is a queue, first in first out.
type taskList struct{ head, tail *task }

func (l *taskList) push(t *task) {
	t.next = nil
	if l.tail == nil {
		l.head = t
	} else {
		l.tail.next = t
	}
	l.tail = t
}

func (l *taskList) pop() *task {
	t := l.head
	if t != nil {
		l.head = t.next
		if l.head == nil {
			l.tail = nil
		}
		t.next = nil
	}
	return t
}

// take empties the list and returns what it held.
func (l *taskList) take() taskList {
	all := *l
	*l = taskList{}
	return all
}

// admit makes a task of r with a buffer for n bytes (none for 0). It waits for
// room in the budgets, and while it waits nobody reads the socket: that is the
// backpressure. It runs in the receiving goroutine only, so what it waits for
// never waits for it.
func (c *conn) admit(r request, n int) (*task, error) {
	size := int64(0)
	if n > 0 {
		size = bufferSize(n)
	}
	global, err := c.reserve(size)
	if err != nil {
		return nil, err
	}
	t, ok := c.srv.tasks.Get().(*task)
	if !ok {
		t = new(task)
	}
	t.c, t.r, t.size, t.global = c, r, size, global
	t.arrived, t.errno = c.arrived, 0
	if n > 0 {
		t.buf = c.srv.buffers.get(n)
	}
	return t, nil
}

// reserve takes size bytes of the connection's budget. What its own reserve
// cannot cover is lent by the server's; that part is returned.
func (c *conn) reserve(size int64) (global int64, err error) {
	if global, ok := c.tryReserve(size); ok {
		if global == 0 || c.srv.memory.TryAcquire(global) {
			return global, nil
		}
		c.unreserve(1, size, global)
	}
	if err := c.flush(); err != nil {
		return 0, err
	}
	begin := time.Now()
	global, err = c.awaitReserve(size)
	if err == nil && global > 0 {
		if err = c.borrow(global); err != nil {
			c.unreserve(1, size, global)
		}
	}
	if err != nil {
		return 0, err
	}
	if err := c.recheck(begin); err != nil {
		c.srv.memory.Release(global)
		c.unreserve(1, size, global)
		return 0, err
	}
	return global, nil
}

// tryReserve takes size bytes of the connection's budget if they are free.
// global of them are to be taken from the server's.
func (c *conn) tryReserve(size int64) (global int64, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.fitsLocked(size) {
		return 0, false
	}
	return c.reserveLocked(size), true
}

// awaitReserve is tryReserve that waits.
func (c *conn) awaitReserve(size int64) (global int64, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for !c.fitsLocked(size) && c.cause == nil {
		c.change.Wait()
	}
	if c.cause != nil {
		return 0, c.cause
	}
	return c.reserveLocked(size), nil
}

func (c *conn) reserveLocked(size int64) (global int64) {
	c.requests++
	c.bytes += size
	if c.reserved+size > c.srv.cfg.ConnReserve {
		return size
	}
	c.reserved += size
	return 0
}

func (c *conn) fitsLocked(size int64) bool {
	return c.requests < c.srv.cfg.ConnRequests && (c.bytes == 0 || c.bytes+size <= c.srv.cfg.ConnMemory)
}

// unreserve gives back what reserve took for some requests.
func (c *conn) unreserve(requests int, size, global int64) {
	c.mu.Lock()
	c.requests -= requests
	c.bytes -= size
	c.reserved -= size - global
	c.change.Broadcast()
	c.mu.Unlock()
}

// drop forgets a task that sends nothing.
func (c *conn) drop(t *task) {
	t.reply = nil
	c.forget(taskList{t, t})
}

// forget returns the tasks of a list, their buffers and their budgets.
func (c *conn) forget(list taskList) {
	requests, size, global := 0, int64(0), int64(0)
	for t := list.pop(); t != nil; t = list.pop() {
		requests++
		size += t.size
		global += t.global
		c.srv.buffers.put(t.buf)
		t.c, t.buf, t.reply = nil, nil, nil
		c.srv.tasks.Put(t)
	}
	if requests == 0 {
		return
	}
	if global > 0 {
		c.srv.memory.Release(global)
	}
	c.unreserve(requests, size, global)
}

// takeDone returns the completed tasks, t last.
func (c *conn) takeDone(t *task) taskList {
	c.mu.Lock()
	defer c.mu.Unlock()
	if t != nil {
		c.done.push(t)
	}
	return c.done.take()
}

func (c *conn) hasDone() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.done.head != nil
}
