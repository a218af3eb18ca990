package control

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"syscall"

	"github.com/fsximg/fsx/internal/cliutil"
	"github.com/fsximg/fsx/internal/volume"
	"github.com/fsximg/fsx/pkg/crypt"
	"github.com/fsximg/fsx/pkg/crypt/ageslot"
	"github.com/fsximg/fsx/pkg/crypt/tpmslot"
)

// Failure is an error as it travels.
type Failure struct {
	Kind    string `json:"kind"` // of kinds; "failed" is any other
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`
}

const kindFailed = "failed"

var (
	// ErrProtocol says that client and server are not of the same version. It is a
	// cliutil.ErrInUse: what is asked for has to wait for the end of the server.
	ErrProtocol = cliutil.Errorf(cliutil.ErrInUse, "another version of the control protocol")
	// errEnds is the cause of contexts that the server's end cancels.
	errEnds = cliutil.Errorf(volume.ErrClosed, "the server ends")
)

// kinds are the sentinels that travel. An error that is several of them is the
// first of them here; the order is that of the exit codes.
var kinds = []struct {
	name     string
	sentinel error
	status   int // HTTP's, for people with curl; clients do not look at it
}{
	{"protocol", ErrProtocol, http.StatusNotFound},
	{"usage", cliutil.ErrUsage, http.StatusBadRequest},
	{"kdf", crypt.ErrKDF, http.StatusBadRequest},
	{"cipher", crypt.ErrMode, http.StatusBadRequest},
	{"printable-key-file", crypt.ErrPrintableKeyFile, http.StatusBadRequest},
	{"key-file-size", crypt.ErrKeyFileSize, http.StatusBadRequest},
	{"empty-passphrase", crypt.ErrEmptyPassphrase, http.StatusBadRequest},
	{"long-passphrase", crypt.ErrLongPassphrase, http.StatusBadRequest},
	{"not-found", cliutil.ErrNotFound, http.StatusNotFound},
	{"not-a-store", volume.ErrNotStore, http.StatusNotFound},
	{"no-volume", volume.ErrNotFound, http.StatusNotFound},
	{"no-snapshot", volume.ErrNoSnapshot, http.StatusNotFound},
	{"no-secret", cliutil.ErrNoSecret, http.StatusForbidden},
	{"wrong-key", volume.ErrWrongKey, http.StatusForbidden},
	{"age-recipient", ageslot.ErrRecipient, http.StatusBadRequest},
	{"age-plugin", ageslot.ErrPlugin, http.StatusForbidden},
	{"tpm2-pcrs", tpmslot.ErrPCRs, http.StatusBadRequest},
	{"no-tpm2", tpmslot.ErrNoTPM, http.StatusForbidden},
	{"tpm2-lockout", tpmslot.ErrLockout, http.StatusForbidden},
	{"tpm2", tpmslot.ErrTPM, http.StatusForbidden},
	{"recovery-key", crypt.ErrRecoveryKey, http.StatusBadRequest},
	{"key-missing", volume.ErrKeyMissing, http.StatusForbidden},
	{"untrusted", volume.ErrUntrusted, http.StatusForbidden},
	{"no-key", volume.ErrNoKey, http.StatusNotFound},
	{"not-flushed", volume.ErrNotFlushed, http.StatusInternalServerError},
	{"only-copy", volume.ErrOnlyCopy, http.StatusConflict},
	{"in-use", cliutil.ErrInUse, http.StatusConflict},
	{"busy", volume.ErrBusy, http.StatusConflict},
	{"damaged", volume.ErrDamaged, http.StatusInternalServerError},
	{"rolled-back", volume.ErrRolledBack, http.StatusInternalServerError},
	{"newer-snapshots", volume.ErrNewerSnapshots, http.StatusConflict},
	{"no-slot", volume.ErrNoSlot, http.StatusNotFound},
	{"last-slot", volume.ErrLastSlot, http.StatusConflict},
	{"not-shredded", volume.ErrNotShredded, http.StatusInternalServerError},
	{"last-volume", volume.ErrLastVolume, http.StatusConflict},
	{"shared-by-snapshots", volume.ErrSharedBySnapshots, http.StatusConflict},
	{"shrink", volume.ErrShrink, http.StatusConflict},
	{"exists", volume.ErrExists, http.StatusConflict},
	{"read-only", volume.ErrReadOnly, http.StatusForbidden},
	{"closed", volume.ErrClosed, http.StatusServiceUnavailable},
	{"no-space", syscall.ENOSPC, http.StatusInsufficientStorage},
}

// failureOf describes an error to a client that calls the store at path by the
// name called.
func failureOf(err error, path, called string) *Failure {
	f := &Failure{Kind: kindFailed, Message: err.Error(), Hint: cliutil.HintOf(err)}
	if rest, ok := strings.CutPrefix(f.Message, path+": "); ok && called != "" {
		f.Message = called + ": " + rest
	}
	for _, k := range kinds {
		if errors.Is(err, k.sentinel) {
			f.Kind = k.name
			break
		}
	}
	return f
}

func (f *Failure) status() int {
	for _, k := range kinds {
		if k.name == f.Kind {
			return k.status
		}
	}
	return http.StatusInternalServerError
}

// err is the error again: of the same text, and the same sentinel.
func (f *Failure) err() error {
	err := errors.New(f.Message)
	for _, k := range kinds {
		if k.name == f.Kind {
			err = cliutil.Errorf(k.sentinel, "%s", f.Message)
		}
	}
	if f.Hint != "" {
		err = cliutil.WithHint(err, "%s", f.Hint)
	}
	return err
}

// causeOf is why an operation ended: that the server ends, if that cancelled it.
func causeOf(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); errors.Is(err, context.Canceled) && errors.Is(cause, errEnds) {
		return cause
	}
	return err
}
