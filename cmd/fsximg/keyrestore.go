package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/fsximg/fsx/internal/cliutil"
	"github.com/fsximg/fsx/internal/control"
	"github.com/fsximg/fsx/internal/volume"
	"github.com/fsximg/fsx/pkg/crypt"
	"github.com/fsximg/fsx/pkg/layout"
	"github.com/urfave/cli/v2"
)

func keyRestoreCommand() *cli.Command {
	return &cli.Command{
		Name: "restore", Usage: "bring slots back from a backup of the keyring", ArgsUsage: "STORE FILE",
		Description: "For a keyring that is damaged, and for slots that were removed or shredded. Slots that\n" +
			"were made since stay. If slots were changed since the backup, one of its keys is needed.",
		Flags: flags([]cli.Flag{
			&cli.BoolFlag{Name: "force", Usage: "go on although something would be lost"},
			&cli.BoolFlag{Name: "dry-run", Usage: "only tell what would be done"},
			cliutil.JSONFlag(),
		}, cliutil.OpenKeyFlags()),
		Action: cliutil.Action(2, 2, cliutil.FirstArg, runKeyRestore),
	}
}

// restoreResult is what key restore reports.
type restoreResult struct {
	cliutil.Header
	Store    string         `json:"store"`
	DryRun   bool           `json:"dry_run"`
	Slots    []control.Slot `json:"slots"`
	Replaced []control.Slot `json:"replaced"`
	Locked   []string       `json:"locked"`
	Bags     []string       `json:"bags"`
	Lost     []string       `json:"lost"`
}

func runKeyRestore(ctx context.Context, env *cliutil.Env, c *cli.Context) (err error) {
	path, err := cliutil.StoreOnly(c.Args().First())
	if err != nil {
		return err
	}
	backup, err := readBackup(c.Args().Get(1))
	if err != nil {
		return fmt.Errorf("%s: %w", c.Args().Get(1), err)
	}
	secrets, err := env.GivenKeys(c, path)
	if err != nil {
		return err
	}
	defer cliutil.WipeSecrets(secrets)
	st, err := openForRestore(env, path, backup)
	if err != nil {
		return err
	}
	defer closeStore(st, &err)
	restored, err := st.RestoreKeyring(ctx, backup, volume.RestoreOptions{Secrets: secrets, Force: c.Bool("force"), DryRun: c.Bool("dry-run")})
	if errors.Is(err, volume.ErrKeyMissing) {
		err = cliutil.WithHint(err, "name a key that opens one of them, e.g. --passphrase-file")
	}
	if err != nil {
		return err
	}
	return reportRestored(env, c, path, restored)
}

// readBackup reads a backup of a keyring.
func readBackup(name string) (*layout.KeyringBackup, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > layout.MaxKeyringBackup {
		return nil, fmt.Errorf("no backup of a keyring: %w", cliutil.ErrDamaged)
	}
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	backup, err := layout.DecodeKeyringBackup(b)
	if errors.Is(err, layout.ErrCorrupt) {
		err = cliutil.Errorf(cliutil.ErrDamaged, "%v", err)
	}
	return backup, err
}

// openForRestore opens a store, which has perhaps no keyring. A server that has the
// store open would go on with the keyring that it has.
func openForRestore(env *cliutil.Env, path string, backup *layout.KeyringBackup) (*volume.Store, error) {
	st, err := volume.OpenForRestore(path, volume.Options{Program: env.Program, Log: env.Log, Trust: env.Trust()}, backup)
	switch {
	case err == nil:
		return st, nil
	case errors.Is(err, volume.ErrBusy):
		return nil, cliutil.WithHint(err, "its keyring can be restored when nothing has it open: stop that process first")
	case errors.Is(err, crypt.ErrKeyringStore):
		return nil, cliutil.UsageErrorf("the backup is of another store")
	case errors.Is(err, os.ErrNotExist) && !errors.Is(err, volume.ErrDamaged):
		return nil, cliutil.Errorf(cliutil.ErrNotFound, "no such store")
	}
	return nil, err
}

func reportRestored(env *cliutil.Env, c *cli.Context, path string, r volume.Restored) error {
	done := "restored"
	if c.Bool("dry-run") {
		done = "would be restored"
	}
	for _, s := range r.Slots {
		env.Say("%s: slot %d (%s) %s; volume key %s", path, s.Number, s.Type, done, s.VolumeKey)
	}
	if len(r.Bags) > 0 {
		env.Say("%s: the data keys of %s %s", path, strings.Join(r.Bags, ", "), done)
	}
	if r.Nothing() {
		env.Say("%s: the backup has nothing that the store needs", path)
	}
	if len(r.Lost) > 0 {
		env.Warn("%s: the keys of %s are lost", path, strings.Join(r.Lost, ", "))
	}
	locked := []string{}
	for _, id := range r.Locked {
		locked = append(locked, id.String())
		env.Warn("%s: slots of volume key %s were not looked at: they need one of its keys", path, id)
	}
	if !c.Bool("json") {
		return nil
	}
	return env.PrintJSON(restoreResult{
		cliutil.NewHeader("fsximg.key.restore"), path, c.Bool("dry-run"), control.DescribeSlots(r.Slots), control.DescribeSlots(r.Replaced),
		locked, append([]string{}, r.Bags...), append([]string{}, r.Lost...),
	})
}
