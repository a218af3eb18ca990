package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/fsximg/fsx/internal/cliutil"
	"github.com/fsximg/fsx/internal/control"
	"github.com/fsximg/fsx/internal/volume"
	"github.com/urfave/cli/v2"
)

func flattenCommand() *cli.Command {
	return &cli.Command{
		Name: "flatten", Usage: "copy what a clone shares into itself", ArgsUsage: "STORE:VOLUME",
		Description: "It then depends on no other volume. What was copied stays when it is interrupted.\n" +
			"Snapshots of the clone must be deleted first, since they share with its parent, too.",
		Flags:  flags([]cli.Flag{cliutil.JSONFlag()}, cliutil.OpenKeyFlags()),
		Action: cliutil.Action(1, 1, cliutil.FirstArg, runFlatten),
	}
}

func runFlatten(ctx context.Context, env *cliutil.Env, c *cli.Context) (err error) {
	ref, err := volumeRef(c, true)
	if err != nil {
		return err
	}
	o, err := openOperations(ctx, env, c, ref.Store, forWriting, keysNeeded)
	if err != nil {
		return err
	}
	defer closeOperations(o, &err)
	p := env.NewProgress("flatten", 0)
	err = o.Flatten(ctx, ref.Volume, p.Set)
	p.Stop()
	if errors.Is(err, volume.ErrSharedBySnapshots) {
		return namesOfSharing(ctx, o, ref, err)
	}
	if err != nil {
		return err
	}
	return reportVolume(ctx, env, c, o, "fsximg.flatten", ref, nil, "depends on no other now")
}

// namesOfSharing names the snapshots that keep a clone from being flattened.
func namesOfSharing(ctx context.Context, o control.Operations, ref cliutil.Ref, err error) error {
	info, infoErr := o.Info(ctx)
	if infoErr != nil {
		return err
	}
	v, infoErr := findVolume(info, ref)
	if infoErr != nil {
		return err
	}
	if len(v.Snapshots) == 0 {
		return cliutil.WithHint(fmt.Errorf("%w: of deleted ones there are clones", err), "flatten or delete those clones first: fsximg list --tree %s shows them", ref.Store)
	}
	var names, refs []string
	for _, s := range v.Snapshots {
		names, refs = append(names, s.Name), append(refs, ref.String()+"@"+s.Name)
	}
	return cliutil.WithHint(fmt.Errorf("%w: %s", err, strings.Join(names, ", ")), "delete them first: fsximg snapshot delete %s", strings.Join(refs, " "))
}
