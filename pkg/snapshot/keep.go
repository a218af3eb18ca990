package snapshot

import (
	"cmp"
	"slices"
	"time"
)

// A Candidate is a snapshot a policy decides on.
type Candidate struct {
	Name    string
	Created time.Time
}

// Unlimited keeps one snapshot of every period, or with Policy.Last every one.
const Unlimited = -1

// Policy is how many snapshots of each kind are kept: the Last newest ones, and
// the newest of each of the newest Hourly hours that have one, Daily days, and
// so on. 0 keeps none of a kind, Unlimited (as anything below 0) all.
type Policy struct {
	Last, Hourly, Daily, Weekly, Monthly, Yearly int
}

// IsEmpty says that p asks for nothing, not even Unlimited of a kind.
func (p Policy) IsEmpty() bool { return p == Policy{} }

// A Decision is what a policy says of one snapshot.
type Decision struct {
	Name string
	Keep bool
	// Reasons is why it is kept: "last", "hourly", "daily", "weekly", "monthly"
	// and "yearly" in this order, each with "oldest " before it where only the
	// rule of the oldest snapshot (see Keep) kept it; or "empty policy" alone.
	Reasons []string
}

// Keep decides on each snapshot of l, and returns the decisions newest first. Of
// those made at the same time, the one whose name sorts last counts as the newer.
// l is not changed.
//
// The rules are those of restic's forget, without its groups and tags:
//
//   - Hours, days, ISO weeks, months and years are the calendar's in loc, not
//     spans counted back from now. A period without a snapshot does not count.
//   - Of each period the newest snapshot is kept, newest period first, until the
//     policy's number of periods have one. Kinds do not know of each other: one
//     snapshot can be kept as the newest of its hour, day and year.
//   - The oldest snapshot is kept also for each kind whose number is not used up
//     when it is reached, be it the newest of its period or not. So a policy of
//     12 months, started in the middle of one, does not lose its first snapshot,
//     the only one that reaches back so far, until there are 12 others.
//   - An empty policy keeps everything.
//
// Two things differ. An hour that a clock change repeats is two hours, where
// restic sees one: a snapshot of each is kept. And where a clock change goes back
// over midnight, a day that so comes twice is still one day.
//
// Keeping is idempotent: of what p keeps of l, p keeps all.
func Keep(l []Candidate, p Policy, loc *time.Location) []Decision {
	l = slices.Clone(l)
	slices.SortFunc(l, func(a, b Candidate) int {
		return cmp.Or(b.Created.Compare(a.Created), cmp.Compare(b.Name, a.Name))
	})
	rules := p.rules()
	out := make([]Decision, len(l))
	for i, c := range l {
		d := Decision{Name: c.Name}
		if p.IsEmpty() {
			d.Reasons = []string{"empty policy"}
		}
		for r := range rules {
			d.Reasons = append(d.Reasons, rules[r].reasons(i, c.Created.In(loc), i == len(l)-1)...)
		}
		d.Keep = len(d.Reasons) > 0
		out[i] = d
	}
	return out
}

// period names an hour, a day and so on: the fields its kind needs, others zero.
type period struct{ year, part, day, hour, offset int }

// rule is one kind of a policy, while snapshots pass it newest first.
type rule struct {
	reason string
	of     func(i int, t time.Time) period // the period of the i-th snapshot
	left   int                             // periods still wanted; below 0 all
	seen   map[period]bool                 // those that have a snapshot
}

// rules are p's, in the order of Decision.Reasons.
func (p Policy) rules() []rule {
	all := []rule{
		{reason: "last", left: p.Last, of: func(i int, _ time.Time) period { return period{part: i} }},
		{reason: "hourly", left: p.Hourly, of: hourOf},
		{reason: "daily", left: p.Daily, of: dayOf},
		{reason: "weekly", left: p.Weekly, of: weekOf},
		{reason: "monthly", left: p.Monthly, of: monthOf},
		{reason: "yearly", left: p.Yearly, of: yearOf},
	}
	for i := range all {
		all[i].seen = map[period]bool{}
	}
	return all
}

// reasons is the rule's reason to keep the i-th snapshot, or nothing.
func (r *rule) reasons(i int, t time.Time, oldest bool) []string {
	if r.left == 0 {
		return nil
	}
	at := r.of(i, t)
	if r.seen[at] {
		if oldest {
			return []string{"oldest " + r.reason}
		}
		return nil
	}
	r.seen[at] = true
	if r.left > 0 {
		r.left--
	}
	return []string{r.reason}
}

func hourOf(_ int, t time.Time) period {
	year, month, day := t.Date()
	_, offset := t.Zone() // tells the two hours of a clock change apart
	return period{year: year, part: int(month), day: day, hour: t.Hour(), offset: offset}
}

func dayOf(_ int, t time.Time) period {
	year, month, day := t.Date()
	return period{year: year, part: int(month), day: day}
}

func weekOf(_ int, t time.Time) period {
	year, week := t.ISOWeek()
	return period{year: year, part: week}
}

func monthOf(_ int, t time.Time) period { return period{year: t.Year(), part: int(t.Month())} }

func yearOf(_ int, t time.Time) period { return period{year: t.Year()} }
