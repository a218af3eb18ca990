package volume

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"github.com/fsximg/fsx/pkg/crypt"
	"github.com/fsximg/fsx/pkg/layout"
	"github.com/fsximg/fsx/pkg/layout/metadb"
	"github.com/fsximg/fsx/pkg/layout/seglog"
)

// Info is what a store tells about itself without a key. Names, sizes and
// numbers of volumes that were not unlocked are hints.
type Info struct {
	Path      string
	UUID      layout.UUID
	Version   int
	Created   time.Time
	Allocated int64 // bytes on disk
	Slots     []crypt.SlotInfo
	Volumes   []VolumeInfo
	Hidden    []VolumeInfo // that were deleted and stay for their clones
}

// VolumeInfo describes a volume.
type VolumeInfo struct {
	ID        layout.VolumeID
	UUID      layout.UUID
	Name      string
	Size      int64
	Created   time.Time
	VolumeKey crypt.ID
	Mode      crypt.Mode
	Epoch     uint64 // number of its head, which only grows
	// Parent is the volume it starts from, 0 if it is no clone, with its name
	// and that of the snapshot.
	Parent                     layout.VolumeID
	ParentName, ParentSnapshot string
	RolledBack                 bool // it starts from a snapshot of its own
	Hidden                     bool // it was deleted, and stays for its clones
	Segments                   int
	Live                       int64          // bytes of blocks that something needs
	Alone                      int64          // of these, what only its present state has
	LogBytes                   int64          // bytes in segment files, dead ones included
	Allocated                  int64          // bytes on disk
	Snapshots                  []SnapshotInfo // oldest first
	// NeedsReplay says that the store was not closed: what the log has behind
	// the last checkpoint is not counted here.
	NeedsReplay bool
	// Ephemeral says that its volume key is in no slot; Lost, that it is gone: the
	// volume can only be deleted.
	Ephemeral, Lost bool
	// Lent says that it was cloned without a chain: what it shares with its parent it
	// reads only while that one's volume key is open, too.
	Lent bool
	// Unlocked says that the volume is open, so that what is told is authentic.
	Unlocked bool
}

// Info describes the store and its volumes.
func (s *Store) Info() (Info, error) {
	i := Info{Path: s.dir.Path, UUID: s.dir.Super.UUID, Version: layout.Version, Created: s.dir.Super.Created, Slots: s.Keyring().Slots()}
	var err error
	if i.Volumes, err = s.Volumes(); err != nil {
		return i, err
	}
	if i.Hidden, err = s.hidden(); err != nil {
		return i, err
	}
	for _, v := range slices.Concat(i.Volumes, i.Hidden) {
		i.Allocated += v.Allocated
	}
	meta, err := s.db.Size()
	if err != nil {
		return i, err
	}
	i.Allocated += meta
	if info, err := s.allocated(s.ballastPath()); err == nil {
		i.Allocated += info
	}
	return i, nil
}

func (s *Store) allocated(path string) (int64, error) {
	f, err := s.fs.OpenFile(path, 0, 0)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return f.Allocated()
}

// Volumes describes all volumes, sorted by name. No key is needed.
func (s *Store) Volumes() ([]VolumeInfo, error) {
	if !s.calls.enter() {
		return nil, ErrClosed
	}
	defer s.calls.leave()
	s.mu.RLock()
	ids := s.lineageLocked().Visible()
	s.mu.RUnlock()
	var l []VolumeInfo
	for _, id := range ids {
		v, err := s.volumeInfo(id)
		if errors.Is(err, ErrNotFound) {
			continue // it went meanwhile
		}
		if err != nil {
			return nil, err
		}
		l = append(l, v)
	}
	return l, nil
}

// hidden describes the volumes that were deleted and stay for others.
func (s *Store) hidden() (l []VolumeInfo, err error) {
	s.mu.RLock()
	var ids []layout.VolumeID
	for id := range s.heads {
		if s.fates[id] != 0 {
			ids = append(ids, id)
		}
	}
	s.mu.RUnlock()
	slices.Sort(ids)
	for _, id := range ids {
		v, err := s.volumeInfo(id)
		if errors.Is(err, ErrNotFound) {
			continue // it went meanwhile
		}
		if err != nil {
			return nil, err
		}
		l = append(l, v)
	}
	return l, nil
}

func (s *Store) volumeInfo(id layout.VolumeID) (VolumeInfo, error) {
	s.listing.RLock()
	defer s.listing.RUnlock()
	s.mu.RLock()
	h, found := s.heads[id]
	open := s.volumes[id]
	parent := s.heads[h.Parent]
	s.mu.RUnlock()
	if !found {
		return VolumeInfo{}, ErrNotFound
	}
	if open != nil {
		open.mu.RLock()
		h = open.head
		open.mu.RUnlock()
	}
	i := VolumeInfo{
		ID: id, UUID: h.UUID, Name: h.Name, Size: int64(h.Size), Created: h.Created, Hidden: s.fate(id) != 0,
		VolumeKey: crypt.ID(h.VolumeKey), Mode: crypt.Mode(h.Mode), Epoch: h.Epoch, Parent: h.Parent, RolledBack: h.Continues,
		NeedsReplay: s.needsReplay(id), Unlocked: open != nil,
		Ephemeral: h.Ephemeral, Lost: h.Ephemeral && s.keyOf(h.VolumeKey) == nil,
	}
	_, i.Lent = s.Keyring().BagVolumeKey(baseNames(h.UUID, h.VolumeKey)[0])
	var err error
	if h.Parent != 0 {
		i.ParentName = parent.Name
		if i.ParentSnapshot, err = s.snapshotName(h.Parent, h.ParentSnapshot); err != nil {
			return i, err
		}
	}
	if open != nil {
		i.Size = open.Size()
	}
	if i.Snapshots, err = s.snapshotsOf(id); err != nil {
		return i, err
	}
	if err := s.addUsage(id, &i); err != nil {
		return i, err
	}
	files, err := s.filesOf(id)
	if err != nil {
		return i, err
	}
	for _, no := range files.List() {
		size, allocated, err := files.Usage(no)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, seglog.ErrNoSegment) {
			continue // it went meanwhile
		}
		if err != nil {
			return i, err
		}
		i.Segments++
		i.LogBytes += size
		i.Allocated += allocated
	}
	segs, err := s.segmentRecords(id, h.Log.Seq)
	for _, r := range segs {
		i.Live += int64(countBits(r.Live)) * blockSize
	}
	return i, err
}

// segmentRecords returns the valid record of every segment.
func (s *Store) segmentRecords(id layout.VolumeID, upTo layout.Seq) (map[layout.SegmentNo]*layout.SegmentRecord, error) {
	m := map[layout.SegmentNo]*layout.SegmentRecord{}
	var lost []layout.SegmentNo
	err := s.db.Scan(layout.SegmentPrefix(id), func(key, val []byte) error {
		_, no, _, ok := layout.SegmentOfKey(key)
		rec, err := layout.DecodeSegmentRecord(val)
		if ok && err != nil {
			lost = append(lost, no) // the other slot may be of an earlier time
		}
		if !ok || err != nil || rec.Checkpoint > upTo {
			return nil
		}
		if old := m[no]; old == nil || rec.Checkpoint >= old.Checkpoint {
			m[no] = rec
		}
		return nil
	})
	for _, no := range lost {
		delete(m, no)
	}
	return m, err
}

// Run is a run of blocks of one kind, as Map reports it.
type Run struct {
	Start, Length int64 // bytes
	Kind          layout.Kind
	Owner         layout.VolumeID // of data
	KID           layout.KeyID    // of data
	// Snapshot is the oldest, of the volume that owns the data, that has it, as
	// VOLUME@SNAPSHOT; empty if none has.
	Snapshot string
}

// Map calls fn with the runs of a volume's map as of its last checkpoint, or of
// a snapshot's, until fn returns false. No key is needed; of an open volume
// everything is checkpointed first.
func (s *Store) Map(name, snapshot string, fn func(Run) bool) error {
	if !s.calls.enter() {
		return ErrClosed
	}
	defer s.calls.leave()
	head, err := s.headOf(name)
	if err != nil {
		return err
	}
	if v := s.openedVolume(head.Volume); v != nil {
		if snapshot != "" {
			if v, _, err = v.findSnapshot(snapshot); err != nil {
				return err
			}
		}
		return v.mapRuns(snapshot, fn)
	}
	if snapshot == "" {
		return s.walkRuns(head.Root, int64(head.Size), s.indexRecord, fn)
	}
	s.mu.RLock()
	history := s.lineageLocked().History(head.Volume)
	s.mu.RUnlock()
	for _, part := range history {
		snaps, err := s.snapshots(part.Volume)
		if err == nil {
			err = s.mapSnapshot(snaps, snapshot, s.indexRecord, fn)
		}
		if !errors.Is(err, ErrNoSnapshot) {
			return err
		}
	}
	return fmt.Errorf("%w: %s", ErrNoSnapshot, snapshot)
}

// addUsage tells what a volume's state and its snapshots have alone.
func (s *Store) addUsage(id layout.VolumeID, i *VolumeInfo) error {
	s.mu.RLock()
	l := s.lineageLocked()
	history := l.History(id)
	clones := map[layout.VolumeID]map[layout.Seq]int{}
	for _, h := range l.Heads {
		if h.Parent != 0 && !(h.Volume == id && h.Continues) {
			if clones[h.Parent] == nil {
				clones[h.Parent] = map[layout.Seq]int{}
			}
			clones[h.Parent][h.ParentSnapshot]++
		}
	}
	s.mu.RUnlock()
	for _, part := range history {
		snaps, err := s.snapshots(part.Volume)
		if err != nil {
			return err
		}
		u, err := s.usage(part.Volume, snaps)
		if err != nil {
			return err
		}
		if part.Volume == id {
			i.Alone = int64(u.head) * blockSize
		}
		for k := range i.Snapshots {
			if snap := &i.Snapshots[k]; snap.of == part.Volume {
				snap.Alone, snap.Clones = int64(u.snaps[snap.Number])*blockSize, clones[part.Volume][snap.Number]
			}
		}
	}
	return nil
}

func (s *Store) fate(id layout.VolumeID) layout.Fate {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.fates[id]
}

// deletedMark follows the name of a snapshot that was deleted: the name may be
// another's.
const deletedMark = " (deleted)"

// snapshotName is the name of a snapshot, which may be hidden.
func (s *Store) snapshotName(id layout.VolumeID, seq layout.Seq) (name string, err error) {
	err = s.db.Get(layout.SnapshotKey(id, seq), func(val []byte) error {
		snap, err := layout.DecodeSnapshot(val)
		if err == nil {
			name = snap.Name
			if snap.Hidden {
				name += deletedMark
			}
		}
		return err
	})
	if errors.Is(err, metadb.ErrNotFound) || errors.Is(err, layout.ErrCorrupt) {
		err = nil // told by check
	}
	return name, err
}

func (s *Store) mapSnapshot(snaps []layout.Snapshot, name string, record recordOf, fn func(Run) bool) error {
	for i := range snaps {
		if snaps[i].Name == name && !snaps[i].Hidden {
			return s.walkRuns(snaps[i].Root, int64(snaps[i].Size), record, fn)
		}
	}
	return fmt.Errorf("%w: %s", ErrNoSnapshot, name)
}

func (v *Volume) mapRuns(snapshot string, fn func(Run) bool) error {
	// Nothing may replace the tree while it is walked.
	v.upkeep.Lock()
	defer v.upkeep.Unlock()
	if !v.ro {
		if err := v.checkpointLocked(backgroundContext, false); err != nil {
			return err
		}
	}
	v.mu.RLock()
	root, snaps := v.root, v.snaps
	v.mu.RUnlock()
	if snapshot != "" {
		return v.store.mapSnapshot(snaps, snapshot, v.extentRecord, fn)
	}
	return v.store.walkRuns(root, v.Size(), v.extentRecord, fn)
}

type recordOf func(layout.VolumeID, layout.ExtentID) (layout.ExtentRecord, error)

// snapshotNames finds snapshots by what they have.
type snapshotNames struct {
	s  *Store
	of map[layout.VolumeID][]layout.Snapshot
}

// first names the oldest snapshot that can have a block of a volume.
func (n *snapshotNames) first(owner layout.VolumeID, birth layout.Seq) (string, error) {
	snaps, ok := n.of[owner]
	if !ok {
		var err error
		if snaps, err = n.s.snapshots(owner); err != nil {
			return "", err
		}
		n.of[owner] = snaps
	}
	i, _ := slices.BinarySearchFunc(snaps, birth, func(s layout.Snapshot, b layout.Seq) int { return cmp.Compare(s.Seq, b) })
	if i == len(snaps) {
		return "", nil
	}
	n.s.mu.RLock()
	defer n.s.mu.RUnlock()
	name := n.s.heads[owner].Name + "@" + snaps[i].Name
	if snaps[i].Hidden {
		name += deletedMark
	}
	return name, nil
}

// walkRuns merges a map's blocks into runs of one kind, owner and key.
func (s *Store) walkRuns(root layout.Root, size int64, record recordOf, fn func(Run) bool) error {
	var cur Run
	stopped := false
	flush := func() bool {
		if cur.Length > 0 && !stopped {
			cur.Length = min(cur.Length, size-cur.Start)
			stopped = !fn(cur)
		}
		cur = Run{}
		return !stopped
	}
	var lastName extentName
	var lastKID layout.KeyID
	var lastSnapshot string
	names := &snapshotNames{s: s, of: map[layout.VolumeID][]layout.Snapshot{}}
	var failed error
	blocks := layout.BlockNo((size + blockSize - 1) / blockSize)
	err := s.tree.Walk(root, 0, blocks, func(start layout.BlockNo, n uint64, kind layout.Kind, ref *layout.BlockRef) bool {
		r := Run{Start: int64(start) * blockSize, Length: int64(n) * blockSize, Kind: kind}
		if kind == layout.Data {
			if name := (extentName{ref.Owner, ref.Extent}); name != lastName {
				rec, err := record(ref.Owner, ref.Extent)
				if err != nil {
					failed = err
					return false
				}
				lastName, lastKID = name, rec.KID
				if lastSnapshot, err = names.first(ref.Owner, ref.Extent.Birth()); err != nil {
					failed = err
					return false
				}
			}
			r.Owner, r.KID, r.Snapshot = ref.Owner, lastKID, lastSnapshot
		}
		if r.Kind == cur.Kind && r.Owner == cur.Owner && r.KID == cur.KID && r.Snapshot == cur.Snapshot && cur.Length > 0 {
			cur.Length += r.Length
			return true
		}
		if !flush() {
			return false
		}
		cur = r
		return true
	})
	if err == nil {
		err = failed
	}
	if err == nil {
		flush()
	}
	return mapDamage(err)
}
