// Package tpmslot makes and opens slots whose key a TPM 2.0 has sealed: slots
// of type crypt.SlotTPM2. The seal is bound to the TPM, to platform
// configuration registers, and to a PIN, if there is one.
//
// Such a slot can be made by anyone who may use the TPM, and so proves nothing
// about who made a store.
package tpmslot

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/fsximg/fsx/pkg/crypt"
	"github.com/google/go-tpm/tpm2"
)

var (
	// ErrNoTPM: there is no TPM where it was looked for, or it may not be used.
	ErrNoTPM = errors.New("no tpm")
	// ErrPCRs: a PCR that does not exist.
	ErrPCRs = errors.New("invalid pcrs")
	// ErrPolicy: the PCRs are not what they were when the key was sealed.
	ErrPolicy = errors.New("pcrs have changed since the key was sealed")
	// ErrPIN: the PIN is wrong.
	ErrPIN = errors.New("wrong tpm pin")
	// ErrNeedsPIN: the slot has a PIN and none was given.
	ErrNeedsPIN = errors.New("a tpm pin is needed")
	// ErrLockout: after wrong PINs the TPM refuses all of them for a while.
	ErrLockout = errors.New("tpm is locked after too many wrong pins")
	// ErrOtherTPM: the key was sealed by another TPM, or this one was cleared.
	// It is a crypt.ErrWrongKey.
	ErrOtherTPM = fmt.Errorf("key was sealed by another tpm, or this one was cleared: %w", crypt.ErrWrongKey)
	// ErrNoPIN: the slot has no PIN, though one was given. It is a
	// crypt.ErrWrongKey.
	ErrNoPIN = fmt.Errorf("slot has no tpm pin, and one was given: %w", crypt.ErrWrongKey)
	// ErrTPM: the TPM refused for another reason.
	ErrTPM = errors.New("tpm failed")
)

const (
	// DefaultDevice is the TPM behind the kernel's resource manager.
	DefaultDevice = "/dev/tpmrm0"
	// DefaultPCRs is PCR 7, the state of Secure Boot, as systemd-cryptenroll
	// has it.
	DefaultPCRs PCRs = 1 << 7
	// MaxPIN is the longest PIN in bytes.
	MaxPIN = 1 << 10

	// maxTries bounds the slots that one secret is tried on, and maxWrong
	// those of them that say the PIN is wrong: each brings the lockout nearer,
	// and copies of a slot cost whoever writes the store nothing.
	maxTries = 64
	maxWrong = 2

	labelPIN = "fsx-tpm2-pin-v1"
)

// Options of a TPM slot.
type Options struct {
	Device string // character device or unix socket; "": DefaultDevice
	PCRs   PCRs   // of new slots; those that exist name theirs
}

// New makes a secret that opens and makes slots with a TPM; pin, which may be
// empty, is copied into locked memory. The TPM is opened for each slot.
func New(o Options, pin []byte) (crypt.Secret, error) {
	if o.Device == "" {
		o.Device = DefaultDevice
	}
	if o.PCRs>>(maxPCR+1) != 0 {
		return nil, ErrPCRs
	}
	if len(pin) > MaxPIN {
		return nil, fmt.Errorf("tpm pin of more than %d bytes: %w", MaxPIN, crypt.ErrLongPassphrase)
	}
	return crypt.NewWrapped(crypt.SlotTPM2, pin, &sealer{Options: o}), nil
}

// sealer is the crypt.Wrapper; its secret is the PIN.
type sealer struct {
	Options
	tries, wrong int
	stuck        error // asking again is useless, or does harm
}

// Wrap seals kek.
func (s *sealer) Wrap(pin, kek []byte) ([]byte, error) {
	t, err := open(s.Device)
	if err != nil {
		return nil, err
	}
	defer t.close()
	sl := &sealed{pin: len(pin) > 0, pcrs: s.PCRs}
	auth := sl.drawAuth(pin)
	defer clear(auth)
	if err := t.seal(sl, auth, kek); err != nil {
		return nil, fmt.Errorf("seal with %s: %w", s.Device, reason(err))
	}
	return sl.encode(), nil
}

// Unwrap unseals.
func (s *sealer) Unwrap(pin, data, kek []byte) error {
	if s.stuck != nil {
		return s.stuck
	}
	sl, err := decode(data)
	switch {
	case err != nil:
		return err
	case sl.pin && len(pin) == 0:
		return ErrNeedsPIN
	case !sl.pin && len(pin) > 0:
		return ErrNoPIN
	case s.tries >= maxTries:
		return fmt.Errorf("more than %d slots to try: %w", maxTries, ErrTPM)
	}
	s.tries++
	err = s.unwrap(sl, pin, kek)
	if errors.Is(err, ErrPIN) {
		s.wrong++
	}
	if errors.Is(err, ErrLockout) || errors.Is(err, ErrNoTPM) || s.wrong >= maxWrong {
		s.stuck = err
	}
	return err
}

func (s *sealer) unwrap(sl *sealed, pin, kek []byte) error {
	t, err := open(s.Device)
	if err != nil {
		return err
	}
	defer t.close()
	auth := sl.auth(pin)
	defer clear(auth)
	key, err := t.unseal(sl, auth)
	if err != nil {
		return reason(err)
	}
	defer clear(key)
	if len(key) != crypt.KEKSize {
		return fmt.Errorf("sealed key of %d bytes: %w", len(key), crypt.ErrSlotData)
	}
	copy(kek, key)
	return nil
}

// auth is the object's authorization value: always as long as the hash, however
// short the PIN is. Without a PIN it is empty.
func (sl *sealed) auth(pin []byte) []byte {
	if !sl.pin {
		return nil
	}
	h := hmac.New(sha256.New, sl.salt[:])
	h.Write([]byte(labelPIN))
	h.Write(pin)
	return h.Sum(nil)
}

// drawAuth draws the salt and returns the authorization value, which has no zero
// byte: a TPM drops zeros at the end of such a value, and go-tpm 0.9.8 all that
// follows the first one (sessions.go, hmacKeyFromAuthValue), so that one PIN in
// nine would be wrong for ever.
func (sl *sealed) drawAuth(pin []byte) []byte {
	if !sl.pin {
		return nil
	}
	for {
		rand.Read(sl.salt[:])
		if auth := sl.auth(pin); bytes.IndexByte(auth, 0) < 0 {
			return auth
		}
	}
}

// reason makes the TPM's answer one of this package's errors.
func reason(err error) error {
	for _, r := range []struct {
		code tpm2.TPMRC
		is   error
	}{
		{tpm2.TPMRCLockout, ErrLockout},
		{tpm2.TPMRCAuthFail, ErrPIN},
		{tpm2.TPMRCBadAuth, ErrPIN},
		{tpm2.TPMRCPolicyFail, ErrPolicy},
		{tpm2.TPMRCPCRChanged, ErrPolicy},
		{tpm2.TPMRCIntegrity, ErrOtherTPM},
	} {
		if errors.Is(err, r.code) {
			return r.is
		}
	}
	for _, own := range []error{ErrPolicy, ErrOtherTPM, ErrNoTPM, crypt.ErrSlotData} {
		if errors.Is(err, own) {
			return err
		}
	}
	return fmt.Errorf("%w: %v", ErrTPM, err)
}
