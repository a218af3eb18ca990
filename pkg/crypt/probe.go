package crypt

import (
	"errors"
	"fmt"
)

// Opens lists the slots that one of the secrets opens, by number. Unlike Unlock it
// tries them all, also those of a volume key that another slot has opened. A
// passphrase costs one Argon2 run. The error is ErrAuth if a secret was right but
// its slot is damaged; the other slots are listed all the same.
func (k *Keyring) Opens(secrets ...Secret) ([]SlotInfo, error) {
	k.mu.RLock()
	slots := append([]slot(nil), k.slots...) // slots are never changed in place
	k.mu.RUnlock()
	opened := map[int]bool{}
	var damage error
	for _, s := range secrets {
		if err := k.probe(slots, s, opened, &damage); err != nil {
			return nil, fmt.Errorf("try slots: %w", err)
		}
	}
	var infos []SlotInfo
	for _, i := range k.Slots() {
		if opened[i.Number] {
			infos = append(infos, i)
		}
	}
	return infos, damage
}

// probe tries one secret on all slots of its type.
func (k *Keyring) probe(slots []slot, s Secret, opened map[int]bool, damage *error) error {
	var kek *cell
	defer func() { kek.free() }()
	for _, sl := range slots {
		if sl.kind() != s.Type() || !sl.kind().opens() || opened[sl.number()] {
			continue
		}
		if kek == nil || sl.kind().wrapped() {
			kek.free()
			var err error
			if kek, err = s.slotKEK(k.kdf, &k.salt, sl.data()); errors.Is(err, ErrWiped) {
				return err
			} else if err != nil {
				if !errors.Is(err, ErrWrongKey) {
					*damage = errors.Join(*damage, fmt.Errorf("slot %d: %w", sl.number(), err))
				}
				continue
			}
		}
		switch vk, err := sl.open(k.store, kek.b); {
		case err == nil:
			vk.Wipe()
			opened[sl.number()] = true
		case !errors.Is(err, errSlotSecret):
			*damage = errors.Join(*damage, err)
		}
	}
	return nil
}
