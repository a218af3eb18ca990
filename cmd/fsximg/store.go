package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/fsximg/fsx/internal/cliutil"
	"github.com/fsximg/fsx/internal/volume"
	"github.com/urfave/cli/v2"
)

// access is how a command opens a store.
type access bool

const (
	forReading access = true
	forWriting access = false
)

// openStore opens a store without a key.
func openStore(env *cliutil.Env, path string, how access) (*volume.Store, error) {
	st, err := volume.Open(path, volume.Options{ReadOnly: bool(how), Program: env.Program, Log: env.Log})
	switch {
	case err == nil:
		return st, nil
	case errors.Is(err, fs.ErrNotExist) && !errors.Is(err, volume.ErrDamaged):
		return nil, cliutil.Errorf(cliutil.ErrNotFound, "no such store")
	case errors.Is(err, volume.ErrBusy):
		return nil, cliutil.WithHint(err, "stop that process, or wait until it is done")
	case errors.Is(err, volume.ErrVersion):
		return nil, cliutil.WithHint(err, "it was made by another version of fsximg; this is %s --version", env.Program)
	}
	return nil, err
}

// openUnlocked opens a store and unlocks it with the keys that the options
// name, or that are asked for.
func openUnlocked(ctx context.Context, env *cliutil.Env, c *cli.Context, path string, how access) (*volume.Store, error) {
	return openWith(env, path, how, func(st *volume.Store) ([]cliutil.Secret, error) {
		return env.OpenKeys(ctx, c, path, st.Keyring().HasClearSlot())
	})
}

// openWithGivenKeys opens a store for a command that does more with a key than
// without: it takes the keys that are named and a clear slot, and asks nobody.
func openWithGivenKeys(env *cliutil.Env, c *cli.Context, path string, how access) (*volume.Store, error) {
	return openWith(env, path, how, func(st *volume.Store) ([]cliutil.Secret, error) {
		secrets, err := env.GivenKeys(c, path)
		if err == nil && len(secrets) == 0 && st.Keyring().HasClearSlot() {
			secrets = cliutil.ClearSecret()
		}
		return secrets, err
	})
}

// openWith opens a store and unlocks it with the secrets that there are.
func openWith(env *cliutil.Env, path string, how access, find func(*volume.Store) ([]cliutil.Secret, error)) (*volume.Store, error) {
	st, err := openStore(env, path, how)
	if err != nil {
		return nil, err
	}
	secrets, err := find(st)
	if err == nil && len(secrets) > 0 {
		err = unlock(st, secrets)
		cliutil.WipeSecrets(secrets)
	}
	if err != nil {
		st.Close()
		return nil, err
	}
	return st, nil
}

func unlock(st *volume.Store, secrets []cliutil.Secret) error {
	err := st.Unlock(secrets)
	if errors.Is(err, volume.ErrWrongKey) {
		err = cliutil.WithHint(err, "fsximg info %s shows what kinds of keys open it", st.Path())
	}
	return err
}

// closeStore closes a store; its error counts if there is no other.
func closeStore(st *volume.Store, err *error) {
	if closeErr := st.Close(); closeErr != nil && *err == nil {
		*err = fmt.Errorf("close store: %w", closeErr)
	}
}

// openVolume opens the volume that ref names.
func openVolume(st *volume.Store, ref cliutil.Ref) (*volume.Volume, error) {
	if ref.Snapshot != "" {
		return nil, cliutil.Errorf(cliutil.ErrNotFound, "no such snapshot: %s", ref.Snapshot)
	}
	return st.Volume(ref.VolumeOrDefault())
}

// noteReplay says that a store was not closed, and what that means for what is
// shown of it.
func noteReplay(env *cliutil.Env, volumes []volume.VolumeInfo) (needed bool) {
	for _, v := range volumes {
		needed = needed || v.NeedsReplay
	}
	if needed {
		env.Say("%s: needs replay: the store was not closed cleanly; this is its state at the last checkpoint", env.Program)
	}
	return needed
}
