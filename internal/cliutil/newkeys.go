package cliutil

import (
	"bytes"
	"context"
	"fmt"

	"github.com/fsximg/fsx/pkg/crypt"
	"github.com/urfave/cli/v2"
)

// NewKeyFlags are the options of commands that open one volume key and make
// another: each adds a slot to the new one.
func NewKeyFlags() []cli.Flag {
	return append([]cli.Flag{
		&cli.StringSliceFlag{Name: "new-passphrase-file", Usage: "add a slot for the passphrase in `FILE` (- is stdin)"},
		&cli.StringSliceFlag{Name: "new-key-file", Usage: "add a slot for the key in `FILE`, mode 0600"},
		&cli.BoolFlag{Name: "new-recovery-key", Usage: "add a slot for a new recovery key and print it on stdout"},
		&cli.StringFlag{Name: "new-recovery-key-out", Usage: "add a slot for a new recovery key and write it to the new `FILE`"},
		&cli.BoolFlag{Name: "new-clear-key", Usage: "add a slot that anyone can open"},
		&cli.StringSliceFlag{Name: "new-age-recipient", Usage: "add a slot for an age `RECIPIENT`; may be repeated"},
	}, tpmFlags("new-", true)...)
}

// SlotSecrets is what NewKeyFlags ask for. Its methods take a nil one, which has
// nothing.
type SlotSecrets struct {
	Secrets []SlotSecret // none: there is to be no new volume key

	recovery string // a new recovery key's text, if it is to be printed
	undo     func()
}

// SlotSecrets reads what NewKeyFlags ask for. The caller calls Done at the end.
func (e *Env) SlotSecrets(c *cli.Context) (_ *SlotSecrets, err error) {
	s := &SlotSecrets{}
	defer func() {
		if err != nil {
			s.Done(err)
		}
	}()
	for _, kind := range []struct {
		flag    string
		typ     crypt.SlotType
		private bool
	}{{"new-passphrase-file", crypt.SlotPassphrase, false}, {"new-key-file", crypt.SlotKeyFile, true}} {
		for _, path := range c.StringSlice(kind.flag) {
			if path == "-" {
				if err := e.ClaimStdin("--" + kind.flag); err != nil {
					return nil, err
				}
			}
			secret, err := e.readSlotSecret(path, kind.typ, kind.private)
			if err != nil {
				return nil, keyError("--"+kind.flag+" "+path, err)
			}
			s.Secrets = append(s.Secrets, secret)
		}
	}
	if c.Bool("new-clear-key") {
		e.Warn("--new-clear-key: anyone who has the store can read the volume, and what it shares")
		s.Secrets = append(s.Secrets, SlotSecret{Type: crypt.SlotClear.String()})
	}
	if err := s.addAge(c); err != nil {
		return nil, err
	}
	if err := s.addTPM(e, c); err != nil {
		return nil, err
	}
	return s, s.addRecoveryKey(c)
}

func (s *SlotSecrets) addAge(c *cli.Context) error {
	for _, r := range c.StringSlice("new-age-recipient") {
		slot := SlotSecret{Type: crypt.SlotAge.String(), Data: []byte(r)}
		secret, err := slot.Secret()
		if err != nil {
			return fmt.Errorf("--new-age-recipient: %w", err)
		}
		secret.Wipe()
		s.Secrets = append(s.Secrets, slot)
	}
	return nil
}

func (s *SlotSecrets) addTPM(e *Env, c *cli.Context) error {
	if c.String("new-tpm2-pin-file") == "-" {
		if err := e.ClaimStdin("--new-tpm2-pin-file"); err != nil {
			return err
		}
	}
	t, pin, err := e.tpmFlagValues(c, "new-")
	if err != nil || t == nil {
		return err
	}
	s.Secrets = append(s.Secrets, SlotSecret{Type: crypt.SlotTPM2.String(), Data: pin, TPM2: t})
	return nil
}

// readSlotSecret reads a file, and finds out now whether a slot can be made of it.
func (e *Env) readSlotSecret(path string, typ crypt.SlotType, private bool) (SlotSecret, error) {
	b, err := e.readSecret(path, private)
	if err != nil {
		return SlotSecret{}, err
	}
	if typ == crypt.SlotPassphrase && len(b) > 0 && b[len(b)-1] == '\n' {
		b = b[:len(b)-1]
	}
	if typ == crypt.SlotRecoveryKey {
		b = bytes.TrimSpace(b)
	}
	s := SlotSecret{Type: typ.String(), Data: b}
	secret, err := s.Secret()
	if err != nil {
		s.Wipe()
		return SlotSecret{}, err
	}
	secret.Wipe()
	return s, nil
}

func (s *SlotSecrets) addRecoveryKey(c *cli.Context) error {
	out := c.String("new-recovery-key-out")
	if !c.Bool("new-recovery-key") && out == "" {
		return nil
	}
	secret, text, err := crypt.NewRecoveryKey()
	if err != nil {
		return fmt.Errorf("make recovery key: %w", err)
	}
	secret.Wipe()
	s.Secrets = append(s.Secrets, SlotSecret{Type: crypt.SlotRecoveryKey.String(), Data: []byte(text)})
	if out == "" {
		s.recovery = text
		return nil
	}
	s.undo, err = writeSecretFile("new-recovery-key-out", out, text+"\n")
	return err
}

// Any says whether there is to be a new volume key.
func (s *SlotSecrets) Any() bool { return s != nil && len(s.Secrets) > 0 }

// Keep says that the slots are made: what was written for them stays.
func (s *SlotSecrets) Keep() { s.undo = nil }

// Done forgets the secrets, and after an error what was written for slots that were
// not made.
func (s *SlotSecrets) Done(err error) {
	for i := range s.Secrets {
		s.Secrets[i].Wipe()
	}
	if err != nil && s.undo != nil {
		s.undo()
	}
}

// Shown is the recovery key that is to be shown, if one is.
func (s *SlotSecrets) Shown() string {
	if s == nil {
		return ""
	}
	return s.recovery
}

// Print prints the new recovery key, if that was asked for, alone on stdout.
func (s *SlotSecrets) Print(e *Env) error {
	if s.Shown() == "" {
		return nil
	}
	e.Say("The recovery key opens the volume when all else is lost. It is shown only now; keep it in a safe place:")
	_, err := fmt.Fprintln(e.Stdout, s.recovery)
	return err
}

// AskNewSlot asks a terminal for a passphrase, twice, if no option names a new slot. It
// says whether there is one now.
func (e *Env) AskNewSlot(ctx context.Context, s *SlotSecrets, store string) (bool, error) {
	if s.Any() {
		return true, nil
	}
	tty, release, ok := e.openTerminal()
	if !ok {
		return false, nil
	}
	defer release()
	pass, err := e.askTwice(ctx, tty, store)
	if err != nil {
		return false, err
	}
	s.Secrets = append(s.Secrets, SlotSecret{Type: crypt.SlotPassphrase.String(), Data: pass})
	secret, err := s.Secrets[0].Secret()
	if err != nil {
		return false, err
	}
	secret.Wipe()
	return true, nil
}
