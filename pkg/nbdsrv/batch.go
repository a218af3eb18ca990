package nbdsrv

import (
	"time"

	"golang.org/x/sync/semaphore"
)

const (
	// batchSize is what a batch counts for.
	batchSize = receiveSize + sendSize
	// minBatches is how many there are beyond what Config.Memory allows.
	minBatches = 64
	// maxPartial is how many connections that wait for the rest of a request
	// may keep their batch meanwhile; further ones keep what they received.
	// There are more than twice as many batches.
	maxPartial = 64
)

// batch is the memory of the receiving goroutine while requests are at hand.
// There are only so many of all connections. Who holds one may wait for payload
// memory, never the other way round, so that all get on.
type batch struct {
	in  [receiveSize]byte
	out [sendSize + ReadSlack]byte
	// Nothing behind these was used since it was cleared.
	usedIn, usedOut int
}

// received notes that in[:n] may have been used.
func (b *batch) received(n int) { b.usedIn = max(b.usedIn, n) }

// queued notes that out[:n], and the slack behind it, may have been used.
func (b *batch) queued(n int) { b.usedOut = max(b.usedOut, min(n+ReadSlack, len(b.out))) }

func (b *batch) clear() {
	clear(b.in[:b.usedIn])
	clear(b.out[:b.usedOut])
	b.usedIn, b.usedOut = 0, 0
}

// newBatchRoom counts the batches that may be held at a time.
func newBatchRoom(memory int64) *semaphore.Weighted {
	return semaphore.NewWeighted(minBatches + memory/batchSize)
}

// park is called before waiting for bytes. A connection that has nothing to do
// holds no batch; thousands amid a request hold what they were sent.
func (c *conn) park() {
	switch {
	case c.batch == nil || c.pos != 0:
	case c.w != 0 && c.srv.partial.Add(1) <= maxPartial:
		c.partial = true
	case c.w != 0:
		c.srv.partial.Add(-1)
		c.stashBatch()
	default:
		c.putBatch()
	}
}

// unpark ends the waiting. There may be no batch then.
func (c *conn) unpark() {
	if c.partial {
		c.partial = false
		c.srv.partial.Add(-1)
	}
}

// stashBatch puts the batch back, if there is nothing to be sent in it, and
// keeps what was received and not yet served: less than an inline request.
func (c *conn) stashBatch() {
	if c.batch == nil || c.pos != 0 {
		return
	}
	if c.r != c.w {
		c.stash = append([]byte(nil), c.batch.in[c.r:c.w]...)
		clear(c.batch.in[c.r:c.w])
	}
	c.putBatch()
}

// needBatch sees to it that the connection has a batch, and waits if need be.
func (c *conn) needBatch() error {
	if c.tryBatch() {
		return nil
	}
	return c.awaitBatch()
}

// tryBatch is needBatch that does not wait, and says whether there is one.
func (c *conn) tryBatch() bool {
	if c.batch != nil {
		return true
	}
	if !c.srv.batchRoom.TryAcquire(1) {
		return false
	}
	c.setBatch()
	return true
}

// awaitBatch waits for a batch, in turn. The connections that keep one because
// they take no replies, or do not send what they announced, are cut off after
// StallTimeout.
func (c *conn) awaitBatch() error {
	begin := time.Now()
	c.srv.batchWaiters.Add(1)
	err := c.await(c.srv.batchRoom, 1, func(c *conn) bool { return c.hasBatch.Load() })
	c.srv.batchWaiters.Add(-1)
	if err != nil {
		return err
	}
	c.setBatch()
	return c.recheck(begin)
}

// setBatch is for who has taken room for a batch.
func (c *conn) setBatch() {
	var ok bool
	if c.batch, ok = c.srv.batches.Get().(*batch); !ok {
		c.batch = new(batch)
	}
	c.hasBatch.Store(true)
	if c.stash != nil {
		c.r, c.w = 0, copy(c.batch.in[:], c.stash)
		c.batch.received(c.w)
		clear(c.stash)
		c.stash = nil
	}
}

func (c *conn) putBatch() {
	if c.batch == nil {
		return
	}
	c.srv.batches.Put(c.batch)
	c.batch = nil
	c.hasBatch.Store(false)
	c.srv.batchRoom.Release(1)
}

// dropBatch is putBatch at the end of the connection: what the client read and
// wrote does not outlive it.
func (c *conn) dropBatch() {
	if c.batch != nil {
		c.batch.clear()
		c.putBatch()
	}
	clear(c.stash)
	c.stash = nil
}

// untaken is the memory of replies that wait in a batch for the client to take
// them, in bytes.
func (c *conn) untaken() int64 {
	if c.hasBatch.Load() && c.sendingSince.Load() != 0 {
		return batchSize
	}
	return 0
}
