package main

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/fsximg/fsx/internal/cliutil"
	"github.com/fsximg/fsx/internal/control"
	"github.com/fsximg/fsx/internal/volume"
	"github.com/urfave/cli/v2"
)

const (
	forReading = cliutil.ForReading
	forWriting = cliutil.ForWriting
)

// keyUse is what a command does with keys.
type keyUse int

const (
	noKeys    keyUse = iota
	givenKeys        // it does more with one: those named, and a clear slot; nobody is asked
	keysNeeded
)

// openUnlocked opens a store and unlocks it with the keys that the options
// name, or that are asked for.
func openUnlocked(ctx context.Context, env *cliutil.Env, c *cli.Context, path string, how cliutil.Access) (*volume.Store, error) {
	return openStore(ctx, env, c, path, how, keysNeeded)
}

func openStore(ctx context.Context, env *cliutil.Env, c *cli.Context, path string, how cliutil.Access, keys keyUse) (*volume.Store, error) {
	return openWith(env, path, how, func(st *volume.Store) ([]cliutil.Secret, error) {
		switch keys {
		case keysNeeded:
			return env.OpenKeys(ctx, c, path, st.Keyring().HasClearSlot())
		case givenKeys:
			secrets, err := env.GivenKeys(c, path)
			if err == nil && len(secrets) == 0 && st.Keyring().HasClearSlot() {
				secrets = cliutil.ClearSecret()
			}
			return secrets, err
		}
		return nil, nil
	})
}

// openOperations opens a store for a command that works on a served one, too:
// its server does it then, with the keys that it has.
func openOperations(ctx context.Context, env *cliutil.Env, c *cli.Context, path string, how cliutil.Access, keys keyUse) (control.Operations, error) {
	st, err := openStore(ctx, env, c, path, how, keys)
	if err == nil {
		return control.NewLocal(st, nil), nil
	}
	client, err := dialServer(ctx, env, c, path, err)
	if err != nil {
		return nil, err
	}
	return client, nil
}

// dialServer finds the server of a store that could not be opened, for the reason
// given; that is the error if there is none.
func dialServer(ctx context.Context, env *cliutil.Env, c *cli.Context, path string, reason error) (*control.Client, error) {
	if !errors.Is(reason, volume.ErrBusy) {
		return nil, reason
	}
	client, err := control.Dial(ctx, path)
	if control.NoServer(err) {
		return nil, reason
	}
	if err != nil {
		return nil, err
	}
	server := client.Server()
	env.Log.Info("the store is served: its server does this", "program", server.Program, "pid", server.PID)
	if cliutil.NamesKeys(c) {
		env.Log.Info("the server uses its own keys, not those that are named")
	}
	return client, nil
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

// closeOperations is closeStore of operations.
func closeOperations(o control.Operations, err *error) {
	if closeErr := o.Close(); *err == nil {
		*err = closeErr
	}
}

// openVolume opens the volume that ref names, or that has the snapshot.
func openVolume(st *volume.Store, ref cliutil.Ref) (*volume.Volume, error) {
	return st.Volume(ref.VolumeOrDefault())
}

// openInfo opens a store for a command that needs no key, and describes it.
func openInfo(ctx context.Context, env *cliutil.Env, c *cli.Context, path string) (control.Operations, control.Info, error) {
	o, info, err := openDescribed(ctx, env, c, path, forReading, noKeys)
	if err == nil {
		noteReplay(env, info.NeedsReplay)
	}
	return o, info, err
}

// openDescribed is openOperations of a command that has to know what there is.
func openDescribed(ctx context.Context, env *cliutil.Env, c *cli.Context, path string, how cliutil.Access, keys keyUse) (control.Operations, control.Info, error) {
	o, err := openOperations(ctx, env, c, path, how, keys)
	if err != nil {
		return nil, control.Info{}, err
	}
	info, err := o.Info(ctx)
	if err != nil {
		o.Close()
		return nil, info, err
	}
	return o, info, nil
}

// findVolume is the volume that ref names.
func findVolume(info control.Info, ref cliutil.Ref) (control.Volume, error) {
	i := slices.IndexFunc(info.Volumes, func(v control.Volume) bool { return v.Name == ref.VolumeOrDefault() })
	if i < 0 {
		return control.Volume{}, fmt.Errorf("volume %s: %w", ref.VolumeOrDefault(), volume.ErrNotFound)
	}
	return info.Volumes[i], nil
}

// findSnapshot is the snapshot that ref names.
func findSnapshot(info control.Info, ref cliutil.Ref) (control.Snapshot, error) {
	v, err := findVolume(info, ref)
	if err != nil {
		return control.Snapshot{}, err
	}
	i := slices.IndexFunc(v.Snapshots, func(s control.Snapshot) bool { return s.Name == ref.Snapshot })
	if i < 0 {
		return control.Snapshot{}, fmt.Errorf("%w: %s", volume.ErrNoSnapshot, ref.Snapshot)
	}
	return v.Snapshots[i], nil
}

// noteReplay says that a store was not closed, if so, and what that means for
// what is shown of it.
func noteReplay(env *cliutil.Env, needed bool) {
	if needed {
		env.Say("%s: needs replay: the store was not closed cleanly; this is its state at the last checkpoint", env.Program)
	}
}
