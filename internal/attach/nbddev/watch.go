package nbddev

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/mdlayher/genetlink"
	"golang.org/x/sys/unix"
)

// Watch hears of sockets that died. It is for one goroutine.
type Watch struct {
	conn    *genetlink.Conn
	pending []int
}

// Watch begins to listen. What happens after it returned is heard: begin before
// Connect, and no death is missed. It needs no privilege.
func (k *Kernel) Watch() (*Watch, error) {
	c, family, err := k.family()
	if err != nil {
		return nil, err
	}
	for _, g := range family.Groups {
		if g.Name != groupName {
			continue
		}
		if err := errors.Join(c.SetDeadline(time.Time{}), c.JoinGroup(g.ID)); err != nil {
			c.Close()
			return nil, fmt.Errorf("listen to network block devices: %w", err)
		}
		return &Watch{conn: c}, nil
	}
	c.Close()
	return nil, fmt.Errorf("%w: it tells of no dead link", ErrNoNetlink)
}

// Next returns the number of the next device of which a socket died: one event for
// each socket. ErrEventsLost means that events were dropped; every device may have
// lost a socket. The context's end is returned as its error.
func (w *Watch) Next(ctx context.Context) (int, error) {
	stop := context.AfterFunc(ctx, func() { _ = w.conn.SetReadDeadline(time.Unix(1, 0)) })
	defer func() {
		if !stop() { // it has run, or runs: the next call begins afresh
			_ = w.conn.SetReadDeadline(time.Time{})
		}
	}()
	for len(w.pending) == 0 {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		if err := w.receive(); ctx.Err() != nil {
			return 0, ctx.Err()
		} else if err != nil {
			return 0, err
		}
	}
	index := w.pending[0]
	w.pending = w.pending[1:]
	return index, nil
}

func (w *Watch) receive() error {
	messages, _, err := w.conn.Receive()
	if errors.Is(err, unix.ENOBUFS) {
		return ErrEventsLost
	}
	if err != nil {
		return err
	}
	for _, m := range messages {
		if m.Header.Command != cmdLinkDead {
			continue
		}
		index, err := parseIndex(m.Data)
		if err != nil {
			return err
		}
		w.pending = append(w.pending, index)
	}
	return nil
}

// Close ends the watch.
func (w *Watch) Close() error { return w.conn.Close() }
