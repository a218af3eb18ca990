package volume

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/fsximg/fsx/pkg/crypt"
	"github.com/fsximg/fsx/pkg/layout"
	"github.com/fsximg/fsx/pkg/layout/maptree"
	"github.com/fsximg/fsx/pkg/layout/metadb"
)

// ErrLastVolume says that a store's only volume is not deleted.
var ErrLastVolume = errors.New("it is the store's only volume")

// DeleteVolume deletes a volume with its snapshots. No key is needed, though
// with it more space can be freed at once: a volume from which clones start
// stays, without a name, until the last of them goes.
func (s *Store) DeleteVolume(ctx context.Context, name string) error {
	if !s.calls.enter() {
		return ErrClosed
	}
	defer s.calls.leave()
	s.ops.Lock()
	defer s.ops.Unlock()
	if s.opt.ReadOnly {
		return ErrReadOnly
	}
	h, err := s.headOf(name)
	if err != nil {
		return err
	}
	s.mu.RLock()
	only := len(s.lineageLocked().Visible()) == 1
	s.mu.RUnlock()
	if only {
		return fmt.Errorf("volume %s: %w", name, ErrLastVolume)
	}
	// From here on it has no name, and goes as soon as nothing needs it.
	err = s.db.Update(func(tx *metadb.Txn) error { return tx.Set(layout.FateKey(h.Volume), []byte{byte(layout.Hidden)}) })
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.fates[h.Volume] = layout.Hidden
	s.mu.Unlock()
	if err := s.dropUseless(ctx); err != nil {
		return fmt.Errorf("volume %s is deleted; its space is not free yet: %w", name, err)
	}
	s.mu.RLock()
	history := s.lineageLocked().History(h.Volume)
	s.mu.RUnlock()
	for _, part := range history {
		if err := s.emptyHidden(ctx, part.Volume); err != nil {
			s.log.Warn("space of a deleted volume stays allocated", "volume", name, "err", err)
		}
	}
	return nil
}

// dropUseless removes hidden volumes from which none starts, and frees hidden
// snapshots that such a volume held. The caller holds ops.
func (s *Store) dropUseless(ctx context.Context) error {
	for {
		s.mu.RLock()
		useless := s.lineageLocked().Useless()
		s.mu.RUnlock()
		if len(useless) == 0 {
			return nil
		}
		for _, id := range useless {
			s.mu.RLock()
			h := s.heads[id]
			s.mu.RUnlock()
			if err := s.dropVolume(h); err != nil {
				return err
			}
			if h.Parent != 0 {
				s.sweepParent(h.Parent)
			}
		}
	}
}

// sweepParent has a volume free its hidden snapshots that nothing needs. Without
// its key that happens when it is next opened.
func (s *Store) sweepParent(id layout.VolumeID) {
	if v, err := s.volumeByID(id); err == nil {
		v.sweepDue.Store(true)
		v.kickUpkeep()
	}
}

// dropVolume removes a volume from which none starts: its keys and its head in
// one step, then its files and records. The caller holds ops.
func (s *Store) dropVolume(h layout.Head) (err error) {
	s.opening.Lock() // or it might be opened after it was looked for
	s.mu.Lock()
	s.fates[h.Volume] = layout.Going
	v := s.volumes[h.Volume]
	delete(s.volumes, h.Volume)
	last := true // of those under its volume key
	for id, other := range s.heads {
		last = last && (id == h.Volume || other.VolumeKey != h.VolumeKey)
	}
	s.mu.Unlock()
	s.opening.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if _, found := s.heads[h.Volume]; found {
			s.fates[h.Volume] = layout.Hidden // as before, to be tried again
		}
	}()
	if v != nil {
		if err := v.abandon(); err != nil {
			s.log.Warn("close deleted volume", "volume", h.Name, "err", err)
		}
	}
	change := func(ring *crypt.Keyring) error {
		ring.RemoveBag(crypt.UUID(h.UUID))
		for _, name := range baseNames(h.UUID, h.VolumeKey) {
			ring.RemoveBag(name)
		}
		for _, slot := range ring.Slots() {
			if last && slot.VolumeKey == crypt.ID(h.VolumeKey) {
				if err := ring.RemoveSlot(slot.Number); err != nil {
					return err
				}
			}
		}
		return nil
	}
	err = s.changeKeys(change, func(*crypt.Keyring) error {
		return s.db.Update(func(tx *metadb.Txn) error {
			return errors.Join(tx.Delete(layout.HeadKey(h.Volume)), tx.Set(layout.FateKey(h.Volume), []byte{byte(layout.Going)}))
		})
	}, func() {
		delete(s.heads, h.Volume)
		if k := s.keys[crypt.ID(h.VolumeKey)]; last && k != nil {
			delete(s.keys, crypt.ID(h.VolumeKey))
			k.Wipe()
		}
	})
	if err != nil {
		return err
	}
	return s.removeVolume(h.Volume)
}

// removeGoing goes on with the removals that a crash interrupted.
func (s *Store) removeGoing() {
	// A deletion may have been cut off before the keys went.
	if err := s.dropUseless(context.Background()); err != nil {
		s.log.Warn("a deleted volume is there still", "err", err)
	}
	for id, fate := range s.fates {
		if _, found := s.heads[id]; fate != layout.Going || found {
			continue
		}
		if err := s.removeVolume(id); err != nil {
			s.log.Warn("space of a deleted volume stays allocated", "volume", id, "err", err)
		}
	}
}

// removeVolume removes the files and the records of a volume that has no head
// any more; done again, it goes on.
func (s *Store) removeVolume(id layout.VolumeID) error {
	files, err := s.filesOf(id)
	if err != nil {
		return err
	}
	s.listing.Lock()
	err = files.RemoveAll()
	if err == nil {
		s.mu.Lock()
		delete(s.files, id)
		s.mu.Unlock()
	}
	s.listing.Unlock()
	if err != nil {
		return err
	}
	for _, prefix := range [][]byte{layout.SegmentPrefix(id), layout.ExtentPrefix(id), layout.SnapshotPrefix(id), layout.AccountPrefix(id), maptree.Prefix(id)} {
		if err := s.removeRecords(prefix); err != nil {
			return err
		}
	}
	if err := s.db.Update(func(tx *metadb.Txn) error { return tx.Delete(layout.FateKey(id)) }); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.fates, id)
	return nil
}

func (s *Store) removeRecords(prefix []byte) error {
	batch := s.db.NewBatch()
	defer batch.Cancel()
	err := s.db.ScanKeys(prefix, prefix, func(key []byte) error { return batch.Delete(key) })
	if err != nil {
		return err
	}
	return batch.Flush()
}

// abandon closes a volume without a checkpoint: nothing of it is needed.
func (v *Volume) abandon() error {
	v.mu.Lock()
	v.discard = true
	v.mu.Unlock()
	return v.close()
}

// emptyHidden frees what only a hidden volume's present state has, and those of
// its snapshots that no volume starts from or shows. Without its key it does
// nothing.
func (s *Store) emptyHidden(ctx context.Context, id layout.VolumeID) error {
	s.mu.RLock()
	hidden := s.fates[id] == layout.Hidden
	shown := layout.Seq(0) // snapshots up to here belong to the history of a visible volume
	l := s.lineageLocked()
	for _, other := range l.Visible() {
		for _, part := range l.History(other) {
			if part.Volume == id {
				shown = max(shown, part.UpTo)
			}
		}
	}
	s.mu.RUnlock()
	v, err := s.volumeByID(id)
	if !hidden || errors.Is(err, ErrKeyMissing) || errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	v.mu.RLock()
	snaps := v.snapshotsLocked()
	v.mu.RUnlock()
	for _, snap := range snaps {
		if snap.Number > shown {
			if err := v.deleteNumber(ctx, snap.Number, true); err != nil {
				return err
			}
		}
	}
	if err := v.ZeroAt(0, v.Size(), false); err != nil {
		return err
	}
	return v.Flush()
}

// sweep deletes hidden snapshots that nothing starts from any more. Maintenance is
// not patient: it goes on after the checkpoints that it makes itself.
func (v *Volume) sweep(ctx context.Context, patient bool) error {
	v.mu.RLock()
	var l []layout.Seq
	for i := range v.snaps {
		if v.snaps[i].Hidden {
			l = append(l, v.snaps[i].Seq)
		}
	}
	v.mu.RUnlock()
	for _, seq := range l {
		if v.store.pinned(v.id, seq) {
			continue
		}
		err := v.deleteNumber(ctx, seq, patient)
		if errors.Is(err, errMoved) {
			v.sweepDue.Store(true) // once they are through
			return nil
		}
		if err != nil && !errors.Is(err, ErrNoSnapshot) {
			return err
		}
	}
	return nil
}

// deleteNumber deletes a snapshot by its number, a hidden one too.
func (v *Volume) deleteNumber(ctx context.Context, seq layout.Seq, patient bool) error {
	return v.ask(ctx, patient, func() (c control, err error) {
		gone := false
		v.layersLocked(func(o *overlay) bool {
			gone = gone || slices.Contains(o.deletes, seq)
			return true
		})
		known := slices.ContainsFunc(v.snaps, func(s layout.Snapshot) bool { return s.Seq == seq }) ||
			slices.ContainsFunc(v.waiting, func(f *frozenOverlay) bool { return f.snap != nil && f.snap.Seq == seq })
		asked := slices.ContainsFunc(v.controls, func(c *control) bool {
			return c.op.Code == layout.OpDeleteSnapshot && c.op.Snapshot == seq
		})
		if gone || !known || asked {
			return c, fmt.Errorf("%w: %d", ErrNoSnapshot, seq)
		}
		return control{op: layout.Op{Code: layout.OpDeleteSnapshot, Snapshot: seq}}, nil
	})
}
