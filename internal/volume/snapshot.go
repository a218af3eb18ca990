package volume

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	"github.com/fsximg/fsx/pkg/layout"
	"github.com/fsximg/fsx/pkg/layout/maptree"
)

var (
	// ErrNoSnapshot says that a volume has no such snapshot.
	ErrNoSnapshot = errors.New("no such snapshot")
	// ErrExists says that a name is taken.
	ErrExists = errors.New("exists already")
)

// SnapshotInfo describes a snapshot.
type SnapshotInfo struct {
	Name    string
	Number  layout.Seq // of the commit it was made after; never reused in the volume
	Created time.Time
	Size    int64 // bytes
	// Alone is what only this snapshot has, in bytes, as of the last checkpoint:
	// what deleting it would free, if nothing was cloned from it.
	Alone  int64
	Clones int // volumes that start from it

	of layout.VolumeID // that has it
}

func infoOfSnapshot(of layout.VolumeID, s *layout.Snapshot) SnapshotInfo {
	return SnapshotInfo{Name: s.Name, Number: s.Seq, Created: s.Created, Size: int64(s.Size), of: of}
}

// snapshots reads the snapshot records of a volume. They are hints unless they
// are those of which the head names the digest.
func (s *Store) snapshots(id layout.VolumeID) (l []layout.Snapshot, err error) {
	err = s.db.Scan(layout.SnapshotPrefix(id), func(key, val []byte) error {
		snap, err := layout.DecodeSnapshot(val)
		if err == nil && string(key) != string(layout.SnapshotKey(id, snap.Seq)) {
			err = errors.New("it is another's")
		}
		if err != nil {
			return fmt.Errorf("%w: snapshot record %x: %w", ErrDamaged, key, err)
		}
		l = append(l, *snap)
		return nil
	})
	return l, err
}

// snapshotOf is the snapshot that an operation of commit seq makes.
func snapshotOf(op *layout.Op, seq layout.Seq, size int64) *layout.Snapshot {
	return &layout.Snapshot{Seq: seq, Keys: op.Keys, Name: op.Name, Created: time.Unix(op.Created, 0).UTC(), Size: uint64(size)}
}

// control is a change of the volume's state on its way into the log. It stays in
// Volume.controls until what it changes can be seen, so that the next one is
// checked against it.
type control struct {
	op    layout.Op
	size  int64      // of the volume from now on, if it is resized: there is no op then
	pause *pause     // the log stands still: there is no op then
	done  chan error // takes one; nil says that it is durable
}

// answerLocked tells the oldest control how it ended.
func (v *Volume) answerLocked(err error) {
	v.controls[0].done <- err
	v.controls = slices.Delete(v.controls, 0, 1)
}

func (v *Volume) failControlsLocked(err error) {
	for len(v.controls) > 0 {
		v.answerLocked(err)
	}
}

// controlRoom is the space, in blocks, that the log must have for a control
// operation: it is then left with what a flush and a switch of segments need.
const controlRoom = 16

// control logs the oldest change of state that waits, behind everything that was
// written before it. An error is of the log itself; what else keeps the change
// from being made is told to the one who asked for it.
func (l *logger) control() error {
	v := l.v
	v.mu.RLock()
	pause := v.controls[0].pause
	v.mu.RUnlock()
	if pause != nil {
		return l.pause(pause)
	}
	if err := l.ready(); err != nil {
		return err
	}
	v.mu.Lock()
	op, size := v.controls[0].op, v.controls[0].size
	if !l.w.Begun() || l.w.Capacity() < controlRoom {
		v.answerLocked(fmt.Errorf("no space for the log: %w", cmp.Or[error](v.noSegment, syscall.ENOSPC)))
		v.mu.Unlock()
		return nil
	}
	v.mu.Unlock()
	if size != 0 {
		return l.resize(size)
	}
	if !l.w.RoomForControl(&op) {
		if err := l.commit(); err != nil {
			return err
		}
	}
	if op.Code == layout.OpSnapshot {
		op.Keys = v.bag.Next() // only now: a key that came meanwhile may have sealed some of it
	}
	l.w.AppendControl(op)
	if err := l.commit(); err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	switch op.Code {
	case layout.OpSnapshot:
		l.freezeLocked(snapshotOf(&op, l.w.Tail().Seq, v.Size()))
	case layout.OpDeleteSnapshot:
		v.overlay.deletes = append(v.overlay.deletes, op.Snapshot)
	}
	v.answerLocked(nil)
	return nil
}

// change has the log's goroutine make a change of state. check says under mu
// which, or why not: it sees all changes that were asked for before.
func (v *Volume) change(ctx context.Context, check func() (layout.Op, error)) error {
	return v.ask(ctx, true, func() (c control, err error) {
		c.op, err = check()
		return c, err
	})
}

// ask is change for what may be no operation. Who is not patient gets errMoved
// while too many snapshots wait for their checkpoints, which maintenance makes:
// it must not wait for itself.
func (v *Volume) ask(ctx context.Context, patient bool, check func() (control, error)) error {
	if !v.calls.enter() {
		return ErrClosed
	}
	defer v.calls.leave()
	v.mu.Lock()
	for len(v.waiting) >= maxWaiting && v.failed == nil && v.upkeepErr == nil {
		if !patient {
			v.mu.Unlock()
			return errMoved
		}
		v.kickUpkeep()
		v.changed.Wait()
	}
	err := errors.Join(v.writableLocked(), ctx.Err())
	if err == nil && len(v.waiting) >= maxWaiting {
		err = fmt.Errorf("volume %s: snapshots wait for a checkpoint, which fails: %w", v.Name(), v.upkeepErr)
	}
	c := &control{}
	if err == nil {
		*c, err = check()
	}
	if err != nil {
		v.mu.Unlock()
		return err
	}
	c.done = make(chan error, 1)
	v.controls = append(v.controls, c)
	v.mu.Unlock()
	v.kick()
	err = <-c.done
	v.kickUpkeep()
	return err
}

// maxWaiting bounds the frozen overlays, each of which a read may have to
// search.
const maxWaiting = 8

// CreateSnapshot keeps the volume's present state under a name: everything
// whose write returned before the call, and of what is under way each block as
// it was or as it will be. When it returns the snapshot is durable. ErrExists
// says that the name is taken.
func (v *Volume) CreateSnapshot(ctx context.Context, name string) error {
	if _, _, err := v.findSnapshot(name); err == nil {
		return fmt.Errorf("snapshot %s: %w", name, ErrExists)
	} else if !errors.Is(err, ErrNoSnapshot) {
		return err
	}
	return v.change(ctx, func() (op layout.Op, err error) {
		if !layout.ValidName(name) {
			return op, fmt.Errorf("snapshot name %q is not allowed", name)
		}
		if _, ok := v.findSnapshotLocked(name); ok || v.wantedLocked(name) {
			return op, fmt.Errorf("snapshot %s: %w", name, ErrExists)
		}
		return layout.Op{Code: layout.OpSnapshot, Name: name, Created: time.Now().Unix()}, nil
	})
}

// wantedLocked says that a snapshot of this name is about to be made.
func (v *Volume) wantedLocked(name string) bool {
	return slices.ContainsFunc(v.controls, func(c *control) bool { return c.op.Name == name })
}

// DeleteSnapshot deletes a snapshot. When it returns that is durable; the space
// of what nothing else needs goes back with the next checkpoint. Readers of the
// snapshot get ErrNoSnapshot from then on.
func (v *Volume) DeleteSnapshot(ctx context.Context, name string) error {
	w, info, err := v.findSnapshot(name)
	if err != nil {
		return err
	}
	if w != v {
		return w.deleteNumber(ctx, info.Number, true)
	}
	return v.change(ctx, func() (op layout.Op, err error) {
		s, ok := v.findSnapshotLocked(name)
		if !ok {
			return op, fmt.Errorf("%w: %s", ErrNoSnapshot, name)
		}
		op = layout.Op{Code: layout.OpDeleteSnapshot, Snapshot: s.Number}
		if slices.ContainsFunc(v.controls, func(c *control) bool { return c.op.Code == op.Code && c.op.Snapshot == op.Snapshot }) {
			return op, fmt.Errorf("%w: %s", ErrNoSnapshot, name)
		}
		return op, nil
	})
}

// Snapshots lists the volume's snapshots, oldest first.
func (v *Volume) Snapshots() []SnapshotInfo {
	l, err := v.history()
	if err != nil {
		v.log.Error("snapshots of before a rollback", "volume", v.Name(), "err", err)
	}
	return l
}

// history lists the snapshots that the volume's name stands for, oldest first.
func (v *Volume) history() ([]SnapshotInfo, error) {
	s := v.store
	s.mu.RLock()
	history := s.lineageLocked().History(v.id)
	s.mu.RUnlock()
	for _, part := range history[1:] { // or deletions that they still have in their logs are missed
		if _, err := s.volumeByID(part.Volume); err != nil {
			return nil, err
		}
	}
	return s.snapshotsOf(v.id)
}

// snapshotsOf lists the snapshots that a volume's name stands for, oldest first.
// Those of volumes that are not open are hints.
func (s *Store) snapshotsOf(id layout.VolumeID) (l []SnapshotInfo, err error) {
	s.mu.RLock()
	history := s.lineageLocked().History(id)
	s.mu.RUnlock()
	for _, part := range slices.Backward(history) {
		own, err := s.ownSnapshots(part.Volume)
		if err != nil {
			return l, err
		}
		for _, info := range own {
			if info.Number <= part.UpTo {
				l = append(l, info)
			}
		}
	}
	return l, nil
}

func (s *Store) ownSnapshots(id layout.VolumeID) (l []SnapshotInfo, err error) {
	if v := s.openedVolume(id); v != nil {
		v.mu.RLock()
		defer v.mu.RUnlock()
		return v.snapshotsLocked(), nil
	}
	snaps, err := s.snapshots(id)
	for i := range snaps {
		if !snaps[i].Hidden {
			l = append(l, infoOfSnapshot(id, &snaps[i]))
		}
	}
	return l, err
}

func (v *Volume) snapshotsLocked() (l []SnapshotInfo) {
	for i := range v.snaps {
		if !v.snaps[i].Hidden {
			l = append(l, infoOfSnapshot(v.id, &v.snaps[i]))
		}
	}
	for _, f := range v.waiting {
		if f.snap != nil {
			l = append(l, infoOfSnapshot(v.id, f.snap))
		}
	}
	v.layersLocked(func(o *overlay) bool {
		l = slices.DeleteFunc(l, func(s SnapshotInfo) bool { return slices.Contains(o.deletes, s.Number) })
		return true
	})
	return l
}

func (v *Volume) findSnapshotLocked(name string) (SnapshotInfo, bool) {
	l := v.snapshotsLocked()
	i := slices.IndexFunc(l, func(s SnapshotInfo) bool { return s.Name == name })
	if i < 0 {
		return SnapshotInfo{}, false
	}
	return l[i], true
}

// stateLocked is where a state of the volume is to be looked up: in overlays,
// oldest first, then in the map tree under a root. Of the present state the
// newest overlay is not among them (findLocked knows it).
func (v *Volume) stateLocked(state layout.Seq) ([]*frozenOverlay, maptree.Root, error) {
	if state == now {
		return v.waiting, v.root, nil
	}
	for i, f := range v.waiting {
		if f.snap != nil && f.at.Seq == state {
			return v.waiting[:i+1], v.root, nil
		}
	}
	if i := slices.IndexFunc(v.snaps, func(s layout.Snapshot) bool { return s.Seq == state }); i >= 0 {
		return nil, v.snaps[i].Root, nil
	}
	return nil, maptree.Root{}, fmt.Errorf("snapshot %d of volume %s: %w", state, v.Name(), ErrNoSnapshot)
}

// findLocked looks a block up in the overlays of a state.
func (v *Volume) findLocked(state layout.Seq, layers []*frozenOverlay, b layout.BlockNo) (e entry, ok bool) {
	if state == now {
		if e, ok = v.overlay.find(b); ok {
			return e, true
		}
	}
	for i := len(layers) - 1; i >= 0; i-- {
		if e, ok = layers[i].find(b); ok {
			return e, true
		}
	}
	return entry{}, false
}

// Snapshot is a snapshot as a read-only block device. It is safe for concurrent
// use, and good until the volume is closed.
type Snapshot struct {
	v    *Volume
	info SnapshotInfo
}

// Snapshot opens a snapshot. Every call returns the same.
func (v *Volume) Snapshot(name string) (*Snapshot, error) {
	v, i, err := v.findSnapshot(name)
	if err != nil {
		return nil, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.closed {
		return nil, ErrClosed
	}
	d := v.devices[i.Number]
	if d == nil {
		d = &Snapshot{v, i}
		v.devices[i.Number] = d
	}
	return d, nil
}

// Info describes it.
func (s *Snapshot) Info() SnapshotInfo { return s.info }

// Name is VOLUME@SNAPSHOT. VOLUME is what the volume was called before a rollback,
// if the snapshot is older than that, even when it was renamed since.
func (s *Snapshot) Name() string { return s.v.Name() + "@" + s.info.Name }

// Size is the snapshot's size in bytes.
func (s *Snapshot) Size() int64 { return s.info.Size }

// ReadOnly is true.
func (s *Snapshot) ReadOnly() bool { return true }

// ReadAt is as of a volume.
func (s *Snapshot) ReadAt(p []byte, off int64, nowait bool) error {
	return s.v.readAt(s.info.Number, s.info.Size, p, off, nowait)
}

// Status is as of a volume.
func (s *Snapshot) Status(off, n int64, fn func(length int64, hole, zero bool) bool) error {
	return s.v.status(s.info.Number, s.info.Size, off, n, fn)
}

// WriteAt returns ErrReadOnly.
func (s *Snapshot) WriteAt([]byte, int64, bool) error { return ErrReadOnly }

// ZeroAt returns ErrReadOnly.
func (s *Snapshot) ZeroAt(int64, int64, bool) error { return ErrReadOnly }

// TrimAt returns ErrReadOnly.
func (s *Snapshot) TrimAt(int64, int64) error { return ErrReadOnly }

// Flush does nothing: a snapshot is durable.
func (s *Snapshot) Flush() error { return nil }

// Prefetch is a hint that a range will be read.
func (s *Snapshot) Prefetch(off, n int64) error { return checkRange(s.info.Size, off, n) }
