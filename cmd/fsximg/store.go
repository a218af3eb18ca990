package main

import (
	"context"
	"fmt"

	"github.com/fsximg/fsx/internal/cliutil"
	"github.com/fsximg/fsx/internal/convert"
	"github.com/fsximg/fsx/internal/volume"
	"github.com/urfave/cli/v2"
)

const (
	forReading = cliutil.ForReading
	forWriting = cliutil.ForWriting
)

// openUnlocked opens a store and unlocks it with the keys that the options
// name, or that are asked for.
func openUnlocked(ctx context.Context, env *cliutil.Env, c *cli.Context, path string, how cliutil.Access) (*volume.Store, error) {
	return openWith(env, path, how, func(st *volume.Store) ([]cliutil.Secret, error) {
		return env.OpenKeys(ctx, c, path, st.Keyring().HasClearSlot())
	})
}

// openWithGivenKeys opens a store for a command that does more with a key than
// without: it takes the keys that are named and a clear slot, and asks nobody.
func openWithGivenKeys(env *cliutil.Env, c *cli.Context, path string, how cliutil.Access) (*volume.Store, error) {
	return openWith(env, path, how, func(st *volume.Store) ([]cliutil.Secret, error) {
		secrets, err := env.GivenKeys(c, path)
		if err == nil && len(secrets) == 0 && st.Keyring().HasClearSlot() {
			secrets = cliutil.ClearSecret()
		}
		return secrets, err
	})
}

// openWith opens a store and unlocks it with the secrets that there are.
func openWith(env *cliutil.Env, path string, how cliutil.Access, find func(*volume.Store) ([]cliutil.Secret, error)) (*volume.Store, error) {
	st, err := env.OpenStore(path, how)
	if err != nil {
		return nil, err
	}
	secrets, err := find(st)
	if err == nil && len(secrets) > 0 {
		err = cliutil.Unlock(st, secrets)
		cliutil.WipeSecrets(secrets)
	}
	if err != nil {
		st.Close()
		return nil, err
	}
	return st, nil
}

// closeStore closes a store; its error counts if there is no other.
func closeStore(st *volume.Store, err *error) {
	if closeErr := st.Close(); closeErr != nil && *err == nil {
		*err = fmt.Errorf("close store: %w", closeErr)
	}
}

// device is a volume or a snapshot.
type device interface {
	convert.Device
	Name() string
}

// openDevice opens the volume or the snapshot that ref names.
func openDevice(st *volume.Store, ref cliutil.Ref) (device, error) {
	v, err := openVolume(st, ref)
	if err != nil || ref.Snapshot == "" {
		return v, err
	}
	return v.Snapshot(ref.Snapshot)
}

// openVolume opens the volume that ref names, or that has the snapshot.
func openVolume(st *volume.Store, ref cliutil.Ref) (*volume.Volume, error) {
	return st.Volume(ref.VolumeOrDefault())
}

// openVolumes opens a store for a command that needs no key, and describes its
// volumes.
func openVolumes(env *cliutil.Env, path string) (*volume.Store, []volume.VolumeInfo, error) {
	st, err := env.OpenStore(path, forReading)
	if err != nil {
		return nil, nil, err
	}
	volumes, err := st.Volumes()
	if err != nil {
		st.Close()
		return nil, nil, err
	}
	noteReplay(env, volumes)
	return st, volumes, nil
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
