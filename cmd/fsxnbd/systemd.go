package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/fsximg/fsx/internal/cliutil"
	"golang.org/x/sys/unix"
)

// metricsFD is the name of a socket of systemd's (FileDescriptorName=) that is for
// --metrics. All others are for clients.
const metricsFD = "metrics"

// activated are the sockets that systemd listens on for us: sd_listen_fds(3).
type activated struct {
	clients []net.Listener
	metrics net.Listener // nil: none
}

// socketActivation takes over systemd's sockets. What is served on TCP is as little
// encrypted as with --listen, so the same addresses are refused.
func socketActivation(secure bool) (a activated, err error) {
	defer func() {
		if err != nil {
			a.close()
		}
	}()
	for _, f := range activation.Files(true) {
		l, listenErr := listenerOf(f)
		name := f.Name()
		f.Close() // l has its own
		if listenErr != nil {
			return a, cliutil.WithHint(fmt.Errorf("socket %s of systemd: %w", name, listenErr), "it must be a ListenStream= with Accept=no")
		}
		if t, ok := l.Addr().(*net.TCPAddr); ok && !t.IP.IsLoopback() && (!secure || name == metricsFD) {
			l.Close()
			return a, cliutil.WithHint(cliutil.UsageErrorf("socket %s of systemd: %s is no loopback address: what is served is not encrypted", name, t),
				"use a unix socket, or 127.0.0.1, or --tls-cert, --tls-key and --tls-ca")
		}
		if who := sharing(l); !secure && who == everybody && l.Addr().Network() == "unix" && name != metricsFD {
			l.Close()
			return a, cliutil.WithHint(cliutil.UsageErrorf("socket %s of systemd: everybody on this machine may connect to it", name),
				"SocketMode=0600 in the .socket unit, or 0660 and SocketGroup=; or --tls-cert, --tls-key and --tls-ca")
		}
		switch {
		case name != metricsFD:
			a.clients = append(a.clients, l)
		case a.metrics != nil:
			l.Close()
			return a, cliutil.UsageErrorf("two sockets of systemd are called %s", metricsFD)
		default:
			a.metrics = l
		}
	}
	return a, nil
}

// listenerOf is the listener of a socket that listens.
func listenerOf(f *os.File) (net.Listener, error) {
	for _, want := range []struct{ option, value int }{{unix.SO_TYPE, unix.SOCK_STREAM}, {unix.SO_ACCEPTCONN, 1}} {
		got, err := unix.GetsockoptInt(int(f.Fd()), unix.SOL_SOCKET, want.option)
		if err != nil {
			return nil, err
		}
		if got != want.value {
			return nil, errors.New("it does not listen")
		}
	}
	return net.FileListener(f)
}

func (a *activated) close() {
	for _, l := range a.clients {
		l.Close()
	}
	if a.metrics != nil {
		a.metrics.Close()
	}
}

// isActivated says whether systemd has sockets for this process.
func isActivated() bool {
	return os.Getenv("LISTEN_PID") == strconv.Itoa(os.Getpid()) && os.Getenv("LISTEN_FDS") != ""
}

// notify tells systemd how we are: sd_notify(3). Without one that listens it does
// nothing.
func notify(log *slog.Logger, state string) {
	_, err := daemon.SdNotify(false, state)
	switch {
	case err == nil:
		unheard.Store(false)
	case !unheard.Swap(true):
		log.Warn("systemd is not told", "state", state, "err", err)
	}
}

// unheard is set while systemd does not take what it is told, which is logged once.
var unheard atomic.Bool

// notifyReloading is what a service with Type=notify-reload says when SIGHUP came;
// it says READY=1 when that is done.
func notifyReloading(log *slog.Logger) {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		log.Warn("systemd is not told", "err", err)
		return
	}
	notify(log, fmt.Sprintf("RELOADING=1\nMONOTONIC_USEC=%d", now.Nano()/1000))
}

// watchdog pats systemd's watchdog, if the unit has WatchdogSec=, for as long as the
// server works.
type watchdog struct {
	alive    pulse
	log      *slog.Logger
	stopping atomic.Bool
	end      context.CancelFunc
	done     chan struct{}
}

// startWatchdog begins to pat. Each time look has to return first; see running.look
// for what that shows.
func startWatchdog(log *slog.Logger, look func()) *watchdog {
	w := &watchdog{alive: pulse{look: look}, log: log, done: make(chan struct{})}
	var ctx context.Context
	ctx, w.end = context.WithCancel(context.Background())
	every, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		log.Warn("systemd's watchdog is not pat", "err", err)
	}
	if err != nil || every == 0 {
		close(w.done)
		return w
	}
	go w.pat(ctx, every/3)
	return w
}

func (w *watchdog) pat(ctx context.Context, every time.Duration) {
	defer close(w.done)
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		switch {
		case w.stopping.Load() || w.alive.beats(ctx, every):
			notify(w.log, daemon.SdNotifyWatchdog)
		case ctx.Err() == nil:
			w.log.Error("the server hangs; systemd's watchdog is not pat")
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
}

// stop is called when the server begins to end. From then on TimeoutStopSec= is what
// bounds it, and the stores are not looked at any more.
func (w *watchdog) stop() {
	w.stopping.Store(true)
	notify(w.log, daemon.SdNotifyStopping)
}

// close ends the patting. A watchdog that was not started has none.
func (w *watchdog) close() {
	if w.end == nil {
		return
	}
	w.end()
	<-w.done
}
