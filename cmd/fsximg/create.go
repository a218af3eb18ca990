package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/fsximg/fsx/internal/cliutil"
	"github.com/fsximg/fsx/internal/control"
	"github.com/fsximg/fsx/internal/volume"
	"github.com/fsximg/fsx/pkg/crypt"
	"github.com/urfave/cli/v2"
)

func createCommand() *cli.Command {
	return &cli.Command{
		Name: "create", Usage: "make a new store with the volume main", ArgsUsage: "STORE",
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "size", Usage: "`SIZE` of the volume, e.g. 10G (K M G T P E are powers of 1024)"},
			cipherFlag(), cliutil.JSONFlag(),
		}, cliutil.CreateKeyFlags()...),
		Action: cliutil.Action(1, 1, cliutil.LastArg, runCreate),
	}
}

func cipherFlag() cli.Flag {
	return &cli.StringFlag{Name: "cipher", Value: crypt.AES256GCM.String(),
		Usage: "`MODE`: aes-256-gcm, chacha20-poly1305 or aes-256-xts"}
}

// createResult is what create and import say about a new store.
type createResult struct {
	cliutil.Header
	Store       string         `json:"store"`
	UUID        string         `json:"uuid"`
	Volume      string         `json:"volume"`
	Size        int64          `json:"size"`
	Cipher      string         `json:"cipher"`
	Slots       []control.Slot `json:"slots"`
	RecoveryKey string         `json:"recovery_key,omitempty"`
}

func runCreate(ctx context.Context, env *cliutil.Env, c *cli.Context) (err error) {
	path, err := cliutil.StoreOnly(c.Args().First())
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
	for _, name := range []string{"expect-id", "expect-epoch", "accept-rollback"} {
		if c.IsSet(name) {
			return cliutil.UsageErrorf("--%s is for a store that there is", name)
		}
	}
	if err := mustNotExist(path); err != nil {
		return err
	}
	keys, err := env.NewKeys(ctx, c, path)
	if err != nil {
		return err
	}
	defer keys.Wipe()
	defer func() {
		if err != nil {
			keys.Abandon()
		}
	}()
	st, err := newStore(env, c, path, size, keys)
	if err != nil {
		return err
	}
	res := describeNew(st, keys, c)
	if err := st.Close(); err != nil {
		return fmt.Errorf("close store: %w", err)
	}
	keys.Keep()
	env.Say("%s: %s, %s", path, cliutil.FormatSize(size), c.String("cipher"))
	if c.Bool("json") {
		err = env.PrintJSON(res)
	}
	if err == nil {
		err = printNew(env, c, res, keys)
	}
	return unshown(path, keys, err)
}

// unshown removes a new store whose recovery key could not be printed: nobody
// has it, and it is perhaps the only one.
func unshown(path string, keys *cliutil.NewKeys, err error) error {
	if err == nil || !keys.PrintRecoveryKey {
		return err
	}
	if removeErr := os.RemoveAll(path); removeErr != nil {
		return errors.Join(err, removeErr)
	}
	return cliutil.WithHint(err, "the store was removed again, since its recovery key could not be shown; see --recovery-key-out")
}

// newStore makes a store of what the options say.
func newStore(env *cliutil.Env, c *cli.Context, path string, size int64, keys *cliutil.NewKeys) (*volume.Store, error) {
	mode, err := crypt.ParseMode(c.String("cipher"))
	if err != nil {
		return nil, cliutil.WithHint(cliutil.Errorf(cliutil.ErrUsage, "--cipher: %v", err),
			"use %v, %v or %v", crypt.AES256GCM, crypt.ChaCha20Poly1305, crypt.AES256XTS)
	}
	st, err := volume.Create(path, volume.CreateOptions{
		Options: volume.Options{Program: env.Program, Log: env.Log, Trust: env.Trust()},
		Size:    size, Mode: mode, KDF: keys.KDF, Secrets: keys.Secrets,
	})
	if errors.Is(err, crypt.ErrKDF) {
		err = cliutil.WithHint(err, "--kdf-memory 19M to 1G, --kdf-time 2 to 16, and no more than 4G in all passes")
	}
	if err != nil {
		return nil, err
	}
	return st, nil
}

func describeNew(st *volume.Store, keys *cliutil.NewKeys, c *cli.Context) createResult {
	res := createResult{
		Header: cliutil.NewHeader("fsximg.create"), Store: st.Path(), UUID: st.UUID().String(),
		Volume: cliutil.DefaultVolume, Cipher: c.String("cipher"), Slots: control.DescribeSlots(st.Keyring().Slots()),
	}
	if volumes, err := st.Volumes(); err == nil && len(volumes) == 1 {
		res.Size = volumes[0].Size
	}
	if keys.PrintRecoveryKey {
		res.RecoveryKey = keys.RecoveryKey
	}
	return res
}

// printNew says what must be known of a new store, and prints the recovery key
// alone.
func printNew(env *cliutil.Env, c *cli.Context, res createResult, keys *cliutil.NewKeys) error {
	if keys.Clear {
		env.Warn("anyone who has %s can read it: it has a clear key", res.Store)
	}
	if c.Bool("json") || !keys.PrintRecoveryKey {
		return nil // --json has it in the object
	}
	env.Say("The recovery key opens the store when all else is lost. It is shown only now; keep it in a safe place:")
	_, err := fmt.Fprintln(env.Stdout, keys.RecoveryKey)
	return err
}

// mustNotExist refuses to make something where something is.
func mustNotExist(path string) error {
	if err := cliutil.NotInStore(path); err != nil {
		return err
	}
	exists, err := pathExists(path)
	if err == nil && exists {
		err = cliutil.WithHint(fs.ErrExist, "choose another name, or remove it first")
	}
	return err
}

func pathExists(path string) (bool, error) {
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}
