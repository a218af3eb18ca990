package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"

	"github.com/fsximg/fsx/internal/cliutil"
	"github.com/fsximg/fsx/internal/control"
	"github.com/urfave/cli/v2"
)

func diffCommand() *cli.Command {
	return &cli.Command{
		Name: "diff", Usage: "show what changed between two snapshots of a volume, or since one", ArgsUsage: "STORE[:VOLUME]@A [STORE[:VOLUME]@B]",
		Description: "Without @B the volume as it is now is compared. It tells where blocks were written,\n" +
			"whether or not with the same contents, from the maps alone.",
		Flags:  flags([]cli.Flag{cliutil.JSONFlag()}, cliutil.OpenKeyFlags()),
		Action: cliutil.Action(1, 2, cliutil.FirstArg, runDiff),
	}
}

type diffResult struct {
	cliutil.Header
	Store  string `json:"store"`
	Volume string `json:"volume"`
	From   string `json:"from"`
	To     string `json:"to,omitempty"`
}

// diffRefs are the two states that the arguments name.
func diffRefs(c *cli.Context) (from, to cliutil.Ref, err error) {
	if from, err = snapshotRef(c); err != nil || c.Args().Len() == 1 {
		return from, to, err
	}
	if to, err = cliutil.ParseRef(c.Args().Get(1)); err != nil {
		return from, to, err
	}
	if to.Store != from.Store || to.VolumeOrDefault() != from.VolumeOrDefault() {
		return from, to, cliutil.WithHint(cliutil.UsageErrorf("%s and %s are not of the same volume", from, to), "fsximg compare compares any two images")
	}
	return from, to, nil
}

func runDiff(ctx context.Context, env *cliutil.Env, c *cli.Context) (err error) {
	from, to, err := diffRefs(c)
	if err != nil {
		return err
	}
	o, err := openOperations(ctx, env, c, from.Store, forReading, givenKeys)
	if err != nil {
		return err
	}
	defer closeOperations(o, &err)
	head := diffResult{cliutil.NewHeader("fsximg.diff"), from.Store, from.VolumeOrDefault(), from.Snapshot, to.Snapshot}
	w := bufio.NewWriter(env.Stdout)
	d := &diffWriter{w: w, json: c.Bool("json")}
	err = o.Diff(ctx, head.Volume, head.From, head.To, func(r control.DiffRun) error { return d.run(head, r) })
	if err == nil {
		err = d.end(head)
	}
	if err != nil {
		return err
	}
	return w.Flush()
}

// diffWriter prints runs, one at a time: there may be millions.
type diffWriter struct {
	w     io.Writer
	json  bool
	begun bool
	runs  int
	total int64 // bytes
}

func (d *diffWriter) begin(head diffResult) error {
	if d.begun {
		return nil
	}
	d.begun = true
	if !d.json {
		_, err := fmt.Fprintf(d.w, "%20s %20s %10s  %s\n", "START", "LENGTH", "SIZE", "KIND")
		return err
	}
	b, err := json.Marshal(head)
	if err == nil {
		_, err = fmt.Fprintf(d.w, "%s,\"runs\":[", b[:len(b)-1])
	}
	return err
}

func (d *diffWriter) run(head diffResult, r control.DiffRun) error {
	if err := d.begin(head); err != nil {
		return err
	}
	d.runs++
	d.total += r.Length
	if !d.json {
		_, err := fmt.Fprintf(d.w, "%20d %20d %10s  %s\n", r.Start, r.Length, cliutil.FormatSize(r.Length), r.Kind)
		return err
	}
	sep := ",\n"
	if d.runs == 1 {
		sep = "\n"
	}
	b, err := json.Marshal(r)
	if err == nil {
		_, err = fmt.Fprintf(d.w, "%s%s", sep, b)
	}
	return err
}

func (d *diffWriter) end(head diffResult) error {
	if err := d.begin(head); err != nil {
		return err
	}
	if d.json {
		_, err := fmt.Fprintf(d.w, "\n],\"changed\":%d}\n", d.total)
		return err
	}
	_, err := fmt.Fprintf(d.w, "%s in %d runs\n", cliutil.FormatSize(d.total), d.runs)
	return err
}
