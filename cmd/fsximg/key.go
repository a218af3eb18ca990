package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/fsximg/fsx/internal/cliutil"
	"github.com/fsximg/fsx/internal/control"
	"github.com/fsximg/fsx/internal/volume"
	"github.com/urfave/cli/v2"
)

func keyCommand() *cli.Command {
	slot := &cli.IntFlag{Name: "slot", Usage: "the slot with the number `N`"}
	return &cli.Command{
		Name: "key", Usage: "manage the slots that open a store",
		Subcommands: []*cli.Command{
			{
				Name: "list", Aliases: []string{"ls"}, Usage: "list slots, and the data keys of volumes that a key opens", ArgsUsage: "STORE",
				Description: "Without a key it shows what is not secret.",
				Flags:       flags([]cli.Flag{cliutil.JSONFlag()}, cliutil.OpenKeyFlags()),
				Action:      cliutil.Action(1, 1, cliutil.FirstArg, runKeyList),
			},
			{
				Name: "add", Usage: "add a slot: one more secret that opens the same volumes", ArgsUsage: "STORE",
				Description: "Each --new-… adds one.",
				Flags: flags([]cli.Flag{
					&cli.StringFlag{Name: "volume", Usage: "the volume key of `VOLUME`, if several are open"},
					&cli.StringFlag{Name: "key", Usage: "the volume key `ID` (8 or more of its digits), if several are open"},
					cliutil.JSONFlag(),
				}, cliutil.NewKeyFlags(), cliutil.OpenKeyFlags()),
				Action: cliutil.Action(1, 1, cliutil.FirstArg, runKeyAdd),
			},
			{
				Name: "change", Usage: "have a slot open with another secret", ArgsUsage: "STORE",
				Flags:  flags([]cli.Flag{slot, cliutil.JSONFlag()}, cliutil.NewKeyFlags(), cliutil.OpenKeyFlags()),
				Action: cliutil.Action(1, 1, cliutil.FirstArg, runKeyChange),
			},
			{
				Name: "remove", Aliases: []string{"rm"}, Usage: "remove a slot", ArgsUsage: "STORE",
				Description: "Old copies of the store still open with its secret: that takes rekey and reencrypt.",
				Flags: flags([]cli.Flag{
					slot,
					&cli.BoolFlag{Name: "force", Usage: "do not ask, and remove the last slot of a volume key, too"},
					cliutil.JSONFlag(),
				}, cliutil.OpenKeyFlags()),
				Action: cliutil.Action(1, 1, cliutil.FirstArg, runKeyRemove),
			},
			keyTestCommand(slot),
			keyBackupCommand(),
			keyRestoreCommand(),
			keyShredCommand(),
		},
	}
}

type keyListResult struct {
	cliutil.Header
	Store string `json:"store"`
	control.Keys
}

func runKeyList(ctx context.Context, env *cliutil.Env, c *cli.Context) (err error) {
	path, err := cliutil.StoreOnly(c.Args().First())
	if err != nil {
		return err
	}
	o, err := openOperations(ctx, env, c, path, forReading, givenKeys)
	if err != nil {
		return err
	}
	defer closeOperations(o, &err)
	keys, err := o.Keys(ctx)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return env.PrintJSON(keyListResult{cliutil.NewHeader("fsximg.key.list"), path, keys})
	}
	return printKeys(env.Stdout, keys)
}

func printKeys(w io.Writer, k control.Keys) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "SLOT\tTYPE\tVOLUME KEY\tOPENS")
	for _, s := range k.Slots {
		fmt.Fprintf(t, "%d\t%s\t%s\t%s\n", s.Slot.Slot, describeSlot(s.Slot), s.VolumeKey, strings.Join(s.Volumes, ", "))
	}
	for _, v := range k.Volumes {
		if len(v.Slots) == 0 {
			fmt.Fprintf(t, "none\t%s\t%s\t%s\n", noSlot, v.VolumeKey, v.Name)
		}
	}
	heading := "\nVOLUME\tKEY\tDATA KEY\tCIPHER\tENCRYPTED\n"
	for _, v := range k.Volumes {
		for _, d := range v.DataKeys {
			writable := ""
			if d.Writable {
				writable = "  writing"
			}
			if d.Writable && d.Bytes >= volume.ManyBytes {
				writable += "; more than 1 PiB: fsximg rekey makes a fresh one"
			}
			fmt.Fprintf(t, "%s%s\t%d\t%s\t%s\t%s%s\n", heading, v.Name, d.Number, d.ID, d.Cipher, cliutil.FormatSize(int64(min(d.Bytes, 1<<62))), writable)
			heading = ""
		}
	}
	return t.Flush()
}

// noSlot is said of a volume key that nothing in the keyring opens.
const noSlot = "no slot"

// slotsChange is what commands report that changed slots.
type slotsChange struct {
	cliutil.Header
	Store       string            `json:"store"`
	Slots       []control.KeySlot `json:"slots"`
	RecoveryKey string            `json:"recovery_key,omitempty"`
}

// reportSlots says what became of slots, and shows a new recovery key.
func reportSlots(env *cliutil.Env, c *cli.Context, schema, store string, slots []control.KeySlot, keys *cliutil.SlotSecrets, what string) error {
	for _, s := range slots {
		env.Say("%s: slot %d (%s) %s; volume key %s", store, s.Slot.Slot, s.Type, what, s.VolumeKey)
	}
	if c.Bool("json") {
		return env.PrintJSON(slotsChange{cliutil.NewHeader(schema), store, slots, keys.Shown()})
	}
	if keys == nil {
		return nil
	}
	return keys.Print(env)
}

func runKeyAdd(ctx context.Context, env *cliutil.Env, c *cli.Context) (err error) {
	path, err := cliutil.StoreOnly(c.Args().First())
	if err != nil {
		return err
	}
	if c.IsSet("key") && c.IsSet("volume") {
		return cliutil.UsageErrorf("--key and --volume both say which volume key")
	}
	keys, err := newSecrets(ctx, env, c, path)
	if err != nil {
		return err
	}
	defer func() { keys.Done(err) }()
	o, err := openOperations(ctx, env, c, path, forWriting, keysNeeded)
	if err != nil {
		return err
	}
	defer closeOperations(o, &err)
	added, err := o.AddSlots(ctx, control.AddRequest{Key: c.String("key"), Volume: c.String("volume"), Secrets: keys.Secrets})
	if len(added) > 0 {
		keys.Keep()
	}
	if err != nil {
		return err
	}
	return reportSlots(env, c, "fsximg.key.add", path, added, keys, "added")
}

// newSecrets reads --new-…, or asks a terminal for a new passphrase.
func newSecrets(ctx context.Context, env *cliutil.Env, c *cli.Context, store string) (*cliutil.SlotSecrets, error) {
	keys, err := env.SlotSecrets(c)
	named := false
	if err == nil {
		named, err = env.AskNewSlot(ctx, keys, store)
	}
	if err == nil && !named {
		err = cliutil.WithHint(cliutil.UsageErrorf("no new secret is named"),
			"--new-passphrase-file, --new-key-file, --new-recovery-key, --new-age-recipient, --new-tpm2 or --new-clear-key; see %s key %s --help", env.Program, c.Command.Name)
	}
	return keys, err
}

// slotNumber is the slot that --slot names.
func slotNumber(c *cli.Context) (int, error) {
	if n := c.Int("slot"); n >= 1 && n <= 65535 {
		return n, nil
	}
	return 0, cliutil.WithHint(cliutil.UsageErrorf("which slot? --slot N is missing"), "fsximg key list %s shows them", strconv.Quote(c.Args().First()))
}

func runKeyChange(ctx context.Context, env *cliutil.Env, c *cli.Context) (err error) {
	path, err := cliutil.StoreOnly(c.Args().First())
	if err != nil {
		return err
	}
	number, err := slotNumber(c)
	if err != nil {
		return err
	}
	keys, err := newSecrets(ctx, env, c, path)
	if err != nil {
		return err
	}
	defer func() { keys.Done(err) }()
	if len(keys.Secrets) > 1 {
		return cliutil.UsageErrorf("a slot has one secret, %d are named; key add makes more slots", len(keys.Secrets))
	}
	o, err := openOperations(ctx, env, c, path, forWriting, keysNeeded)
	if err != nil {
		return err
	}
	defer closeOperations(o, &err)
	s, err := o.ChangeSlot(ctx, control.ChangeRequest{Slot: number, Secret: keys.Secrets[0]})
	if err != nil {
		return err
	}
	keys.Keep()
	err = reportSlots(env, c, "fsximg.key.change", path, []control.KeySlot{s}, keys, "changed")
	env.Say("%s", oldCopiesOpen)
	return err
}

// oldCopiesOpen is what removing or changing a secret does not do.
const oldCopiesOpen = "Whoever has an older copy of the store or a backup of its keyring still opens it with the old secret; " +
	"rekey and reencrypt put an end to that."

func runKeyRemove(ctx context.Context, env *cliutil.Env, c *cli.Context) (err error) {
	path, err := cliutil.StoreOnly(c.Args().First())
	if err != nil {
		return err
	}
	number, err := slotNumber(c)
	if err != nil {
		return err
	}
	o, err := openOperations(ctx, env, c, path, forWriting, keysNeeded)
	if err != nil {
		return err
	}
	defer closeOperations(o, &err)
	if err := confirmRemoval(ctx, env, c, o, number); err != nil {
		return err
	}
	s, err := o.RemoveSlot(ctx, number, c.Bool("force"))
	if err != nil {
		return err
	}
	err = reportSlots(env, c, "fsximg.key.remove", path, []control.KeySlot{s}, nil, "removed")
	env.Say("%s", oldCopiesOpen)
	return err
}

// confirmRemoval asks whether a slot is to be removed.
func confirmRemoval(ctx context.Context, env *cliutil.Env, c *cli.Context, o control.Operations, number int) error {
	keys, err := o.Keys(ctx)
	if err != nil {
		return err
	}
	for _, s := range keys.Slots {
		if s.Slot.Slot == number {
			return env.Confirm(ctx, c.Bool("force"), "slot %d (%s), which opens %s, would be removed", number, s.Type, describeOpened(s.Volumes))
		}
	}
	return nil // removing it says that there is none
}

func describeOpened(volumes []string) string {
	if len(volumes) == 0 {
		return "no volume"
	}
	return strings.Join(volumes, ", ")
}
