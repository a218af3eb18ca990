package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/fsximg/fsx/internal/cliutil"
	"github.com/fsximg/fsx/internal/control"
	"github.com/urfave/cli/v2"
)

func snapshotDeleteCommand() *cli.Command {
	return &cli.Command{
		Name: "delete", Aliases: []string{"rm"}, Usage: "delete snapshots and free what only they hold",
		ArgsUsage:   "STORE[:VOLUME]@SNAPSHOT...",
		Description: "All of one store. Clones of a deleted snapshot stay, and so does what they share with it.",
		Flags: append([]cli.Flag{
			&cli.BoolFlag{Name: "force", Usage: "do not ask"},
			cliutil.JSONFlag(),
		}, cliutil.OpenKeyFlags()...),
		Action: cliutil.Action(1, -1, cliutil.FirstArg, runSnapshotDelete),
	}
}

// snapshotsDeleted is what delete reports. The first is there by itself, as it was
// when there could be one only.
type snapshotsDeleted struct {
	snapshotChange
	Deleted []snapshotDeleted `json:"deleted"` // all, in the order of the arguments
}

type snapshotDeleted struct {
	Volume   string           `json:"volume"`
	Snapshot control.Snapshot `json:"snapshot"`
}

func runSnapshotDelete(ctx context.Context, env *cliutil.Env, c *cli.Context) (err error) {
	refs, err := snapshotRefs(c)
	if err != nil {
		return err
	}
	store := refs[0].Store
	o, info, err := openDescribed(ctx, env, c, store, forWriting, keysNeeded)
	if err != nil {
		return err
	}
	defer closeOperations(o, &err)
	for _, ref := range refs { // before any is deleted
		if _, err := findSnapshot(info, ref); err != nil {
			return err
		}
	}
	if err := env.Confirm(ctx, c.Bool("force"), "%s", whatGoes(info, refs)); err != nil {
		return err
	}
	var deleted []snapshotDeleted
	for _, ref := range refs {
		s, err := o.DeleteSnapshot(ctx, ref.VolumeOrDefault(), ref.Snapshot)
		if err != nil {
			return err
		}
		env.Say("%s: snapshot %s deleted", store, inStore(ref))
		deleted = append(deleted, snapshotDeleted{ref.VolumeOrDefault(), s})
	}
	if c.Bool("json") {
		first := snapshotChange{cliutil.NewHeader("fsximg.snapshot.delete"), store, deleted[0].Volume, deleted[0].Snapshot}
		return env.PrintJSON(snapshotsDeleted{first, deleted})
	}
	return nil
}

// snapshotRefs are the snapshots that the arguments name: different ones, of one
// store.
func snapshotRefs(c *cli.Context) (refs []cliutil.Ref, err error) {
	for _, arg := range c.Args().Slice() {
		ref, err := parseSnapshot(arg)
		if err != nil {
			return nil, err
		}
		if len(refs) > 0 && ref.Store != refs[0].Store {
			return nil, cliutil.UsageErrorf("%s and %s are of different stores", refs[0], ref)
		}
		if slices.ContainsFunc(refs, func(r cliutil.Ref) bool { return inStore(r) == inStore(ref) }) {
			return nil, cliutil.UsageErrorf("%s is named twice", ref)
		}
		refs = append(refs, ref)
	}
	return refs, nil
}

// inStore is what a snapshot is called in its store, VOLUME@SNAPSHOT.
func inStore(ref cliutil.Ref) string { return ref.VolumeOrDefault() + "@" + ref.Snapshot }

// whatGoes says what would be deleted, and which clones keep a part of it.
func whatGoes(info control.Info, refs []cliutil.Ref) string {
	names, kept := []string{}, ""
	for _, ref := range refs {
		names = append(names, inStore(ref))
		var clones []string
		for _, v := range info.Volumes {
			if v.Parent == ref.VolumeOrDefault() && v.ParentSnapshot == ref.Snapshot {
				clones = append(clones, v.Name)
			}
		}
		if len(clones) > 0 {
			kept += fmt.Sprintf("; what %s shares with %s stays", inStore(ref), strings.Join(clones, ", "))
		}
	}
	word := "snapshot"
	if len(names) > 1 {
		word = "snapshots"
	}
	return word + " " + strings.Join(names, ", ") + " would be deleted" + kept
}
