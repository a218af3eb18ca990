package snapshot_test

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	_ "time/tzdata"

	"github.com/fsximg/fsx/pkg/snapshot"
)

func zone(t testing.TB, name string) *time.Location {
	t.Helper()
	loc, err := time.LoadLocation(name)
	if err != nil {
		t.Fatal(err)
	}
	return loc
}

// candidates are named after their times, which are written "2026-05-01 12:00" in
// UTC; a word after that is added to the name.
func candidates(t testing.TB, lines ...string) (l []snapshot.Candidate) {
	t.Helper()
	for _, line := range lines {
		at, err := time.Parse("2006-01-02 15:04", line[:16])
		if err != nil {
			t.Fatal(err)
		}
		l = append(l, snapshot.Candidate{Name: line, Created: at})
	}
	return l
}

// kept is "name: reason, reason" of each that is kept.
func kept(l []snapshot.Decision) []string {
	out := []string{}
	for _, d := range l {
		if d.Keep {
			out = append(out, d.Name+": "+strings.Join(d.Reasons, ", "))
		}
	}
	return out
}

func TestKeep(t *testing.T) {
	week := []string{
		"2026-05-01 08:00", "2026-05-01 08:30", "2026-05-01 23:59", "2026-05-02 00:00",
		"2026-05-04 07:00", "2026-05-04 12:00", // a gap before them, and a Monday
	}
	for _, tt := range []struct {
		name   string
		zone   string
		lines  []string
		policy snapshot.Policy
		want   []string
	}{
		{"nothing", "UTC", nil, snapshot.Policy{Daily: 3}, nil},
		{"empty policy", "UTC", week[:2], snapshot.Policy{}, []string{
			"2026-05-01 08:30: empty policy", "2026-05-01 08:00: empty policy"}},
		{"last", "UTC", week, snapshot.Policy{Last: 2}, []string{
			"2026-05-04 12:00: last", "2026-05-04 07:00: last"}},
		{"more than there are", "UTC", week[:2], snapshot.Policy{Last: 3}, []string{
			"2026-05-01 08:30: last", "2026-05-01 08:00: last"}},
		{"hours", "UTC", week, snapshot.Policy{Hourly: 4}, []string{
			"2026-05-04 12:00: hourly", "2026-05-04 07:00: hourly", "2026-05-02 00:00: hourly", "2026-05-01 23:59: hourly"}},
		{"a day without one does not count", "UTC", week, snapshot.Policy{Daily: 2}, []string{
			"2026-05-04 12:00: daily", "2026-05-02 00:00: daily"}},
		{"full with the last day", "UTC", week, snapshot.Policy{Daily: 3}, []string{
			"2026-05-04 12:00: daily", "2026-05-02 00:00: daily", "2026-05-01 23:59: daily"}},
		{"room left for the oldest", "UTC", week, snapshot.Policy{Daily: 4}, []string{
			"2026-05-04 12:00: daily", "2026-05-02 00:00: daily", "2026-05-01 23:59: daily", "2026-05-01 08:00: oldest daily"}},
		{"unlimited", "UTC", week, snapshot.Policy{Weekly: snapshot.Unlimited}, []string{
			"2026-05-04 12:00: weekly", "2026-05-02 00:00: weekly", "2026-05-01 08:00: oldest weekly"}},
		{"kinds do not know of each other", "UTC", week, snapshot.Policy{Last: 1, Daily: 1, Weekly: 2, Monthly: 1, Yearly: 2}, []string{
			"2026-05-04 12:00: last, daily, weekly, monthly, yearly", "2026-05-02 00:00: weekly", "2026-05-01 08:00: oldest yearly"}},
		{"days of another place", "Asia/Tokyo", week, snapshot.Policy{Daily: 2}, []string{
			"2026-05-04 12:00: daily", "2026-05-02 00:00: daily"}},
		{"midnight of another place", "Asia/Tokyo", []string{"2026-05-01 14:59", "2026-05-01 15:00"}, snapshot.Policy{Daily: 2}, []string{
			"2026-05-01 15:00: daily", "2026-05-01 14:59: daily"}},
		{"the year of an ISO week", "UTC", []string{"2024-12-29 12:00", "2024-12-30 12:00", "2025-01-05 12:00", "2025-12-31 12:00"},
			snapshot.Policy{Weekly: 3}, []string{"2025-12-31 12:00: weekly", "2025-01-05 12:00: weekly", "2024-12-29 12:00: weekly"}},
		{"same time, by name", "UTC", []string{"2026-05-01 08:00 b", "2026-05-01 08:00 c", "2026-05-01 08:00 a"},
			snapshot.Policy{Last: 2}, []string{"2026-05-01 08:00 c: last", "2026-05-01 08:00 b: last"}},
		// Berlin 2026-10-25: 02:00 to 03:00 comes twice, from 00:00 and from 01:00 UTC
		{"an hour that comes twice", "Europe/Berlin", []string{"2026-10-25 00:10", "2026-10-25 00:50", "2026-10-25 01:10", "2026-10-25 01:50"},
			snapshot.Policy{Hourly: 2}, []string{"2026-10-25 01:50: hourly", "2026-10-25 00:50: hourly"}},
		{"a day of 25 hours", "Europe/Berlin", []string{"2026-10-24 21:59", "2026-10-24 22:00", "2026-10-25 22:59", "2026-10-25 23:00"},
			snapshot.Policy{Daily: 3}, []string{"2026-10-25 23:00: daily", "2026-10-25 22:59: daily", "2026-10-24 21:59: daily"}},
		// Berlin 2026-03-29: there is no 02:00 to 03:00
		{"an hour that is left out", "Europe/Berlin", []string{"2026-03-29 00:59", "2026-03-29 01:00", "2026-03-29 01:30"},
			snapshot.Policy{Hourly: 2}, []string{"2026-03-29 01:30: hourly", "2026-03-29 00:59: hourly"}},
		{"a day of 23 hours", "Europe/Berlin", []string{"2026-03-28 22:59", "2026-03-28 23:00", "2026-03-29 21:59", "2026-03-29 22:00"},
			snapshot.Policy{Daily: 3}, []string{"2026-03-29 22:00: daily", "2026-03-29 21:59: daily", "2026-03-28 22:59: daily"}},
		// Goose Bay 2010-11-07: a minute past midnight (03:01 UTC), back to the 6th, 23:01
		{"midnight that comes twice", "America/Goose_Bay", []string{"2010-11-06 15:00", "2010-11-07 02:30", "2010-11-07 03:00", "2010-11-07 03:30", "2010-11-07 04:30"},
			snapshot.Policy{Daily: 2}, []string{"2010-11-07 04:30: daily", "2010-11-07 03:30: daily"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := candidates(t, tt.lines...)
			before := slices.Clone(l)
			got := snapshot.Keep(l, tt.policy, zone(t, tt.zone))
			if !slices.Equal(kept(got), tt.want) {
				t.Errorf("kept\n%s\nwant\n%s", strings.Join(kept(got), "\n"), strings.Join(tt.want, "\n"))
			}
			if len(got) != len(l) || !slices.Equal(l, before) {
				t.Errorf("%d decisions on %d snapshots, or the list was changed", len(got), len(l))
			}
		})
	}
}

// kinds are the model's periods, as text.
var kinds = []struct {
	reason string
	number func(snapshot.Policy) int
	name   func(time.Time, string) string
}{
	{"last", func(p snapshot.Policy) int { return p.Last }, func(t time.Time, name string) string { return t.String() + name }},
	{"hourly", func(p snapshot.Policy) int { return p.Hourly }, func(t time.Time, _ string) string { return t.Format("2006-01-02 15 -0700") }},
	{"daily", func(p snapshot.Policy) int { return p.Daily }, func(t time.Time, _ string) string { return t.Format("2006-01-02") }},
	{"weekly", func(p snapshot.Policy) int { return p.Weekly }, func(t time.Time, _ string) string {
		return fmt.Sprint(t.ISOWeek())
	}},
	{"monthly", func(p snapshot.Policy) int { return p.Monthly }, func(t time.Time, _ string) string { return t.Format("2006-01") }},
	{"yearly", func(p snapshot.Policy) int { return p.Yearly }, func(t time.Time, _ string) string { return t.Format("2006") }},
}

// model keeps by groups: all snapshots of a period together, then the newest
// periods, then the newest of each.
func model(l []snapshot.Candidate, p snapshot.Policy, loc *time.Location) map[string][]string {
	newer := func(a, b snapshot.Candidate) int {
		return cmp.Or(a.Created.Compare(b.Created), strings.Compare(a.Name, b.Name))
	}
	reasons := map[string][]string{}
	for _, k := range kinds {
		newest := map[string]snapshot.Candidate{}
		for _, c := range l {
			period := k.name(c.Created.In(loc), c.Name)
			if have, ok := newest[period]; !ok || newer(c, have) > 0 {
				newest[period] = c
			}
		}
		firsts := make([]snapshot.Candidate, 0, len(newest))
		for _, c := range newest {
			firsts = append(firsts, c)
		}
		slices.SortFunc(firsts, func(a, b snapshot.Candidate) int { return newer(b, a) })
		n := k.number(p)
		for i, c := range firsts {
			if n < 0 || i < n {
				reasons[c.Name] = append(reasons[c.Name], k.reason)
			}
		}
		if len(l) > 0 && (n < 0 || n > len(firsts)) {
			oldest := slices.MinFunc(l, newer)
			if !slices.Contains(reasons[oldest.Name], k.reason) {
				reasons[oldest.Name] = append(reasons[oldest.Name], "oldest "+k.reason)
			}
		}
	}
	return reasons
}

// randomSnapshots draws names that do not sort as the times do, times that are
// often equal, and steps from seconds to months.
func randomSnapshots(rng *rand.Rand) (l []snapshot.Candidate) {
	at := time.Date(2009+rng.IntN(3), time.Month(1+rng.IntN(12)), 1+rng.IntN(28), 0, 0, 0, 0, time.UTC)
	steps := []time.Duration{0, time.Second, time.Minute, 20 * time.Minute, time.Hour, 12 * time.Hour, 3 * 24 * time.Hour, 40 * 24 * time.Hour}
	most := 1 + rng.IntN(len(steps))
	for _, i := range rng.Perm(rng.IntN(120)) {
		at = at.Add(steps[rng.IntN(most)])
		l = append(l, snapshot.Candidate{Name: "s" + strconv.Itoa(i), Created: at})
	}
	rng.Shuffle(len(l), func(i, j int) { l[i], l[j] = l[j], l[i] })
	return l
}

func randomPolicy(rng *rand.Rand) (p snapshot.Policy) {
	for _, n := range []*int{&p.Last, &p.Hourly, &p.Daily, &p.Weekly, &p.Monthly, &p.Yearly} {
		if rng.IntN(2) == 0 {
			*n = rng.IntN(16) - 1
		}
	}
	return p
}

func TestKeepModel(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("FSX_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 0, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("FSX_SEED=%d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	zones := []*time.Location{time.UTC, zone(t, "Europe/Berlin"), zone(t, "America/Goose_Bay"), zone(t, "Australia/Lord_Howe"), zone(t, "Pacific/Apia")}
	for round := range 2000 {
		l, p, loc := randomSnapshots(rng), randomPolicy(rng), zones[rng.IntN(len(zones))]
		if p.IsEmpty() {
			continue
		}
		got := snapshot.Keep(l, p, loc)
		reasons, want := map[string][]string{}, model(l, p, loc)
		for _, d := range got {
			if d.Keep != (len(d.Reasons) > 0) {
				t.Fatalf("round %d: %+v", round, d)
			}
			if d.Keep {
				reasons[d.Name] = d.Reasons
			}
		}
		if len(got) != len(l) || !reflect.DeepEqual(reasons, want) {
			t.Fatalf("round %d, %v, %+v: of\n%v\nkept\n%v\nwant\n%v", round, loc, p, l, reasons, want)
		}
		rng.Shuffle(len(l), func(i, j int) { l[i], l[j] = l[j], l[i] })
		if again := snapshot.Keep(l, p, loc); !reflect.DeepEqual(got, again) {
			t.Fatalf("round %d: the order of the list matters", round)
		}
		for _, d := range snapshot.Keep(only(l, reasons), p, loc) {
			if !d.Keep {
				t.Fatalf("round %d, %v, %+v: %s is kept of all, not of the kept", round, loc, p, d.Name)
			}
		}
	}
}

// only is the snapshots of l that have a reason.
func only(l []snapshot.Candidate, reasons map[string][]string) (out []snapshot.Candidate) {
	for _, c := range l {
		if reasons[c.Name] != nil {
			out = append(out, c)
		}
	}
	return out
}
