package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/fsximg/fsx/internal/cliutil"
	"github.com/fsximg/fsx/internal/control"
	"github.com/fsximg/fsx/pkg/crypt"
	"github.com/fsximg/fsx/pkg/layout"
	"github.com/urfave/cli/v2"
)

func keyTestCommand(slot cli.Flag) *cli.Command {
	return &cli.Command{
		Name: "test", Usage: "tell which slots a key opens", ArgsUsage: "STORE",
		Description: "Exit code 4 if it opens none, or not the one that --slot names. Nothing is changed.",
		Flags:       flags([]cli.Flag{slot, cliutil.JSONFlag()}, cliutil.OpenKeyFlags()),
		Action:      cliutil.Action(1, 1, cliutil.FirstArg, runKeyTest),
	}
}

func keyBackupCommand() *cli.Command {
	return &cli.Command{
		Name: "backup", Usage: "write a copy of the keyring into a new file", ArgsUsage: "STORE FILE",
		Description: "No key is needed. The copy opens with the secrets of its slots, also when those are\n" +
			"removed from the store.",
		Flags:  []cli.Flag{cliutil.JSONFlag()},
		Action: cliutil.Action(2, 2, cliutil.FirstArg, runKeyBackup),
	}
}

func keyShredCommand() *cli.Command {
	return &cli.Command{
		Name: "shred", Usage: "destroy all slots of a volume key, so that nothing opens its volumes", ArgsUsage: "STORE",
		Description: "No key is needed. It cannot be undone but by a backup of the keyring.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "key", Usage: "the volume key `ID` (8 or more of its digits)"},
			&cli.BoolFlag{Name: "force", Usage: "do not ask"},
			cliutil.JSONFlag(),
		},
		Action: cliutil.Action(1, 1, cliutil.FirstArg, runKeyShred),
	}
}

// readKeyring is the keyring of a store, or of the one that its server has open.
func readKeyring(ctx context.Context, o control.Operations) (*crypt.Keyring, []byte, error) {
	b, err := o.BackupKeys(ctx)
	if err != nil {
		return nil, nil, err
	}
	backup, err := layout.DecodeKeyringBackup(b)
	if err != nil {
		return nil, nil, err
	}
	ring, err := crypt.ParseKeyring(backup.Body, crypt.UUID(backup.Store))
	return ring, b, err
}

// runKeyTest tries the secrets here, on a served store, too: they do not travel.
func runKeyTest(ctx context.Context, env *cliutil.Env, c *cli.Context) (err error) {
	path, err := cliutil.StoreOnly(c.Args().First())
	if err != nil {
		return err
	}
	o, err := openServed(ctx, env, path)
	if err != nil {
		return err
	}
	defer closeOperations(o, &err)
	ring, _, err := readKeyring(ctx, o)
	if err != nil {
		return err
	}
	secrets, err := env.OpenKeys(ctx, c, path, ring.HasClearSlot())
	if err != nil {
		return err
	}
	defer cliutil.WipeSecrets(secrets)
	opened, err := ring.Opens(secrets...)
	if err != nil {
		return err
	}
	if c.IsSet("slot") {
		number, err := slotNumber(c)
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(ring.Slots(), func(s crypt.SlotInfo) bool { return s.Number == number }) {
			return cliutil.WithHint(fmt.Errorf("slot %d: %w", number, crypt.ErrNoSlot), "fsximg key list shows which there are")
		}
		opened = slices.DeleteFunc(opened, func(s crypt.SlotInfo) bool { return s.Number != number })
	}
	if len(opened) == 0 {
		return cliutil.WithHint(crypt.ErrWrongKey, "fsximg key list %s shows what kinds of keys open it", path)
	}
	return reportTest(ctx, env, c, o, path, opened)
}

func reportTest(ctx context.Context, env *cliutil.Env, c *cli.Context, o control.Operations, path string, opened []crypt.SlotInfo) error {
	keys, err := o.Keys(ctx)
	if err != nil {
		return err
	}
	var slots []control.KeySlot
	for _, s := range keys.Slots {
		if slices.ContainsFunc(opened, func(i crypt.SlotInfo) bool { return i.Number == s.Slot.Slot }) {
			slots = append(slots, s)
		}
	}
	if c.Bool("json") {
		return env.PrintJSON(slotsChange{cliutil.NewHeader("fsximg.key.test"), path, slots, ""})
	}
	for _, s := range slots {
		if _, err := fmt.Fprintf(env.Stdout, "slot %d (%s) opens %s\n", s.Slot.Slot, s.Type, describeOpened(s.Volumes)); err != nil {
			return err
		}
	}
	return nil
}

// backupResult is what key backup reports.
type backupResult struct {
	cliutil.Header
	Store string            `json:"store"`
	File  string            `json:"file"`
	Slots []control.KeySlot `json:"slots"`
}

func runKeyBackup(ctx context.Context, env *cliutil.Env, c *cli.Context) (err error) {
	path, err := cliutil.StoreOnly(c.Args().First())
	if err != nil {
		return err
	}
	name := c.Args().Get(1)
	if err := cliutil.NotInStore(name); err != nil {
		return err
	}
	o, err := openServed(ctx, env, path)
	if err != nil {
		return err
	}
	defer closeOperations(o, &err)
	_, b, err := readKeyring(ctx, o)
	if err != nil {
		return err
	}
	keys, err := o.Keys(ctx)
	if err != nil {
		return err
	}
	if err := writeNew(name, b); err != nil {
		return err
	}
	env.Say("%s: keyring with %d slots copied to %s. Its slots open with the secrets that they have now, whatever becomes of them in the store.",
		path, len(keys.Slots), name)
	if c.Bool("json") {
		return env.PrintJSON(backupResult{cliutil.NewHeader("fsximg.key.backup"), path, name, keys.Slots})
	}
	return nil
}

// openServed opens a store for a command that uses no volume key.
func openServed(ctx context.Context, env *cliutil.Env, path string) (control.Operations, error) {
	return openOperations(ctx, env, nil, path, forReading, noKeys)
}

// writeNew writes a new file, durably, that only its owner can read.
func writeNew(name string, b []byte) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return cliutil.WithHint(err, "choose another name, or remove it first")
	}
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = syncFolder(filepath.Dir(name))
	}
	if err != nil {
		os.Remove(name)
	}
	return err
}

func syncFolder(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func runKeyShred(ctx context.Context, env *cliutil.Env, c *cli.Context) (err error) {
	path, err := cliutil.StoreOnly(c.Args().First())
	if err != nil {
		return err
	}
	if c.String("key") == "" {
		return cliutil.WithHint(cliutil.UsageErrorf("which volume key? --key ID is missing"), "fsximg key list shows them")
	}
	o, err := openOperations(ctx, env, c, path, forWriting, noKeys)
	if err != nil {
		return err
	}
	defer closeOperations(o, &err)
	keys, err := o.Keys(ctx)
	if err != nil {
		return err
	}
	id, err := volumeKeyNamed(keys, c.String("key"))
	if err != nil && c.Bool("force") {
		id = c.String("key") // a hidden volume's, which only the store knows, or none
	} else if err != nil {
		return err
	}
	lost := volumesUnder(keys, id)
	if err := env.Confirm(ctx, c.Bool("force"), "every slot of volume key %s would be destroyed, and with them %s", id, describeOpened(lost)); err != nil {
		return err
	}
	slots, err := o.ShredSlots(ctx, id)
	if err != nil {
		return err
	}
	err = reportSlots(env, c, "fsximg.key.shred", path, slots, nil, "destroyed")
	env.Say("%s", shredLimits)
	return err
}

// volumeKeyNamed is the identifier of the one volume key that a prefix names, so that a
// mistyped one is told before anything is asked.
func volumeKeyNamed(keys control.Keys, prefix string) (string, error) {
	text := strings.ToLower(prefix)
	if len(text) < 8 {
		return "", cliutil.UsageErrorf("%q names no key: 8 to 32 hex digits do", prefix)
	}
	var found []string
	add := func(id string) {
		if strings.HasPrefix(id, text) && !slices.Contains(found, id) {
			found = append(found, id)
		}
	}
	for _, s := range keys.Slots {
		add(s.VolumeKey)
	}
	for _, v := range keys.Volumes {
		add(v.VolumeKey)
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return "", cliutil.WithHint(cliutil.Errorf(cliutil.ErrNotFound, "no volume key %s", prefix), "fsximg key list shows them")
	}
	return "", cliutil.UsageErrorf("%s names several volume keys", prefix)
}

func volumesUnder(keys control.Keys, prefix string) (names []string) {
	for _, v := range keys.Volumes {
		if strings.HasPrefix(v.VolumeKey, strings.ToLower(prefix)) {
			names = append(names, v.Name)
		}
	}
	return names
}

// shredLimits is what shredding does not do.
const shredLimits = "Backups of the keyring and copies of the store still open with the old secrets, and so may what a flash drive or " +
	"a copy-on-write file system keeps of overwritten blocks. A server that has the key goes on until it ends. " +
	"Clones with a volume key of their own still read what they share."
