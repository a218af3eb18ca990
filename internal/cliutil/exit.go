package cliutil

import (
	"errors"

	"github.com/fsximg/fsx/internal/volume"
	"github.com/fsximg/fsx/pkg/crypt"
	"github.com/fsximg/fsx/pkg/crypt/ageslot"
	"github.com/fsximg/fsx/pkg/crypt/tpmslot"
)

// Exit codes, docs/cli.md.
const (
	ExitOK       = 0
	ExitFailed   = 1
	ExitUsage    = 2
	ExitNotFound = 3
	ExitKey      = 4
	ExitBusy     = 5
	ExitDamaged  = 6
	ExitRepaired = 7
	ExitCompare  = 8 // could not be compared
	ExitSignal   = 130
)

// ExitCode is the process's exit code for the error a command returned. It is
// the only place where errors become exit codes.
func ExitCode(err error) int {
	if err == nil {
		return ExitOK
	}
	var status ExitStatus
	if errors.As(err, &status) {
		return int(status)
	}
	for _, row := range []struct {
		code      int
		sentinels []error
	}{
		{ExitSignal, []error{ErrInterrupted}},
		{ExitCompare, []error{ErrNotCompared}},
		{ExitUsage, []error{ErrUsage, crypt.ErrKDF, crypt.ErrMode, crypt.ErrPrintableKeyFile,
			crypt.ErrKeyFileSize, crypt.ErrEmptyPassphrase, crypt.ErrLongPassphrase,
			ageslot.ErrRecipient, tpmslot.ErrPCRs}},
		{ExitNotFound, []error{ErrNotFound, volume.ErrNotStore, volume.ErrNotFound, volume.ErrNoSnapshot, volume.ErrNoSlot}},
		{ExitKey, []error{ErrNoSecret, crypt.ErrWrongKey, crypt.ErrRecoveryKey, volume.ErrKeyMissing, volume.ErrUntrusted, volume.ErrUnexpectedKey, volume.ErrNoKey,
			ageslot.ErrIdentity, ageslot.ErrProtected, ageslot.ErrPlugin, tpmslot.ErrNoTPM, tpmslot.ErrLockout, tpmslot.ErrTPM}},
		{ExitBusy, []error{ErrInUse, volume.ErrBusy, volume.ErrNewerSnapshots, volume.ErrSharedBySnapshots}},
		{ExitRepaired, []error{ErrRepaired}},
		{ExitDamaged, []error{ErrDamaged, volume.ErrDamaged, volume.ErrRolledBack}},
	} {
		for _, s := range row.sentinels {
			if errors.Is(err, s) {
				return row.code
			}
		}
	}
	return ExitFailed
}
