package ageslot

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"filippo.io/age"
	"filippo.io/age/agessh"
	"filippo.io/age/armor"
	"filippo.io/age/plugin"
	"github.com/fsximg/fsx/pkg/crypt"
	"golang.org/x/crypto/ssh"
)

// MaxIdentityFile is the longest identity file, in bytes.
const MaxIdentityFile = 64 << 10

// NewIdentity opens slots with the identities of a file as age has them:
// AGE-SECRET-KEY-1…, AGE-SECRET-KEY-PQ-1… and AGE-PLUGIN-… lines with comments
// between them, or one ssh private key. The content is copied into locked
// memory and read anew for each slot. Errors: ErrIdentity, ErrProtected.
func NewIdentity(content []byte, p Plugins) (crypt.Secret, error) {
	i := &identity{plugins: p}
	if _, _, err := i.parse(content); err != nil {
		return nil, err
	}
	return crypt.NewWrapped(crypt.SlotAge, content, i), nil
}

// identity is a crypt.Wrapper that only unwraps; its secret is the file.
type identity struct {
	plugins Plugins
	stuck   error // a plugin did not answer: it is not waited for again
}

// parse also returns the names of the plugins that the identities need.
func (i *identity) parse(content []byte) (ids []age.Identity, plugins []string, err error) {
	switch {
	case len(content) > MaxIdentityFile:
		return nil, nil, fmt.Errorf("more than %d bytes: %w", MaxIdentityFile, ErrIdentity)
	case isEncrypted(content):
		return nil, nil, ErrProtected
	case bytes.Contains(content, []byte("-----BEGIN")):
		id, err := agessh.ParseIdentity(content)
		var missing *ssh.PassphraseMissingError
		switch {
		case errors.As(err, &missing):
			return nil, nil, ErrProtected
		case err != nil:
			return nil, nil, fmt.Errorf("ssh key: %w", ErrIdentity)
		}
		return []age.Identity{id}, nil, nil
	}
	return i.parseLines(content)
}

func (i *identity) parseLines(content []byte) (ids []age.Identity, plugins []string, err error) {
	n := 0
	for line := range bytes.Lines(content) {
		n++
		l := strings.TrimSpace(string(line))
		var id age.Identity
		switch {
		case l == "", strings.HasPrefix(l, "#"):
			continue
		case strings.HasPrefix(l, "AGE-PLUGIN-"):
			var p *plugin.Identity
			if p, err = plugin.NewIdentity(l, i.plugins.ui()); err == nil {
				id, plugins = p, append(plugins, p.Name())
			}
		case strings.HasPrefix(l, "AGE-SECRET-KEY-PQ-1"):
			id, err = age.ParseHybridIdentity(l)
		default:
			id, err = age.ParseX25519Identity(l)
		}
		if err != nil { // which may repeat a part of the line
			return nil, nil, fmt.Errorf("line %d: %w", n, ErrIdentity)
		}
		ids = append(ids, id)
	}
	if len(ids) == 0 {
		return nil, nil, fmt.Errorf("no line with one: %w", ErrIdentity)
	}
	return ids, plugins, nil
}

// Wrap makes no slot.
func (i *identity) Wrap(_, _ []byte) ([]byte, error) {
	return nil, fmt.Errorf("a slot is made for a recipient: %w", ErrRecipient)
}

// Unwrap decrypts the age file in data.
func (i *identity) Unwrap(secret, data, kek []byte) error {
	if i.stuck != nil {
		return i.stuck
	}
	ids, plugins, err := i.parse(secret)
	if err != nil {
		return err
	}
	work := func([]byte) ([]byte, error) {
		r, err := age.Decrypt(bytes.NewReader(data), ids...)
		if err != nil {
			return nil, err
		}
		return readKEK(r)
	}
	var plain []byte
	if len(plugins) == 0 {
		plain, err = work(nil)
	} else {
		plain, err = runPlugin(plugins, i.plugins.timeout(), nil, work)
	}
	defer clear(plain)
	var none *age.NoIdentityMatchError
	switch {
	case errors.As(err, &none):
		return crypt.ErrWrongKey
	case errors.Is(err, errTimeout):
		i.stuck = err
	}
	copy(kek, plain)
	return err
}

// isEncrypted tells whether the content is itself an age file.
func isEncrypted(content []byte) bool {
	t := bytes.TrimSpace(content)
	return bytes.HasPrefix(t, []byte(armor.Header)) || bytes.HasPrefix(t, []byte("age-encryption.org/"))
}

// Unprotect decrypts an identity file for which NewIdentity says ErrProtected:
// an age file that a passphrase opens, or an ssh key with a passphrase. The
// caller clears what it returns. Errors: crypt.ErrWrongKey, ErrIdentity.
func Unprotect(content, passphrase []byte) ([]byte, error) {
	if !isEncrypted(content) {
		return unprotectSSH(content, passphrase)
	}
	id, err := age.NewScryptIdentity(string(passphrase))
	if err != nil {
		return nil, crypt.ErrWrongKey // it is empty
	}
	var r io.Reader = bytes.NewReader(content)
	if bytes.HasPrefix(bytes.TrimSpace(content), []byte(armor.Header)) {
		r = armor.NewReader(r)
	}
	var none *age.NoIdentityMatchError
	r, err = age.Decrypt(r, id)
	switch {
	case errors.As(err, &none):
		return nil, crypt.ErrWrongKey
	case err != nil:
		return nil, fmt.Errorf("%w: %v", ErrIdentity, err)
	}
	plain, err := io.ReadAll(io.LimitReader(r, MaxIdentityFile+1))
	if err != nil {
		clear(plain)
		return nil, fmt.Errorf("%w: %v", ErrIdentity, err)
	}
	return plain, nil
}

func unprotectSSH(content, passphrase []byte) ([]byte, error) {
	key, err := ssh.ParseRawPrivateKeyWithPassphrase(content, passphrase)
	if err != nil {
		return nil, crypt.ErrWrongKey
	}
	block, err := ssh.MarshalPrivateKey(key, "")
	if err != nil {
		return nil, fmt.Errorf("ssh key: %w", ErrIdentity)
	}
	defer clear(block.Bytes)
	return encodePEM(block), nil
}
