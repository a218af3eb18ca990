// Package relay stands between a network block device of the kernel and its NBD
// server, and makes a server that is killed and started again harmless.
//
// The kernel's own client survives the death of its server, too: it keeps what was
// not answered and sends it to the next one. But a server that is killed also loses
// what it had answered and not yet made durable, and the kernel, which keeps that
// only until the answer, does not know. A filesystem then reads what was there
// before, without any error. (Only the power of the whole machine could do that to
// a real disk, and the filesystem would not be there to see it.)
//
// So the kernel's sockets end here, in a process that does not die with the server:
//
//	kernel ──lane──▶ Relay ──link──▶ server
//	       ◀───────       ◀───────
//
// A request is passed on with a cookie of ours, and kept until it is answered.
// Changes are also kept, in an unflushed.Log, until a flush that began after their
// answer has succeeded. When the link breaks, another server is dialled; it first
// gets the changes that may be lost, in their order, then what was not answered,
// then what is new. The kernel notices nothing but the time that it takes.
//
// Goroutines: each lane has one that reads the kernel's requests and passes them on;
// the link has one that dials, repeats what was lost, and passes the answers back.
// Run owns them. Payload of a write is read into the log's memory and written from
// there; there is no other copy.
//
// What is not bridged: both processes killed before the server has flushed. The
// kernel's device then waits for another Relay (nbddev's Reconnect), but what only
// those two knew is gone.
package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/fsximg/fsx/internal/nbdclient"
	"github.com/fsximg/fsx/internal/nbdclient/unflushed"
	"golang.org/x/sys/unix"
)

const (
	defaultMemory = 64 << 20
	// maxPayload is what Linux asks at most in one request (max_hw_sectors, 32 MiB);
	// the log must hold it beside others.
	maxPayload = 32 << 20
	// recordSize is how small changes may be on average before the log runs out of
	// records instead of memory.
	recordSize = 2 << 10
	// flushAt is how full the log may be before the relay flushes by itself, without
	// keeping the kernel waiting.
	flushAt = 0.7
)

// Config is how a Relay works.
type Config struct {
	// Dial negotiates a connection with the server, wherever it is by now. The export's
	// flags must be as they were, and it must not have become smaller. It is called again until ctx ends or it
	// succeeds.
	Dial func(ctx context.Context) (*nbdclient.Socket, error)
	// Timeout is how long requests wait for a server after its link broke, before they
	// fail with EIO. 0: at once. A server that comes later revives the device.
	Timeout time.Duration
	// Memory is how many bytes of changes are kept at most: 64 MiB. When they are used
	// up the relay has the server flush.
	Memory int
	Log    *slog.Logger // nil: none
}

// State is how a Relay fares.
type State int

const (
	Up      State = iota // requests reach the server
	Waiting              // there is no server, requests wait
	Failed               // there is no server, requests fail
)

func (s State) String() string { return [...]string{"up", "waiting", "failed"}[s] }

// Relay relays the requests of one device.
type Relay struct {
	cfg    Config
	export nbdclient.Export
	keeps  bool // changes: the server may lose some
	lanes  []*lane
	first  *link

	// send is held by who writes to the link, from the entry of the request into the
	// table on: so requests reach the server in the order of their entry. It is taken
	// before mu.
	send sync.Mutex

	mu struct {
		sync.Mutex
		log   *unflushed.Log
		table table
		state State
		link  *link // nil unless Up
		// losses counts the broken links, so that a timer knows whose it is.
		losses int
		// flushing: a flush of the relay's own is in the table. flushError is what the last
		// one brought: there is no hope for room then.
		flushing   bool
		flushError bool
		ending     bool // nobody is served any more
	}
	changed *sync.Cond // of mu: there may be room in the log, or no hope for it
}

// New makes a relay over a connection that Dial gave, which now belongs to it, and
// returns the sockets for the kernel, which the caller closes once the kernel has
// them. Run does the work.
func New(first *nbdclient.Socket, lanes int, cfg Config) (*Relay, []*os.File, error) {
	if cfg.Memory == 0 {
		cfg.Memory = defaultMemory
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	r := &Relay{cfg: cfg, export: first.Export, keeps: !first.ReadOnly()}
	r.changed = sync.NewCond(&r.mu)
	if r.keeps {
		switch {
		case !first.Flags.Has(nbdclient.SendFlush):
			return nil, nil, errors.New("the server cannot flush: what it may lose would have to be kept for ever")
		case cfg.Memory <= maxPayload:
			return nil, nil, fmt.Errorf("%d bytes for changes that may be lost: no room for a request of %d", cfg.Memory, maxPayload)
		}
		r.mu.log = unflushed.New(cfg.Memory, cfg.Memory/recordSize)
	}
	l, err := newLink(first)
	if err != nil {
		return nil, nil, err
	}
	r.first = l
	r.mu.state = Waiting // until Run
	var kernel []*os.File
	for range lanes {
		lane, theirs, err := newLane()
		if err != nil {
			r.end()
			l.close()
			return nil, nil, errors.Join(err, closeAll(kernel))
		}
		r.lanes = append(r.lanes, lane)
		kernel = append(kernel, theirs)
	}
	return r, kernel, nil
}

// newLane makes a lane, and the socket for the kernel at its other end.
func newLane() (*lane, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socket pair for a device: %w", err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "kernel")
	s, err := newSocket(os.NewFile(uintptr(fds[0]), "relay"))
	if err != nil {
		return nil, nil, errors.Join(err, theirs.Close())
	}
	return &lane{socket: s}, theirs, nil
}

func closeAll(files []*os.File) error {
	var err error
	for _, f := range files {
		err = errors.Join(err, f.Close())
	}
	return err
}

// Run relays until the kernel has closed its sockets, which is how a device ends,
// and returns nil; or until ctx ends, and returns its error: the kernel's device
// then waits for new sockets.
func (r *Relay) Run(ctx context.Context) error {
	inner, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(ctx, r.end)
	defer stop()
	var links, lanes sync.WaitGroup
	links.Go(func() { r.serveLinks(inner) })
	for _, l := range r.lanes {
		lanes.Go(func() {
			if err := r.serveLane(l); err != nil {
				r.cfg.Log.Error("the kernel's connection ended", "error", err)
			}
		})
	}
	lanes.Wait()
	r.leave()
	r.end()
	cancel()
	links.Wait()
	return ctx.Err()
}

// State tells how the relay fares.
func (r *Relay) State() State {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.mu.state
}

// leave tells the server that its client goes.
func (r *Relay) leave() {
	r.send.Lock()
	defer r.send.Unlock()
	r.mu.Lock()
	l := r.mu.link
	r.mu.Unlock()
	if l != nil {
		l.request(request{header: header{kind: cmdLeave}}, 0)
		l.flush()
	}
}

// end has the lanes come to their end; the link's context ends it.
func (r *Relay) end() {
	r.mu.Lock()
	r.mu.ending = true
	r.changed.Broadcast()
	r.mu.Unlock()
	for _, lane := range r.lanes {
		lane.close()
	}
}
