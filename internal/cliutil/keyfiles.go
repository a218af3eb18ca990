package cliutil

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/fsximg/fsx/pkg/crypt"
	"golang.org/x/sys/unix"
)

// maxSecretFile bounds what is read of a file that holds a secret.
const maxSecretFile = 8 << 10

// OpenInput opens a file for reading; "-" is stdin. Descriptors are taken
// directly: a process that may not be dumped cannot open its own /dev/fd.
func (e *Env) OpenInput(path string) (*os.File, error) {
	if path == "-" || path == "/dev/stdin" {
		return e.Stdin, nil
	}
	for _, prefix := range []string{"/dev/fd/", "/proc/self/fd/"} {
		rest, ok := strings.CutPrefix(path, prefix)
		if !ok {
			continue
		}
		n, err := strconv.ParseUint(rest, 10, 31)
		if err != nil {
			return nil, fmt.Errorf("%q is not a descriptor", rest)
		}
		fd, err := unix.FcntlInt(uintptr(n), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			return nil, fmt.Errorf("descriptor %d: %w", n, err)
		}
		return os.NewFile(uintptr(fd), path), nil
	}
	return os.Open(path)
}

// readSecret reads a file with a secret; private asks for mode 0600 or
// stricter of ordinary files. The caller clears the bytes.
func (e *Env) readSecret(path string, private bool) ([]byte, error) {
	return e.readSecretUpTo(path, private, maxSecretFile)
}

func (e *Env) readSecretUpTo(path string, private bool, limit int) ([]byte, error) {
	f, err := e.OpenInput(path)
	if err != nil {
		return nil, bareError(err)
	}
	if f != e.Stdin {
		defer f.Close()
	} else if isTerminal(f) {
		return e.askSecret(e.ctx, f, "Secret for "+e.stdinFor+" (not shown): ")
	}
	st, err := f.Stat()
	if err != nil {
		return nil, bareError(err)
	}
	if st.IsDir() {
		return nil, unix.EISDIR
	}
	if private && st.Mode().IsRegular() && st.Mode().Perm()&0o077 != 0 {
		return nil, WithHint(fmt.Errorf("others may read it (mode %04o)", st.Mode().Perm()), "chmod 600 %s", path)
	}
	buf := make([]byte, limit+1)
	n, err := io.ReadFull(f, buf)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		clear(buf)
		return nil, bareError(err)
	}
	if n > limit {
		clear(buf)
		return nil, fmt.Errorf("more than %d bytes", limit)
	}
	return buf[:n], nil
}

// bareError drops the operation and path of a file error: the message names
// them already.
func bareError(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

func (e *Env) readPassphrase(path string) ([]crypt.Secret, error) {
	b, err := e.readSecret(path, false)
	if err != nil {
		return nil, err
	}
	defer clear(b)
	e.warnIfReadable(path, "passphrase")
	return passphraseSecret(bytes.TrimSuffix(b, []byte("\n")), "it")
}

// warnIfReadable warns of an ordinary file that others may read.
func (e *Env) warnIfReadable(path, what string) {
	if st, err := os.Stat(path); err == nil && st.Mode().IsRegular() && st.Mode().Perm()&0o077 != 0 {
		e.Warn("others may read the %s in %s (mode %#o): chmod 600 %s", what, path, st.Mode().Perm(), path)
	}
}

func passphraseSecret(b []byte, what string) ([]crypt.Secret, error) {
	if len(b) == 0 {
		return nil, Errorf(ErrUsage, "%s is empty", what)
	}
	s, err := crypt.NewPassphrase(b)
	if err != nil {
		return nil, err
	}
	return []crypt.Secret{s}, nil
}

func (e *Env) readKeyFile(path string) ([]crypt.Secret, error) {
	b, err := e.readSecret(path, true)
	if err != nil {
		return nil, err
	}
	defer clear(b)
	return keyFileSecret(b)
}

func keyFileSecret(b []byte) ([]crypt.Secret, error) {
	s, err := crypt.NewKeyFile(b)
	switch {
	case errors.Is(err, crypt.ErrPrintableKeyFile):
		return nil, WithHint(err, "for a passphrase use --passphrase-file; make a key with: head -c 32 /dev/urandom")
	case err != nil:
		return nil, err
	}
	return []crypt.Secret{s}, nil
}

func (e *Env) readRecoveryKey(path string) ([]crypt.Secret, error) {
	b, err := e.readSecret(path, false)
	if err != nil {
		return nil, err
	}
	defer clear(b)
	s, err := crypt.ParseRecoveryKey(strings.TrimSpace(string(b)))
	if err != nil {
		return nil, err
	}
	return []crypt.Secret{s}, nil
}

// credentials are the secrets that systemd passed to the service: fsx.NAME.*
// for the store called NAME, and fsx.* for all. Their mode says nothing: systemd
// gives them to the service's user by an access control list, which shows as
// permissions of the group.
func credentials(store string) (secrets []crypt.Secret, err error) {
	dir := os.Getenv("CREDENTIALS_DIRECTORY")
	if dir == "" {
		return nil, nil
	}
	var e Env
	for _, prefix := range []string{"fsx." + StoreBase(store) + ".", "fsx."} {
		for _, kind := range []struct {
			name string
			make func([]byte) ([]crypt.Secret, error)
		}{
			{"passphrase", func(b []byte) ([]crypt.Secret, error) {
				return passphraseSecret(bytes.TrimSuffix(b, []byte("\n")), "it")
			}},
			{"key", keyFileSecret},
		} {
			b, err := e.readSecret(filepath.Join(dir, prefix+kind.name), false)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			var s []crypt.Secret
			if err == nil {
				s, err = kind.make(b)
				clear(b)
			}
			if err != nil {
				WipeSecrets(secrets)
				return nil, keyError("credential "+prefix+kind.name, err)
			}
			secrets = append(secrets, s...)
		}
	}
	return secrets, nil
}

// writeSecretFile writes a new file, which option names, that only its owner can read,
// durably.
// undo removes it.
func writeSecretFile(option, path, text string) (undo func(), err error) {
	if err := NotInStore(path); err != nil {
		return nil, fmt.Errorf("--%s: %w", option, err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("--%s %s: %w", option, path, bareError(err))
	}
	_, err = f.WriteString(text)
	err = errors.Join(err, f.Sync(), f.Close())
	if err != nil {
		os.Remove(path)
		return nil, fmt.Errorf("--%s %s: %w", option, path, err)
	}
	return func() { os.Remove(path) }, nil
}
