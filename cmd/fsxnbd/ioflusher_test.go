package main

import (
	"bytes"
	"log/slog"
	"strings"
	"syscall"
	"testing"
)

func TestKernelRiskIsToldOnce(t *testing.T) {
	for _, tt := range []struct {
		why    error
		module string
		want   int
	}{
		{nil, t.TempDir(), 0},
		{syscall.EPERM, "/nonexistent", 0}, // no client of the kernel's can be there
		{syscall.EPERM, t.TempDir(), 1},
	} {
		var log bytes.Buffer
		r := &kernelRisk{why: tt.why}
		for range 3 {
			r.warn(slog.New(slog.NewTextHandler(&log, nil)), tt.module, tt.module)
		}
		if n := strings.Count(log.String(), "level=WARN"); n != tt.want {
			t.Errorf("%v, %s: %d warnings, want %d", tt.why, tt.module, n, tt.want)
		}
	}
}
