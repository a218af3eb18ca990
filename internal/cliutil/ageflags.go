package cliutil

import (
	"errors"
	"fmt"

	"github.com/fsximg/fsx/pkg/crypt"
	"github.com/fsximg/fsx/pkg/crypt/ageslot"
	"github.com/urfave/cli/v2"
)

func ageOpenFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringSliceFlag{Name: "age-identity", Usage: "age identities or an ssh private key in `FILE` (- is stdin); may be repeated"},
	}
}

func ageCreateFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringSliceFlag{Name: "age-recipient", Usage: "add a slot for an age `RECIPIENT` (age1… or an ssh public key); may be repeated"},
	}
}

// readIdentity reads an age identity file. As with age, others may be able to
// read it; there is a warning. If a passphrase protects it, the terminal is
// asked for that.
func (e *Env) readIdentity(c *cli.Context, path string) (crypt.Secret, error) {
	b, err := e.identityText(c, path)
	if err != nil {
		return nil, err
	}
	defer clear(b)
	return ageslot.NewIdentity(b, ageslot.Plugins{Say: e.Say})
}

// identityText is what readIdentity reads, without the protection. The caller
// clears it.
func (e *Env) identityText(c *cli.Context, path string) ([]byte, error) {
	b, err := e.readSecretUpTo(path, false, ageslot.MaxIdentityFile)
	if err != nil {
		return nil, err
	}
	e.warnIfReadable(path, "identity")
	s, err := ageslot.NewIdentity(b, ageslot.Plugins{Say: e.Say})
	if err == nil {
		s.Wipe()
		return b, nil
	}
	defer clear(b)
	if !errors.Is(err, ageslot.ErrProtected) {
		return nil, err
	}
	tty, release, ok := e.openTerminal()
	if !ok {
		return nil, WithHint(fmt.Errorf("%w, and there is no terminal to ask for it", err),
			"decrypt it into a pipe: fsximg … --age-identity <(age -d %s)", path)
	}
	defer release()
	pass, err := e.askSecret(c.Context, tty, fmt.Sprintf("Passphrase of %s: ", path))
	if err != nil {
		return nil, err
	}
	defer clear(pass)
	return ageslot.Unprotect(b, pass)
}

// ageSecrets are those of --age-recipient and --age-identity.
func (e *Env) ageSecrets(c *cli.Context) (secrets []crypt.Secret, err error) {
	for _, r := range c.StringSlice("age-recipient") {
		s, err := ageslot.NewRecipient(r, ageslot.Plugins{Say: e.Say})
		if err != nil {
			return secrets, fmt.Errorf("--age-recipient: %w", err)
		}
		secrets = append(secrets, s)
	}
	for _, path := range c.StringSlice("age-identity") {
		s, err := e.readIdentity(c, path)
		if err != nil {
			return secrets, keyError("--age-identity "+path, err)
		}
		secrets = append(secrets, s)
	}
	return secrets, nil
}
