package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/fsximg/fsx/internal/cliutil"
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
				Flags:       append([]cli.Flag{cliutil.JSONFlag()}, cliutil.OpenKeyFlags()...),
				Action:      cliutil.Action(1, 1, cliutil.FirstArg, runSnapshotCreate),
			},
			{
				Name: "list", Aliases: []string{"ls"}, Usage: "list snapshots, oldest first", ArgsUsage: "STORE[:VOLUME]",
				Description: "Without VOLUME, those of all volumes. No key is needed.",
				Flags:       []cli.Flag{cliutil.JSONFlag()},
				Action:      cliutil.Action(1, 1, cliutil.FirstArg, runSnapshotList),
			},
			{
				Name: "delete", Aliases: []string{"rm"}, Usage: "delete a snapshot and free what only it holds", ArgsUsage: "STORE[:VOLUME]@SNAPSHOT",
				Flags: append([]cli.Flag{
					&cli.BoolFlag{Name: "force", Usage: "do not ask"},
					cliutil.JSONFlag(),
				}, cliutil.OpenKeyFlags()...),
				Action: cliutil.Action(1, 1, cliutil.FirstArg, runSnapshotDelete),
			},
		},
	}
}

type snapshotResult struct {
	Name    string    `json:"name"`
	Number  uint64    `json:"number"` // never used again in the volume
	Size    int64     `json:"size"`
	Created time.Time `json:"created"`
}

// snapshotChange is what create and delete report.
type snapshotChange struct {
	cliutil.Header
	Store    string         `json:"store"`
	Volume   string         `json:"volume"`
	Snapshot snapshotResult `json:"snapshot"`
}

type snapshotListResult struct {
	cliutil.Header
	Store   string            `json:"store"`
	Volumes []snapshotsResult `json:"volumes"`
}

type snapshotsResult struct {
	Volume    string           `json:"volume"`
	Snapshots []snapshotResult `json:"snapshots"`
}

func describeSnapshot(s volume.SnapshotInfo) snapshotResult {
	return snapshotResult{s.Name, uint64(s.Number), s.Size, s.Created.UTC()}
}

func describeSnapshots(l []volume.SnapshotInfo) []snapshotResult {
	out := []snapshotResult{}
	for _, s := range l {
		out = append(out, describeSnapshot(s))
	}
	return out
}

// openForSnapshot opens the volume of the snapshot that the argument names.
func openForSnapshot(ctx context.Context, env *cliutil.Env, c *cli.Context) (ref cliutil.Ref, st *volume.Store, v *volume.Volume, err error) {
	if ref, err = cliutil.ParseRef(c.Args().First()); err != nil {
		return ref, nil, nil, err
	}
	if ref.Snapshot == "" {
		return ref, nil, nil, cliutil.WithHint(cliutil.UsageErrorf("%s names no snapshot", ref), "STORE[:VOLUME]@SNAPSHOT does, say %s@monday", ref)
	}
	if st, err = openUnlocked(ctx, env, c, ref.Store, forWriting); err != nil {
		return ref, nil, nil, err
	}
	if v, err = openVolume(st, ref); err != nil {
		st.Close()
	}
	return ref, st, v, err
}

func runSnapshotCreate(ctx context.Context, env *cliutil.Env, c *cli.Context) (err error) {
	ref, st, v, err := openForSnapshot(ctx, env, c)
	if err != nil {
		return err
	}
	defer closeStore(st, &err)
	if err := v.CreateSnapshot(ctx, ref.Snapshot); err != nil {
		if errors.Is(err, volume.ErrExists) {
			return cliutil.WithHint(err, "take another name, or delete it first: fsximg snapshot delete %s", ref)
		}
		return err
	}
	s, err := v.Snapshot(ref.Snapshot)
	if err != nil {
		return err
	}
	return reportSnapshot(env, c, "fsximg.snapshot.create", ref, s.Info(), "created")
}

func reportSnapshot(env *cliutil.Env, c *cli.Context, schema string, ref cliutil.Ref, s volume.SnapshotInfo, what string) error {
	env.Say("%s: snapshot %s@%s %s", ref.Store, ref.VolumeOrDefault(), s.Name, what)
	if c.Bool("json") {
		return env.PrintJSON(snapshotChange{cliutil.NewHeader(schema), ref.Store, ref.VolumeOrDefault(), describeSnapshot(s)})
	}
	return nil
}

func runSnapshotDelete(ctx context.Context, env *cliutil.Env, c *cli.Context) (err error) {
	ref, st, v, err := openForSnapshot(ctx, env, c)
	if err != nil {
		return err
	}
	defer closeStore(st, &err)
	s, err := v.Snapshot(ref.Snapshot)
	if err != nil {
		return err
	}
	if err := env.Confirm(ctx, c.Bool("force"), "snapshot %s would be deleted", s.Name()); err != nil {
		return err
	}
	if err := v.DeleteSnapshot(ctx, ref.Snapshot); err != nil {
		return err
	}
	return reportSnapshot(env, c, "fsximg.snapshot.delete", ref, s.Info(), "deleted")
}

func runSnapshotList(_ context.Context, env *cliutil.Env, c *cli.Context) (err error) {
	ref, err := cliutil.ParseRef(c.Args().First())
	if err != nil {
		return err
	}
	if ref.Snapshot != "" {
		return cliutil.UsageErrorf("%s: this command takes a store or a volume, not a snapshot", ref)
	}
	st, volumes, err := openVolumes(env, ref.Store)
	if err != nil {
		return err
	}
	defer closeStore(st, &err)
	res := snapshotListResult{Header: cliutil.NewHeader("fsximg.snapshot.list"), Store: ref.Store, Volumes: []snapshotsResult{}}
	for _, v := range volumes {
		if ref.Volume == "" || v.Name == ref.Volume {
			res.Volumes = append(res.Volumes, snapshotsResult{v.Name, describeSnapshots(v.Snapshots)})
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
	fmt.Fprintln(t, "SNAPSHOT\tSIZE\tCREATED")
	for _, v := range r.Volumes {
		for _, s := range v.Snapshots {
			fmt.Fprintf(t, "%s@%s\t%s\t%s\n", v.Volume, s.Name, cliutil.FormatSize(s.Size), s.Created.Local().Format(time.DateTime))
		}
	}
	return t.Flush()
}
