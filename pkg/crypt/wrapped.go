package crypt

import "fmt"

// KEKSize is the size of the random key that a Wrapper keeps for a slot.
const KEKSize = 32

// MaxSlotData is the longest that a Wrapper's data of one slot may be, in bytes.
const MaxSlotData = maxSlotPayload - slotPayload

// Wrapper keeps the wrapping key of a slot with something outside the process:
// an age identity, a TPM. Its methods are called by one goroutine at a time.
// secret is what NewWrapped was given, in locked memory; it and kek are the
// caller's and must not be kept.
type Wrapper interface {
	// Wrap returns what Unwrap needs to give kek back, at most MaxSlotData
	// bytes. It goes into the slot, where anyone can read and alter it.
	Wrap(secret, kek []byte) (data []byte, err error)
	// Unwrap fills kek, KEKSize bytes. An error that is ErrWrongKey says that
	// the slot belongs to another; any other says why a slot that may be the
	// right one does not open.
	Unwrap(secret, data, kek []byte) error
}

// NewWrapped makes a secret of type SlotAge or SlotTPM2 that w opens and makes
// slots for. secret, which may be empty, is copied; the caller wipes its own.
func NewWrapped(t SlotType, secret []byte, w Wrapper) Secret {
	if !t.wrapped() {
		panic("crypt: NewWrapped of a " + t.String() + " slot")
	}
	s := newSecret(t, append(make([]byte, 0, len(secret)+1), secret...))
	s.wrapper = w
	return s
}

// wrapped tells whether slots of this type hold a Wrapper's data behind the
// wrapped volume key.
func (t SlotType) wrapped() bool { return t == SlotAge || t == SlotTPM2 }

// SlotError tells why a slot did not open although a secret of its type was
// given. It is an ErrWrongKey, and whatever Err is.
type SlotError struct {
	Slot int
	Type SlotType
	Err  error
}

func (e *SlotError) Error() string { return fmt.Sprintf("%s slot %d: %v", e.Type, e.Slot, e.Err) }

// Unwrap makes it ErrWrongKey, and Err.
func (e *SlotError) Unwrap() []error { return []error{ErrWrongKey, e.Err} }

// newKEK draws a key and has the wrapper keep it.
func (s *secret) newKEK() (kek *cell, data []byte, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mem == nil {
		return nil, nil, fmt.Errorf("use %s: %w", s.typ, ErrWiped)
	}
	kek = newCell(KEKSize)
	random(kek.b)
	data, err = s.wrapper.Wrap(s.mem.b[:s.size], kek.b)
	if err == nil && (len(data) == 0 || len(data) > MaxSlotData) {
		err = fmt.Errorf("%d bytes of slot data: %w", len(data), ErrSlotData)
	}
	if err != nil {
		kek.free()
		return nil, nil, err
	}
	return kek, data, nil
}

// keptKEK has the wrapper give back the key of a slot with that data.
func (s *secret) keptKEK(data []byte) (*cell, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mem == nil {
		return nil, fmt.Errorf("use %s: %w", s.typ, ErrWiped)
	}
	kek := newCell(KEKSize)
	if err := s.wrapper.Unwrap(s.mem.b[:s.size], data, kek.b); err != nil {
		kek.free()
		return nil, err
	}
	return kek, nil
}
