package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/fsximg/fsx/internal/cliutil"
	"github.com/fsximg/fsx/internal/control"
	"github.com/fsximg/fsx/internal/volume"
	"github.com/urfave/cli/v2"
)

func snapshotCommand() *cli.Command {
	return &cli.Command{
		Name: "snapshot", Usage: "keep states of a volume",
		Subcommands: []*cli.Command{
			{
				Name: "create", Usage: "keep a volume's present state under a name", ArgsUsage: "STORE[:VOLUME]@SNAPSHOT",
				Description: "It takes no space and no time, whatever the volume holds; what is overwritten later does.",
				Flags: flags([]cli.Flag{
					&cli.StringFlag{Name: "freeze", Usage: "freeze the file system at `MOUNTPOINT` meanwhile, so that it is whole in the snapshot"},
					cliutil.JSONFlag(),
				}, cliutil.OpenKeyFlags()),
				Action: cliutil.Action(1, 1, cliutil.FirstArg, runSnapshotCreate),
			},
			{
				Name: "list", Aliases: []string{"ls"}, Usage: "list snapshots, oldest first", ArgsUsage: "STORE[:VOLUME]",
				Description: "Without VOLUME, those of all volumes. ALONE is what only that snapshot has, as of the last\n" +
					"checkpoint: deleting it frees as much, unless it has clones. No key is needed.",
				Flags:  []cli.Flag{cliutil.JSONFlag()},
				Action: cliutil.Action(1, 1, cliutil.FirstArg, runSnapshotList),
			},
			snapshotDeleteCommand(),
			rollbackCommand(),
			pruneCommand(),
		},
	}
}

// snapshotChange is what create reports.
type snapshotChange struct {
	cliutil.Header
	Store    string           `json:"store"`
	Volume   string           `json:"volume"`
	Snapshot control.Snapshot `json:"snapshot"`
}

type snapshotListResult struct {
	cliutil.Header
	Store   string            `json:"store"`
	Volumes []snapshotsResult `json:"volumes"`
}

type snapshotsResult struct {
	Volume    string             `json:"volume"`
	Snapshots []control.Snapshot `json:"snapshots"`
}

// snapshotRef is the snapshot that the first argument names.
func snapshotRef(c *cli.Context) (cliutil.Ref, error) { return parseSnapshot(c.Args().First()) }

func parseSnapshot(arg string) (cliutil.Ref, error) {
	ref, err := cliutil.ParseRef(arg)
	if err == nil && ref.Snapshot == "" {
		err = cliutil.WithHint(cliutil.UsageErrorf("%s names no snapshot", ref), "STORE[:VOLUME]@SNAPSHOT does, say %s@monday", ref)
	}
	return ref, err
}

func runSnapshotCreate(ctx context.Context, env *cliutil.Env, c *cli.Context) (err error) {
	ref, err := snapshotRef(c)
	if err != nil {
		return err
	}
	o, err := openOperations(ctx, env, c, ref.Store, forWriting, keysNeeded)
	if err != nil {
		return err
	}
	defer closeOperations(o, &err)
	var s control.Snapshot
	err = whileFrozen(ctx, c.String("freeze"), ref.Store, func(ctx context.Context) (err error) {
		s, err = o.CreateSnapshot(ctx, ref.VolumeOrDefault(), ref.Snapshot)
		return err
	})
	if errors.Is(err, volume.ErrExists) {
		return cliutil.WithHint(err, "take another name, or delete it first: fsximg snapshot delete %s", ref)
	}
	if err != nil {
		return err
	}
	env.Say("%s: snapshot %s@%s created", ref.Store, ref.VolumeOrDefault(), s.Name)
	if c.Bool("json") {
		return env.PrintJSON(snapshotChange{cliutil.NewHeader("fsximg.snapshot.create"), ref.Store, ref.VolumeOrDefault(), s})
	}
	return nil
}

func runSnapshotList(ctx context.Context, env *cliutil.Env, c *cli.Context) (err error) {
	ref, err := cliutil.ParseRef(c.Args().First())
	if err != nil {
		return err
	}
	if ref.Snapshot != "" {
		return cliutil.UsageErrorf("%s: this command takes a store or a volume, not a snapshot", ref)
	}
	o, info, err := openInfo(ctx, env, c, ref.Store)
	if err != nil {
		return err
	}
	defer closeOperations(o, &err)
	res := snapshotListResult{Header: cliutil.NewHeader("fsximg.snapshot.list"), Store: ref.Store, Volumes: []snapshotsResult{}}
	for _, v := range info.Volumes {
		if ref.Volume == "" || v.Name == ref.Volume {
			res.Volumes = append(res.Volumes, snapshotsResult{v.Name, v.Snapshots})
		}
	}
	if len(res.Volumes) == 0 {
		return fmt.Errorf("volume %s: %w", ref.Volume, volume.ErrNotFound)
	}
	if c.Bool("json") {
		return env.PrintJSON(res)
	}
	return printSnapshots(env.Stdout, res)
}

func printSnapshots(w io.Writer, r snapshotListResult) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "SNAPSHOT\tSIZE\tALONE\tCLONES\tCREATED")
	for _, v := range r.Volumes {
		for _, s := range v.Snapshots {
			fmt.Fprintf(t, "%s@%s\t%s\t%s\t%d\t%s\n", v.Volume, s.Name, cliutil.FormatSize(s.Size), cliutil.FormatSize(s.Alone), s.Clones, s.Created.Local().Format(time.DateTime))
		}
	}
	return t.Flush()
}
