package cliutil

import (
	"errors"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/fsximg/fsx/internal/trust"
	"github.com/fsximg/fsx/internal/volume"
	"github.com/fsximg/fsx/pkg/crypt"
	"github.com/fsximg/fsx/pkg/layout"
	"github.com/urfave/cli/v2"
)

// TrustFlags are the options about what is known of stores outside of them.
func TrustFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringSliceFlag{Name: "expect-id", Usage: "trust the volume key with the identifier `ID` (all 32 digits), and remember it; may be repeated"},
		&cli.StringSliceFlag{Name: "expect-epoch", Usage: "refuse the volume main if its epoch is less than `N`; VOLUME=N for another"},
		&cli.BoolFlag{Name: "accept-rollback", Usage: "take a store although it is older than it was, and remember that"},
		&cli.StringFlag{Name: "trust-file", Usage: "remember keys and epochs in `FILE`; none: nowhere (default: trust.json in /var/lib/fsx, or ~/.local/state/fsx)"},
	}
}

// noTrustFile, as the name of the trust file, stands for none.
const noTrustFile = "none"

// TrustFileVariable names the trust file where --trust-file does not.
const TrustFileVariable = "FSX_TRUST_FILE"

// trustOptions are what TrustFlags say.
type trustOptions struct {
	file   string // empty: none
	ids    []string
	epochs map[string]uint64 // by volume
	accept bool
}

var volumeKeyID = regexp.MustCompile("^[0-9a-f]{32}$")

// trustFlags reads TrustFlags.
func trustFlags(c *cli.Context) (o trustOptions, err error) {
	o = trustOptions{file: c.String("trust-file"), epochs: map[string]uint64{}, accept: c.Bool("accept-rollback")}
	if o.file == "" {
		o.file = os.Getenv(TrustFileVariable)
	}
	switch o.file {
	case "":
		o.file = trust.Default(os.Getenv, os.Geteuid())
	case noTrustFile:
		o.file = ""
	}
	if err := usableTrustFile(c, o.file); err != nil {
		return o, err
	}
	for _, id := range c.StringSlice("expect-id") {
		id = strings.ToLower(id)
		if !volumeKeyID.MatchString(id) {
			return o, WithHint(UsageErrorf("--expect-id %s: not the whole identifier of a volume key", id), "it has 32 hex digits; fsximg info shows it")
		}
		o.ids = append(o.ids, id)
	}
	for _, text := range c.StringSlice("expect-epoch") {
		name, number, named := strings.Cut(text, "=")
		if !named {
			name, number = DefaultVolume, text
		}
		n, err := strconv.ParseUint(number, 10, 64)
		if err != nil || CheckName("volume", name) != nil {
			return o, UsageErrorf("--expect-epoch %s: use N or VOLUME=N", text)
		}
		o.epochs[name] = n
	}
	return o, nil
}

// usableTrustFile refuses to go on with a file that is not a trust file, in a command
// that would believe it: whoever spoiled it must not have switched it off.
func usableTrustFile(c *cli.Context, file string) error {
	if file == "" || c.Command == nil || !slices.ContainsFunc(c.Command.Flags, func(f cli.Flag) bool { return slices.Contains(f.Names(), "trust-file") }) {
		return nil
	}
	if _, err := trust.At(file).Store(""); errors.Is(err, trust.ErrFormat) {
		return WithHint(err, "look what happened to it; --trust-file %s goes on without one", noTrustFile)
	}
	return nil
}

// trustPolicy asks and tells the trust file. What fails there is a warning: a key that
// cannot be looked up is not trusted.
type trustPolicy struct {
	trustOptions
	env  *Env
	mu   sync.Mutex
	read map[layout.UUID]trust.Store // no other process changes what it says of a store that this one has open
	warn bool
}

// Trust is what is known about stores outside of them, as TrustFlags say.
func (e *Env) Trust() volume.Trust {
	p := &trustPolicy{trustOptions: e.trust, env: e, read: map[layout.UUID]trust.Store{}}
	return volume.Trust{Trusted: p.trusted, LeastEpoch: p.leastEpoch, Seen: p.seen, Expected: e.trust.ids}
}

func (p *trustPolicy) trusted(store layout.UUID, key crypt.ID) bool {
	if slices.Contains(p.ids, key.String()) {
		p.remember(trust.Record{Store: store.String(), VolumeKeys: []string{key.String()}, Accept: true})
		return true
	}
	s := p.known(store)
	return s.Trusts(key.String())
}

func (p *trustPolicy) leastEpoch(store, vol layout.UUID, name string) uint64 {
	if p.accept {
		return p.epochs[name]
	}
	return max(p.epochs[name], p.known(store).Epochs[vol.String()])
}

func (p *trustPolicy) seen(s volume.Seen) {
	r := trust.Record{Store: s.Store.String(), Epochs: map[string]uint64{}, Lower: p.accept}
	for _, k := range s.Keys {
		r.VolumeKeys = append(r.VolumeKeys, k.String())
	}
	for _, k := range s.Gone {
		r.Gone = append(r.Gone, k.String())
	}
	for v, n := range s.Heads {
		r.Epochs[v.String()] = n
	}
	p.remember(r)
}

func (p *trustPolicy) known(store layout.UUID) trust.Store {
	p.mu.Lock()
	defer p.mu.Unlock()
	s, ok := p.read[store]
	if ok || p.file == "" {
		return s
	}
	s, err := trust.At(p.file).Store(store.String())
	if err != nil {
		p.failedLocked(err)
	}
	p.read[store] = s
	return s
}

func (p *trustPolicy) remember(r trust.Record) {
	if p.file == "" {
		return
	}
	if err := trust.At(p.file).Remember(r); err != nil {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.failedLocked(err)
	}
}

// failedLocked warns, once.
func (p *trustPolicy) failedLocked(err error) {
	if !p.warn {
		p.env.Warn("what is known of stores cannot be kept: %v (--trust-file names another place, or none)", err)
	}
	p.warn = true
}
