package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fsximg/fsx/pkg/crypt"
	"github.com/fsximg/fsx/pkg/layout"
)

var (
	// ErrWouldLose says that a restored keyring would be without the keys of some
	// volumes, and is a *LossError.
	ErrWouldLose = errors.New("keys would be lost")
	// ErrSlotTaken says that a slot of the backup has a number that is now another
	// volume key's.
	ErrSlotTaken = errors.New("its number is another volume key's now")
	errNoKeyring = fmt.Errorf("%w: the store has no keyring", ErrDamaged)
)

// LossError is an ErrWouldLose that says what would be lost.
type LossError struct{ Restored }

func (e *LossError) Error() string {
	var l []string
	for _, name := range e.Lost {
		l = append(l, "volume "+name)
	}
	for _, s := range e.Replaced {
		l = append(l, fmt.Sprintf("slot %d (%s) as it is now", s.Number, s.Type))
	}
	return fmt.Sprintf("%v: %s", ErrWouldLose, strings.Join(l, ", "))
}

// Is makes errors.Is(err, ErrWouldLose) true.
func (e *LossError) Is(target error) bool { return target == ErrWouldLose }

// RestoreOptions say how a keyring is restored.
type RestoreOptions struct {
	// Secrets open slots of the backup. They are needed where the heads have to be
	// told of other slots than they name.
	Secrets []crypt.Secret
	// Force goes on although something would be lost.
	Force bool
	// DryRun changes nothing.
	DryRun bool
}

// Restored is what a keyring got from a backup.
type Restored struct {
	Slots    []crypt.SlotInfo // that come back
	Replaced []crypt.SlotInfo // that were there under the same numbers
	Locked   []crypt.ID       // volume keys with slots in the backup that need one of their secrets
	Bags     []string         // volumes that got their bag back
	Lost     []string         // volumes whose keys are neither in the store nor in the backup
}

// Nothing says that the backup has nothing that the store has not.
func (r *Restored) Nothing() bool { return len(r.Slots) == 0 && len(r.Bags) == 0 }

// OpenForRestore is Open for RestoreKeyring: also of a store whose keyring is missing
// or bad in both areas. Nothing else can be done with such a store.
func OpenForRestore(path string, o Options, backup *layout.KeyringBackup) (*Store, error) {
	ring, err := crypt.ParseKeyring(backup.Body, crypt.UUID(backup.Store))
	if err != nil {
		return nil, fmt.Errorf("backup: %w", err)
	}
	o.spare = ring
	return Open(path, o)
}

// useSpare begins with an empty keyring in place of one that could not be read.
func (s *Store) useSpare(err error) bool {
	if s.opt.spare == nil || !errors.Is(err, ErrDamaged) && !errors.Is(err, fs.ErrNotExist) {
		return false
	}
	s.keyring, s.ringGen, s.undecided = s.opt.spare.Empty(), 0, errNoKeyring
	return true
}

// RestoreKeyring brings back slots and bags from a backup of the store's keyring.
// Slots that were made since stay. A bag comes back only if a head names it and the
// store has not got it. Heads that name other slots than there are then, are signed
// again, with the volume key that a secret opens in the backup.
//
// The keyring as it was stays beside it, as a file keyring.old-TIME, until all is
// durable; after an error it is still there. A crash leaves the old keyring, the new
// one, or a new one that the heads do not name yet: to restore again goes on.
func (s *Store) RestoreKeyring(_ context.Context, backup *layout.KeyringBackup, o RestoreOptions) (r Restored, err error) {
	if backup.Store != s.dir.Super.UUID {
		return r, fmt.Errorf("the backup is of store %s, this is %s", backup.Store, s.dir.Super.UUID)
	}
	from, err := crypt.ParseKeyring(backup.Body, crypt.UUID(backup.Store))
	if err != nil {
		return r, fmt.Errorf("backup: %w", err)
	}
	m := &merge{s: s, from: from}
	defer m.wipe()
	if len(o.Secrets) > 0 {
		if m.keys, err = from.Unlock(o.Secrets...); err != nil {
			return r, fmt.Errorf("backup: %w", err)
		}
	}
	err = s.withSlots(func() error {
		if s.undecided != nil && !errors.Is(s.undecided, errNoKeyring) {
			return s.undecided
		}
		scratch, err := crypt.ParseKeyring(s.keyring.Encode(), from.Store())
		if err == nil {
			err = m.into(scratch)
		}
		r = m.Restored
		if err != nil {
			return err
		}
		if len(r.Locked) > 0 && !o.Force && (r.Nothing() || len(r.Lost) > 0) {
			return fmt.Errorf("slots of volume key %s in the backup: %w", r.Locked[0], ErrKeyMissing)
		}
		if len(r.Lost)+len(r.Replaced) > 0 && !o.Force {
			return &LossError{r}
		}
		switch {
		case o.DryRun:
			return nil
		case !r.Nothing():
			return s.restore(m)
		case len(r.Lost)+len(r.Locked) == 0:
			return s.dropAside() // of a restoration that was interrupted after it was done
		}
		return nil
	})
	return r, err
}

func (s *Store) restore(m *merge) error {
	aside, err := s.keepKeyring()
	if err != nil {
		return fmt.Errorf("keep the keyring as it was: %w", err)
	}
	was := s.undecided
	s.undecided = nil
	heads := &headsUnder{s: s, keys: m.resign, rescue: true}
	defer heads.release()
	if err := s.changeKeys(m.into, heads.sign, heads.takeLocked); err != nil {
		s.undecided = errors.Join(s.undecided, was)
		return fmt.Errorf("%w (the keyring as it was is %s)", err, aside)
	}
	return s.dropAside()
}

// asidePrefix begins the names of keyrings that a restoration keeps aside.
const asidePrefix = "keyring.old-"

// dropAside overwrites and removes what restorations have left.
func (s *Store) dropAside() error {
	names, err := s.fs.ReadDir(s.dir.Path)
	if err != nil {
		return err
	}
	for _, name := range names {
		if !strings.HasPrefix(name, asidePrefix) {
			continue
		}
		if err := s.overwriteFile(filepath.Join(s.dir.Path, name)); err != nil {
			return err
		}
		if err := errors.Join(s.fs.Remove(filepath.Join(s.dir.Path, name)), s.fs.SyncDir(s.dir.Path)); err != nil {
			return err
		}
	}
	return nil
}

// overwriteFile writes zeros where a file has anything.
func (s *Store) overwriteFile(name string) error {
	f, err := s.fs.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	buf, zero := make([]byte, 1<<20), make([]byte, 1<<20)
	for off := int64(0); ; off += int64(len(buf)) {
		n, err := f.ReadAt(buf, off)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if !bytes.Equal(buf[:n], zero[:n]) {
			if _, err := f.WriteAt(zero[:n], off); err != nil {
				return err
			}
		}
		if n < len(buf) {
			return f.Datasync()
		}
	}
}

// merge is a keyring that gets what a backup has.
type merge struct {
	Restored
	s      *Store
	from   *crypt.Keyring
	keys   []*crypt.VolumeKey // that a secret opened in the backup
	resign []*crypt.VolumeKey // of these, those whose heads have to be signed again
}

func (m *merge) wipe() {
	for _, k := range m.keys {
		k.Wipe()
	}
}

// into merges the backup into ring. Done again with the same ring it does the same.
func (m *merge) into(ring *crypt.Keyring) error {
	m.Restored, m.resign = Restored{}, nil
	before := ring.Empty()
	for _, slot := range ring.Slots() {
		if err := before.CopySlot(ring, slot.Number); err != nil {
			return err
		}
	}
	heads := m.heads()
	var done []crypt.ID
	for _, h := range heads {
		if id := crypt.ID(h.VolumeKey); !slices.Contains(done, id) {
			done = append(done, id)
			if err := m.slots(ring, before, id, heads); err != nil {
				return err
			}
		}
	}
	return m.bags(ring, heads)
}

func (m *merge) heads() []layout.Head {
	m.s.mu.RLock()
	defer m.s.mu.RUnlock()
	var l []layout.Head
	for _, h := range m.s.heads {
		l = append(l, h)
	}
	slices.SortFunc(l, func(a, b layout.Head) int { return int(int64(a.Volume) - int64(b.Volume)) })
	return l
}

// slots merges the slots of one volume key, if the heads name the result, or can be
// made to.
func (m *merge) slots(ring, before *crypt.Keyring, id crypt.ID, heads []layout.Head) error {
	next := before.Empty() // that key's slots as they would be
	for _, slot := range slotsOf(before, id) {
		if err := next.CopySlot(before, slot.Number); err != nil {
			return err
		}
	}
	var news, replaced []crypt.SlotInfo
	for _, slot := range slotsOf(m.from, id) {
		if m.from.SameSlot(before, slot.Number) {
			continue
		}
		for _, old := range before.Slots() {
			if old.Number == slot.Number && old.VolumeKey != id {
				return fmt.Errorf("slot %d of the backup: %w; remove that slot first", slot.Number, ErrSlotTaken)
			}
			if old.Number == slot.Number {
				replaced = append(replaced, old)
			}
		}
		if err := next.CopySlot(m.from, slot.Number); err != nil {
			return err
		}
		news = append(news, slot)
	}
	named := !slices.ContainsFunc(heads, func(h layout.Head) bool {
		return crypt.ID(h.VolumeKey) == id && layout.Hash(next.SlotsDigest(id)) != h.SlotsDigest
	})
	if len(next.Slots()) == 0 || named && len(news) == 0 {
		return nil
	}
	if !named {
		key := slices.IndexFunc(m.keys, func(k *crypt.VolumeKey) bool { return k.ID() == id })
		if key < 0 {
			m.Locked = append(m.Locked, id)
			return nil
		}
		if err := m.s.mustTrust(m.keys[key]); err != nil {
			return err
		}
		m.resign = append(m.resign, m.keys[key])
	}
	for _, slot := range news {
		if err := ring.CopySlot(m.from, slot.Number); err != nil {
			return err
		}
	}
	if len(news) == 0 {
		news = next.Slots() // that the heads are told of now
	}
	m.Slots, m.Replaced = append(m.Slots, news...), append(m.Replaced, replaced...)
	return nil
}

// bags gives every volume the bag that its head names.
func (m *merge) bags(ring *crypt.Keyring, heads []layout.Head) error {
	slotted := slotted(ring)
	for _, h := range heads {
		vol := crypt.UUID(h.UUID)
		if here, ok := ring.BagDigest(vol); !ok || layout.Hash(here) != h.BagDigest {
			there, ok := m.from.BagDigest(vol)
			if !ok || layout.Hash(there) != h.BagDigest {
				m.Lost = append(m.Lost, h.Name)
				continue
			}
			if err := ring.CopyBag(m.from, vol); err != nil {
				return err
			}
			m.Bags = append(m.Bags, h.Name)
		}
		id := crypt.ID(h.VolumeKey)
		if errors.Is(m.s.undecided, errNoKeyring) && !slotted[id] && slices.Contains(m.Locked, id) {
			m.Lost = append(m.Lost, h.Name)
		}
	}
	return nil
}

// keepKeyring copies the keyring file beside itself and returns the copy's path,
// which is empty if there is no such file.
func (s *Store) keepKeyring() (name string, err error) {
	src, err := s.fs.OpenFile(filepath.Join(s.dir.Path, "keyring"), os.O_RDONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer src.Close()
	name = filepath.Join(s.dir.Path, fmt.Sprintf("%s%d", asidePrefix, time.Now().UnixNano()))
	dst, err := s.fs.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", err
	}
	defer dst.Close()
	buf, zero := make([]byte, 1<<20), make([]byte, 1<<20)
	for off := int64(0); ; off += int64(len(buf)) {
		n, err := src.ReadAt(buf, off)
		if err != nil && !errors.Is(err, io.EOF) {
			return name, err
		}
		if !bytes.Equal(buf[:n], zero[:n]) {
			if _, err := dst.WriteAt(buf[:n], off); err != nil {
				return name, err
			}
		}
		if n < len(buf) {
			break
		}
	}
	return name, errors.Join(dst.Datasync(), s.fs.SyncDir(s.dir.Path))
}
