package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/fsximg/fsx/internal/cliutil"
	"github.com/fsximg/fsx/internal/control"
	"github.com/fsximg/fsx/internal/picture"
	"github.com/urfave/cli/v2"
)

func listCommand() *cli.Command {
	return &cli.Command{
		Name: "list", Aliases: []string{"ls"}, Usage: "list the volumes of a store", ArgsUsage: "STORE",
		Description: "USED is what a volume has of its own; a clone also has what it shares with the snapshot that it\n" +
			"was made of.",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "tree", Usage: "show snapshots, and which volume was cloned from which"},
			&cli.StringFlag{Name: "picture", Usage: "draw the tree into the new SVG `FILE`, - for stdout"},
			&cli.BoolFlag{Name: "force", Usage: "replace FILE"},
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
	if err := checkPicture(c); err != nil {
		return err
	}
	o, info, err := openInfo(ctx, env, c, path)
	if err != nil {
		return err
	}
	defer closeOperations(o, &err)
	res := listResult{cliutil.NewHeader("fsximg.list"), path, info.Volumes}
	tree := treeOf(path, info)
	if name := c.String("picture"); name != "" {
		if err := drawInto(env, path, name, c.Bool("force"), tree.SVG); err != nil {
			return err
		}
	}
	switch {
	case c.Bool("json"):
		return env.PrintJSON(res)
	case c.Bool("tree"):
		return tree.Text(env.Stdout)
	case c.IsSet("picture"):
		return nil
	}
	return printList(env.Stdout, res.Volumes)
}

func printList(w io.Writer, volumes []control.Volume) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "VOLUME\tSIZE\tUSED\tCIPHER\tVOLUME KEY\tSHARES WITH")
	for _, v := range volumes {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", v.Name, cliutil.FormatSize(v.Size), cliutil.FormatSize(v.Used), v.Cipher, v.VolumeKey[:8], sharesWith(v))
	}
	return t.Flush()
}

// sharesWith is where else a volume's blocks are, which USED does not count.
func sharesWith(v control.Volume) string {
	switch {
	case v.Parent != "":
		return v.Parent + "@" + v.ParentSnapshot
	case v.ParentID != "":
		return "(hidden)" // deleted, or what it was itself before a rollback
	}
	return "-"
}

// treeOf is what there is to draw of a store. Volumes that were deleted, or left
// behind by a rollback, are in it if something starts from them.
func treeOf(path string, info control.Info) *picture.Tree {
	t := &picture.Tree{Store: path, Used: info.Allocated}
	names, left := map[string]string{}, map[string]bool{} // by ID
	for _, v := range info.Hidden {
		names[v.ID] = v.Name + " #" + strings.TrimLeft(v.ID, "0") // the name may be another's by now
	}
	for _, v := range info.Volumes {
		names[v.ID] = v.Name
		t.Size += v.Size
		// Snapshots of before a rollback are listed with the volume that it made.
		left[v.ParentID] = left[v.ParentID] || v.Parent == "" && strings.HasPrefix(names[v.ParentID], v.Name+" #")
	}
	add := func(v control.Volume, hidden bool) {
		n := picture.TreeVolume{
			Name: names[v.ID], Size: v.Size, Own: v.Used, Key: v.VolumeKey[:8], Hidden: hidden, Parent: v.Parent, ParentSnapshot: v.ParentSnapshot,
		}
		if v.Parent == "" && !left[v.ParentID] {
			n.Parent = names[v.ParentID]
		}
		for _, s := range v.Snapshots {
			n.Snapshots = append(n.Snapshots, picture.TreeSnapshot{Name: s.Name, Created: s.Created.Local(), Size: s.Size, Freed: s.Alone})
		}
		t.Volumes = append(t.Volumes, n)
	}
	for _, v := range info.Volumes {
		add(v, false)
	}
	for _, v := range info.Hidden {
		if !left[v.ID] {
			add(v, true)
		}
	}
	return t
}
