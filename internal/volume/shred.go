package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/fsximg/fsx/pkg/crypt"
	"github.com/fsximg/fsx/pkg/layout"
)

// ErrNotShredded says that slots that were to be destroyed may still be in the
// keyring file. Shredding them again goes on.
var ErrNotShredded = errors.New("the slots may still be there")

// ShredSlots destroys every slot of a volume key and returns what they were. No key
// is needed, and nothing opens the volumes under it any more, but for a process that
// has the key in memory, or by a backup of the keyring. Done again it overwrites
// again. ErrNoSlot says that there is nothing of that volume key.
//
// The heads go on naming the digest of the slots that were there, since without the
// key they cannot be told. That is why a volume key without any slot is not compared
// with its heads (slotted). A crash leaves one of these:
//
//   - The first write is torn, or not begun: the other area, with all slots, counts.
//     The torn one is written again by whoever opens the store next.
//   - The first is durable, the second is not begun or torn: the first is the newer
//     one and fits the heads, whatever those say of the slots. Opening the store
//     makes the other area the same. So a slot that is gone from the newer area does
//     not come back.
//
// A change of other keys that is interrupted later finds two areas without these
// slots, and is decided by the other heads and by the bags, as ever.
func (s *Store) ShredSlots(_ context.Context, id crypt.ID) (gone []crypt.SlotInfo, err error) {
	err = s.withSlots(func() error {
		if s.undecided != nil {
			return s.undecided
		}
		gone = slotsOf(s.Keyring(), id)
		if len(gone) == 0 && !s.hasVolumeUnder(id) {
			return fmt.Errorf("volume key %s: %w", id, ErrNoSlot)
		}
		next, err := crypt.ParseKeyring(s.Keyring().Encode(), crypt.UUID(s.dir.Super.UUID))
		if err != nil {
			return err
		}
		for _, slot := range gone {
			if err := next.RemoveSlot(slot.Number); err != nil {
				return err
			}
		}
		return s.shredTo(next)
	})
	return gone, err
}

// shredTo writes a keyring into both areas. Once it is in one, it counts.
func (s *Store) shredTo(next *crypt.Keyring) error {
	body := next.Encode()
	for range 2 {
		if err := s.dir.ShredKeyring(body, s.ringGen+1); err != nil {
			return fmt.Errorf("%w: %w", ErrNotShredded, err)
		}
		s.ringGen++
		s.mu.Lock()
		s.keyring = next
		s.mu.Unlock()
	}
	if err := s.dropAside(); err != nil {
		return fmt.Errorf("%w: %w", ErrNotShredded, err)
	}
	areas, err := s.dir.ReadKeyring()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNotShredded, err)
	}
	for _, a := range areas {
		if len(areas) != 2 || !bytes.Equal(a.Body, body) {
			return fmt.Errorf("%w: the keyring reads back as something else", ErrNotShredded)
		}
	}
	return nil
}

func (s *Store) hasVolumeUnder(id crypt.ID) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, h := range s.heads {
		if h.VolumeKey == layout.KeyID(id) {
			return true
		}
	}
	return false
}
