package cliutil

import (
	"errors"
	"fmt"

	"github.com/fsximg/fsx/internal/volume"
	"github.com/fsximg/fsx/pkg/crypt/ageslot"
	"github.com/fsximg/fsx/pkg/crypt/tpmslot"
)

var (
	// ErrUsage is the cause of every mistake in the command line itself.
	ErrUsage = errors.New("usage error")
	// ErrNotFound is returned when the named store, volume or snapshot does
	// not exist.
	ErrNotFound = errors.New("not found")
	// ErrNoSecret is returned when a key is needed, none was given and there
	// is no terminal to ask.
	ErrNoSecret = errors.New("no key given, and no terminal to ask for one")
	// ErrInUse is returned when what is asked for cannot be done while
	// something is in use.
	ErrInUse = errors.New("in use")
	// ErrDamaged is returned by a command that found damage and said so.
	ErrDamaged = errors.New("damaged")
	// ErrRepaired is returned by a command that found damage and repaired it.
	ErrRepaired = errors.New("damage found and repaired")
	// ErrDifferent is returned by a comparison that found a difference.
	ErrDifferent = errors.New("different")
	// ErrNotCompared is returned when a comparison could not be made.
	ErrNotCompared = errors.New("could not be compared")
	// ErrInterrupted is the cause of a context that a signal cancelled.
	ErrInterrupted = errors.New("interrupted")
	// ErrRefused is returned when someone said no, or could not be asked.
	ErrRefused = errors.New("refused")
)

// message is an error with a text of its own and a sentinel behind it.
type message struct {
	text     string
	sentinel error
}

func (m *message) Error() string { return m.text }
func (m *message) Unwrap() error { return m.sentinel }

// UsageErrorf makes an error that is ErrUsage and says only the given text.
func UsageErrorf(format string, args ...any) error {
	return &message{fmt.Sprintf(format, args...), ErrUsage}
}

// Errorf makes an error that is the sentinel and says only the given text.
func Errorf(sentinel error, format string, args ...any) error {
	return &message{fmt.Sprintf(format, args...), sentinel}
}

// silent is an error whose command has already said everything.
type silent struct{ error }

func (s silent) Unwrap() error { return s.error }

// Silent gives err's exit code without another message.
func Silent(err error) error { return silent{err} }

// notCompared is an error that kept a comparison from being made.
type notCompared struct{ error }

func (n notCompared) Unwrap() []error { return []error{ErrNotCompared, n.error} }

// NotCompared makes err an ErrNotCompared with the same text.
func NotCompared(err error) error { return notCompared{err} }

// hinted carries a line that says what to do about the error.
type hinted struct {
	error
	hint string
}

func (h *hinted) Unwrap() error { return h.error }
func (h *hinted) Hint() string  { return h.hint }

// WithHint adds a line to err that says what can be done. A hint that is
// already there stays.
func WithHint(err error, format string, args ...any) error {
	hint := fmt.Sprintf(format, args...)
	if err == nil || hint == "" || hintOf(err) != "" {
		return err
	}
	return &hinted{err, hint}
}

// ReplaceHint is WithHint where another hint is known to be of more use than the
// one that may be there.
func ReplaceHint(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return &hinted{err, fmt.Sprintf(format, args...)}
}

func hintOf(err error) string {
	var h interface{ Hint() string }
	if errors.As(err, &h) {
		return h.Hint()
	}
	return ""
}

// HintOf is the hint that an error carries, empty without one.
func HintOf(err error) string { return hintOf(err) }

// ExitStatus is an error that ends the program with a given code, without a
// message: the code of a command that it ran.
type ExitStatus int

func (s ExitStatus) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

// adviceOn is an error's hint, or else what can be done about errors of its kind.
func adviceOn(err error) string {
	if hint := hintOf(err); hint != "" {
		return hint
	}
	for _, a := range advice {
		if errors.Is(err, a.sentinel) {
			return a.text
		}
	}
	return ""
}

var advice = []struct {
	sentinel error
	text     string
}{
	{volume.ErrLost, "fsximg volume delete --force frees its space"},
	{volume.ErrKeyMissing, "name its key, too; of a served store, give it to the server: fsxnbd key add STORE. fsximg info --json STORE shows which slot opens which volume key"},
	{volume.ErrNoKey, "fsxnbd key status STORE shows the volume keys that its server has"},
	{volume.ErrNotFlushed, "--force removes the key all the same; what was not flushed is lost then"},
	{volume.ErrOnlyCopy, "to delete what is under it: fsximg volume delete. --force removes the key, and the volumes can only be deleted then"},
	{volume.ErrUnexpectedKey, "it may be somebody else's store in the place of yours"},
	{volume.ErrUntrusted, "compare its identifier with what its maker told you; --expect-id ID then trusts it. Reading needs no trust"},
	{volume.ErrRolledBack, "somebody may have put an old copy in its place. If you did, --accept-rollback takes it"},
	{volume.ErrReadOnly, "if the store is served, its server was started with --read-only"},
	{volume.ErrWouldLose, "a newer backup may have it; --force goes on without"},
	{volume.ErrLastSlot, "--force removes it; nothing opens its volumes then, but a backup of the keyring"},
	{volume.ErrNotShredded, "shred it again: it goes on where it was"},
	{tpmslot.ErrPolicy, "the firmware, its settings or what was booted is another than when the slot was made; open the store with another key"},
	{tpmslot.ErrPIN, "the TPM counts wrong PINs, and after some refuses all for a while"},
	{tpmslot.ErrLockout, "wait as long as the TPM wants (tpm2_getcap properties-variable), or reset it: tpm2_dictionarylockout --clear-lockout"},
	{tpmslot.ErrNoTPM, "name the TPM with --tpm2-device, for a new slot of --new-tpm2 with --new-tpm2-device; ls -l /dev/tpm* shows which there are, and who may use them"},
	{tpmslot.ErrNeedsPIN, "use --tpm2-pin-file"},
	{tpmslot.ErrNoPIN, "leave out --tpm2-pin-file"},
	{tpmslot.ErrOtherTPM, "a TPM slot opens on the machine it was made on; open the store with another key"},
	{ageslot.ErrRecipient, "a recipient begins with age1 or ssh-; age-keygen -y FILE prints that of an identity"},
	{ageslot.ErrIdentity, "age-keygen makes identities; an unencrypted ssh-ed25519 or ssh-rsa private key is one, too"},
	{ageslot.ErrPlugin, "the program age-plugin-NAME must be in PATH, and answer within 30 seconds"},
	{volume.ErrLastVolume, "to delete the store, remove its folder"},
	{volume.ErrSharedBySnapshots, "delete the volume's snapshots first: fsximg snapshot list shows them"},
}
