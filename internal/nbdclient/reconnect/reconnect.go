// Package reconnect is an NBD client that outlives its server. When the connection
// breaks, requests wait while it dials again, to the same server or to another one in
// its place, and are then sent again.
//
// Nothing that was acknowledged is lost with a killed server: changes are kept until a
// flush has made them durable (package unflushed), and are carried out on the new
// server before anything else. When the room for them becomes scarce the client
// flushes by itself.
//
// The order of things, on which that rests:
//
//   - Changes that overlap are under way one after the other.
//   - A flush covers what was acknowledged before it was sent.
//   - After a reconnect first come the kept changes, in the order in which they were
//     sent, each after the answer to the one before; then what was under way when the
//     connection broke; then what is new. What may still be on its way to a server
//     that lives cannot come later than that (docs/nbd.md, "Order after a reconnect").
//
// The client has to be the only one that changes the export: what others write between
// a break and the reconnect may be overwritten with older data.
//
// The path of a request that is carried out at once allocates nothing: Requests and
// their buffers are the caller's, replies are simple ones.
package reconnect

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/fsximg/fsx/internal/nbdclient"
	"github.com/fsximg/fsx/internal/nbdclient/unflushed"
)

var (
	// ErrServerGone is the error of requests that waited in vain for a server.
	ErrServerGone = errors.New("nbd server is gone")
	// ErrClosed is the error of requests behind Close.
	ErrClosed = errors.New("nbd client is closed")
	// ErrOtherExport is why a server is not taken: its export is not the one that was
	// there before.
	ErrOtherExport = errors.New("nbd server has another export")
)

const (
	// MaxInFlight is how many requests are under way at most; others wait.
	MaxInFlight = 128

	maxChanges     = 1 << 16 // kept changes, whatever their size
	flushAt        = 0.5     // how full the room for them is when the client flushes
	attemptTime    = 10 * time.Second
	firstPause     = 5 * time.Millisecond // between attempts to dial; doubled up to
	longestPause   = time.Second
	defaultKept    = 64 << 20
	defaultTimeout = time.Minute
)

// Options configure a Client.
type Options struct {
	// Redial is asked for the URI of the server's socket at the beginning and after
	// each break, as often as it takes; one call at a time. It may wait for a server,
	// or start one, until ctx ends.
	Redial func(ctx context.Context) (uri string, err error)
	// Timeout is how long requests wait for a new connection, since the break. Then
	// they fail with ErrServerGone, until there is one. 0 is 60 s, negative not at
	// all.
	Timeout time.Duration
	// Kept bounds the bytes of changes that are kept. 0 is 64 MiB; it is at least
	// twice the largest request.
	Kept int64
	// Log is told of breaks and reconnects. Nil is none.
	Log *slog.Logger
}

func (o Options) withDefaults() Options {
	if o.Timeout == 0 {
		o.Timeout = defaultTimeout
	}
	if o.Kept == 0 {
		o.Kept = defaultKept
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}

// State is how the connection is.
type State uint8

const (
	Connected State = iota
	Waiting         // for a server; requests wait, too
	Failed          // it took too long; requests fail until there is a server
)

func (s State) String() string { return [...]string{"connected", "waiting", "failed"}[s] }

// Client is a client of one export. Its methods are safe for concurrent use.
type Client struct {
	options Options
	export  nbdclient.Export
	ctx     context.Context // ends with Close
	cancel  context.CancelFunc
	run     sync.WaitGroup // the receiver and what it starts

	// gate is held for reading while a request is admitted and sent, and for writing
	// while the connection changes: then nobody is in the middle of sending.
	gate sync.RWMutex
	link *link // guarded by gate

	// Requests under way, by the lower half of their cookies. Only who takes one out,
	// under mu, may complete it.
	slots [MaxInFlight]slot

	mu struct {
		sync.Mutex
		state    State
		since    time.Time // of the state
		closed   bool
		free     []int // slots
		changes  []*Request
		log      *unflushed.Log
		flushing bool  // by ourselves
		lost     error // why our own flush failed: the next flush reports it
		// changed is closed when something may have become possible; nil if nobody
		// waits.
		changed chan struct{}
	}
}

// Dial connects. Options.Redial is called once; later breaks are the client's
// business. ctx bounds this first connection.
func Dial(ctx context.Context, o Options) (*Client, error) {
	o = o.withDefaults()
	c := &Client{options: o}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	l, export, err := c.dial(ctx)
	if err != nil {
		c.cancel()
		return nil, err
	}
	c.export, c.link = export, l
	kept := int(max(o.Kept, 2*export.MaxPayload+1))
	if export.ReadOnly() {
		kept = 0
	}
	c.mu.log = unflushed.New(kept, maxChanges)
	c.mu.since = time.Now()
	for i := range MaxInFlight {
		c.mu.free = append(c.mu.free, i)
	}
	c.run.Go(c.serve)
	return c, nil
}

// dial makes one attempt.
func (c *Client) dial(ctx context.Context) (*link, nbdclient.Export, error) {
	ctx, cancel := context.WithTimeout(ctx, attemptTime)
	defer cancel()
	uri, err := c.options.Redial(ctx)
	if err != nil {
		return nil, nbdclient.Export{}, err
	}
	s, err := nbdclient.Negotiate(ctx, uri)
	if err != nil {
		return nil, nbdclient.Export{}, err
	}
	return newLink(s.File), s.Export, nil
}

// Export is what the server told about the export.
func (c *Client) Export() nbdclient.Export { return c.export }

// State is how the connection is, and since when.
func (c *Client) State() (State, time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mu.state, c.mu.since
}

// Close ends the connection. Requests under way, and all later ones, fail with
// ErrClosed; what was not flushed is left to the server.
func (c *Client) Close() error {
	c.mu.Lock()
	c.mu.closed = true
	c.wakeLocked()
	c.mu.Unlock()
	c.cancel() // serve hears it
	c.run.Wait()
	return nil
}

// compatible is whether another connection's export can stand in for the first one's.
// It may have grown: a volume was resized meanwhile.
func (c *Client) compatible(e nbdclient.Export) error {
	needed := c.export.Flags & (nbdclient.SendFlush | nbdclient.SendWriteZeroes)
	switch {
	case e.Size < c.export.Size:
		return fmt.Errorf("%w: of %d bytes, less than %d", ErrOtherExport, e.Size, c.export.Size)
	case e.ReadOnly() != c.export.ReadOnly():
		return fmt.Errorf("%w: read-only is %v instead of %v", ErrOtherExport, e.ReadOnly(), c.export.ReadOnly())
	case !e.Flags.Has(needed) || e.MaxPayload < c.export.MaxPayload || e.MinBlock > c.export.MinBlock:
		return fmt.Errorf("%w: it can do less than the one before", ErrOtherExport)
	}
	return nil
}
