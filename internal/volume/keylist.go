package volume

import (
	"fmt"
	"slices"

	"github.com/fsximg/fsx/pkg/crypt"
)

// UnlockedKeys are the volume keys that are open, in the order of their identifiers.
func (s *Store) UnlockedKeys() []crypt.ID {
	s.mu.RLock()
	defer s.mu.RUnlock()
	ids := make([]crypt.ID, 0, len(s.keys))
	for id := range s.keys {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(a, b crypt.ID) int { return slices.Compare(a[:], b[:]) })
	return ids
}

// DataKeys lists the data keys in a volume's bag by number. The volume is not opened
// for it. ErrNotFound, ErrKeyMissing and ErrDamaged tell why they cannot be listed.
func (s *Store) DataKeys(name string) ([]crypt.KeyInfo, error) {
	if !s.calls.enter() {
		return nil, ErrClosed
	}
	defer s.calls.leave()
	head, err := s.headOf(name)
	if err != nil {
		return nil, err
	}
	vk := s.keyOf(head.VolumeKey)
	if vk == nil {
		return nil, fmt.Errorf("volume %s: volume key %s: %w", name, head.VolumeKey, ErrKeyMissing)
	}
	if v := s.openedVolume(head.Volume); v != nil {
		return v.DataKeys(), nil
	}
	bag, err := s.Keyring().OpenBag(crypt.UUID(head.UUID), vk)
	if err != nil {
		return nil, fmt.Errorf("volume %s: key bag: %w: %w", name, ErrDamaged, err)
	}
	defer bag.Wipe()
	return countSealed(bag.Keys(), head.Sealed), nil
}

// DataKeys lists the data keys of the volume's bag, by number. What was sealed since
// the last checkpoint is not counted.
func (v *Volume) DataKeys() []crypt.KeyInfo { return countSealed(v.bag.Keys(), v.headNow().Sealed) }

// ManyBytes is how much may be encrypted under one data key before that is warned of,
// in bytes: 1 PiB. With a key of its own for every extent it is no limit.
const ManyBytes = 1 << 50

// warnOfBytes says once that much was encrypted under the volume's data key, when a
// head makes it pass ManyBytes.
func (v *Volume) warnOfBytes(before, after uint64) {
	for _, k := range v.bag.Keys() {
		if k.Writable && k.Bytes+before < ManyBytes && k.Bytes+after >= ManyBytes {
			v.log.Warn("more than 1 PiB was encrypted under a data key; fsximg rekey makes a fresh one", "volume", v.Name(), "key", k.ID)
		}
	}
}

// countSealed adds what the head counts to what the bag does.
func countSealed(keys []crypt.KeyInfo, sealed uint64) []crypt.KeyInfo {
	for i := range keys {
		if keys[i].Writable {
			keys[i].Bytes += sealed
		}
	}
	return keys
}
