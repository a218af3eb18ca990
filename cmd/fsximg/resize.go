package main

import (
	"context"
	"strings"

	"github.com/fsximg/fsx/internal/cliutil"
	"github.com/urfave/cli/v2"
)

func resizeCommand() *cli.Command {
	return &cli.Command{
		Name: "resize", Usage: "change a volume's size", ArgsUsage: "STORE[:VOLUME] SIZE",
		Description: "SIZE is the new size, or +SIZE what is added. What a smaller volume would lose is lost\n" +
			"at once, so that needs --shrink; shrink the file system first. Snapshots keep their size.",
		Flags: flags([]cli.Flag{
			&cli.BoolFlag{Name: "shrink", Usage: "let the volume become smaller and lose its end"},
			cliutil.JSONFlag(),
		}, cliutil.OpenKeyFlags()),
		Action: cliutil.Action(2, 2, cliutil.FirstArg, runResize),
	}
}

type resizeResult struct {
	cliutil.Header
	Store  string `json:"store"`
	Volume string `json:"volume"`
	Before int64  `json:"before"`
	Size   int64  `json:"size"`
}

func runResize(ctx context.Context, env *cliutil.Env, c *cli.Context) (err error) {
	ref, err := volumeRef(c, false)
	if err != nil {
		return err
	}
	text, relative := strings.CutPrefix(c.Args().Get(1), "+")
	size, err := cliutil.ParseSize(text)
	if err != nil {
		return err
	}
	o, info, err := openDescribed(ctx, env, c, ref.Store, forWriting, keysNeeded)
	if err != nil {
		return err
	}
	defer closeOperations(o, &err)
	v, err := findVolume(info, ref)
	if err != nil {
		return err
	}
	if relative {
		if size > cliutil.MaxSize-v.Size {
			return cliutil.UsageErrorf("size +%s: the largest volume has 8 EiB - 4 KiB", text)
		}
		size += v.Size
	}
	if size < v.Size && !c.Bool("shrink") {
		return cliutil.WithHint(cliutil.UsageErrorf("%s is less than the present %s: the end of the volume would be lost",
			cliutil.FormatSize(size), cliutil.FormatSize(v.Size)), "shrink what is on it first, then use --shrink")
	}
	if err := o.Resize(ctx, v.Name, size, c.Bool("shrink")); err != nil {
		return err
	}
	env.Say("%s: volume %s has %s now, had %s", ref.Store, v.Name, cliutil.FormatSize(size), cliutil.FormatSize(v.Size))
	if c.Bool("json") {
		return env.PrintJSON(resizeResult{cliutil.NewHeader("fsximg.resize"), ref.Store, v.Name, v.Size, size})
	}
	return nil
}
