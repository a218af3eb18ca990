package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/fsximg/fsx/internal/cliutil"
	"github.com/fsximg/fsx/internal/volume"
	"github.com/fsximg/fsx/pkg/crypt"
	"github.com/urfave/cli/v2"
)

func copyCommand() *cli.Command {
	return &cli.Command{
		Name: "copy", Usage: "copy a store", ArgsUsage: "STORE DST",
		Description: "DST is a new folder with the same volumes and snapshots, under the same keys. No key is needed.\n" +
			"With --new-uuid it is a store of its own: every volume's key is needed then, and the copy is\n" +
			"opened by the secrets that were given, and no others.\n" +
			"A served store is copied by its server, as it is at one moment, but not with --new-uuid.",
		Flags: flags([]cli.Flag{
			&cli.BoolFlag{Name: "new-uuid", Usage: "give the copy an identity of its own"},
			cliutil.JSONFlag(),
		}, cliutil.OpenKeyFlags()),
		Action: cliutil.Action(2, 2, cliutil.FirstArg, runCopy),
	}
}

type copyResult struct {
	cliutil.Header
	Store       string `json:"store"`
	Destination string `json:"destination"`
	NewUUID     bool   `json:"new_uuid"`
}

func runCopy(ctx context.Context, env *cliutil.Env, c *cli.Context) (err error) {
	path, err := cliutil.StoreOnly(c.Args().First())
	if err != nil {
		return err
	}
	dst, err := cliutil.StoreOnly(c.Args().Get(1))
	if err != nil {
		return err
	}
	if err := mustNotExist(dst); err != nil { // nor lie in a store
		return fmt.Errorf("%s: %w", dst, err)
	}
	o := volume.CopyOptions{NewUUID: c.Bool("new-uuid")}
	how := forReading
	if o.NewUUID {
		how = forWriting
	}
	st, err := env.OpenStore(path, how)
	if errors.Is(err, volume.ErrBusy) {
		return copyServed(ctx, env, c, path, dst, err)
	}
	if err != nil {
		return err
	}
	defer closeStore(st, &err)
	if o.NewUUID {
		if o.Secrets, err = env.OpenKeys(ctx, c, path, st.Keyring().HasClearSlot()); err != nil {
			return err
		}
		isClear := func(s cliutil.Secret) bool { return s.Type() == crypt.SlotClear }
		if st.Keyring().HasClearSlot() && !slices.ContainsFunc(o.Secrets, isClear) {
			o.Secrets = append(o.Secrets, cliutil.ClearSecret()...) // what anyone can open stays so
		}
		defer cliutil.WipeSecrets(o.Secrets)
		if err := cliutil.Unlock(st, o.Secrets); err != nil {
			return err
		}
	}
	p := env.NewProgress("copy", 0)
	o.Progress = p.Set
	err = st.CopyTo(ctx, dst, o)
	p.Stop()
	if err != nil {
		return err
	}
	return reportCopy(env, c, path, dst)
}

func reportCopy(env *cliutil.Env, c *cli.Context, path, dst string) error {
	env.Say("%s: copied to %s", path, dst)
	if c.Bool("json") {
		return env.PrintJSON(copyResult{cliutil.NewHeader("fsximg.copy"), path, dst, c.Bool("new-uuid")})
	}
	return nil
}

// copyServed has the server of a store copy it. Another UUID needs the keys here.
func copyServed(ctx context.Context, env *cliutil.Env, c *cli.Context, path, dst string, busy error) (err error) {
	server, err := dialServer(ctx, env, c, path, busy)
	if err != nil {
		return err
	}
	defer closeOperations(server, &err)
	if c.Bool("new-uuid") {
		return cliutil.ReplaceHint(busy, "copy it without --new-uuid, and that copy with it")
	}
	abs, err := filepath.Abs(dst)
	if err != nil {
		return err
	}
	p := env.NewProgress("copy", 0)
	err = server.Copy(ctx, abs, p.Set)
	p.Stop()
	if err != nil {
		return err
	}
	return reportCopy(env, c, path, dst)
}
