package main

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"github.com/fsximg/fsx/internal/cliutil"
	"github.com/fsximg/fsx/internal/volume"
	"github.com/fsximg/fsx/pkg/nbdsrv"
)

// served is one store that is served.
type served struct {
	path string
	base string // its name in exports
	st   *volume.Store

	opened map[string]*volume.Volume // by name; it does not change while clients come
}

// exports are the volumes of all stores. With one store an export is called
// VOLUME or VOLUME@SNAPSHOT and the empty name is main; with several BASENAME:VOLUME, and the
// empty name is unknown.
type exports struct {
	stores   []*served
	only     []string // --export; empty: all
	readOnly bool
	log      *slog.Logger
}

// names are the volumes of a store and the snapshots of those that are open.
func (s *served) names() (l []string) {
	for _, name := range s.st.Names() {
		l = append(l, name)
		if v := s.opened[name]; v != nil {
			for _, snap := range v.Snapshots() {
				l = append(l, name+"@"+snap.Name)
			}
		}
	}
	return l
}

// openVolumes opens those volumes of which something may be exported, so that
// their snapshots are known. Why one cannot be opened is told by who asks for it.
func (x *exports) openVolumes() {
	for _, s := range x.stores {
		s.opened = map[string]*volume.Volume{}
		for _, name := range s.st.Names() {
			export := x.name(s, name)
			wanted := func(only string) bool { return only == export || strings.HasPrefix(only, export+"@") }
			if len(x.only) > 0 && !slices.ContainsFunc(x.only, wanted) {
				continue
			}
			if v, err := s.st.Volume(name); err == nil {
				s.opened[name] = v
			}
		}
	}
}

// open opens a volume or a snapshot.
func (s *served) open(name string) (nbdsrv.Device, error) {
	vol, snap, isSnapshot := strings.Cut(name, "@")
	v, err := s.st.Volume(vol)
	if err != nil || !isSnapshot {
		return v, err
	}
	return v.Snapshot(snap)
}

// split finds the store and the volume that an export's name means.
func (x *exports) split(name string) (*served, string, bool) {
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

// List implements nbdsrv.Exports.
func (x *exports) List() (out []nbdsrv.ExportInfo) {
	for _, s := range x.stores {
		for _, v := range s.names() {
			if name := x.name(s, v); x.allowed(name) {
				out = append(out, nbdsrv.ExportInfo{Name: name, Description: s.path + ":" + v})
			}
		}
	}
	return out
}

// told are the exports whose URIs are told: with one store the default one, whose
// name is empty, and otherwise all, since none is the default.
func (x *exports) told() (names []string) {
	switch {
	case len(x.only) == 1 && x.only[0] != cliutil.DefaultVolume:
		return x.only
	case len(x.stores) == 1:
		return []string{""}
	}
	for _, e := range x.List() {
		names = append(names, e.Name)
	}
	return names
}

// Open implements nbdsrv.Exports. A volume stays open until the server ends.
func (x *exports) Open(name string) (nbdsrv.Export, func(), error) {
	s, vol, ok := x.split(name)
	if !ok || !x.allowed(x.name(s, vol)) {
		return nbdsrv.Export{}, nil, nbdsrv.ErrUnknownExport
	}
	v, err := s.open(vol)
	switch {
	case errors.Is(err, volume.ErrNotFound), errors.Is(err, volume.ErrNoSnapshot):
		return nbdsrv.Export{}, nil, nbdsrv.ErrUnknownExport
	case err != nil:
		x.log.Error("export refused", "export", x.name(s, vol), "err", err)
		return nbdsrv.Export{}, nil, fmt.Errorf("%s: %w", vol, err)
	}
	e := nbdsrv.Export{
		Name: x.name(s, vol), Description: s.path + ":" + vol,
		Device: device{v}, ReadOnly: x.readOnly || v.ReadOnly(),
	}
	return e, func() {}, nil
}

// check opens one volume of each store, which recovers it, and says why none
// of any store can be served. With all, every volume must open.
func (x *exports) check(env *cliutil.Env, all bool) error {
	x.openVolumes()
	opened := 0
	var first error
	for _, e := range x.List() {
		_, release, err := x.Open(e.Name)
		if err == nil {
			release()
			opened++
			continue
		}
		if all {
			return fmt.Errorf("export %s: %w", e.Name, err)
		}
		if first == nil {
			first = fmt.Errorf("export %s: %w", e.Name, err)
		}
		env.Warn("export %s is refused: %v", e.Name, err)
	}
	for _, name := range x.only {
		if !slices.ContainsFunc(x.List(), func(e nbdsrv.ExportInfo) bool { return e.Name == name }) {
			return cliutil.Errorf(cliutil.ErrNotFound, "--export %s: no such volume or snapshot", name)
		}
	}
	if opened == 0 && first == nil {
		return cliutil.Errorf(cliutil.ErrNotFound, "nothing to serve")
	}
	if opened == 0 {
		return first
	}
	return nil
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
