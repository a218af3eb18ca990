package main

import (
	"context"
	"fmt"

	"github.com/fsximg/fsx/internal/cliutil"
	"github.com/fsximg/fsx/internal/control"
	"github.com/urfave/cli/v2"
)

func compactCommand() *cli.Command {
	return &cli.Command{
		Name: "compact", Usage: "give back space that nothing needs any more", ArgsUsage: "STORE",
		Description: "No key is needed. With a volume's key, what its log has behind the last checkpoint counts, too.",
		Flags:       append([]cli.Flag{cliutil.JSONFlag()}, cliutil.OpenKeyFlags()...),
		Action:      cliutil.Action(1, 1, cliutil.FirstArg, runCompact),
	}
}

type compactResult struct {
	cliutil.Header
	Store string `json:"store"`
	control.Compaction
}

func runCompact(ctx context.Context, env *cliutil.Env, c *cli.Context) (err error) {
	path, err := cliutil.StoreOnly(c.Args().First())
	if err != nil {
		return err
	}
	o, err := openOperations(ctx, env, c, path, forWriting, givenKeys)
	if err != nil {
		return err
	}
	defer closeOperations(o, &err)
	rep, err := o.Compact(ctx)
	if err != nil {
		return err
	}
	res := compactResult{cliutil.NewHeader("fsximg.compact"), path, rep}
	if c.Bool("json") {
		return env.PrintJSON(res)
	}
	for _, name := range res.Locked {
		env.Say("%s: volume %s was compacted as of its last checkpoint; with its key, what its log has is, too", env.Program, name)
	}
	_, err = fmt.Fprintf(env.Stdout, "%s: %s on disk, was %s\n", path, cliutil.FormatSize(res.After), cliutil.FormatSize(res.Before))
	return err
}
