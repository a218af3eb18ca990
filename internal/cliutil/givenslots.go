package cliutil

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/fsximg/fsx/pkg/crypt"
	"github.com/urfave/cli/v2"
)

// OpenSlotSecrets is OpenKeys in the form in which secrets go to a server, which
// opens slots with them. The caller calls Done at the end.
func (e *Env) OpenSlotSecrets(ctx context.Context, c *cli.Context, store string, hasClear bool) (_ *SlotSecrets, err error) {
	if err := e.claimKeyStdin(c); err != nil {
		return nil, err
	}
	s := &SlotSecrets{}
	defer func() {
		if err != nil {
			s.Done(err)
		}
	}()
	if err := e.addGivenSecrets(c, s); err != nil {
		return nil, err
	}
	if len(s.Secrets) == 0 {
		if err := e.addCredentials(store, s); err != nil {
			return nil, err
		}
	}
	switch {
	case len(s.Secrets) > 0:
	case hasClear:
		s.Secrets = append(s.Secrets, SlotSecret{Type: crypt.SlotClear.String()})
	default:
		return s, e.addAsked(ctx, store, s)
	}
	return s, nil
}

func (e *Env) addGivenSecrets(c *cli.Context, s *SlotSecrets) error {
	for _, kind := range []struct {
		flag    string
		typ     crypt.SlotType
		private bool
	}{
		{"passphrase-file", crypt.SlotPassphrase, false},
		{"key-file", crypt.SlotKeyFile, true},
		{"recovery-key-file", crypt.SlotRecoveryKey, false},
	} {
		for _, path := range c.StringSlice(kind.flag) {
			secret, err := e.readSlotSecret(path, kind.typ, kind.private)
			if err != nil {
				return keyError("--"+kind.flag+" "+path, err)
			}
			s.Secrets = append(s.Secrets, secret)
		}
	}
	for _, path := range c.StringSlice("age-identity") {
		b, err := e.identityText(c, path)
		if err != nil {
			return keyError("--age-identity "+path, err)
		}
		s.Secrets = append(s.Secrets, SlotSecret{Type: ageIdentity, Data: b})
	}
	tpm, pin, err := e.tpmFlagValues(c, "")
	if err == nil && tpm != nil {
		s.Secrets = append(s.Secrets, SlotSecret{Type: crypt.SlotTPM2.String(), Data: pin, TPM2: tpm})
	}
	return err
}

// addCredentials adds what systemd passed to the service, as credentials does.
func (e *Env) addCredentials(store string, s *SlotSecrets) error {
	dir := os.Getenv("CREDENTIALS_DIRECTORY")
	if dir == "" {
		return nil
	}
	for _, prefix := range []string{"fsx." + StoreBase(store) + ".", "fsx."} {
		for name, typ := range map[string]crypt.SlotType{"passphrase": crypt.SlotPassphrase, "key": crypt.SlotKeyFile} {
			secret, err := e.readSlotSecret(filepath.Join(dir, prefix+name), typ, typ == crypt.SlotKeyFile)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return keyError("credential "+prefix+name, err)
			}
			s.Secrets = append(s.Secrets, secret)
		}
	}
	return nil
}

// addAsked asks a terminal for a passphrase.
func (e *Env) addAsked(ctx context.Context, store string, s *SlotSecrets) error {
	tty, release, ok := e.openTerminal()
	if !ok {
		return WithHint(Errorf(ErrNoSecret, "%v", ErrNoSecret), "use --passphrase-file, --key-file, --recovery-key-file, --age-identity or --tpm2")
	}
	defer release()
	pass, err := e.askSecret(ctx, tty, fmt.Sprintf("Passphrase for %s: ", store))
	if err != nil {
		return err
	}
	if len(pass) == 0 {
		return Errorf(ErrUsage, "the passphrase is empty")
	}
	s.Secrets = append(s.Secrets, SlotSecret{Type: crypt.SlotPassphrase.String(), Data: bytes.Clone(pass)})
	clear(pass)
	return nil
}
