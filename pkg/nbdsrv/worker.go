package nbdsrv

import "time"

// dispatch makes a task of r, with n bytes of buffer, for a worker.
func (c *conn) dispatch(r request, n int) error {
	t, err := c.admit(r, n)
	if err != nil {
		return err
	}
	if r.cmd == cmdFlush {
		c.enqueueSync(t)
	} else {
		c.enqueue(t)
	}
	return nil
}

// dispatchSync makes a task of r for the next Flush.
func (c *conn) dispatchSync(r request) error {
	t, err := c.admit(r, 0)
	if err != nil {
		return err
	}
	c.enqueueSync(t)
	return nil
}

// enqueue hands t to the connection's workers, of which there are as many as
// there is work for, up to ConnWorkers.
func (c *conn) enqueue(t *task) {
	if t.r.changes() {
		c.shared.register(t)
	}
	c.mu.Lock()
	c.queue.push(t)
	start := c.workers < c.srv.cfg.ConnWorkers
	if start {
		c.workers++
	}
	c.mu.Unlock()
	if start {
		go c.workFn()
	}
}

// work is a worker: it runs tasks until none is left.
func (c *conn) work() {
	for {
		c.mu.Lock()
		t := c.queue.pop()
		if t == nil {
			c.workers--
			c.change.Broadcast()
			c.mu.Unlock()
			return
		}
		c.mu.Unlock()
		c.runTask(t)
	}
}

// runTask carries out one task. A task of a dead connection that has not begun
// is dropped: its client may have sent the request again elsewhere.
func (c *conn) runTask(t *task) {
	if t.r.changes() {
		c.shared.await(t)
	}
	if c.dead.Load() {
		if t.r.changes() {
			c.shared.remove(t)
		}
		c.drop(t)
		return
	}
	c.srv.slots <- struct{}{}
	n, err := c.execute(t)
	<-c.srv.slots
	if t.r.changes() {
		c.shared.remove(t)
		if err == nil && t.r.flags&cmdFlagFUA != 0 {
			c.enqueueSync(t)
			return
		}
	}
	if n > 0 {
		t.reply = c.mode.statusReply(t)[:n]
	} else {
		c.settle(t, err)
	}
	c.complete(t)
}

// execute calls the device and may wait for it. n is the length of a
// successful BLOCK_STATUS's reply.
func (c *conn) execute(t *task) (n int, err error) {
	off, length := int64(t.r.offset), int64(t.r.length)
	switch t.r.cmd {
	case cmdRead:
		return 0, c.dev.ReadAt(t.buf.payload(int(length)), off, false)
	case cmdWrite:
		return 0, c.dev.WriteAt(t.buf.payload(int(length)), off, false)
	case cmdTrim:
		return 0, c.dev.TrimAt(off, length)
	case cmdWriteZeroes:
		return 0, c.dev.ZeroAt(off, length, t.r.flags&cmdFlagNoHole != 0)
	case cmdCache:
		return 0, c.dev.Prefetch(off, length)
	default:
		return c.blockStatus(t)
	}
}

// settle makes t's reply from the device's answer.
func (c *conn) settle(t *task, err error) {
	switch {
	case err != nil:
		f := c.deviceFailed(err, t.r)
		t.errno = f.errno
		t.reply = t.small[:c.putFailure(t.small[:], t.r, f)]
	case t.r.cmd == cmdRead:
		hdr := c.readHeaderLen()
		t.reply = t.buf.b[bufferFront-hdr : bufferFront+int(t.r.length)]
		c.putReadHeader(t.reply, t.r)
	default:
		t.reply = t.small[:c.putEmpty(t.small[:], t.r)]
	}
}

// complete hands t to whoever sends next, if need be to the caller.
func (c *conn) complete(t *task) {
	c.mu.Lock()
	c.done.push(t)
	c.mu.Unlock()
	c.pump()
}

// enqueueSync makes t wait for a Flush that begins after this call. All that
// wait on a connection share the next one.
func (c *conn) enqueueSync(t *task) {
	c.mu.Lock()
	c.syncing.push(t)
	start := !c.flushing
	c.flushing = true
	c.mu.Unlock()
	if start {
		go c.syncFn()
	}
}

// sync flushes the device as long as tasks wait for it.
func (c *conn) sync() {
	for {
		c.mu.Lock()
		list := c.syncing.take()
		if list.head == nil {
			c.flushing = false
			c.change.Broadcast()
			c.mu.Unlock()
			return
		}
		c.mu.Unlock()
		begin := time.Now()
		err := c.shared.flush()
		c.counts.flush.add(1, time.Since(begin))
		for t := list.head; t != nil; t = t.next {
			c.settle(t, err)
		}
		c.mu.Lock()
		for t := list.pop(); t != nil; t = list.pop() {
			c.done.push(t)
		}
		c.mu.Unlock()
		c.pump()
	}
}

// deviceFailed logs a device's error, once a second at most, and describes it
// to the client.
func (c *conn) deviceFailed(err error, r request) *failure {
	if unlogged, ok := c.deviceErrors.admit(); ok {
		c.log.Error("request failed", "command", commandName(r.cmd), "offset", r.offset, "length", r.length,
			"error", err, "unlogged", unlogged)
	}
	return deviceFailure(err, r)
}
