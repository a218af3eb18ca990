package nbdsrv

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"
)

// complaintsPerSecond bounds the log lines about misbehaving clients, of the
// whole server: who floods it does not fill the disk as well.
const complaintsPerSecond = 10

// violation is what a client did that the protocol forbids, or that looks like
// an attack. It ends the connection.
type violation string

func (v violation) Error() string { return string(v) }

func violated(format string, args ...any) error { return violation(fmt.Sprintf(format, args...)) }

// logLimit lets a number of log lines through in a second and counts the rest.
type logLimit struct {
	most int

	mu       sync.Mutex // guards the following
	since    time.Time
	lines    int
	unlogged int
}

// admit says whether a line may be logged now, and how many were not since the
// last one.
func (l *logLimit) admit() (unlogged int, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now := time.Now(); now.Sub(l.since) >= time.Second {
		l.since, l.lines = now, 0
	}
	if l.lines >= l.most {
		l.unlogged++
		return 0, false
	}
	l.lines++
	unlogged, l.unlogged = l.unlogged, 0
	return unlogged, true
}

// negotiationFailed logs that a negotiation came to nothing and says whether the
// client is to blame: a violation, or one that took too long, is logged aloud; that
// a client went away, which may happen to any, for debugging only.
func (c *conn) negotiationFailed(err error) (blamed bool) {
	var v violation
	slow := errors.Is(err, os.ErrDeadlineExceeded) && !c.srv.closing()
	if slow || errors.As(err, &v) {
		c.complain("negotiation ended", err)
		return true
	}
	c.log.Debug("negotiation ended", "error", err)
	return false
}

// transmissionEnded logs the end of a transmission, and a violation that was its cause aloud.
func (c *conn) transmissionEnded(err error) {
	var v violation
	if errors.As(err, &v) {
		c.complain("transmission ended", err)
	}
	c.log.Debug("client left", "cause", c.end, "after", time.Since(c.since).Round(time.Millisecond))
}

// refused logs the first request of the connection that was refused.
func (c *conn) refused(r request, f *failure) {
	if c.complained {
		return
	}
	c.complain("request refused", errors.New(f.text),
		"command", commandName(r.cmd), "flags", r.flags, "offset", r.offset, "length", r.length)
}

// complain logs a line about the client, the first time. It is called by the
// goroutine that owns the receiving side.
func (c *conn) complain(what string, err error, args ...any) {
	if c.complained {
		c.log.Debug(what, "error", err)
		return
	}
	c.complained = true
	if unlogged, ok := c.srv.complaints.admit(); ok {
		args = append(args, "error", err)
		if unlogged > 0 {
			args = append(args, "unlogged", unlogged)
		}
		c.log.Warn(what, args...)
	}
}
