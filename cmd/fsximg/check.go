package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/fsximg/fsx/internal/cliutil"
	"github.com/fsximg/fsx/internal/control"
	"github.com/urfave/cli/v2"
)

func checkCommand() *cli.Command {
	return &cli.Command{
		Name: "check", Usage: "look for damage: of the structure, and with a key of every block", ArgsUsage: "STORE",
		Description: "Without a key the structure is checked: every node of every map, every extent, all\n" +
			"accounting. With one, also the authentication tag of every block.",
		Flags:  append([]cli.Flag{cliutil.JSONFlag()}, cliutil.OpenKeyFlags()...),
		Action: cliutil.Action(1, 1, cliutil.FirstArg, runCheck),
	}
}

type checkResult struct {
	cliutil.Header
	Store string `json:"store"`
	control.Report
}

func runCheck(ctx context.Context, env *cliutil.Env, c *cli.Context) (err error) {
	path, err := cliutil.StoreOnly(c.Args().First())
	if err != nil {
		return err
	}
	o, err := openOperations(ctx, env, c, path, forReading, givenKeys)
	if err != nil {
		return err
	}
	defer closeOperations(o, &err)
	p := env.NewProgress("check", 0)
	rep, err := o.Check(ctx, p.Set)
	p.Stop()
	if err != nil {
		return err
	}
	noteReplay(env, rep.NeedsReplay)
	res := checkResult{cliutil.NewHeader("fsximg.check"), path, rep}
	if c.Bool("json") {
		err = env.PrintJSON(res)
	} else {
		err = res.print(env.Stdout)
	}
	if err == nil && !res.Clean {
		n := len(res.Problems) + res.NotListed
		err = cliutil.Errorf(cliutil.ErrDamaged, "damaged: %d problem%s", n, map[bool]string{true: "", false: "s"}[n == 1])
	}
	return err
}

func (r *checkResult) print(w io.Writer) error {
	var errs error
	say := func(format string, args ...any) {
		_, err := fmt.Fprintf(w, format+"\n", args...)
		errs = errors.Join(errs, err)
	}
	for _, p := range r.Problems {
		place := ""
		if p.Offset != nil {
			place = fmt.Sprintf(" at %d, %d bytes", *p.Offset, p.Length)
		}
		say("volume %s%s: %s", p.Volume, place, p.Text)
	}
	if r.NotListed > 0 {
		say("and %d more", r.NotListed)
	}
	for _, v := range r.Volumes {
		what := fmt.Sprintf("%d of them verified", v.Verified)
		if !v.Authentic {
			what = "structure only, without the key"
		}
		say("volume %s: %d blocks, %s", v.Name, v.Blocks, what)
	}
	if r.Clean {
		say("no damage found")
	}
	return errs
}
