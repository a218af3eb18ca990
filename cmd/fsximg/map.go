package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"

	"github.com/fsximg/fsx/internal/cliutil"
	"github.com/fsximg/fsx/internal/volume"
	"github.com/fsximg/fsx/pkg/layout"
	"github.com/urfave/cli/v2"
)

func mapCommand() *cli.Command {
	return &cli.Command{
		Name: "map", Usage: "show what a volume holds where: data, zeros and holes", ArgsUsage: "STORE[:VOLUME][@SNAPSHOT]",
		Flags:  []cli.Flag{cliutil.JSONFlag()},
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
}

func runMap(_ context.Context, env *cliutil.Env, c *cli.Context) (err error) {
	ref, err := cliutil.ParseRef(c.Args().First())
	if err != nil {
		return err
	}
	st, volumes, err := openVolumes(env, ref.Store)
	if err != nil {
		return err
	}
	defer closeStore(st, &err)
	depth, size := depths(volumes, ref)
	w := bufio.NewWriter(env.Stdout)
	var out runWriter = &tableRuns{w: w}
	if c.Bool("json") {
		out = &jsonRuns{w: w}
	}
	if err := printRuns(out, st, mapResult{cliutil.NewHeader("fsximg.map"), ref.Store, ref.VolumeOrDefault(), ref.Snapshot, size}, depth); err != nil {
		return err
	}
	return w.Flush()
}

// depths is how many generations up each volume's blocks come from, and the
// size of what ref names.
func depths(volumes []volume.VolumeInfo, ref cliutil.Ref) (depth map[layout.VolumeID]int, size int64) {
	byID := map[layout.VolumeID]volume.VolumeInfo{}
	depth = map[layout.VolumeID]int{}
	var at layout.VolumeID
	for _, v := range volumes {
		byID[v.ID] = v
		if v.Name != ref.VolumeOrDefault() {
			continue
		}
		at, size = v.ID, v.Size
		for _, s := range v.Snapshots {
			if s.Name == ref.Snapshot {
				size = s.Size
			}
		}
	}
	for n := 0; at != 0 && n <= len(volumes); n++ {
		depth[at] = n
		at = byID[at].Parent
	}
	return depth, size
}

// runWriter prints a map, one run at a time: it may have millions.
type runWriter interface {
	begin(mapResult) error
	run(runResult) error
	end() error
}

func printRuns(out runWriter, st *volume.Store, head mapResult, depth map[layout.VolumeID]int) error {
	var failed error
	begun := false
	err := st.Map(head.Volume, head.Snapshot, func(r volume.Run) bool {
		if !begun {
			failed = out.begin(head)
			begun = true
		}
		if failed == nil {
			failed = out.run(describeRun(r, depth))
		}
		return failed == nil
	})
	if err == nil {
		err = failed
	}
	if err != nil {
		return err
	}
	return out.end()
}

func describeRun(r volume.Run, depth map[layout.VolumeID]int) runResult {
	res := runResult{Start: r.Start, Length: r.Length}
	switch r.Kind {
	case layout.Hole:
		res.Kind = "hole"
	case layout.Zero:
		res.Kind = "zero"
	case layout.Data:
		res.Kind, res.Depth, res.Key = "data", depth[r.Owner], r.KID.String()
	}
	return res
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
