package main

import (
	"log/slog"
	"os"
	"sync/atomic"

	"github.com/fsximg/fsx/internal/ioflusher"
)

// kernelRisk is why a device of this machine's kernel may hang, if it may
// (internal/ioflusher). Its zero value is no risk.
type kernelRisk struct {
	why    error
	warned atomic.Bool
}

// becomeFlusher makes the process an IO flusher.
func (r *kernelRisk) becomeFlusher(log *slog.Logger) {
	if r.why = ioflusher.Become(); r.why != nil {
		log.Info("not an IO flusher", "err", r.why)
	}
}

// warn is called when a client comes. It warns, once, if that may be the kernel: one
// of the paths exists where the kernel's NBD client is loaded or built in.
func (r *kernelRisk) warn(log *slog.Logger, paths ...string) {
	if r.why == nil || r.warned.Load() {
		return
	}
	for _, path := range paths {
		if _, err := os.Stat(path); err == nil && r.warned.CompareAndSwap(false, true) {
			log.Warn("if a client is this machine's kernel, it may hang when memory is short", "err", r.why)
		}
	}
}
