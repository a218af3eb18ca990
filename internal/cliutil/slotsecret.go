package cliutil

import (
	"fmt"

	"github.com/fsximg/fsx/pkg/crypt"
)

// SlotSecret is a secret for a new slot, in the form in which it goes to the
// server that makes the slot. Data is the passphrase, the content of the key
// file, or the text of the recovery key; a clear slot has none.
type SlotSecret struct {
	Type string `json:"type"` // crypt.SlotType's name
	Data []byte `json:"data,omitempty"`
}

// Wipe forgets it.
func (s *SlotSecret) Wipe() {
	clear(s.Data)
	s.Data = nil
}

// Secret is the secret itself. The caller wipes it.
func (s *SlotSecret) Secret() (crypt.Secret, error) {
	switch s.Type {
	case crypt.SlotPassphrase.String():
		return crypt.NewPassphrase(s.Data)
	case crypt.SlotKeyFile.String():
		return crypt.NewKeyFile(s.Data)
	case crypt.SlotRecoveryKey.String():
		return crypt.ParseRecoveryKey(string(s.Data))
	case crypt.SlotClear.String():
		return crypt.NewClear(), nil
	}
	return nil, UsageErrorf("a slot of type %q cannot be made", s.Type)
}

// Format prints nothing of it.
func (s SlotSecret) Format(f fmt.State, _ rune) { fmt.Fprint(f, "[secret]") }
