package main

import (
	"context"

	"github.com/fsximg/fsx/internal/cliutil"
	"github.com/fsximg/fsx/internal/volume"
	"github.com/urfave/cli/v2"
)

func copyCommand() *cli.Command {
	return &cli.Command{
		Name: "copy", Usage: "copy a store", ArgsUsage: "STORE DST",
		Description: "DST is a new folder with the same store in it: the same volumes, snapshots and keys,\n" +
			"and the same UUID. No key is needed. A store that is served cannot be copied.",
		Flags:  []cli.Flag{cliutil.JSONFlag()},
		Action: cliutil.Action(2, 2, cliutil.FirstArg, runCopy),
	}
}

type copyResult struct {
	cliutil.Header
	Store       string `json:"store"`
	Destination string `json:"destination"`
}

func runCopy(ctx context.Context, env *cliutil.Env, c *cli.Context) (err error) {
	path, err := cliutil.StoreOnly(c.Args().First())
	if err != nil {
		return err
	}
	dst, err := cliutil.StoreOnly(c.Args().Get(1))
	if err != nil {
		return err
	}
	if err := mustNotExist(dst); err != nil {
		return err
	}
	st, err := openStore(ctx, env, c, path, forReading, noKeys)
	if err != nil {
		return err
	}
	defer closeStore(st, &err)
	p := env.NewProgress("copy", 0)
	err = st.CopyTo(ctx, dst, volume.CopyOptions{Progress: p.Set})
	p.Stop()
	if err != nil {
		return err
	}
	env.Say("%s: copied to %s", path, dst)
	if c.Bool("json") {
		return env.PrintJSON(copyResult{cliutil.NewHeader("fsximg.copy"), path, dst})
	}
	return nil
}
