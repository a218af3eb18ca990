package main

import (
	"os"
	"path"
	"slices"
	"strings"

	"github.com/fsximg/fsx/internal/cliutil"
	"github.com/fsximg/fsx/pkg/nbdsrv"
)

// allowRule is one --tls-allow.
type allowRule struct {
	exports string // a name, or a pattern of path.Match
	names   []string
}

// allowList says who may have which export. An export that a rule covers is for
// the names of all rules that cover it; any other one is for everybody.
type allowList []allowRule

// parseAllow reads EXPORT=NAME[,NAME...]; a NAME may hold =.
func parseAllow(values []string) (list allowList, err error) {
	for _, v := range values {
		exports, names, found := strings.Cut(v, "=")
		rule := allowRule{exports, strings.Split(names, ",")}
		if !found || exports == "" || slices.Contains(rule.names, "") {
			return nil, cliutil.UsageErrorf("--tls-allow %s: use EXPORT=NAME[,NAME...]", v)
		}
		if _, err := path.Match(exports, ""); err != nil {
			return nil, cliutil.UsageErrorf("--tls-allow %s: bad pattern", v)
		}
		list = append(list, rule)
	}
	return list, nil
}

// covers says whether the rule is about an export. One that names no snapshot is
// about those of its volumes, too: they hold the same data.
func (r allowRule) covers(export string) bool {
	volume := export
	if i := strings.LastIndexByte(export, '@'); i > strings.LastIndexByte(export, ':') {
		volume = export[:i] // a store's name may hold @, those of volumes and snapshots not
	}
	for _, name := range []string{export, volume} {
		if ok, err := path.Match(r.exports, name); name == r.exports || ok && err == nil {
			return true
		}
	}
	return false
}

// isPattern says whether the rule may be about several exports.
func (r allowRule) isPattern() bool { return strings.ContainsAny(r.exports, `*?[\`) }

// check refuses a client that may not have an export. The user who runs the
// server, and root, could read it without asking: on a unix socket they may.
func (l allowList) check(export string, client *nbdsrv.Client) error {
	covered := false
	names := client.Names()
	for _, rule := range l {
		if !rule.covers(export) {
			continue
		}
		covered = true
		if slices.ContainsFunc(names, func(name string) bool { return slices.Contains(rule.names, name) }) {
			return nil
		}
	}
	switch {
	case !covered || client.UID == 0 || client.UID == os.Geteuid():
		return nil
	case client.TLS == nil:
		return nbdsrv.ErrTLSRequired
	}
	return nbdsrv.ErrNotAllowed
}

// checkAllow wants an export for every rule: a misspelt one would leave the export
// that was meant open to everybody.
func (x *exports) checkAllow(env *cliutil.Env) error {
	if len(x.allow) == 0 {
		return nil
	}
	all := x.list(true)
	for _, rule := range x.allow {
		if slices.ContainsFunc(all, func(e nbdsrv.ExportInfo) bool { return rule.covers(e.Name) }) {
			continue
		}
		if !rule.isPattern() {
			return cliutil.Errorf(cliutil.ErrNotFound, "--tls-allow %s: no such export", rule.exports)
		}
		env.Warn("--tls-allow %s: there is no such export yet", rule.exports)
	}
	return nil
}
