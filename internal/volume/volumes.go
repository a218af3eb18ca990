package volume

import (
	"errors"
	"fmt"
	"slices"

	"github.com/fsximg/fsx/pkg/crypt"
	"github.com/fsximg/fsx/pkg/layout"
	"github.com/fsximg/fsx/pkg/layout/metadb"
	"github.com/fsximg/fsx/pkg/layout/seglog"
	"github.com/fsximg/fsx/pkg/snapshot"
)

// lineageLocked tells who descends from whom, as long as mu is held.
func (s *Store) lineageLocked() snapshot.Lineage {
	return snapshot.Lineage{Heads: s.heads, Fates: s.fates}
}

// headOf finds a volume that is not deleted by its name.
func (s *Store) headOf(name string) (layout.Head, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	id, ok := s.lineageLocked().ByName(name)
	if ok {
		return s.heads[id], nil
	}
	err := ErrNotFound
	if s.headless != nil {
		err = fmt.Errorf("%w: %w", ErrDamaged, s.headless)
	} else if len(strayBags(s.keyring, s.heads)) > 0 {
		err = fmt.Errorf("%w: the keyring knows a volume that the index does not", ErrDamaged)
	}
	return layout.Head{}, fmt.Errorf("%s: volume %s: %w", s.dir.Path, name, err)
}

// Names returns the names of all volumes, sorted.
func (s *Store) Names() []string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var l []string
	for _, id := range s.lineageLocked().Visible() {
		l = append(l, s.heads[id].Name)
	}
	return l
}

// Content is a volume and its snapshots, oldest first, by their names.
type Content struct {
	Name        string
	Snapshots   []string
	NeedsReplay bool // it was not closed, and has a log
	Locked      bool // its volume key is not open
}

// Contents lists all volumes, sorted, and their snapshots. It takes little,
// however many there are; of volumes that are not open it is a hint.
func (s *Store) Contents() (l []Content, err error) {
	if !s.calls.enter() {
		return nil, ErrClosed
	}
	defer s.calls.leave()
	closed := map[layout.VolumeID][]SnapshotInfo{}
	err = s.db.Scan(layout.SnapshotsPrefix(), func(key, val []byte) error {
		id, ok := layout.SnapshotOwner(key)
		snap, err := layout.DecodeSnapshot(val)
		if ok && err == nil && !snap.Hidden {
			closed[id] = append(closed[id], infoOfSnapshot(id, snap))
		}
		return nil // what is damaged is told by who opens the volume
	})
	if err != nil {
		return nil, err
	}
	s.mu.RLock()
	lineage := s.lineageLocked()
	ids := lineage.Visible()
	histories, heads, locked := make([][]snapshot.Part, len(ids)), make([]layout.Head, len(ids)), make([]bool, len(ids))
	for i, id := range ids {
		histories[i], heads[i] = lineage.History(id), s.heads[id]
		locked[i] = s.keys[crypt.ID(heads[i].VolumeKey)] == nil
	}
	s.mu.RUnlock()
	for i, history := range histories {
		c := Content{Name: heads[i].Name, Locked: locked[i]}
		for _, part := range slices.Backward(history) {
			own := closed[part.Volume]
			if v := s.openedVolume(part.Volume); v != nil {
				v.mu.RLock()
				own = v.snapshotsLocked()
				v.mu.RUnlock()
			}
			for _, info := range own {
				if info.Number <= part.UpTo {
					c.Snapshots = append(c.Snapshots, info.Name)
				}
			}
		}
		c.NeedsReplay = s.needsReplay(ids[i])
		l = append(l, c)
	}
	return l, nil
}

// Volume opens a volume, once: it is recovered, and every later call returns
// the same. ErrNotFound, ErrKeyMissing and ErrDamaged tell why it cannot be.
func (s *Store) Volume(name string) (*Volume, error) {
	if !s.calls.enter() {
		return nil, ErrClosed
	}
	defer s.calls.leave()
	h, err := s.headOf(name)
	if err != nil {
		return nil, err
	}
	v, err := s.volumeByID(h.Volume)
	if err == nil && s.keyOf(h.VolumeKey) == nil && s.keyOf(v.headNow().VolumeKey) == nil {
		err = keyMissing(h) // it was removed; only who uses the volume goes on
	}
	if err != nil {
		return nil, fmt.Errorf("%s: volume %s: %w", s.dir.Path, name, err)
	}
	return v, nil
}

// openedVolume returns a volume if it is open.
func (s *Store) openedVolume(id layout.VolumeID) *Volume {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.volumes[id]
}

// volumeByID opens a volume, which may be hidden.
func (s *Store) volumeByID(id layout.VolumeID) (*Volume, error) {
	if v := s.openedVolume(id); v != nil {
		return v, nil
	}
	s.opening.Lock()
	defer s.opening.Unlock()
	s.mu.RLock()
	v, head, fate, closed := s.volumes[id], s.heads[id], s.fates[id], s.closed
	vk := s.keys[crypt.ID(head.VolumeKey)]
	s.mu.RUnlock()
	switch {
	case closed:
		return nil, ErrClosed
	case v != nil:
		return v, nil
	case head.Volume == 0 || fate == layout.Going:
		return nil, ErrNotFound
	case vk == nil:
		return nil, keyMissing(head)
	}
	v, err := s.openVolume(head, vk)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	closed = s.closed
	if !closed {
		s.volumes[id] = v
		delete(s.settled, id)
		s.users.Store(int64(len(s.volumes)))
	}
	s.mu.Unlock()
	if closed {
		return nil, errors.Join(ErrClosed, v.close())
	}
	return v, nil
}

// extentShare is how many opened extents a shard of a volume's cache may have:
// all open volumes share the memory.
func (s *Store) extentShare() int {
	return max(maxOpenExtents/extentShards/int(max(s.users.Load(), 1)), 8)
}

// opened lists the volumes that are open.
func (s *Store) opened() []*Volume {
	s.mu.RLock()
	defer s.mu.RUnlock()
	l := make([]*Volume, 0, len(s.volumes))
	for _, v := range s.volumes {
		l = append(l, v)
	}
	return l
}

// filesOf returns the segment files of a volume, which whoever reads its blocks
// shares with it.
func (s *Store) filesOf(id layout.VolumeID) (*seglog.Files, error) {
	s.mu.RLock()
	f := s.files[id]
	s.mu.RUnlock()
	if f != nil {
		return f, nil
	}
	f, err := seglog.OpenFiles(s.fs, s.dir.Volume(id), s.descs)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if other := s.files[id]; other != nil {
		return other, f.Close()
	}
	s.files[id] = f
	return f, nil
}

// pinned says whether a volume starts from a snapshot.
func (s *Store) pinned(id layout.VolumeID, seq layout.Seq) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.lineageLocked().Pinned(id, seq)
}

// noteHead takes over what changed in a head.
func (s *Store) noteHead(h layout.Head) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.heads[h.Volume] = h
}

// headNow is the head of the last checkpoint, or of a change since.
func (v *Volume) headNow() layout.Head {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.head
}

// setHead changes the head of an open volume beside a checkpoint: what it says
// of the map and the log stays. extra puts more into the same transaction; it
// may be nil. The caller holds v.upkeep.
func (v *Volume) setHead(change func(*layout.Head), extra func(*metadb.Txn) error) error {
	v.mu.RLock()
	head, closed := v.head, v.closed
	v.mu.RUnlock()
	if closed {
		return ErrClosed // and has no key to sign with
	}
	change(&head)
	head.Epoch++
	err := v.store.db.Update(func(tx *metadb.Txn) error {
		if extra != nil {
			if err := extra(tx); err != nil {
				return err
			}
		}
		return tx.Set(layout.HeadKey(v.id), head.Encode(v.signHead))
	})
	if err != nil {
		return err
	}
	v.mu.Lock()
	v.head = head
	v.mu.Unlock()
	v.label.Store(&head.Name)
	v.store.noteHead(head)
	return nil
}
