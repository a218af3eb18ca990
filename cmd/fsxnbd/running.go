package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/fsximg/fsx/internal/cliutil"
	"github.com/fsximg/fsx/internal/control"
	"github.com/fsximg/fsx/pkg/nbdsrv"
)

// running is a server at work, as status, metrics and the watchdog look at it. Its
// methods may be called concurrently, until the stores are closed.
type running struct {
	srv       *nbdsrv.Server
	exports   *exports
	listeners []net.Listener
	told      []net.Listener // of these, those whose URIs are told
	version   string
	started   time.Time
	reloads   reloads // what SIGHUP does
	stopping  func()  // is called when the server is to end
}

// newRunning makes the server; serve runs it.
func newRunning(env *cliutil.Env, version string, x *exports, listeners []net.Listener) *running {
	cfg := nbdsrv.Config{Exports: x, Log: env.Log, Memory: payloadMemory, ConnMemory: payloadMemory, MaxConns: clientLimit(env.Log)}
	r := &running{exports: x, listeners: listeners, version: version, started: time.Now(),
		reloads: reloads{log: env.Log}, stopping: func() {}}
	if x.tls != nil {
		cfg.TLS, cfg.RequireTLS = x.tls.config.Load, x.tls.requiresOf
		r.reloads.add("certificates", x.tls.load)
	}
	r.srv = nbdsrv.New(cfg)
	return r
}

// status describes the server.
func (r *running) status() (control.ServerStatus, error) {
	st := r.srv.Stats()
	out := control.ServerStatus{
		PID: os.Getpid(), Version: r.version, Started: r.started.UTC(), At: time.Now().UTC(), URIs: []string{},
		Stores: []control.StoreStatus{}, Exports: []control.ExportStatus{}, Clients: []control.ClientStatus{},
		Connections:     control.Connections{Accepted: st.Accepted, Negotiating: st.Negotiating, TooMany: st.TooMany, Failed: st.Failed},
		EndsWithClients: r.exports.last != nil,
		Memory:          control.MemoryInFlight{InFlight: st.Memory, Limit: st.MemoryLimit},
	}
	for _, l := range r.listeners {
		out.URIs = append(out.URIs, r.exports.uriAt(l, ""))
	}
	for _, s := range r.exports.stores {
		store, err := storeStatus(s)
		if err != nil {
			return out, fmt.Errorf("%s: %w", s.path, err)
		}
		out.Stores = append(out.Stores, store)
	}
	for _, e := range st.Exports {
		out.Exports = append(out.Exports, control.ExportStatus{Name: e.Name, Clients: e.Clients, Connections: e.Connections, Traffic: trafficOf(e.Traffic)})
	}
	for _, k := range st.Clients {
		out.Clients = append(out.Clients, control.ClientStatus{
			ID: k.ID, Peer: k.Peer, Export: k.Export, Since: k.Since.UTC(), ReadOnly: k.ReadOnly,
			Requests: k.Requests, Memory: k.Memory, Traffic: trafficOf(k.Traffic),
		})
	}
	return out, nil
}

func storeStatus(s *served) (control.StoreStatus, error) {
	st, err := s.st.CountStats()
	if err != nil {
		return control.StoreStatus{}, err
	}
	path, err := filepath.Abs(s.path)
	if err != nil {
		return control.StoreStatus{}, err
	}
	out := control.StoreStatus{
		Path: path, UUID: s.st.UUID().String(), Free: st.Free, Buffers: st.BufferBytes,
		Cache:   control.CacheStatus{Bytes: st.MapCacheBytes, Limit: st.MapCacheLimit, Hits: st.MapCacheHits, Misses: st.MapCacheMisses},
		Volumes: []control.VolumeStatus{}, Keys: control.DescribeKeys(st.Keys),
	}
	for _, v := range st.Volumes {
		out.Volumes = append(out.Volumes, control.VolumeStatus{
			Name: v.Name, Size: v.Size, ReadOnly: v.ReadOnly, Failed: v.Failed,
			Lag:         control.Lag{Bytes: v.Lag.Bytes, Records: v.Lag.Records, Since: v.Lag.Since.UTC()},
			Checkpoints: v.Checkpoints, Commits: v.Commits,
			Faults: control.BlockFaults{Damaged: v.Faults.Damaged, KeyMissing: v.Faults.KeyMissing, Other: v.Faults.Other},
		})
	}
	return out, nil
}

func trafficOf(t nbdsrv.Traffic) control.Traffic {
	out := control.Traffic{Commands: []control.CommandTraffic{}}
	for _, c := range t.Commands {
		out.Commands = append(out.Commands, control.CommandTraffic{
			Command: c.Command, Requests: c.Latency.Count(), Bytes: c.Bytes, Errors: c.Errors, Latency: latencyOf(c.Latency),
		})
	}
	return out
}

func latencyOf(l nbdsrv.Latency) control.Latency {
	return control.Latency{
		Seconds: l.Sum.Seconds(), P50: l.Quantile(0.5).Seconds(), P99: l.Quantile(0.99).Seconds(), Classes: l.Classes[:],
	}
}

// storeLink is the link, in a store's run directory, to the store: by it status
// finds all servers.
const storeLink = "store"

// register makes each store's run directory, with a link to the store. Where that
// cannot be, status does not find the server unless it is told the store.
func (x *exports) register() (unregister func()) {
	var links []string
	for _, s := range x.stores {
		link, err := registerStore(s)
		if err != nil {
			x.log.Info("status without a store does not show this one", "store", s.path, "err", err)
			continue
		}
		links = append(links, link)
	}
	return func() {
		for _, link := range links {
			os.Remove(link)
			os.Remove(filepath.Dir(link)) // if nothing else is there
		}
	}
}

func registerStore(s *served) (link string, err error) {
	path, err := filepath.Abs(s.path)
	if err != nil {
		return "", err
	}
	dir, err := makeRunDirectory(s.st.UUID().String())
	if err != nil {
		return "", err
	}
	link = filepath.Join(dir, storeLink)
	if st, err := os.Lstat(link); err == nil && st.Mode()&os.ModeSymlink != 0 {
		os.Remove(link) // of a server that was killed: we have the store's lock
	}
	return link, os.Symlink(path, link)
}

// registered are the stores that servers of this user have registered. Some of the
// servers may be gone.
func registered() (stores []string) {
	dir := runDirectory("uuid")
	if dir == "" {
		return nil
	}
	base := filepath.Dir(dir)
	links, err := filepath.Glob(filepath.Join(base, "*", storeLink))
	if err != nil {
		return nil
	}
	for _, link := range links {
		if path, err := os.Readlink(link); err == nil && strings.HasPrefix(path, "/") {
			stores = append(stores, path)
		}
	}
	return stores
}

// look takes every lock that an accept, a client's coming and going, a read and a
// list of what there is need. Whatever holds one of them for ever keeps look from
// returning, too.
func (r *running) look() {
	r.srv.Stats()
	for _, s := range r.exports.stores {
		if _, err := s.st.CountStats(); err == nil {
			_, _ = s.st.Contents() // an error is an answer, too
		}
	}
}
