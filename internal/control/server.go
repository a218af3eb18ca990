package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/fsximg/fsx/internal/cliutil"
)

// Config configures a Server.
type Config struct {
	// Path is the store's directory. The caller holds the store's lock until the
	// server is closed: that makes the socket its own.
	Path string
	// UUID is the store's.
	UUID string
	// Operations are carried out.
	Operations Operations
	// URI is the NBD URI of a volume's export, or of a snapshot's, for clients on
	// this machine. Its error is cliutil.ErrInUse if that is not exported; nil is
	// for a store of which nothing is.
	URI func(volume, snapshot string) (string, error)
	// Status is what the server does, of all its stores; nil is for a process that
	// has no clients.
	Status func() (ServerStatus, error)
	// Program and Version name this process.
	Program, Version string
	// Log takes what is asked for (info) and who is refused (warn); nil
	// discards it.
	Log *slog.Logger

	// For tests. credentials asks the kernel who a peer is.
	credentials    func(*net.UnixConn) (Peer, error)
	requestTimeout time.Duration
}

// Server answers on a store's control socket.
type Server struct {
	cfg  Config
	l    *listener
	http *http.Server
	stop context.CancelCauseFunc
	done chan error // what Serve returned
}

type peerKey struct{}

// Serve makes the control socket of a store and answers on it until Close. A
// socket that a killed server left is replaced.
func Serve(cfg Config) (*Server, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.requestTimeout == 0 {
		cfg.requestTimeout = requestTimeout
	}
	if cfg.credentials == nil {
		cfg.credentials = peerOf
	}
	l, err := listen(cfg)
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	s := &Server{cfg: cfg, l: l, done: make(chan error, 1)}
	var base context.Context
	base, s.stop = context.WithCancelCause(context.Background())
	s.http = &http.Server{
		Handler: http.HandlerFunc(s.handle), ReadHeaderTimeout: headerTimeout, ReadTimeout: cfg.requestTimeout,
		MaxHeaderBytes: maxHeader, ErrorLog: slog.NewLogLogger(cfg.Log.Handler(), slog.LevelWarn),
		BaseContext: func(net.Listener) context.Context { return base },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, peerKey{}, c.(*peerConn).peer)
		},
	}
	s.http.SetKeepAlivesEnabled(false)
	go func() {
		defer close(s.done)
		s.done <- s.http.Serve(l)
	}()
	return s, nil
}

// Close removes the socket, cancels what is under way and waits until it has
// ended and been answered. It may be called again.
func (s *Server) Close() error {
	err := s.l.remove()
	s.stop(errEnds)
	ctx, cancel := context.WithTimeout(context.Background(), shutdownGrace)
	defer cancel()
	err = errors.Join(err, s.http.Shutdown(ctx))
	if ctx.Err() != nil {
		err = errors.Join(err, s.http.Close())
	}
	if serveErr := <-s.done; !errors.Is(serveErr, http.ErrServerClosed) {
		err = errors.Join(err, serveErr)
	}
	if err != nil {
		return fmt.Errorf("control socket: %w", err)
	}
	return nil
}

// handle answers one request.
func (s *Server) handle(w http.ResponseWriter, q *http.Request) {
	w.Header().Set("Content-Type", "application/jsonl")
	ctx, cancel := context.WithCancel(q.Context())
	defer cancel()
	r := &reply{w: w, cancel: cancel}
	name := strings.TrimPrefix(q.URL.Path, pathPrefix)
	result, err := s.do(ctx, w, q, name, r)
	peer, _ := ctx.Value(peerKey{}).(Peer)
	s.cfg.Log.Info("control", "operation", name, "pid", peer.PID, "uid", peer.UID, "err", err)
	if err == nil {
		r.end(result, nil)
		return
	}
	called, _ := url.QueryUnescape(q.Header.Get(storeHeader))
	r.end(nil, failureOf(causeOf(ctx, err), s.cfg.Path, called))
}

// do carries an operation out.
func (s *Server) do(ctx context.Context, w http.ResponseWriter, q *http.Request, name string, r *reply) (any, error) {
	if !strings.HasPrefix(q.URL.Path, pathPrefix) {
		return nil, cliutil.Errorf(ErrProtocol, "this server (%s %s) speaks version %d of the control protocol: POST %sOPERATION",
			s.cfg.Program, s.cfg.Version, Protocol, pathPrefix)
	}
	if q.Method != http.MethodPost {
		return nil, cliutil.UsageErrorf("%s %s: use POST", q.Method, q.URL.Path)
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, q.Body, maxRequest))
	defer clear(body) // it may hold secrets
	if err == nil {
		// The operation may take longer than its request: what is read from now on
		// is only whether the client is still there.
		err = http.NewResponseController(w).SetReadDeadline(time.Time{})
	}
	if err != nil {
		return nil, cliutil.UsageErrorf("request: %s", err)
	}
	switch name {
	case "hello":
		return Hello{Protocol, s.cfg.Program, s.cfg.Version, os.Getpid(), s.cfg.UUID}, nil
	case "uri":
		return s.uri(body)
	case "server/status":
		return s.serverStatus(body)
	}
	do := operations[name]
	for _, more := range []map[string]serverOperation{keyOperations, serverKeyOperations} {
		if do == nil {
			do = more[name]
		}
	}
	if do == nil {
		return nil, cliutil.Errorf(ErrProtocol, "this server (%s %s) does not know the operation %q", s.cfg.Program, s.cfg.Version, name)
	}
	return do(ctx, s.cfg.Operations, body, r)
}

// uri carries out the operation that the server itself answers: where a volume or
// a snapshot can be read.
func (s *Server) uri(body []byte) (any, error) {
	var q deviceRequest
	if err := parse(body, &q); err != nil {
		return nil, err
	}
	if s.cfg.URI == nil {
		return nil, cliutil.Errorf(cliutil.ErrInUse, "%s exports nothing of this store", s.cfg.Program)
	}
	uri, err := s.cfg.URI(q.Volume, q.Snapshot)
	return uriResult{uri}, err
}
