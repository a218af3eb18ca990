package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"

	"github.com/fsximg/fsx/internal/cliutil"
	"github.com/fsximg/fsx/internal/control"
	"github.com/fsximg/fsx/internal/picture"
	"github.com/urfave/cli/v2"
)

func mapCommand() *cli.Command {
	return &cli.Command{
		Name: "map", Usage: "show what a volume holds where: data, zeros and holes", ArgsUsage: "STORE[:VOLUME][@SNAPSHOT]",
		Description: "DEPTH counts the generations up to the volume that wrote a block. A picture shows the\n" +
			"address space in colours, by the oldest snapshot that has a block, or by its data key.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "picture", Usage: "draw it into the new SVG `FILE`, - for stdout"},
			&cli.BoolFlag{Name: "blocks", Usage: "draw it in the terminal"},
			&cli.StringFlag{Name: "by", Value: "snapshot", Usage: "colour a picture by `snapshot` or key"},
			&cli.BoolFlag{Name: "force", Usage: "replace FILE"},
			cliutil.JSONFlag(),
		},
		Action: cliutil.Action(1, 1, cliutil.FirstArg, runMap),
	}
}

type mapResult struct {
	cliutil.Header
	Store    string `json:"store"`
	Volume   string `json:"volume"`
	Snapshot string `json:"snapshot,omitempty"`
	Size     int64  `json:"size"`
}

type runResult struct {
	Start  int64  `json:"start"`
	Length int64  `json:"length"`
	Kind   string `json:"kind"`
	Depth  int    `json:"depth"`
	Key    string `json:"key,omitempty"` // data key of data
	// Snapshot is the oldest that has it, VOLUME@SNAPSHOT.
	Snapshot string `json:"snapshot,omitempty"`
}

func runMap(ctx context.Context, env *cliutil.Env, c *cli.Context) (err error) {
	ref, err := cliutil.ParseRef(c.Args().First())
	if err != nil {
		return err
	}
	if err := checkDrawing(c); err != nil {
		return err
	}
	o, info, err := openInfo(ctx, env, c, ref.Store)
	if err != nil {
		return err
	}
	defer closeOperations(o, &err)
	head := mapResult{cliutil.NewHeader("fsximg.map"), ref.Store, ref.VolumeOrDefault(), ref.Snapshot, 0}
	if v, err := findVolume(info, ref); err == nil {
		head.Size = v.Size
	}
	if s, err := findSnapshot(info, ref); err == nil {
		head.Size = s.Size
	}
	if c.IsSet("picture") || c.Bool("blocks") {
		return drawMap(ctx, env, c, o, ref, head)
	}
	w := bufio.NewWriter(env.Stdout)
	var out runWriter = &tableRuns{w: w}
	if c.Bool("json") {
		out = &jsonRuns{w: w}
	}
	if err := printRuns(ctx, out, o, head, depths(info, head.Volume)); err != nil {
		return err
	}
	return w.Flush()
}

// depths is how many generations up from a volume each volume's blocks come from,
// by its ID.
func depths(info control.Info, name string) map[string]int {
	parents := map[string]string{}
	at := ""
	for _, v := range slices.Concat(info.Volumes, info.Hidden) {
		parents[v.ID] = v.ParentID
	}
	for _, v := range info.Volumes {
		if v.Name == name {
			at = v.ID
		}
	}
	depth := map[string]int{}
	for n := 0; at != "" && n <= len(parents); n++ {
		depth[at] = n
		at = parents[at]
	}
	return depth
}

// runWriter prints a map, one run at a time: it may have millions.
type runWriter interface {
	begin(mapResult) error
	run(runResult) error
	end() error
}

func printRuns(ctx context.Context, out runWriter, o control.Operations, head mapResult, depth map[string]int) error {
	begun := false
	err := o.Map(ctx, head.Volume, head.Snapshot, func(r control.Run) error {
		if !begun {
			if err := out.begin(head); err != nil {
				return err
			}
			begun = true
		}
		return out.run(runResult{r.Start, r.Length, r.Kind, depth[r.Owner], r.Key, r.Snapshot})
	})
	if err != nil {
		return err
	}
	return out.end()
}

// tableRuns prints for people.
type tableRuns struct{ w io.Writer }

func (t *tableRuns) begin(mapResult) error {
	_, err := fmt.Fprintf(t.w, "%20s %20s %10s  %-4s  %5s  %s\n", "START", "LENGTH", "SIZE", "KIND", "DEPTH", "DATA KEY")
	return err
}

func (t *tableRuns) run(r runResult) error {
	depth, key := "-", "-"
	if r.Key != "" {
		depth, key = fmt.Sprint(r.Depth), r.Key[:8]
	}
	_, err := fmt.Fprintf(t.w, "%20d %20d %10s  %-4s  %5s  %s\n", r.Start, r.Length, cliutil.FormatSize(r.Length), r.Kind, depth, key)
	return err
}

func (t *tableRuns) end() error { return nil }

// jsonRuns prints one object without holding it in memory.
type jsonRuns struct {
	w   io.Writer
	sep string
}

func (j *jsonRuns) begin(r mapResult) error {
	head, err := json.Marshal(r)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(j.w, "%s,\"runs\":[", head[:len(head)-1])
	j.sep = "\n"
	return err
}

func (j *jsonRuns) run(r runResult) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(j.w, "%s%s", j.sep, b)
	j.sep = ",\n"
	return err
}

func (j *jsonRuns) end() error {
	_, err := fmt.Fprintln(j.w, "\n]}")
	return err
}

// checkDrawing finds mistakes in what is to be drawn before anything is opened.
func checkDrawing(c *cli.Context) error {
	by := c.String("by")
	switch {
	case by != "snapshot" && by != "key":
		return cliutil.UsageErrorf("--by %s: snapshot or key", by)
	case c.IsSet("by") && !c.IsSet("picture") && !c.Bool("blocks"):
		return cliutil.UsageErrorf("--by is for --picture and --blocks")
	}
	return checkPicture(c)
}

// drawMap draws the address space, for the terminal or into a file.
func drawMap(ctx context.Context, env *cliutil.Env, c *cli.Context, o control.Operations, ref cliutil.Ref, head mapResult) error {
	by := c.String("by")
	m := &picture.Map{Title: ref.String() + " by " + by, Size: head.Size}
	err := o.Map(ctx, head.Volume, head.Snapshot, func(r control.Run) error {
		run := picture.MapRun{Start: r.Start, Length: r.Length, Zero: r.Kind == "zero"}
		switch {
		case r.Kind == "hole":
			return nil
		case r.Kind == "data" && by == "key":
			run.Class = r.Key[:8]
		case r.Kind == "data" && r.Snapshot == "":
			run.Class = "since the last snapshot"
		case r.Kind == "data":
			run.Class = r.Snapshot
		}
		m.Runs = append(m.Runs, run)
		return nil
	})
	if err != nil {
		return err
	}
	if name := c.String("picture"); name != "" {
		if err := drawInto(env, ref.String(), name, c.Bool("force"), func(w io.Writer) error { return m.SVG(w, 0) }); err != nil {
			return err
		}
	}
	if c.Bool("blocks") {
		width, colour := env.OutputWidth()
		return m.Text(env.Stdout, width, colour)
	}
	return nil
}
