package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"

	"github.com/fsximg/fsx/internal/cliutil"
	"github.com/fsximg/fsx/internal/control"
	"github.com/fsximg/fsx/internal/volume"
	"github.com/fsximg/fsx/pkg/nbdsrv"
	"github.com/urfave/cli/v2"
)

// served is one store that is served.
type served struct {
	path string
	base string // its name in exports
	st   *volume.Store

	use usage
}

// exports are the volumes of all stores. With one store an export is called
// VOLUME or VOLUME@SNAPSHOT and the empty name is main; with several BASENAME:VOLUME, and the
// empty name is unknown.
type exports struct {
	stores   []*served
	only     []string // --export; empty: all
	readOnly bool
	// readOnlyExports cannot be changed by clients; commands can change them.
	readOnlyExports []string    // --read-only-export
	tls             *tlsServing // nil: no TLS
	allow           allowList   // --tls-allow
	kernel          kernelRisk
	last            *lastClient // nil: the server stays without clients
	refusals        logLimit    // of clients
	log             *slog.Logger
}

// names are the volumes of a store and their snapshots; of those whose key is not
// open only with locked. None is opened for it.
func (s *served) names(locked bool) (l []string, err error) {
	volumes, err := s.st.Contents()
	for _, v := range volumes {
		if v.Locked && !locked {
			continue
		}
		l = append(l, v.Name)
		for _, snap := range v.Snapshots {
			l = append(l, v.Name+"@"+snap)
		}
	}
	return l, err
}

// open opens a volume or a snapshot for a client, until leave is called.
func (s *served) open(name string) (d nbdsrv.Device, leave func(), err error) {
	vol, snap, isSnapshot := strings.Cut(name, "@")
	if isSnapshot {
		return opened(s.st.UseSnapshot(vol, snap))
	}
	return opened(s.st.UseVolume(vol))
}

func opened[D nbdsrv.Device](d D, leave func(), err error) (nbdsrv.Device, func(), error) {
	return d, leave, err
}

// split finds the store and the volume that an export's name means.
func (x *exports) split(name string) (*served, string, bool) {
	if name == "" && len(x.only) == 1 {
		name = x.only[0]
	}
	if len(x.stores) == 1 {
		if name == "" {
			name = cliutil.DefaultVolume
		}
		return x.stores[0], name, true
	}
	base, vol, found := strings.Cut(name, ":")
	for _, s := range x.stores {
		if found && s.base == base {
			return s, vol, true
		}
	}
	return nil, "", false
}

// name is what a volume's export is called.
func (x *exports) name(s *served, volume string) string {
	if len(x.stores) == 1 {
		return volume
	}
	return s.base + ":" + volume
}

func (x *exports) allowed(name string) bool {
	return len(x.only) == 0 || slices.Contains(x.only, name)
}

// List implements nbdsrv.Exports. What cannot be opened for want of its key is not
// listed, nor what the client may not have: clients that look at all exports would
// fail at it.
func (x *exports) List(client *nbdsrv.Client) []nbdsrv.ExportInfo {
	return slices.DeleteFunc(x.list(false), func(e nbdsrv.ExportInfo) bool { return x.allow.check(e.Name, client) != nil })
}

// list is List, or with locked all exports.
func (x *exports) list(locked bool) (out []nbdsrv.ExportInfo) {
	for _, s := range x.stores {
		names, err := s.names(locked)
		if err != nil {
			x.log.Error("exports cannot be listed", "store", s.path, "err", err)
		}
		for _, v := range names {
			if name := x.name(s, v); x.allowed(name) {
				out = append(out, nbdsrv.ExportInfo{Name: name, Description: s.base + ":" + v})
			}
		}
	}
	return out
}

// told are the exports whose URIs are told: with one store the default one, whose
// name is empty, and otherwise all that are listed, since none is the default.
func (x *exports) told() (names []string) {
	switch {
	case len(x.only) == 1 && x.only[0] != cliutil.DefaultVolume:
		return x.only
	case len(x.stores) == 1:
		return []string{""}
	}
	for _, locked := range []bool{false, true} { // without any key, those that keys will open
		for _, e := range x.list(locked) {
			names = append(names, e.Name)
		}
		if len(names) > 0 {
			break
		}
	}
	if len(names) == 0 {
		return []string{""}
	}
	// A clone with an early name does not change what is told first.
	first := x.name(x.stores[0], cliutil.DefaultVolume)
	if i := slices.Index(names, first); i > 0 {
		names = slices.Insert(slices.Delete(names, i, i+1), 0, first)
	}
	return names
}

// Open implements nbdsrv.Exports. A volume is opened by its first client, and
// stays open until the server ends, or its key is removed and the last client leaves.
func (x *exports) Open(name string, client *nbdsrv.Client) (nbdsrv.Export, func(), error) {
	if s, vol, ok := x.split(name); ok {
		if err := x.allow.check(x.name(s, vol), client); err != nil {
			if x.refusals.admit() {
				x.log.Warn("export is not for this client", "export", short(x.name(s, vol)), "peer", client.Addr, "client", client.Names())
			}
			return nbdsrv.Export{}, nil, err
		}
	}
	x.kernel.warn(x.log, "/sys/module/nbd", "/sys/block/nbd0")
	e, leave, err := x.open(name)
	if errors.Is(err, nbdsrv.ErrUnknownExport) && x.refusals.admit() {
		x.log.Debug("no such export", "export", short(name), "peer", client.Addr)
	}
	if err != nil && !errors.Is(err, nbdsrv.ErrUnknownExport) && !errors.Is(err, cliutil.ErrInUse) && x.refusals.admit() {
		x.log.Error("export refused", "export", short(name), "err", err)
	}
	if err == nil {
		gone := x.last.enter()
		return e, sync.OnceFunc(func() { leave(); gone() }), nil
	}
	return e, leave, err
}

// short cuts a name that a client sent.
func short(name string) string {
	if len(name) > longestName {
		name = name[:longestName] + "..."
	}
	return name
}

// longestName is longer than any export's: a store's, a volume's and a snapshot's.
const longestName = 255 + 2*64

// open is Open, which does not log why it does not.
func (x *exports) open(name string) (nbdsrv.Export, func(), error) {
	s, vol, ok := x.split(name)
	if !ok || !x.allowed(x.name(s, vol)) {
		return nbdsrv.Export{}, nil, nbdsrv.ErrUnknownExport
	}
	leave, err := s.use.enter(vol)
	if err != nil {
		return nbdsrv.Export{}, nil, err
	}
	v, done, err := s.open(vol)
	if err == nil {
		if d, ok := v.(interface{ Distrusted() error }); ok && d.Distrusted() != nil {
			x.log.Warn("export is read-only; --expect-id makes it writable", "export", x.name(s, vol), "err", d.Distrusted())
		}
		e := nbdsrv.Export{
			Name: x.name(s, vol), Description: s.base + ":" + vol,
			Device: device{v}, ReadOnly: x.readOnly || v.ReadOnly() || slices.Contains(x.readOnlyExports, x.name(s, vol)),
		}
		return e, sync.OnceFunc(func() { done(); leave() }), nil
	}
	leave()
	if errors.Is(err, volume.ErrNotFound) || errors.Is(err, volume.ErrNoSnapshot) {
		return nbdsrv.Export{}, nil, nbdsrv.ErrUnknownExport
	}
	return nbdsrv.Export{}, nil, fmt.Errorf("%s: %w", vol, err)
}

// need is how many exports must open for a server to start.
type need int

const (
	oneExport need = iota // of each store
	allExports
	noExport // keys come later
)

// needOf is what the options ask for.
func needOf(c *cli.Context) need {
	switch {
	case c.Bool("no-keys"):
		return noExport
	case c.Bool("require-all-keys"):
		return allExports
	}
	return oneExport
}

// check finds out what can be served: of each store one export must open, and
// says why none of any store can be served. Others wait for their first client,
// except in a store that was not closed cleanly, all of which is recovered now.
func (x *exports) check(env *cliutil.Env, want need) error {
	opened := 0
	var first error
	for _, s := range x.stores {
		if want == noExport {
			break
		}
		n, err := x.checkStore(env, s, want == allExports)
		if err != nil && want == allExports {
			return err
		}
		if first == nil {
			first = err
		}
		opened += n
	}
	if err := x.checkNames("--export", x.only); err != nil {
		return err
	}
	if err := x.checkNames("--read-only-export", x.readOnlyExports); err != nil {
		return err
	}
	if want == noExport {
		return nil
	}
	if opened == 0 && first == nil {
		return cliutil.Errorf(cliutil.ErrNotFound, "nothing to serve")
	}
	if opened == 0 {
		return first
	}
	return nil
}

// checkNames finds out whether the exports that an option names exist.
func (x *exports) checkNames(option string, names []string) error {
	for _, name := range names {
		if !slices.ContainsFunc(x.list(true), func(e nbdsrv.ExportInfo) bool { return e.Name == name }) {
			return cliutil.Errorf(cliutil.ErrNotFound, "%s %s: no such volume or snapshot", option, name)
		}
	}
	return nil
}

// checkStore opens one export of a store, or as many as can be, and warns of
// those that cannot. The error is the first of them.
func (x *exports) checkStore(env *cliutil.Env, s *served, all bool) (opened int, first error) {
	volumes, err := s.st.Contents()
	if err != nil {
		return 0, fmt.Errorf("%s: %w", s.path, err)
	}
	unclean := slices.ContainsFunc(volumes, func(v volume.Content) bool { return v.NeedsReplay })
	names, err := s.names(true)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", s.path, err)
	}
	for _, v := range names {
		name := x.name(s, v)
		if !x.allowed(name) {
			continue
		}
		if opened > 0 && !all && !unclean {
			return opened, first
		}
		_, release, err := x.open(name)
		if err == nil {
			release()
			opened++
			continue
		}
		err = fmt.Errorf("export %s: %w", name, err)
		if all {
			return opened, err
		}
		if first == nil {
			first = err
		}
		env.Warn("export %s is refused: %v", name, errors.Unwrap(err))
	}
	return opened, first
}

// uri is where a volume of a store, or a snapshot of it, can be read behind a
// listener. It opens what is named, so that the error is that of a command which
// has the store itself.
func (x *exports) uri(l net.Listener, s *served, vol, snap string) (string, error) {
	export := vol
	if snap != "" {
		export += "@" + snap
	}
	_, leave, err := s.open(export)
	if err != nil {
		return "", err
	}
	leave()
	name := x.name(s, export)
	if !x.allowed(name) {
		return "", cliutil.WithHint(cliutil.Errorf(cliutil.ErrInUse, "the store is served, and its server does not export %s", name),
			"the server was started with --export for others; add --export %s, or stop it", name)
	}
	if x.tls.requires(l.Addr()) {
		return "", cliutil.WithHint(cliutil.Errorf(cliutil.ErrInUse, "the store is served with TLS only, which fsximg cannot read through"),
			"start the server with --socket, too, and without --tls-required")
	}
	return x.uriAt(l, name), nil
}

// uriAt is the URI of an export behind l.
func (x *exports) uriAt(l net.Listener, name string) string {
	return uri(l, name, x.tls.requires(l.Addr()))
}

// control makes the control sockets of the stores. Where there can be none, on a
// file system without sockets or one that cannot be written, commands find the
// store busy, which is said. What is exported is read behind the listener l. end removes the
// sockets, and waits for what is under way.
func (x *exports) control(env *cliutil.Env, r *running) (end func() error) {
	l := r.listeners[0]
	var servers []*control.Server
	var locals []*control.Local
	for _, s := range x.stores {
		local := control.NewLocal(s.st, s.use.claim)
		locals = append(locals, local)
		srv, err := control.Serve(control.Config{
			Path: s.st.Path(), UUID: s.st.UUID().String(), Operations: local,
			URI:     func(vol, snap string) (string, error) { return x.uri(l, s, vol, snap) },
			Status:  r.status,
			Program: env.Program, Version: r.version, Log: x.log,
		})
		if err != nil {
			env.Warn("%s: fsximg cannot be used on it while it is served: %v", s.path, err)
			continue
		}
		servers = append(servers, srv)
	}
	return func() (errs error) {
		for _, srv := range servers {
			errs = errors.Join(errs, srv.Close())
		}
		for _, local := range locals {
			local.EndJobs()
		}
		return errs
	}
}

// close flushes and closes every store.
func (x *exports) close() error {
	var errs error
	for _, s := range x.stores {
		if err := s.st.Close(); err != nil {
			errs = errors.Join(errs, fmt.Errorf("close %s: %w", s.path, err))
		}
	}
	x.stores = nil
	return errs
}
