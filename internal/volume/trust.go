package volume

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/fsximg/fsx/pkg/crypt"
	"github.com/fsximg/fsx/pkg/layout"
)

var (
	// ErrUntrusted is returned for changes of a volume whose key was opened only by
	// slots that anyone could have made, and that nobody has said to trust.
	ErrUntrusted = errors.New("it proves nothing about who made the volume, and is not trusted")
	// ErrUnexpectedKey says that none of the volume keys that are expected was opened.
	ErrUnexpectedKey = errors.New("another volume key than expected")
	// ErrRolledBack says that a volume's head is older than one that was seen before.
	ErrRolledBack = errors.New("older than expected: the store may have been rolled back")
)

// Trust is what is known about stores outside of them. A function that is nil knows
// nothing, and with Trusted nil every key is trusted. They may be called concurrently.
type Trust struct {
	// Trusted says whether a volume key that proves nothing (crypt.VolumeKey.Proven)
	// may be written under all the same.
	Trusted func(store layout.UUID, key crypt.ID) bool
	// LeastEpoch is the number that a volume's head must have at least.
	LeastEpoch func(store, volume layout.UUID, name string) uint64
	// Expected are identifiers of volume keys; if there are any, secrets must open one
	// of them.
	Expected []string
	// Seen takes note of keys that are trusted, when they are made or opened for
	// writing, and of the heads of trusted volumes, when the store is closed.
	Seen func(Seen)
}

// Seen is what a process knows of a store.
type Seen struct {
	Store layout.UUID
	Keys  []crypt.ID
	Heads map[layout.UUID]uint64 // their numbers, by volume
	Gone  []crypt.ID             // volume keys that are not trusted any more
}

// trusts says whether volumes under a key may be changed.
func (s *Store) trusts(vk *crypt.VolumeKey) bool {
	return vk.Proven() || s.opt.Trust.Trusted == nil || s.opt.Trust.Trusted(s.UUID(), vk.ID())
}

// expected is ErrUntrusted if volume keys are expected and none of them is among keys.
func (t *Trust) expected(keys []*crypt.VolumeKey) error {
	if len(t.Expected) == 0 {
		return nil
	}
	var have []string
	for _, k := range keys {
		if slices.Contains(t.Expected, k.ID().String()) {
			return nil
		}
		have = append(have, k.ID().String())
	}
	return fmt.Errorf("%w: %s, and not %s", ErrUnexpectedKey, strings.Join(have, ", "), strings.Join(t.Expected, ", "))
}

// untrustedError names the key, so that it can be compared with what its maker told.
func untrustedError(id crypt.ID) error {
	return fmt.Errorf("volume key %s: %w", id, ErrUntrusted)
}

// mustTrust is ErrUntrusted if volumes under a key may not be changed.
func (s *Store) mustTrust(vk *crypt.VolumeKey) error {
	if s.trusts(vk) {
		return nil
	}
	return untrustedError(vk.ID())
}

// volumeToChange opens a volume that may be changed.
func (s *Store) volumeToChange(name string) (*Volume, error) {
	v, err := s.Volume(name)
	if err == nil && v.untrusted {
		err = fmt.Errorf("%s: volume %s: %w", s.dir.Path, name, untrustedError(crypt.ID(v.headNow().VolumeKey)))
	}
	return v, err
}

// recent says that an authentic head is not older than one that was seen.
func (s *Store) recent(h *layout.Head) error {
	if s.opt.Trust.LeastEpoch == nil {
		return nil
	}
	if least := s.opt.Trust.LeastEpoch(s.UUID(), h.UUID, h.Name); h.Epoch < least {
		return fmt.Errorf("%w (epoch %d; %d was there before)", ErrRolledBack, h.Epoch, least)
	}
	return nil
}

// sawKeys takes note of keys that may be written under.
func (s *Store) sawKeys(keys ...*crypt.VolumeKey) {
	if s.opt.Trust.Seen == nil || s.opt.ReadOnly {
		return
	}
	seen := Seen{Store: s.UUID()}
	for _, k := range keys {
		if k.Proven() {
			seen.Keys = append(seen.Keys, k.ID())
		}
	}
	if len(seen.Keys) > 0 {
		s.opt.Trust.Seen(seen)
	}
}

// sawHeads takes note of the heads of the volumes that were open, as they were left.
func (s *Store) sawHeads(open []*Volume) {
	if s.opt.Trust.Seen == nil {
		return
	}
	seen := Seen{Store: s.UUID(), Heads: map[layout.UUID]uint64{}}
	for _, v := range open {
		if v.trusted {
			seen.Heads[v.uuid] = v.headNow().Epoch
		}
	}
	if len(seen.Heads) > 0 {
		s.opt.Trust.Seen(seen)
	}
}

// sawCopy takes note of the keys of a copy that is a store of its own: they are this
// store's, all of which are trusted.
func (s *Store) sawCopy(uuid layout.UUID) {
	if s.opt.Trust.Seen == nil {
		return
	}
	seen := Seen{Store: uuid}
	for _, h := range s.heads {
		if id := crypt.ID(h.VolumeKey); !slices.Contains(seen.Keys, id) {
			seen.Keys = append(seen.Keys, id)
		}
	}
	s.opt.Trust.Seen(seen)
}

// Distrusted is why a volume is read-only although the store may be written: an
// ErrUntrusted, or nil.
func (v *Volume) Distrusted() error {
	if !v.untrusted {
		return nil
	}
	return untrustedError(crypt.ID(v.headNow().VolumeKey))
}

// distrustKey takes note that nothing is under a volume key any more: whoever has it
// still must not be able to make a volume that is written to.
func (s *Store) distrustKey(id crypt.ID) {
	if s.opt.Trust.Seen != nil {
		s.opt.Trust.Seen(Seen{Store: s.UUID(), Gone: []crypt.ID{id}})
	}
}
