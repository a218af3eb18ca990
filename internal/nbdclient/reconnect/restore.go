package reconnect

import (
	"context"
	"time"

	"github.com/fsximg/fsx/internal/nbdclient/unflushed"
)

// serve receives replies, and makes new connections, until Close.
func (c *Client) serve() {
	l := c.link
	for l != nil {
		stop := context.AfterFunc(c.ctx, l.goodbye)
		err := l.receive(c)
		stop()
		l.hangUp()
		l = c.restore(l, err)
	}
	c.failAll(ErrClosed)
}

// restore makes a new connection, and has what is under way sent on it. It is nil when
// the client is closed.
func (c *Client) restore(old *link, why error) *link {
	broken := c.interrupt()
	old.close()
	if c.ctx.Err() != nil {
		return nil
	}
	c.options.Log.Warn("connection to the nbd server broke", "err", why, "timeout", c.options.Timeout)
	giveUp := time.AfterFunc(max(0, c.options.Timeout), func() { c.giveUp(broken) })
	defer giveUp.Stop()
	said := ""
	for pause := firstPause; ; pause = min(2*pause, longestPause) {
		l, repeated, err := c.attempt()
		if err == nil {
			c.options.Log.Info("connected to the nbd server again", "after", time.Since(broken), "repeated", repeated)
			c.install(l)
			return l
		}
		if c.ctx.Err() != nil {
			return nil
		}
		if text := err.Error(); text != said {
			c.options.Log.Warn("no connection to the nbd server yet", "err", err)
			said = text
		}
		select {
		case <-c.ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

// attempt makes a connection on which the kept changes were repeated.
func (c *Client) attempt() (l *link, repeated int, err error) {
	l, export, err := c.dial(c.ctx)
	if err != nil {
		return nil, 0, err
	}
	stop := context.AfterFunc(c.ctx, l.hangUp)
	defer stop()
	if err = c.compatible(export); err == nil {
		repeated, err = c.repeatAll(l)
	}
	if err != nil {
		l.goodbye()
		l.close()
		return nil, 0, err
	}
	return l, repeated, nil
}

// repeatAll carries out the kept changes, one after the other. They stay in the log:
// this server has not flushed them either.
func (c *Client) repeatAll(l *link) (n int, err error) {
	for ref := unflushed.Ref(0); ; n++ {
		c.mu.Lock()
		change, next, ok := c.mu.log.Pending(ref)
		c.mu.Unlock()
		if !ok {
			return n, nil
		}
		if err := l.repeat(change); err != nil {
			return n, err
		}
		ref = next
	}
}

// install makes l the connection. What was under way is sent while the receiver, which
// the caller is, takes replies; nobody else sends before that is done.
func (c *Client) install(l *link) {
	c.gate.Lock()
	c.link = l
	c.mu.Lock()
	again := c.underWay()
	c.mu.state, c.mu.since = Connected, time.Now()
	c.wakeLocked()
	c.mu.Unlock()
	c.run.Go(func() {
		defer c.gate.Unlock()
		for _, r := range again {
			l.send(r)
		}
	})
}

// interrupt has requests wait, from the moment on that it returns.
func (c *Client) interrupt() time.Time {
	c.gate.Lock() // nobody is in the middle of sending
	defer c.gate.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.state, c.mu.since = Waiting, time.Now()
	return c.mu.since
}

func (c *Client) underWay() (l []*Request) {
	for i := range c.slots {
		if r := c.slots[i].request.Load(); r != nil {
			l = append(l, r)
		}
	}
	return l
}

// giveUp is called when the time for a reconnect is over that was interrupted then.
func (c *Client) giveUp(broken time.Time) {
	c.mu.Lock()
	if c.mu.state != Waiting || c.mu.since != broken {
		c.mu.Unlock()
		return
	}
	c.mu.state, c.mu.since = Failed, time.Now()
	failed := c.takeAllLocked(ErrServerGone)
	c.mu.Unlock()
	c.options.Log.Error("nbd server is gone: requests fail until it is back", "failed", len(failed))
	for _, r := range failed {
		r.finish(ErrServerGone)
	}
}

func (c *Client) failAll(err error) {
	c.mu.Lock()
	failed := c.takeAllLocked(err)
	c.mu.Unlock()
	for _, r := range failed {
		r.finish(err)
	}
}

func (c *Client) takeAllLocked(err error) []*Request {
	l := c.underWay()
	for _, r := range l {
		_ = c.settleLocked(r, err)
	}
	c.wakeLocked()
	return l
}
