package faultfs

import (
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Op is a kind of operation that a rule can name.
type Op string

// The operations.
const (
	Open     Op = "open" // of an existing name
	Create   Op = "create"
	Mkdir    Op = "mkdir"
	Remove   Op = "remove"
	Rename   Op = "rename" // the path is the old one
	Link     Op = "link"
	ReadDir  Op = "readdir"
	Stat     Op = "stat"
	Free     Op = "free"
	SyncDir  Op = "syncdir"
	Read     Op = "read"
	Write    Op = "write"
	Sync     Op = "sync"
	Truncate Op = "truncate"
	Allocate Op = "allocate"
	Punch    Op = "punch"
	Lock     Op = "lock"
	Close    Op = "close"
)

// Rule says which operations go wrong, and how. It is plain data and can cross
// a process boundary as JSON.
type Rule struct {
	// Ops are the operations it is about; none means all.
	Ops []Op `json:",omitempty"`
	// Path is a pattern of path.Match for the path below the root, or, without
	// a slash, for its last element; empty matches everything.
	Path string `json:",omitempty"`
	// Skip lets the first matches pass; Count then limits how many fire (0: no
	// limit), so the nth occurrence is {Skip: n-1, Count: 1}.
	Skip, Count int `json:",omitempty"`
	// Chance is the probability that a match counts at all; 0 means 1.
	Chance float64 `json:",omitempty"`

	// Delay comes before everything else. A read that must not wait returns
	// vfs.ErrWouldBlock instead.
	Delay time.Duration `json:",omitempty"`
	// Err makes the operation fail. A sync that fails loses what it was to
	// write: no later sync writes it.
	Err syscall.Errno `json:",omitempty"`
	// Keep is how many bytes a failing write still writes.
	Keep int `json:",omitempty"`
	// Torn makes a failing write write an arbitrary subset of its sectors.
	Torn bool `json:",omitempty"`
	// Ignore makes a sync return success and do nothing.
	Ignore bool `json:",omitempty"`
}

// Verdict is what is to happen to one operation. The zero value is "nothing".
type Verdict struct {
	Delay  time.Duration
	Err    syscall.Errno
	Keep   int
	Torn   bool
	Ignore bool
}

// Armed is a rule in force.
type Armed struct {
	in      *Injector
	rule    Rule
	matched int
	fired   int
}

// Fired returns how often the rule has changed an operation.
func (a *Armed) Fired() int {
	a.in.mu.Lock()
	defer a.in.mu.Unlock()
	return a.fired
}

// Disarm ends the rule.
func (a *Armed) Disarm() {
	a.in.mu.Lock()
	defer a.in.mu.Unlock()
	a.in.armed = slices.DeleteFunc(a.in.armed, func(b *Armed) bool { return a == b })
}

// Injector decides about operations by rules. Safe for concurrent use.
type Injector struct {
	mu    sync.Mutex
	rng   *rand.Rand
	armed []*Armed
}

// NewInjector returns an injector without rules; the seed drives the chances.
func NewInjector(seed uint64) *Injector {
	return &Injector{rng: rand.New(rand.NewPCG(seed, 0))}
}

// Arm puts a rule in force.
func (in *Injector) Arm(r Rule) *Armed {
	in.mu.Lock()
	defer in.mu.Unlock()
	a := &Armed{in: in, rule: r}
	in.armed = append(in.armed, a)
	return a
}

// DisarmAll ends all rules.
func (in *Injector) DisarmAll() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.armed = nil
}

// Decide returns what is to happen to an operation on the path below the root.
// Delays add up; of the rest the first rule that fires has the word.
func (in *Injector) Decide(op Op, name string) Verdict {
	in.mu.Lock()
	defer in.mu.Unlock()
	var v Verdict
	decided := false
	for _, a := range in.armed {
		if !a.rule.matches(op, name) || a.rule.Chance > 0 && in.rng.Float64() >= a.rule.Chance {
			continue
		}
		a.matched++
		if a.matched <= a.rule.Skip || a.rule.Count > 0 && a.fired >= a.rule.Count {
			continue
		}
		a.fired++
		v.Delay += a.rule.Delay
		if !decided && a.rule.breaks() {
			decided = true
			v.Err, v.Keep, v.Torn, v.Ignore = a.rule.Err, a.rule.Keep, a.rule.Torn, a.rule.Ignore
			if v.Err == 0 && (v.Keep > 0 || v.Torn) {
				v.Err = syscall.EIO
			}
		}
	}
	return v
}

// Sectors returns which of the n sectors of a torn write are written.
func (in *Injector) Sectors(n int) []bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	keep := make([]bool, n)
	for i := range keep {
		keep[i] = in.rng.IntN(2) == 0
	}
	return keep
}

func (r *Rule) breaks() bool { return r.Err != 0 || r.Keep > 0 || r.Torn || r.Ignore }

func (r *Rule) matches(op Op, name string) bool {
	if len(r.Ops) > 0 && !slices.Contains(r.Ops, op) {
		return false
	}
	if r.Path == "" {
		return true
	}
	if !strings.Contains(r.Path, "/") {
		name = path.Base(name)
	}
	ok, err := path.Match(r.Path, name)
	return ok && err == nil
}
