package cliutil

import (
	"errors"
	"io/fs"
	"path/filepath"
	"slices"

	"github.com/fsximg/fsx/internal/volume"
)

// Access is how a command opens a store.
type Access bool

const (
	ForReading Access = true
	ForWriting Access = false
)

// OpenStore opens a store; no key is needed yet.
func (e *Env) OpenStore(path string, how Access) (*volume.Store, error) {
	st, err := volume.Open(path, volume.Options{ReadOnly: bool(how), Program: e.Program, Log: e.Log, Trust: e.Trust()})
	switch {
	case err == nil:
		for name := range e.trust.epochs {
			if !slices.Contains(st.Names(), name) {
				st.Close()
				return nil, Errorf(ErrNotFound, "--expect-epoch: there is no volume %s", name)
			}
		}
		return st, nil
	case errors.Is(err, fs.ErrNotExist) && volume.IsStore(path):
		return nil, WithHint(Errorf(volume.ErrDamaged, "a part of the store is missing: %v", err), "fsximg key restore brings a keyring back from a backup")
	case errors.Is(err, fs.ErrNotExist) && !errors.Is(err, volume.ErrDamaged):
		return nil, Errorf(ErrNotFound, "no such store")
	case errors.Is(err, volume.ErrBusy):
		var busy *volume.BusyError
		if errors.As(err, &busy) && busy.Holder.Program == "fsxnbd" {
			return nil, WithHint(err, "a server has it: read and write it by the server's NBD URI (nbdcopy, qemu-img, fsximg compare), or stop the server")
		}
		return nil, WithHint(err, "stop that process, or wait until it is done")
	case errors.Is(err, volume.ErrVersion):
		return nil, WithHint(err, "it was made by another version of fsximg; this is %s --version", e.Program)
	}
	return nil, err
}

// NotInStore refuses to make or replace a file that would lie in a store's
// folder, or in one of the folders there: it may be what the store lives by.
func NotInStore(name string) error {
	dir, err := filepath.EvalSymlinks(filepath.Dir(name))
	if err != nil {
		return nil // there is no such folder, as whoever makes the file will find
	}
	if file, err := filepath.EvalSymlinks(name); err == nil {
		dir = filepath.Dir(file)
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return err
	}
	for ; ; dir = filepath.Dir(dir) {
		if volume.IsStore(dir) {
			return UsageErrorf("%s would lie inside a store", name)
		}
		if dir == filepath.Dir(dir) {
			return nil
		}
	}
}

// Unlock opens a store's volume keys, those too that anyone can open. Secrets that
// open nothing are an error all the same. It wipes nothing.
func Unlock(st *volume.Store, secrets []Secret) error {
	err := st.Unlock(secrets)
	if errors.Is(err, volume.ErrWrongKey) && adviceOn(err) == "" {
		err = WithHint(err, "fsximg info %s shows what kinds of keys open it", st.Path())
	}
	if err == nil && st.Keyring().HasClearSlot() {
		err = st.Unlock(ClearSecret())
	}
	return err
}
