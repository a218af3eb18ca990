package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/fsximg/fsx/internal/cliutil"
	"github.com/fsximg/fsx/internal/volume"
	"github.com/fsximg/fsx/pkg/nbdsrv"
	"github.com/urfave/cli/v2"
	"golang.org/x/sync/errgroup"
)

const (
	// payloadMemory bounds the payloads in flight: with the engine's own
	// memory the server stays below 256 MiB.
	payloadMemory = 64 << 20
	// shutdownGrace is how long requests in flight may take at the end.
	shutdownGrace = 30 * time.Second
)

func serveCommand() *cli.Command {
	return &cli.Command{
		Name: "serve", Usage: "serve the volumes of stores until SIGTERM", ArgsUsage: "STORE...",
		Description: "Prints its URI on stdout when it is ready. With one store an export is called as its\n" +
			"volume, and the empty name is main; with several STORE:VOLUME, without .fsx.",
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "socket", Usage: "`PATH` of the unix socket (default: in the run directory)"},
			&cli.StringFlag{Name: "listen", Usage: "also listen on `HOST:PORT`; without TLS a loopback address"},
			&cli.BoolFlag{Name: "read-only", Usage: "refuse all changes"},
			&cli.StringSliceFlag{Name: "read-only-export", Usage: "refuse changes of the export `NAME`; may be repeated"},
			&cli.StringSliceFlag{Name: "export", Usage: "serve only the export `NAME`; may be repeated"},
			&cli.StringFlag{Name: "metrics", Usage: "answer Prometheus on `ADDRESS`: a loopback HOST:PORT or unix:PATH"},
			&cli.BoolFlag{Name: "no-keys", Usage: "start without keys; fsxnbd key add gives them"},
			&cli.BoolFlag{Name: "require-all-keys", Usage: "do not start unless every volume opens"},
			&cli.StringFlag{Name: "run", Usage: "run the shell command `CMD` with $uri, $nbd, $unixsocket, and end with it"},
			&cli.StringFlag{Name: "pid-file", Usage: "write the process id to `FILE` when ready"},
			&cli.BoolFlag{Name: "exit-with-parent", Usage: "end when the process that started the server has ended"},
			&cli.BoolFlag{Name: "exit-with-last-client", Usage: "end when the last client has left, or when none comes within a minute"},
			&cli.BoolFlag{Name: "daemon", Usage: "go on in the background when ready; the log goes to the run directory"},
		}, append(tlsFlags(), cliutil.OpenKeyFlags()...)...),
		Action: cliutil.Action(1, -1, objectOfServe, runServe),
	}
}

// objectOfServe is the store, when there is one.
func objectOfServe(c *cli.Context) string {
	if c.Args().Len() == 1 {
		return c.Args().First()
	}
	return ""
}

func runServe(ctx context.Context, env *cliutil.Env, c *cli.Context) (err error) {
	if err := checkServe(c); err != nil {
		return err
	}
	if c.Bool("daemon") && !isDaemon() {
		return startDaemon(env)
	}
	// Who reads our log may end before us. To be told of it, rather than to ignore it,
	// is what commands of --run do not inherit.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	if c.Bool("exit-with-parent") {
		if err := endWithParent(); err != nil {
			return fmt.Errorf("--exit-with-parent: %w", err)
		}
	}
	defer holdHangup()()
	allow, err := parseAllow(c.StringSlice("tls-allow"))
	if err != nil {
		return err
	}
	secure, err := tlsOf(env, c)
	if err != nil {
		return err
	}
	sockets, err := socketActivation(secure != nil)
	if err != nil {
		return err
	}
	defer removePID(c.String("pid-file")) // when the stores are closed
	dog := &watchdog{}
	defer func() { dog.close() }() // the same
	x, err := openStores(ctx, env, c)
	if err != nil {
		return err
	}
	x.tls, x.allow = secure, allow
	defer func() {
		if closeErr := x.close(); err == nil {
			err = closeErr
		}
	}()
	defer tidyRunDirectory(x.stores[0].st.UUID().String())
	if err := x.check(env, needOf(c)); err != nil {
		return err
	}
	if err := x.checkAllow(env); err != nil {
		return err
	}
	debug.FreeOSMemory() // deriving keys took much
	x.kernel.becomeFlusher(env.Log)
	return serveStores(ctx, env, c, x, sockets, func(w *watchdog) { dog = w })
}

// checkServe refuses options that exclude each other, and a pid file that is none.
func checkServe(c *cli.Context) error {
	switch {
	case c.Bool("no-keys") && (c.Bool("require-all-keys") || cliutil.NamesKeys(c)):
		return cliutil.UsageErrorf("--no-keys and the options of keys exclude each other")
	case c.Bool("daemon") && c.String("run") != "":
		return cliutil.UsageErrorf("--run and --daemon exclude each other")
	case c.Bool("daemon") && c.Bool("exit-with-parent"):
		return cliutil.UsageErrorf("--exit-with-parent and --daemon exclude each other")
	case c.Bool("daemon") && !isDaemon() && isActivated():
		return cliutil.WithHint(cliutil.UsageErrorf("--daemon and sockets of systemd exclude each other"), "Type=notify in the unit does what --daemon is for")
	case c.Bool("daemon") && !isDaemon():
		return nil // the daemon looks at the pid file
	}
	return checkPIDFile(c.String("pid-file"))
}

// serveStores listens, and serves until the context ends or --run's command does.
// patted is told of the watchdog, which is to be closed when the stores are.
func serveStores(ctx context.Context, env *cliutil.Env, c *cli.Context, x *exports, sockets activated, patted func(*watchdog)) error {
	listeners, err := listeners(c, x, sockets.clients)
	if err != nil {
		return err
	}
	r := newRunning(env, c.App.Version, x, listeners)
	// Who gave us the sockets knows where they are, and our stdout may be for data:
	// nbdcopy -- [ fsxnbd serve ... ] -
	r.told = listeners[:len(listeners)-len(sockets.clients)]
	endMetrics, err := r.startMetrics(env, c.String("metrics"), sockets.metrics)
	if err != nil {
		for _, l := range listeners {
			l.Close() // and remove our socket
		}
		return err
	}
	defer endMetrics()
	dog := startWatchdog(env.Log, r.look)
	patted(dog)
	r.stopping = dog.stop
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if c.Bool("exit-with-last-client") {
		x.last = newLastClient(firstClientGrace, lastClientGrace, func() { cancel(cliutil.ErrInterrupted) })
		defer x.last.stop()
	}
	defer r.reloads.onHangup(func() { cancel(cliutil.ErrInterrupted) })()
	defer x.register()()
	endControl := x.control(env, r)
	err = serve(ctx, env, c, r)
	if endErr := endControl(); err == nil {
		err = endErr
	}
	if errors.Is(err, cliutil.ErrInterrupted) {
		err = nil // being told to stop is no failure
	}
	return err
}

// openStores opens every store and tries the given keys on each. A store that
// they do not open is kept, so that clients are told why.
func openStores(ctx context.Context, env *cliutil.Env, c *cli.Context) (x *exports, err error) {
	x = &exports{only: c.StringSlice("export"), readOnly: c.Bool("read-only"), readOnlyExports: c.StringSlice("read-only-export"), refusals: logLimit{most: 10}, log: env.Log}
	defer func() {
		if err != nil {
			x.close()
		}
	}()
	given, err := givenSecrets(env, c)
	locked := c.Bool("no-keys")
	if err != nil {
		return x, err
	}
	defer cliutil.WipeSecrets(given)
	for _, path := range c.Args().Slice() {
		s := &served{path: path, base: cliutil.StoreBase(path)}
		for _, other := range x.stores {
			if other.base == s.base {
				return x, cliutil.UsageErrorf("%s and %s would both be served as %s", other.path, path, s.base)
			}
		}
		if s.path, err = cliutil.StoreOnly(path); err != nil {
			return x, err
		}
		if s.st, err = env.OpenStore(s.path, cliutil.Access(x.readOnly)); err != nil {
			return x, named(c, path, err)
		}
		x.stores = append(x.stores, s)
		if locked {
			continue
		}
		if err := unlock(ctx, env, c, s, given); err != nil {
			return x, named(c, path, err)
		}
	}
	return x, nil
}

// named adds a store's path where there are several.
func named(c *cli.Context, path string, err error) error {
	if c.Args().Len() == 1 {
		return err
	}
	return fmt.Errorf("%s: %w", path, err)
}

// givenSecrets reads the key options once, for all stores.
func givenSecrets(env *cliutil.Env, c *cli.Context) ([]cliutil.Secret, error) {
	for _, name := range []string{"passphrase-file", "key-file", "recovery-key-file"} {
		if c.IsSet(name) {
			return env.GivenKeys(c, "")
		}
	}
	return nil, nil
}

func unlock(ctx context.Context, env *cliutil.Env, c *cli.Context, s *served, given []cliutil.Secret) error {
	secrets := given
	if len(given) == 0 {
		var err error
		if secrets, err = env.OpenKeys(ctx, c, s.path, s.st.Keyring().HasClearSlot()); err != nil {
			return err
		}
		defer cliutil.WipeSecrets(secrets)
	}
	err := cliutil.Unlock(s.st, secrets)
	if errors.Is(err, volume.ErrWrongKey) && c.Args().Len() > 1 && !c.Bool("require-all-keys") {
		return nil // check tells what cannot be served, and whether any volume can
	}
	return err
}

// listeners opens the sockets, besides those that systemd opened; the first is the
// one that is told about.
func listeners(c *cli.Context, x *exports, activated []net.Listener) (out []net.Listener, err error) {
	defer func() {
		if err != nil {
			for _, l := range out {
				l.Close()
			}
		}
	}()
	socket := c.String("socket")
	if socket == "" && c.String("listen") == "" && len(activated) == 0 {
		dir, err := makeRunDirectory(x.stores[0].st.UUID().String())
		if err != nil {
			return nil, err
		}
		socket = filepath.Join(dir, socketName)
	}
	if socket != "" {
		l, err := listenUnix("--socket", socket)
		if err != nil {
			return nil, err
		}
		out = append(out, l)
	}
	if address := c.String("listen"); address != "" {
		l, err := listenTCP(address, x.tls)
		if err != nil {
			return out, err
		}
		out = append(out, l)
	}
	for _, l := range activated {
		if x.tls != nil && sharing(l) != nobody {
			x.tls.shared = append(x.tls.shared, l.Addr().String())
		}
	}
	return append(out, activated...), nil
}

// serve runs the server until the context ends or --run's command does. All
// requests have been answered when it returns.
func serve(ctx context.Context, env *cliutil.Env, c *cli.Context, r *running) error {
	g, gctx := errgroup.WithContext(context.WithoutCancel(ctx))
	for _, l := range r.listeners {
		g.Go(func() error {
			if err := r.srv.Serve(gctx, l); !errors.Is(err, nbdsrv.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
				return err
			}
			return nil
		})
	}
	err := whileServing(ctx, gctx, env, c, r)
	r.stopping()
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownGrace)
	defer cancel()
	if stopErr := r.srv.Shutdown(stop); err == nil && stopErr != nil {
		err = fmt.Errorf("stop server: %w", stopErr)
	}
	if serveErr := g.Wait(); err == nil && serveErr != nil && !errors.Is(serveErr, context.Canceled) {
		err = fmt.Errorf("serve: %w", serveErr)
	}
	return err
}

// whileServing tells that the server is ready, and waits until it is to end.
func whileServing(ctx, serving context.Context, env *cliutil.Env, c *cli.Context, r *running) error {
	x, listeners := r.exports, r.listeners
	names := x.told()
	script := c.String("run")
	for _, l := range r.told {
		for _, name := range names {
			if script != "" {
				break
			}
			if _, err := fmt.Fprintln(env.Stdout, x.uriAt(l, name)); err != nil {
				return fmt.Errorf("write uri: %w", err)
			}
		}
	}
	// Whoever waits for this file finds all of the above, and the file whole.
	if file := c.String("pid-file"); file != "" {
		if err := writePID(file); err != nil {
			return fmt.Errorf("write pid file: %w", err)
		}
	}
	notify(env.Log, daemon.SdNotifyReady+"\nSTATUS=serving "+x.uriAt(listeners[0], names[0]))
	if script != "" {
		return runCommand(ctx, listeners, x.uriAt(listeners[0], names[0]), names[0], script)
	}
	if isDaemon() {
		uuid := x.stores[0].st.UUID().String()
		if err := detach(uuid); err != nil {
			return err
		}
		r.reloads.add("log", func() error { return openLog(uuid) })
	}
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-serving.Done():
		return nil // Wait tells why
	}
}
