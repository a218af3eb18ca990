package main

import (
	"context"

	"github.com/fsximg/fsx/internal/cliutil"
	"github.com/fsximg/fsx/internal/control"
	"github.com/urfave/cli/v2"
)

func volumeCommand() *cli.Command {
	return &cli.Command{
		Name: "volume", Usage: "make, list, rename and delete volumes",
		Subcommands: []*cli.Command{
			{
				Name: "create", Usage: "make an empty volume in a store", ArgsUsage: "STORE:VOLUME",
				Description: "Without --new-… it is under the volume key of main, or of --like.",
				Flags: flags([]cli.Flag{
					&cli.StringFlag{Name: "size", Usage: "`SIZE` of the volume, e.g. 10G (K M G T P E are powers of 1024)"},
					&cli.StringFlag{Name: "like", Usage: "the volume whose volume key it shares, `VOLUME` (default main)"},
					cipherFlag(), cliutil.JSONFlag(),
				}, cliutil.NewKeyFlags(), cliutil.OpenKeyFlags()),
				Action: cliutil.Action(1, 1, cliutil.FirstArg, runVolumeCreate),
			},
			{
				Name: "list", Aliases: []string{"ls"}, Usage: "list the volumes of a store", ArgsUsage: "STORE",
				Description: "The same as fsximg list.",
				Flags:       []cli.Flag{cliutil.JSONFlag()},
				Action:      cliutil.Action(1, 1, cliutil.FirstArg, runList),
			},
			{
				Name: "rename", Usage: "give a volume another name", ArgsUsage: "STORE:VOLUME NEWNAME",
				Flags:  flags([]cli.Flag{cliutil.JSONFlag()}, cliutil.OpenKeyFlags()),
				Action: cliutil.Action(2, 2, cliutil.FirstArg, runVolumeRename),
			},
			{
				Name: "delete", Aliases: []string{"rm"}, Usage: "delete a volume with its snapshots", ArgsUsage: "STORE:VOLUME",
				Description: "With --force no key is needed.",
				Flags: flags([]cli.Flag{
					&cli.BoolFlag{Name: "force", Usage: "do not ask, and need no key"},
					cliutil.JSONFlag(),
				}, cliutil.OpenKeyFlags()),
				Action: cliutil.Action(1, 1, cliutil.FirstArg, runVolumeDelete),
			},
		},
	}
}

func flags(sets ...[]cli.Flag) (all []cli.Flag) {
	for _, s := range sets {
		all = append(all, s...)
	}
	return all
}

// volumeChange is what commands report that made or changed a volume.
type volumeChange struct {
	cliutil.Header
	Store       string         `json:"store"`
	Volume      control.Volume `json:"volume"`
	RecoveryKey string         `json:"recovery_key,omitempty"`
}

// volumeRef is the volume that the argument names; named says that it must name
// one, because there is no harmless default.
func volumeRef(c *cli.Context, named bool) (cliutil.Ref, error) {
	ref, err := cliutil.ParseRef(c.Args().First())
	switch {
	case err != nil:
		return ref, err
	case ref.Snapshot != "":
		return ref, cliutil.UsageErrorf("%s: this command takes a volume, not a snapshot", ref)
	case named && ref.Volume == "":
		return ref, cliutil.WithHint(cliutil.UsageErrorf("%s names no volume", ref), "STORE:VOLUME does, say %s:%s", ref, cliutil.DefaultVolume)
	}
	return ref, nil
}

// reportVolume says what was done to a volume, and describes it.
func reportVolume(ctx context.Context, env *cliutil.Env, c *cli.Context, o control.Operations, schema string, ref cliutil.Ref, keys *cliutil.SlotSecrets, what string) error {
	env.Say("%s: volume %s %s", ref.Store, ref.VolumeOrDefault(), what)
	if c.Bool("json") {
		info, err := o.Info(ctx)
		if err != nil {
			return err
		}
		v, err := findVolume(info, ref)
		if err != nil {
			return err
		}
		return env.PrintJSON(volumeChange{cliutil.NewHeader(schema), ref.Store, v, keys.Shown()})
	}
	return keys.Print(env)
}

func runVolumeCreate(ctx context.Context, env *cliutil.Env, c *cli.Context) (err error) {
	ref, err := volumeRef(c, true)
	if err != nil {
		return err
	}
	if c.String("size") == "" {
		return cliutil.WithHint(cliutil.UsageErrorf("how large? --size is missing"), "e.g. --size 10G")
	}
	size, err := cliutil.ParseSize(c.String("size"))
	if err != nil {
		return err
	}
	keys, err := env.SlotSecrets(c)
	if err != nil {
		return err
	}
	defer func() { keys.Done(err) }()
	if keys.Any() && c.String("like") != "" {
		return cliutil.UsageErrorf("--like shares a volume key, --new-… makes one")
	}
	use := keysNeeded
	if keys.Any() {
		use = givenKeys
	}
	o, err := openOperations(ctx, env, c, ref.Store, forWriting, use)
	if err != nil {
		return err
	}
	defer closeOperations(o, &err)
	r := control.VolumeRequest{Name: ref.Volume, Size: size, Secrets: keys.Secrets, Like: c.String("like"), Cipher: c.String("cipher")}
	if err := o.CreateVolume(ctx, r); err != nil {
		return err
	}
	keys.Keep()
	return reportVolume(ctx, env, c, o, "fsximg.volume.create", ref, keys, "created")
}

func runVolumeRename(ctx context.Context, env *cliutil.Env, c *cli.Context) (err error) {
	ref, err := volumeRef(c, true)
	if err != nil {
		return err
	}
	to := c.Args().Get(1)
	if err := cliutil.CheckName("volume", to); err != nil {
		return err
	}
	o, err := openOperations(ctx, env, c, ref.Store, forWriting, keysNeeded)
	if err != nil {
		return err
	}
	defer closeOperations(o, &err)
	if err := o.RenameVolume(ctx, ref.Volume, to); err != nil {
		return err
	}
	renamed := cliutil.Ref{Store: ref.Store, Volume: to}
	return reportVolume(ctx, env, c, o, "fsximg.volume.rename", renamed, nil, "is what "+ref.Volume+" was called")
}

func runVolumeDelete(ctx context.Context, env *cliutil.Env, c *cli.Context) (err error) {
	ref, err := volumeRef(c, true)
	if err != nil {
		return err
	}
	keys := keysNeeded
	if c.Bool("force") {
		keys = givenKeys
	}
	o, info, err := openDescribed(ctx, env, c, ref.Store, forWriting, keys)
	if err != nil {
		return err
	}
	defer closeOperations(o, &err)
	v, err := findVolume(info, ref)
	if err != nil {
		return err
	}
	err = env.Confirm(ctx, c.Bool("force"), "volume %s of %s with %s used and %d snapshots would be deleted", v.Name,
		cliutil.FormatSize(v.Size), cliutil.FormatSize(v.Used), len(v.Snapshots))
	if err != nil {
		return err
	}
	if err := o.DeleteVolume(ctx, ref.Volume); err != nil {
		return err
	}
	env.Say("%s: volume %s deleted", ref.Store, ref.Volume)
	if c.Bool("json") {
		return env.PrintJSON(volumeChange{cliutil.NewHeader("fsximg.volume.delete"), ref.Store, v, ""})
	}
	return nil
}

func cloneCommand() *cli.Command {
	return &cli.Command{
		Name: "clone", Usage: "make a writable volume of a snapshot", ArgsUsage: "STORE[:VOLUME]@SNAPSHOT NEWVOLUME",
		Description: "It shares the snapshot's blocks, and takes space only for what is written to it.\n" +
			"Without --new-… it goes on under its parent's volume key.",
		Flags: flags([]cli.Flag{
			&cli.BoolFlag{Name: "no-chain", Usage: "with --new-…: give it none of its parent's data keys, so that what it has not written itself cannot be read"},
			&cli.StringFlag{Name: "cipher", Usage: "`MODE`: aes-256-gcm, chacha20-poly1305 or aes-256-xts (default: its parent's)"},
			&cli.BoolFlag{Name: "new-ephemeral-key", Usage: "of a served store: under a key that only its server has, in memory; what is written is gone with the volume or the server"},
			cliutil.JSONFlag(),
		}, cliutil.NewKeyFlags(), cliutil.OpenKeyFlags()),
		Action: cliutil.Action(2, 2, cliutil.FirstArg, runClone),
	}
}

func runClone(ctx context.Context, env *cliutil.Env, c *cli.Context) (err error) {
	ref, err := snapshotRef(c)
	if err != nil {
		return err
	}
	name := c.Args().Get(1)
	if err := cliutil.CheckName("volume", name); err != nil {
		return err
	}
	keys, err := env.SlotSecrets(c)
	if err != nil {
		return err
	}
	defer func() { keys.Done(err) }()
	ephemeral := c.Bool("new-ephemeral-key")
	if ephemeral && keys.Any() {
		return cliutil.UsageErrorf("--new-ephemeral-key is in no slot, and excludes the others of --new-…")
	}
	if c.Bool("no-chain") && !keys.Any() && !ephemeral {
		return cliutil.UsageErrorf("--no-chain is for a clone with a volume key of its own: name one by --new-…")
	}
	o, err := openOperations(ctx, env, c, ref.Store, forWriting, keysNeeded)
	if err != nil {
		return err
	}
	defer closeOperations(o, &err)
	err = o.Clone(ctx, control.CloneRequest{
		Volume: ref.VolumeOrDefault(), Snapshot: ref.Snapshot, Name: name,
		Secrets: keys.Secrets, NoChain: c.Bool("no-chain"), Ephemeral: ephemeral, Cipher: c.String("cipher"),
	})
	if err != nil {
		return err
	}
	keys.Keep()
	what := "cloned from " + ref.VolumeOrDefault() + "@" + ref.Snapshot
	return reportVolume(ctx, env, c, o, "fsximg.clone", cliutil.Ref{Store: ref.Store, Volume: name}, keys, what)
}
