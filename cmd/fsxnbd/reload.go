package main

import (
	"errors"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// reloads are what SIGHUP does. Their order is that of their adding.
type reloads struct {
	log *slog.Logger

	mu    sync.Mutex // guards hooks
	hooks []reload
}

type reload struct {
	what string
	do   func() error
}

// add has SIGHUP do something more: read a file again, or open it again. What fails
// is logged, and has to leave everything as it was.
func (r *reloads) add(what string, do func() error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hooks = append(r.hooks, reload{what, do})
}

func (r *reloads) run() {
	notifyReloading(r.log)
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, h := range r.hooks {
		if err := h.do(); err != nil {
			r.log.Error("reload failed; what was in use stays so", "what", h.what, "err", err)
			continue
		}
		r.log.Info("reloaded", "what", h.what)
	}
	notify(r.log, daemon.SdNotifyReady)
}

// onHangup handles SIGHUP until end is called. It reloads; but where it means that
// the terminal that the server was started from is gone, gone is called.
func (r *reloads) onHangup(gone func()) (end func()) {
	if signal.Ignored(syscall.SIGHUP) {
		return func() {} // nohup: it stays so
	}
	attended := hasTerminal()
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, syscall.SIGHUP)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range ch {
			if attended && !hasTerminal() && !isDaemon() {
				gone()
				return
			}
			r.run()
		}
	}()
	return func() {
		signal.Stop(ch)
		close(ch)
		select {
		case <-done:
		case <-time.After(time.Second): // a file system that hangs does not keep us from ending
		}
	}
}

// holdHangup has SIGHUP do nothing until the returned function is called: a server
// that is not ready yet reads its files anyway.
func holdHangup() (release func()) {
	if signal.Ignored(syscall.SIGHUP) {
		return func() {}
	}
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, syscall.SIGHUP)
	return func() { signal.Stop(ch) }
}

// hasTerminal says whether this process has a controlling terminal.
func hasTerminal() bool {
	f, err := os.OpenFile("/dev/tty", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err == nil {
		f.Close()
	}
	return err == nil || !errors.Is(err, syscall.ENXIO) && !errors.Is(err, syscall.EIO) && !errors.Is(err, os.ErrNotExist)
}
