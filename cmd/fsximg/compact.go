package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/fsximg/fsx/internal/cliutil"
	"github.com/fsximg/fsx/internal/volume"
	"github.com/urfave/cli/v2"
)

func compactCommand() *cli.Command {
	return &cli.Command{
		Name: "compact", Usage: "give back space that nothing needs any more", ArgsUsage: "STORE",
		Flags:  append([]cli.Flag{cliutil.JSONFlag()}, cliutil.OpenKeyFlags()...),
		Action: cliutil.Action(1, 1, cliutil.FirstArg, runCompact),
	}
}

type compactResult struct {
	cliutil.Header
	Store  string   `json:"store"`
	Before int64    `json:"before"` // bytes on disk
	After  int64    `json:"after"`
	Locked []string `json:"locked"` // volumes whose log was left alone
}

func runCompact(ctx context.Context, env *cliutil.Env, c *cli.Context) (err error) {
	path, err := cliutil.StoreOnly(c.Args().First())
	if err != nil {
		return err
	}
	st, err := openWithGivenKeys(env, c, path, forWriting)
	if err != nil {
		return err
	}
	defer closeStore(st, &err)
	res := compactResult{Header: cliutil.NewHeader("fsximg.compact"), Store: path, Locked: []string{}}
	for _, name := range st.Names() {
		_, err := st.Volume(name)
		switch {
		case errors.Is(err, volume.ErrKeyMissing):
			res.Locked = append(res.Locked, name)
		case err != nil:
			return err
		}
	}
	rep, err := st.Compact(ctx)
	if err != nil {
		return err
	}
	res.Before, res.After = rep.Before, rep.After
	if c.Bool("json") {
		return env.PrintJSON(res)
	}
	for _, name := range res.Locked {
		env.Say("%s: volume %s was not opened: only the index was compacted; with its key its log is, too", env.Program, name)
	}
	_, err = fmt.Fprintf(env.Stdout, "%s: %s on disk, was %s\n", path, cliutil.FormatSize(res.After), cliutil.FormatSize(res.Before))
	return err
}
