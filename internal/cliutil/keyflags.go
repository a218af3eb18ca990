package cliutil

import (
	"context"
	"fmt"
	"math"
	"os"
	"slices"

	"github.com/fsximg/fsx/pkg/crypt"
	"github.com/urfave/cli/v2"
)

// OpenKeyFlags are the options of commands that open a volume key.
func OpenKeyFlags() []cli.Flag {
	return slices.Concat(fileKeyFlags(), ageOpenFlags(), tpmFlags("", false), TrustFlags())
}

// fileKeyFlags are the options that open a slot and make one alike.
func fileKeyFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringSliceFlag{Name: "passphrase-file", Usage: "passphrase in `FILE` (- is stdin); may be repeated"},
		&cli.StringSliceFlag{Name: "key-file", Usage: "32 to 64 random bytes in `FILE`, mode 0600; may be repeated"},
		&cli.StringSliceFlag{Name: "recovery-key-file", Usage: "recovery key in `FILE` (- is stdin); may be repeated"},
	}
}

// CreateKeyFlags are the options of commands that make a volume key: each adds
// a slot.
func CreateKeyFlags() []cli.Flag {
	return append(slices.Concat(fileKeyFlags(), ageCreateFlags(), tpmFlags("", true), TrustFlags()),
		&cli.BoolFlag{Name: "recovery-key", Usage: "add a slot for a new recovery key and print it on stdout"},
		&cli.StringFlag{Name: "recovery-key-out", Usage: "add a slot for a new recovery key and write it to the new `FILE`"},
		&cli.BoolFlag{Name: "clear-key", Usage: "add a slot that anyone can open"},
		&cli.StringFlag{Name: "kdf-memory", Usage: "memory of the passphrase derivation, `SIZE` (default 64M)"},
		&cli.UintFlag{Name: "kdf-time", Usage: "passes of the passphrase derivation", DefaultText: "3"})
}

// NewKeys is what CreateKeyFlags ask for.
type NewKeys struct {
	Secrets []crypt.Secret // one slot each
	KDF     crypt.KDF
	// RecoveryKey is the new recovery key's text, empty when none was asked
	// for. It has been written to --recovery-key-out already.
	RecoveryKey string
	// PrintRecoveryKey is whether it is to be printed on stdout.
	PrintRecoveryKey bool
	// Clear is whether anyone can open the store.
	Clear bool
	undo  []func()
}

// Wipe forgets the secrets.
func (k *NewKeys) Wipe() { WipeSecrets(k.Secrets) }

// Keep says that the store is made: what was written for it stays, whatever
// fails from now on.
func (k *NewKeys) Keep() { k.undo = nil }

// Abandon removes what was written for a store that was not made after all.
func (k *NewKeys) Abandon() {
	for _, f := range k.undo {
		f()
	}
	k.undo = nil
}

// WipeSecrets forgets secrets.
func WipeSecrets(secrets []crypt.Secret) {
	for _, s := range secrets {
		s.Wipe()
	}
}

// NewKeys reads what CreateKeyFlags ask for; store is the path of the store to
// be made. Without any option systemd's credentials are taken, or a terminal
// is asked for a passphrase, twice; without a terminal that is a usage error.
func (e *Env) NewKeys(ctx context.Context, c *cli.Context, store string) (keys *NewKeys, err error) {
	k := &NewKeys{Clear: c.Bool("clear-key")}
	defer func() {
		if err != nil {
			k.Wipe()
			k.Abandon()
		}
	}()
	if k.KDF, err = kdfFlags(c); err != nil {
		return nil, err
	}
	if k.Secrets, err = e.flagSecrets(c); err != nil {
		return nil, err
	}
	if k.Clear {
		k.Secrets = append(k.Secrets, crypt.NewClear())
	}
	if err = k.addRecoveryKey(c); err != nil {
		return nil, err
	}
	if len(k.Secrets) == 0 {
		if k.Secrets, err = credentials(store); err != nil {
			return nil, err
		}
	}
	if len(k.Secrets) == 0 {
		if k.Secrets, err = e.askNewPassphrase(ctx, store); err != nil {
			return nil, err
		}
	}
	return k, nil
}

func kdfFlags(c *cli.Context) (crypt.KDF, error) {
	var kdf crypt.KDF
	if !c.IsSet("kdf-memory") && !c.IsSet("kdf-time") {
		return kdf, nil
	}
	kdf = crypt.KDF{MemoryKiB: 64 << 10, Passes: 3, Lanes: 4}
	if s := c.String("kdf-memory"); s != "" {
		n, err := parseBytes(s)
		if err != nil {
			return kdf, fmt.Errorf("--kdf-memory: %w", err)
		}
		kdf.MemoryKiB = uint32(min(n>>10, math.MaxUint32))
	}
	if c.IsSet("kdf-time") {
		kdf.Passes = uint32(min(c.Uint("kdf-time"), math.MaxUint32))
	}
	return kdf, nil
}

func (k *NewKeys) addRecoveryKey(c *cli.Context) error {
	out := c.String("recovery-key-out")
	k.PrintRecoveryKey = c.Bool("recovery-key") && out == ""
	if !c.Bool("recovery-key") && out == "" {
		return nil
	}
	secret, text, err := crypt.NewRecoveryKey()
	if err != nil {
		return fmt.Errorf("make recovery key: %w", err)
	}
	k.Secrets = append(k.Secrets, secret)
	k.RecoveryKey = text
	if out == "" {
		return nil
	}
	undo, err := writeSecretFile("recovery-key-out", out, text+"\n")
	if err != nil {
		return err
	}
	k.undo = append(k.undo, undo)
	return nil
}

func (e *Env) askNewPassphrase(ctx context.Context, store string) ([]crypt.Secret, error) {
	tty, release, ok := e.openTerminal()
	if !ok {
		return nil, WithHint(UsageErrorf("no key given, and no terminal to ask for a passphrase"),
			"use --passphrase-file, --key-file, --recovery-key, --age-recipient, --tpm2 or --clear-key")
	}
	defer release()
	pass, err := e.askTwice(ctx, tty, store)
	if err != nil {
		return nil, err
	}
	defer clear(pass)
	return passphraseSecret(pass, "the passphrase")
}

// askTwice asks for a new passphrase. The caller clears it.
func (e *Env) askTwice(ctx context.Context, tty *os.File, store string) ([]byte, error) {
	first, err := e.askSecret(ctx, tty, fmt.Sprintf("New passphrase for %s: ", store))
	if err != nil {
		return nil, err
	}
	second, err := e.askSecret(ctx, tty, "Again: ")
	defer clear(second)
	if err == nil && string(first) != string(second) {
		err = Errorf(ErrNoSecret, "the two passphrases differ")
	}
	if err != nil {
		clear(first)
		return nil, err
	}
	return first, nil
}

// OpenKeys reads what OpenKeyFlags name, or systemd's credentials. hasClear
// says whether the store has a slot that anyone can open; it is used when
// nothing else was given. At last a terminal is asked for a passphrase;
// without one the error is ErrNoSecret.
func (e *Env) OpenKeys(ctx context.Context, c *cli.Context, store string, hasClear bool) ([]crypt.Secret, error) {
	secrets, err := e.GivenKeys(c, store)
	if err != nil || len(secrets) > 0 {
		return secrets, err
	}
	if hasClear {
		return []crypt.Secret{crypt.NewClear()}, nil
	}
	tty, release, ok := e.openTerminal()
	if !ok {
		return nil, WithHint(Errorf(ErrNoSecret, "%v", ErrNoSecret),
			"use --passphrase-file, --key-file, --recovery-key-file, --age-identity or --tpm2")
	}
	defer release()
	pass, err := e.askSecret(ctx, tty, fmt.Sprintf("Passphrase for %s: ", store))
	if err != nil {
		return nil, err
	}
	defer clear(pass)
	return passphraseSecret(pass, "the passphrase")
}

// GivenKeys reads what OpenKeyFlags name, or systemd's credentials, and asks
// nobody.
func (e *Env) GivenKeys(c *cli.Context, store string) ([]crypt.Secret, error) {
	secrets, err := e.flagSecrets(c)
	if err != nil || len(secrets) > 0 {
		return secrets, err
	}
	return credentials(store)
}

// claimKeyStdin notes a key option that reads stdin, before anything else
// wants it.
func (e *Env) claimKeyStdin(c *cli.Context) error {
	for _, name := range []string{"passphrase-file", "key-file", "recovery-key-file", "age-identity"} {
		for _, path := range c.StringSlice(name) {
			if path != "-" {
				continue
			}
			if err := e.ClaimStdin("--" + name); err != nil {
				return err
			}
		}
	}
	for _, name := range []string{"tpm2-pin-file"} {
		if c.String(name) != "-" {
			continue
		}
		if err := e.ClaimStdin("--" + name); err != nil {
			return err
		}
	}
	return nil
}

// NamesKeys says whether one of OpenKeyFlags was given.
func NamesKeys(c *cli.Context) bool {
	return c.IsSet("passphrase-file") || c.IsSet("key-file") || c.IsSet("recovery-key-file") ||
		c.IsSet("age-identity") || c.IsSet("tpm2")
}

// flagSecrets reads what the options that name keys say, in the order
// passphrases, key files, recovery keys, age, TPM.
func (e *Env) flagSecrets(c *cli.Context) (secrets []crypt.Secret, err error) {
	if err := e.claimKeyStdin(c); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			WipeSecrets(secrets)
			secrets = nil
		}
	}()
	for _, kind := range []struct {
		flag string
		read func(path string) ([]crypt.Secret, error)
	}{
		{"passphrase-file", e.readPassphrase},
		{"key-file", e.readKeyFile},
		{"recovery-key-file", e.readRecoveryKey},
	} {
		for _, path := range c.StringSlice(kind.flag) {
			s, err := kind.read(path)
			if err != nil {
				return secrets, keyError("--"+kind.flag+" "+path, err)
			}
			secrets = append(secrets, s...)
		}
	}
	for _, read := range []func(*cli.Context) ([]crypt.Secret, error){e.ageSecrets, e.tpmSecret} {
		s, err := read(c)
		secrets = append(secrets, s...)
		if err != nil {
			return secrets, err
		}
	}
	return secrets, nil
}

// keyError names where a secret came from. What could not be read at all is a
// missing key.
func keyError(where string, err error) error {
	if ExitCode(err) != ExitFailed {
		return fmt.Errorf("%s: %w", where, err)
	}
	return WithHint(Errorf(ErrNoSecret, "%s: %v", where, err), "%s", hintOf(err))
}

// Secret is what opens a slot.
type Secret = crypt.Secret

// ClearSecret opens slots that anyone can open.
func ClearSecret() []Secret { return []Secret{crypt.NewClear()} }
