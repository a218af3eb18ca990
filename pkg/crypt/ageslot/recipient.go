// Package ageslot makes and opens slots whose key is in an age file
// (https://age-encryption.org/v1): slots of type crypt.SlotAge.
//
// A Recipient makes slots, an Identity opens them; neither does the other's.
// Such a slot can be made by anyone, and so proves nothing about who made a
// store.
package ageslot

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"filippo.io/age"
	"filippo.io/age/agessh"
	"filippo.io/age/plugin"
	"filippo.io/age/tag"
	"github.com/fsximg/fsx/pkg/crypt"
)

var (
	// ErrRecipient: the text is no age recipient, or of a kind that no slot
	// is made for.
	ErrRecipient = errors.New("not an age recipient")
	// ErrIdentity: the text holds no age identity.
	ErrIdentity = errors.New("not an age identity")
	// ErrProtected: the identity is encrypted with a passphrase; see Unprotect.
	ErrProtected = errors.New("identity is protected by a passphrase")
	// ErrPlugin: a plugin is missing, failed, or did not answer in time.
	ErrPlugin = errors.New("age plugin failed")
)

// PluginTimeout is how long a plugin may take, people who touch a token
// included. Then it is killed.
const PluginTimeout = 30 * time.Second

// MaxRecipient is the longest recipient, in bytes.
const MaxRecipient = 8 << 10

// Plugins say how plugins are run. The zero value is the default.
type Plugins struct {
	// Timeout is in place of PluginTimeout.
	Timeout time.Duration
	// Say shows people what a plugin says, and lets it ask them on the
	// terminal. Without it a plugin that asks fails.
	Say func(format string, args ...any)
}

func (p Plugins) timeout() time.Duration {
	if p.Timeout > 0 {
		return p.Timeout
	}
	return PluginTimeout
}

var errNobody = errors.New("there is nobody to ask")

func (p Plugins) ui() *plugin.ClientUI {
	if p.Say != nil {
		return plugin.NewTerminalUI(p.Say, p.Say)
	}
	return &plugin.ClientUI{
		DisplayMessage: func(string, string) error { return nil },
		RequestValue:   func(string, string, bool) (string, error) { return "", errNobody },
		Confirm:        func(string, string, string, string) (bool, error) { return false, errNobody },
	}
}

// Describe names the kind of the recipient that a slot with that data was made for,
// as the age file in it has it, e.g. X25519 or ssh-ed25519; empty if it has none that
// can be shown. Whoever writes the keyring can say anything there.
func Describe(data string) string {
	for line := range strings.SplitSeq(data, "\n") {
		kind, ok := strings.CutPrefix(line, "-> ")
		if !ok {
			continue
		}
		kind, _, _ = strings.Cut(kind, " ")
		plain := func(r rune) bool { return r > ' ' && r <= '~' }
		if len(kind) <= 64 && strings.IndexFunc(kind, func(r rune) bool { return !plain(r) }) < 0 {
			return kind
		}
		return ""
	}
	return ""
}

// NewRecipient makes slots for an age recipient: X25519 (age1…), hybrid
// post-quantum (age1pq1…), tagged, ssh-ed25519, ssh-rsa, or a plugin's
// (age1NAME1…). Passphrase recipients do not exist here: a passphrase has slots
// of its own. The error is ErrRecipient.
func NewRecipient(text string, p Plugins) (crypt.Secret, error) {
	if len(text) > MaxRecipient {
		return nil, fmt.Errorf("%d bytes: %w", len(text), ErrRecipient)
	}
	r, name, err := parseRecipient(strings.TrimSpace(text), p)
	if err != nil {
		return nil, err
	}
	return crypt.NewWrapped(crypt.SlotAge, nil, &recipient{r, name, p}), nil
}

// parseRecipient also returns the name of the plugin, if it is one's.
func parseRecipient(s string, p Plugins) (r age.Recipient, name string, err error) {
	switch {
	case strings.HasPrefix(s, "AGE-"):
		// The text is a secret: it must not be repeated.
		return nil, "", fmt.Errorf("an identity was given, which is secret: %w", ErrRecipient)
	case strings.HasPrefix(s, "age1tag1"), strings.HasPrefix(s, "age1tagpq1"):
		r, err = tag.ParseRecipient(s)
	case strings.HasPrefix(s, "age1pq1"):
		r, err = age.ParseHybridRecipient(s)
	case strings.HasPrefix(s, "age1") && strings.Count(s, "1") > 1:
		var pr *plugin.Recipient
		if pr, err = plugin.NewRecipient(s, p.ui()); err == nil {
			r, name = pr, pr.Name()
		}
	case strings.HasPrefix(s, "age1"):
		r, err = age.ParseX25519Recipient(s)
	case strings.HasPrefix(s, "ssh-"):
		r, err = agessh.ParseRecipient(s)
	default:
		return nil, "", fmt.Errorf("it begins neither with age1 nor with ssh-: %w", ErrRecipient)
	}
	if err != nil {
		return nil, "", fmt.Errorf("%w: %v", ErrRecipient, err)
	}
	return r, name, nil
}

// recipient is a crypt.Wrapper that only wraps.
type recipient struct {
	r       age.Recipient
	plugin  string
	plugins Plugins
}

// Wrap encrypts kek to the recipient.
func (r *recipient) Wrap(_, kek []byte) ([]byte, error) {
	work := func(kek []byte) ([]byte, error) {
		var file bytes.Buffer
		w, err := age.Encrypt(&file, r.r)
		if err != nil {
			return nil, err
		}
		if _, err := w.Write(kek); err != nil {
			return nil, err
		}
		err = w.Close() // which writes the last chunk
		return file.Bytes(), err
	}
	if r.plugin == "" {
		return work(kek)
	}
	return runPlugin([]string{r.plugin}, r.plugins.timeout(), kek, work)
}

// Unwrap opens nothing: whoever knows only a recipient cannot.
func (r *recipient) Unwrap(_, _, _ []byte) error { return crypt.ErrWrongKey }

// readKEK reads an age file's plaintext, which must be a key and nothing more.
func readKEK(r io.Reader) ([]byte, error) {
	kek := make([]byte, crypt.KEKSize+1)
	n, err := io.ReadFull(r, kek)
	if n != crypt.KEKSize || !errors.Is(err, io.ErrUnexpectedEOF) {
		clear(kek)
		return nil, fmt.Errorf("age file of another size: %w", crypt.ErrSlotData)
	}
	return kek[:n], nil
}
