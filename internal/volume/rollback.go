package volume

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/fsximg/fsx/pkg/crypt"
)

// ErrNewerSnapshots says that a rollback would lose snapshots.
var ErrNewerSnapshots = errors.New("there are newer snapshots")

// Rollback makes a volume what it was at a snapshot. Its name then stands for
// another volume, a clone of the snapshot, with the same keys; what the volume
// was until now is gone. Whoever uses the old one gets ErrClosed. Newer
// snapshots, of which the names are returned, are deleted with force, and
// otherwise the error is ErrNewerSnapshots.
func (s *Store) Rollback(ctx context.Context, volume, snapshot string, force bool) (deleted []string, err error) {
	if !s.calls.enter() {
		return nil, ErrClosed
	}
	defer s.calls.leave()
	s.ops.Lock()
	defer s.ops.Unlock()
	if s.opt.ReadOnly {
		return nil, ErrReadOnly
	}
	v, err := s.volumeToChange(volume)
	if err != nil {
		return nil, err
	}
	w, info, err := v.findSnapshot(snapshot)
	if err != nil {
		return nil, err
	}
	if newer, err := s.newerSnapshots(v, info.Name, force); err != nil {
		return newer, err
	}
	s.mu.RLock()
	history := s.lineageLocked().History(v.id)
	s.mu.RUnlock()
	newer, err := s.rollBackTo(ctx, v, w, info, force)
	if err != nil {
		return newer, err
	}
	// The old volume's log must be whole: its older snapshots are still needed.
	if err := v.close(); err != nil {
		s.log.Warn("close what the volume was", "volume", volume, "err", err)
	}
	s.mu.Lock()
	delete(s.volumes, v.id)
	s.mu.Unlock()
	if err := s.dropUseless(ctx); err != nil {
		return newer, err
	}
	// From the newest to the snapshot's volume, nothing else is needed.
	for _, part := range history {
		if err := s.emptyHidden(ctx, part.Volume); err != nil {
			s.log.Warn("space of what the volume was stays allocated", "volume", volume, "err", err)
		}
		if part.Volume == w.id {
			break
		}
	}
	return newer, nil
}

// newerSnapshots names a volume's snapshots that are newer than one of them, which
// without force is an error.
func (s *Store) newerSnapshots(v *Volume, name string, force bool) (newer []string, err error) {
	all, err := v.history()
	for i := range all {
		if all[i].Name == name {
			for _, n := range all[i+1:] {
				newer = append(newer, n.Name)
			}
		}
	}
	if err == nil && len(newer) > 0 && !force {
		err = fmt.Errorf("%w: %s", ErrNewerSnapshots, strings.Join(newer, ", "))
	}
	return newer, err
}

func (s *Store) rollBackTo(ctx context.Context, v, w *Volume, info SnapshotInfo, force bool) (newer []string, err error) {
	w.upkeep.Lock()
	defer w.upkeep.Unlock()
	snap, err := w.checkpointedLocked(ctx, info.Number)
	if err != nil {
		return nil, err
	}
	// From here on there are no more snapshots than those that are looked at.
	v.halt()
	defer func() {
		if err != nil {
			v.resume()
		}
	}()
	if newer, err = s.newerSnapshots(v, info.Name, force); err != nil {
		return newer, err
	}
	n := newVolume{
		name: v.Name(), origin: originOf(w, snap), continues: true, ephemeral: v.headNow().Ephemeral, mode: crypt.Mode(v.headNow().Mode),
		vk: s.keyOf(v.headNow().VolumeKey), replaces: v.id,
	}
	// What the volume was has had data keys taken away since, perhaps, that this
	// snapshot needs: the bag that it is read with has them.
	if n.bag, err = w.bag.Clone(snap.Keys); err != nil {
		return nil, err
	}
	defer n.bag.Wipe()
	n.bag.Reserve(v.bag.Next())
	if err := addWriteKey(n.bag, n.mode); err != nil {
		return nil, err
	}
	return newer, s.addVolume(n)
}

// halt has a volume take no change any more, as if it were closed, and waits for
// changes of its state that are on their way.
func (v *Volume) halt() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.closing = true
	v.changed.Broadcast()
	for len(v.controls) > 0 {
		v.kick()
		v.changed.Wait()
	}
}

// resume undoes halt.
func (v *Volume) resume() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.closing = false
}
