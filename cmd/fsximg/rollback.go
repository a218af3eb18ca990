package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/fsximg/fsx/internal/cliutil"
	"github.com/fsximg/fsx/internal/control"
	"github.com/fsximg/fsx/internal/volume"
	"github.com/fsximg/fsx/pkg/snapshot"
	"github.com/urfave/cli/v2"
)

func rollbackCommand() *cli.Command {
	return &cli.Command{
		Name: "rollback", Usage: "make a volume what a snapshot holds", ArgsUsage: "STORE[:VOLUME]@SNAPSHOT",
		Description: "What was written since is lost. While clients use the volume it is refused, and while\n" +
			"there are newer snapshots, unless --force: that deletes them, and names them.",
		Flags: flags([]cli.Flag{
			&cli.BoolFlag{Name: "force", Usage: "do not ask, and delete newer snapshots"},
			cliutil.JSONFlag(),
		}, cliutil.OpenKeyFlags()),
		Action: cliutil.Action(1, 1, cliutil.FirstArg, runRollback),
	}
}

type rollbackResult struct {
	cliutil.Header
	Store    string           `json:"store"`
	Volume   string           `json:"volume"`
	Snapshot control.Snapshot `json:"snapshot"`
	Deleted  []string         `json:"deleted"` // newer snapshots
}

func runRollback(ctx context.Context, env *cliutil.Env, c *cli.Context) (err error) {
	ref, err := snapshotRef(c)
	if err != nil {
		return err
	}
	o, info, err := openDescribed(ctx, env, c, ref.Store, forWriting, keysNeeded)
	if err != nil {
		return err
	}
	defer closeOperations(o, &err)
	s, err := findSnapshot(info, ref)
	if err == nil && !c.Bool("force") {
		err = noNewer(info, ref)
	}
	if err != nil {
		return err
	}
	err = env.Confirm(ctx, c.Bool("force"), "volume %s would go back to %s and lose what was written since %s", ref.VolumeOrDefault(), s.Name,
		s.Created.Local().Format(time.DateTime))
	if err != nil {
		return err
	}
	deleted, err := o.Rollback(ctx, ref.VolumeOrDefault(), s.Name, c.Bool("force"))
	if errors.Is(err, volume.ErrNewerSnapshots) { // made since
		err = cliutil.WithHint(err, "--force deletes them")
	}
	if err != nil {
		return err
	}
	env.Say("%s: volume %s is what snapshot %s holds", ref.Store, ref.VolumeOrDefault(), s.Name)
	if len(deleted) > 0 {
		env.Say("%s: newer snapshots deleted: %s", ref.Store, strings.Join(deleted, ", "))
	}
	if c.Bool("json") {
		return env.PrintJSON(rollbackResult{cliutil.NewHeader("fsximg.snapshot.rollback"), ref.Store, ref.VolumeOrDefault(), s, list(deleted)})
	}
	return nil
}

// noNewer says which snapshots a rollback would delete, before anything is asked.
func noNewer(info control.Info, ref cliutil.Ref) error {
	v, err := findVolume(info, ref)
	if err != nil {
		return err
	}
	var newer []string
	found := false
	for _, s := range v.Snapshots { // oldest first
		if found {
			newer = append(newer, s.Name)
		}
		found = found || s.Name == ref.Snapshot
	}
	if len(newer) == 0 {
		return nil
	}
	return cliutil.WithHint(fmt.Errorf("%w: %s", volume.ErrNewerSnapshots, strings.Join(newer, ", ")), "--force deletes them")
}

// list is l as JSON wants it: never null.
func list(l []string) []string {
	if l == nil {
		return []string{}
	}
	return l
}

func pruneCommand() *cli.Command {
	return &cli.Command{
		Name: "prune", Usage: "delete the snapshots of a volume that a policy does not keep", ArgsUsage: "STORE[:VOLUME]",
		Description: "A snapshot is kept if one of the rules keeps it: the last N, or the newest of each of the\n" +
			"last N hours, days, weeks, months or years that have any.",
		Flags: flags(keepFlags(), []cli.Flag{
			&cli.BoolFlag{Name: "dry-run", Aliases: []string{"n"}, Usage: "show what would be kept, and delete nothing"},
			&cli.BoolFlag{Name: "force", Usage: "do not ask"},
			cliutil.JSONFlag(),
		}, cliutil.OpenKeyFlags()),
		Action: cliutil.Action(1, 1, cliutil.FirstArg, runPrune),
	}
}

func keepFlags() (l []cli.Flag) {
	for _, f := range [][2]string{
		{"keep-last", "keep the last `N` snapshots"}, {"keep-hourly", "keep the newest of each of `N` hours"},
		{"keep-daily", "keep the newest of each of `N` days"}, {"keep-weekly", "keep the newest of each of `N` weeks"},
		{"keep-monthly", "keep the newest of each of `N` months"}, {"keep-yearly", "keep the newest of each of `N` years"},
	} {
		l = append(l, &cli.IntFlag{Name: f[0], Usage: f[1], DefaultText: "0"})
	}
	return l
}

func policyOf(c *cli.Context) (snapshot.Policy, error) {
	p := snapshot.Policy{
		Last: c.Int("keep-last"), Hourly: c.Int("keep-hourly"), Daily: c.Int("keep-daily"),
		Weekly: c.Int("keep-weekly"), Monthly: c.Int("keep-monthly"), Yearly: c.Int("keep-yearly"),
	}
	for _, n := range []int{p.Last, p.Hourly, p.Daily, p.Weekly, p.Monthly, p.Yearly} {
		if n < 0 {
			return p, cliutil.UsageErrorf("--keep-…: %d is less than 0", n)
		}
	}
	if p == (snapshot.Policy{}) {
		return p, cliutil.WithHint(cliutil.UsageErrorf("no --keep-… option: every snapshot would be deleted"), "e.g. --keep-last 3 --keep-daily 7")
	}
	return p, nil
}

type pruneResult struct {
	cliutil.Header
	Store     string           `json:"store"`
	Volume    string           `json:"volume"`
	DryRun    bool             `json:"dry_run"`
	Snapshots []prunedSnapshot `json:"snapshots"`
	Deleted   []string         `json:"deleted"`
}

type prunedSnapshot struct {
	control.Snapshot
	Keep    bool     `json:"keep"`
	Reasons []string `json:"reasons"` // rules that keep it
}

func runPrune(ctx context.Context, env *cliutil.Env, c *cli.Context) (err error) {
	ref, err := volumeRef(c, false)
	if err != nil {
		return err
	}
	policy, err := policyOf(c)
	if err != nil {
		return err
	}
	how, keys := forWriting, keysNeeded
	if c.Bool("dry-run") {
		how, keys = forReading, noKeys
	}
	o, info, err := openDescribed(ctx, env, c, ref.Store, how, keys)
	if err != nil {
		return err
	}
	defer closeOperations(o, &err)
	v, err := findVolume(info, ref)
	if err != nil {
		return err
	}
	res := pruneResult{cliutil.NewHeader("fsximg.snapshot.prune"), ref.Store, v.Name, c.Bool("dry-run"), decide(v.Snapshots, policy), []string{}}
	if !res.DryRun {
		if err := prune(ctx, env, c, o, &res); err != nil {
			return err
		}
	}
	if c.Bool("json") {
		return env.PrintJSON(res)
	}
	return printPruned(env.Stdout, res)
}

// decide asks the policy about every snapshot.
func decide(l []control.Snapshot, p snapshot.Policy) []prunedSnapshot {
	candidates := make([]snapshot.Candidate, 0, len(l))
	byName := map[string]control.Snapshot{}
	for i, s := range l {
		// Of those made in the same second, the order tells which is newer.
		candidates = append(candidates, snapshot.Candidate{Name: s.Name, Created: s.Created.Add(time.Duration(i))})
		byName[s.Name] = s
	}
	out := []prunedSnapshot{}
	for _, d := range snapshot.Keep(candidates, p, time.Local) {
		out = append(out, prunedSnapshot{byName[d.Name], d.Keep, list(d.Reasons)})
	}
	slices.Reverse(out) // oldest first, as in every list
	return out
}

// prune deletes what is not kept. After an error the rest stays.
func prune(ctx context.Context, env *cliutil.Env, c *cli.Context, o control.Operations, res *pruneResult) error {
	var names []string
	for _, s := range res.Snapshots {
		if !s.Keep {
			names = append(names, s.Name)
		}
	}
	if len(names) == 0 {
		return nil
	}
	if err := env.Confirm(ctx, c.Bool("force"), "%d of %d snapshots of volume %s would be deleted: %s", len(names), len(res.Snapshots), res.Volume,
		strings.Join(names, ", ")); err != nil {
		return err
	}
	var inUse error
	for _, name := range names {
		if _, err := o.DeleteSnapshot(ctx, res.Volume, name); err != nil {
			if errors.Is(err, cliutil.ErrInUse) {
				inUse = errors.Join(inUse, err) // the others go all the same
				continue
			}
			if len(res.Deleted) > 0 {
				env.Say("%s: deleted: %s", res.Store, strings.Join(res.Deleted, ", "))
			}
			return fmt.Errorf("delete %s: %w", name, err)
		}
		res.Deleted = append(res.Deleted, name)
	}
	if inUse != nil && len(res.Deleted) > 0 {
		env.Say("%s: deleted: %s", res.Store, strings.Join(res.Deleted, ", "))
	}
	return inUse
}

func printPruned(w io.Writer, r pruneResult) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "SNAPSHOT\tCREATED\t\tBECAUSE")
	for _, s := range r.Snapshots {
		what := "keep"
		switch {
		case !s.Keep && r.DryRun:
			what = "delete"
		case !s.Keep:
			what = "deleted"
		}
		fmt.Fprintf(t, "%s@%s\t%s\t%s\t%s\n", r.Volume, s.Name, s.Created.Local().Format(time.DateTime), what, strings.Join(s.Reasons, ", "))
	}
	return t.Flush()
}
