package main

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/fsximg/fsx/internal/cliutil"
	"github.com/fsximg/fsx/internal/control"
	"github.com/urfave/cli/v2"
)

func listCommand() *cli.Command {
	return &cli.Command{
		Name: "list", Aliases: []string{"ls"}, Usage: "list the volumes of a store", ArgsUsage: "STORE",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "tree", Usage: "show which volume was cloned from which"},
			cliutil.JSONFlag(),
		},
		Action: cliutil.Action(1, 1, cliutil.FirstArg, runList),
	}
}

type listResult struct {
	cliutil.Header
	Store   string           `json:"store"`
	Volumes []control.Volume `json:"volumes"`
}

func runList(ctx context.Context, env *cliutil.Env, c *cli.Context) (err error) {
	path, err := cliutil.StoreOnly(c.Args().First())
	if err != nil {
		return err
	}
	o, info, err := openInfo(ctx, env, c, path)
	if err != nil {
		return err
	}
	defer closeOperations(o, &err)
	res := listResult{cliutil.NewHeader("fsximg.list"), path, info.Volumes}
	switch {
	case c.Bool("json"):
		return env.PrintJSON(res)
	case c.Bool("tree"):
		return printTree(env.Stdout, res)
	}
	return printList(env.Stdout, res.Volumes)
}

func printList(w io.Writer, volumes []control.Volume) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "VOLUME\tSIZE\tUSED\tCIPHER\tVOLUME KEY")
	for _, v := range volumes {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", v.Name, cliutil.FormatSize(v.Size), cliutil.FormatSize(v.Used), v.Cipher, v.VolumeKey[:8])
	}
	return t.Flush()
}

// printTree draws volumes below the ones they were cloned from.
func printTree(w io.Writer, r listResult) error {
	children := map[string][]control.Volume{}
	for _, v := range r.Volumes {
		children[v.Parent] = append(children[v.Parent], v)
	}
	if _, err := fmt.Fprintln(w, r.Store); err != nil {
		return err
	}
	var draw func(parent, indent string) error
	draw = func(parent, indent string) error {
		for i, v := range children[parent] {
			branch, below := "├── ", "│   "
			if i == len(children[parent])-1 {
				branch, below = "└── ", "    "
			}
			_, err := fmt.Fprintf(w, "%s%s%s  %s, %s used\n", indent, branch, v.Name, cliutil.FormatSize(v.Size), cliutil.FormatSize(v.Used))
			if err == nil {
				err = draw(v.Name, indent+below)
			}
			if err != nil {
				return err
			}
		}
		return nil
	}
	return draw("", "")
}
