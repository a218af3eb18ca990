package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"syscall"
	"time"

	"github.com/fsximg/fsx/internal/cliutil"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

const (
	// metricsTimeout is how long an answer to a scrape may take.
	metricsTimeout = 10 * time.Second
	// healthTimeout is how long a server may take to show that it works.
	healthTimeout = 5 * time.Second
	// metricsConns is how many may ask at a time; others wait to be accepted. Each
	// takes a descriptor, which the stores need, too.
	metricsConns = 16
)

// listenMetrics listens on --metrics: HOST:PORT of the loopback, or unix:PATH.
// There is neither TLS nor a password: who exports are, and how busy, is for this
// machine.
func listenMetrics(address string) (net.Listener, error) {
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		return listenUnix("--metrics", path)
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, cliutil.UsageErrorf("--metrics %s: use HOST:PORT or unix:PATH", address)
	}
	a, err := net.ResolveTCPAddr("tcp", address)
	if err != nil {
		return nil, cliutil.UsageErrorf("--metrics %s: %v", address, err)
	}
	if host == "" || !a.IP.IsLoopback() {
		return nil, cliutil.WithHint(cliutil.UsageErrorf("--metrics %s: only loopback addresses: nothing there is encrypted, and anyone may ask", address),
			"use --metrics 127.0.0.1:%d, with an HTTPS proxy in front for other machines", max(a.Port, 1))
	}
	l, err := net.ListenTCP("tcp", a)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, cliutil.Errorf(cliutil.ErrInUse, "--metrics: another server listens on %s", address)
	}
	if err != nil {
		return nil, fmt.Errorf("--metrics: %w", err)
	}
	return l, nil
}

// startMetrics serves metrics on an address, and says where, or on a socket that
// systemd opened; without either it does nothing. end stops it.
func (r *running) startMetrics(env *cliutil.Env, address string, activated net.Listener) (end func(), err error) {
	switch {
	case address != "" && activated != nil:
		return nil, cliutil.UsageErrorf("--metrics and a socket of systemd called %s exclude each other", metricsFD)
	case activated != nil:
		return r.serveMetrics(activated, env.Log), nil
	case address == "":
		return func() {}, nil
	}
	l, err := listenMetrics(address)
	if err != nil {
		return nil, err
	}
	if l.Addr().Network() == "tcp" {
		env.Say("metrics: http://%s/metrics", l.Addr())
	}
	return r.serveMetrics(l, env.Log), nil
}

// serveMetrics answers scrapes on a listener until end is called.
func (r *running) serveMetrics(l net.Listener, log *slog.Logger) (end func()) {
	s := &http.Server{
		Handler: r.metricsHandler(log), ReadHeaderTimeout: metricsTimeout, ReadTimeout: metricsTimeout, WriteTimeout: 2 * metricsTimeout,
		MaxHeaderBytes: 16 << 10, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := s.Serve(limitConns(l, metricsConns)); !errors.Is(err, http.ErrServerClosed) {
			log.Error("metrics are not served any more", "err", err)
		}
	}()
	return func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if s.Shutdown(ctx) != nil {
			s.Close()
		}
		<-done
	}
}

// metricsHandler answers /metrics and /healthz.
func (r *running) metricsHandler(log *slog.Logger) http.Handler {
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(newCollector(r), collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelError), ErrorHandling: promhttp.ContinueOnError,
		MaxRequestsInFlight: 4, Timeout: metricsTimeout,
	}))
	alive := &pulse{look: r.look}
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, q *http.Request) {
		if !alive.beats(q.Context(), healthTimeout) {
			http.Error(w, "the server does not answer", http.StatusServiceUnavailable)
			return
		}
		_, _ = io.WriteString(w, "ok\n")
	})
	return mux
}
