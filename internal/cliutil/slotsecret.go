package cliutil

import (
	"fmt"

	"github.com/fsximg/fsx/pkg/crypt"
	"github.com/fsximg/fsx/pkg/crypt/ageslot"
	"github.com/fsximg/fsx/pkg/crypt/tpmslot"
)

// SlotSecret is a secret for a new slot, in the form in which it goes to the
// server that makes the slot. Data is the passphrase, the content of the key
// file, the text of the recovery key or of the age recipient, or the PIN of a
// TPM slot, if it has one; a clear slot has none.
type SlotSecret struct {
	Type string `json:"type"` // crypt.SlotType's name
	Data []byte `json:"data,omitempty"`

	TPM2 *TPM2Slot `json:"tpm2,omitempty"` // of a TPM slot only
}

// ageIdentity is the Type of a secret that opens age slots; Data is the text of the
// identities. It makes none.
const ageIdentity = "age-identity"

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
	case crypt.SlotAge.String():
		return ageslot.NewRecipient(string(s.Data), ageslot.Plugins{})
	case ageIdentity:
		return ageslot.NewIdentity(s.Data, ageslot.Plugins{})
	case crypt.SlotTPM2.String():
		if s.TPM2 == nil {
			return nil, UsageErrorf("a tpm2 slot without its options cannot be made")
		}
		o, err := s.TPM2.options()
		if err != nil {
			return nil, err
		}
		return tpmslot.New(o, s.Data)
	}
	return nil, UsageErrorf("a slot of type %q cannot be made", s.Type)
}

// Format prints nothing of it.
func (s SlotSecret) Format(f fmt.State, _ rune) { fmt.Fprint(f, "[secret]") }
