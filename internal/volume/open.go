package volume

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/fsximg/fsx/pkg/crypt"
	"github.com/fsximg/fsx/pkg/layout"
	"github.com/fsximg/fsx/pkg/layout/maptree"
	"github.com/fsximg/fsx/pkg/layout/metadb"
	"github.com/fsximg/fsx/pkg/layout/seglog"
)

// openVolume authenticates a volume's head, opens its bag and recovers its
// log. hint is its head as it was found.
func (s *Store) openVolume(hint layout.Head, vk *crypt.VolumeKey) (*Volume, error) {
	v := &Volume{
		calls: newGate(), store: s, log: s.log, id: hint.Volume, trusted: s.trusts(vk), cache: newExtentCache(s.extentShare), overlay: newOverlay(),
		wake: make(chan struct{}, 1), maint: make(chan struct{}, 1), stop: make(chan struct{}),
		logDone: make(chan struct{}), mainDone: make(chan struct{}),
	}
	v.untrusted = !s.opt.ReadOnly && !v.trusted
	v.ro = s.opt.ReadOnly || v.untrusted
	v.changed = sync.NewCond(&v.mu)
	v.stats.noteCheckpoint()
	v.space.segs = map[layout.SegmentNo]segmentInfo{}
	v.kept, v.devices = map[layout.SegmentNo]bool{}, map[layout.Seq]*Snapshot{}
	err := v.unlock(vk, hint)
	if err == nil {
		err = v.openFiles()
	}
	var rec *recovered
	if err == nil {
		rec, err = v.recover()
	}
	if err == nil && !v.ro {
		err = v.begin(rec)
	}
	if err != nil {
		v.wipe()
		return nil, err
	}
	return v, nil
}

// unlock authenticates the head under the volume key that a slot opened, and
// everything that the head vouches for.
func (v *Volume) unlock(vk *crypt.VolumeKey, hint layout.Head) error {
	s := v.store
	super, keyring := s.dir.Super, s.Keyring()
	var err error
	if v.auth, err = crypt.NewAuthority(vk, crypt.UUID(super.UUID), crypt.UUID(hint.UUID)); err != nil {
		return err
	}
	var head *layout.Head
	err = s.db.Get(layout.HeadKey(v.id), func(val []byte) error {
		head, err = layout.DecodeHead(val, v.signHead)
		return err
	})
	switch {
	case errors.Is(err, metadb.ErrNotFound), errors.Is(err, layout.ErrCorrupt):
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	case err != nil:
		return err
	}
	switch {
	case head.Store != super.UUID || head.Volume != v.id || head.UUID != hint.UUID:
		return fmt.Errorf("%w: the head belongs to another volume", ErrDamaged)
	case head.Superblock != super.Digest():
		return fmt.Errorf("%w: the superblock is not the one that the head names", ErrDamaged)
	case !named(head, keyring, slotted(keyring)):
		return fmt.Errorf("%w: the keyring is not the one that the head names", ErrDamaged)
	case head.Root.Height != maptree.HeightFor(blocksOf(head.Size)):
		return fmt.Errorf("%w: the map is not of the volume's size", ErrDamaged)
	}
	if err := s.recent(head); err != nil {
		return err
	}
	if v.bag, err = keyring.OpenBag(crypt.UUID(head.UUID), vk); err != nil {
		return fmt.Errorf("key bag: %w: %w", ErrDamaged, err)
	}
	if v.snaps, err = s.snapshots(v.id); err != nil {
		return err
	}
	if uint32(len(v.snaps)) != head.Snapshots || layout.SnapshotDigest(v.snaps) != head.SnapshotDigest {
		return fmt.Errorf("%w: the snapshots are not those that the head names", ErrDamaged)
	}
	if v.account, err = s.account(v.id); err != nil {
		v.log.Error("account is damaged", "volume", head.Name, "err", err) // a hint
	}
	v.head, v.root = *head, head.Root
	v.uuid = head.UUID
	v.label.Store(&head.Name)
	v.size.Store(int64(head.Size))
	return nil
}

// openFiles lists the segments and loads their accounts.
func (v *Volume) openFiles() (err error) {
	s := v.store
	if v.files, err = s.filesOf(v.id); err != nil {
		return err
	}
	newest := map[layout.SegmentNo]layout.Seq{}
	err = s.db.Scan(layout.SegmentPrefix(v.id), func(key, val []byte) error {
		_, no, slot, ok := layout.SegmentOfKey(key)
		if !ok {
			return nil
		}
		rec, err := layout.DecodeSegmentRecord(val)
		if err != nil {
			v.keep(no, err)
			return nil
		}
		// A record newer than the head comes from a checkpoint that a crash
		// interrupted.
		if old, found := newest[no]; rec.Checkpoint <= v.head.Log.Seq && (!found || rec.Checkpoint >= old) {
			newest[no] = rec.Checkpoint
			v.space.set(no, infoOf(rec, slot))
		}
		return nil
	})
	for no := range v.kept {
		v.space.remove(no) // the other slot is of an earlier time
	}
	next := uint64(v.head.NextSegment)
	for _, no := range v.files.List() {
		next = max(next, uint64(no)+1)
	}
	v.nextSegment.Store(next)
	return err
}

// recovered is the end of a log that was read.
type recovered struct {
	seglog.Result
	ends map[layout.SegmentNo]uint32 // of the segments that it is in, in blocks
}

// recover replays what the log has behind the head's position into the
// overlay.
func (v *Volume) recover() (*recovered, error) {
	rec := &recovered{ends: map[layout.SegmentNo]uint32{v.head.Log.Segment: v.head.Log.End}}
	r := seglog.Recovery{
		Files: v.files, Volume: v.id, Sign: v.signRecord, Verify: v.verifyExtent,
		Apply: func(r *layout.Record) error {
			rec.ends[r.Segment] = r.End()
			return v.replay(r)
		},
	}
	var err error
	rec.Result, err = r.Run(v.head.Log)
	if errors.Is(err, seglog.ErrDamaged) {
		err = fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if err == nil && rec.Commits > 0 {
		v.log.Info("replayed the log", "volume", v.Name(), "commits", rec.Commits, "bytes", rec.Bytes, "cut", rec.Cut)
	}
	v.logBytes = rec.Bytes
	return rec, err
}

// verifyExtent opens every block of an extent that a commit record describes.
func (v *Volume) verifyExtent(_ layout.ExtentID, op *layout.Op, data []byte) error {
	key, ok := v.bag.Get(crypt.ID(op.KID))
	// The record is authentic, so this is no torn write, and nothing is cut.
	if !ok {
		return fmt.Errorf("%w: data key %s is not in the bag", seglog.ErrDamaged, op.KID)
	}
	if uint8(key.Mode()) != op.Mode {
		return fmt.Errorf("%w: mode %#x is not that of data key %s", seglog.ErrDamaged, op.Mode, op.KID)
	}
	x, err := key.Extent(crypt.Nonce(op.Nonce), len(op.Tags))
	if err != nil {
		return err
	}
	i := 0
	for _, run := range op.Homes {
		for h := range uint64(run.Count) {
			tag := crypt.Tag(op.Tags[i])
			block := data[i*blockSize : (i+1)*blockSize : (i+1)*blockSize+slack]
			if err := x.Open(block, uint64(run.Start)+h, i, &tag); err != nil {
				return err
			}
			i++
		}
	}
	clear(data)
	return nil
}

// replay applies a commit to the overlay.
func (v *Volume) replay(r *layout.Record) error {
	// The class only sizes the bitmap; what follows may be larger.
	class := uint8(seglog.MaxClass)
	if int64(r.Size) != v.Size() {
		v.replayResize(r)
	}
	v.overlay.segment(r.Segment, class, r.Seq, r.End())
	v.replayed = positionOf(r)
	ordinal := uint16(0)
	for i := range r.Ops {
		op := &r.Ops[i]
		switch op.Code {
		case layout.OpZero:
			v.overlay.zero(op.Start, op.Start+layout.BlockNo(op.Count), op.Kind)
			continue
		case layout.OpDeleteSnapshot:
			v.overlay.deletes = append(v.overlay.deletes, op.Snapshot)
			continue
		case layout.OpSnapshot:
			v.waiting = append(v.waiting, &frozenOverlay{v.overlay, positionOf(r), snapshotOf(op, r.Seq, v.Size()), 0, v.Size()})
			v.overlay = newOverlay()
			continue
		}
		homes := make([]uint64, 0, len(op.Tags))
		for _, run := range op.Homes {
			for h := range uint64(run.Count) {
				homes = append(homes, uint64(run.Start)+h)
			}
		}
		rec := layout.ExtentRecord{Nonce: op.Nonce, KID: op.KID, Mode: op.Mode, Blocks: uint16(len(op.Tags)), Offset: op.Offset, Segment: r.Segment}
		if err := v.overlay.add(layout.NewExtentID(r.Seq, ordinal), rec, class, homes, op.Tags); err != nil {
			return err
		}
		ordinal++
	}
	return nil
}

func positionOf(r *layout.Record) layout.Position {
	return layout.Position{Segment: r.Segment, Block: r.Block, End: r.End(), Seq: r.Seq, MAC: r.MAC}
}

// replayResize freezes what was written before a commit that changed the size:
// a checkpoint is of one size.
func (v *Volume) replayResize(r *layout.Record) {
	if !v.overlay.empty() {
		v.waiting = append(v.waiting, &frozenOverlay{v.overlay, v.replayed, nil, 0, v.Size()})
		v.overlay = newOverlay()
	}
	v.size.Store(int64(r.Size))
}

// begin makes the volume writable: leftovers of a crash are removed, and the
// goroutines start.
func (v *Volume) begin(rec *recovered) error {
	if err := v.removeLeftovers(rec); err != nil {
		return err
	}
	if err := v.finishMoves(); err != nil {
		v.log.Warn("space of an interrupted compaction stays allocated", "volume", v.Name(), "err", err)
	}
	for no, end := range rec.ends {
		// Nobody writes there again: a session begins a segment of its own.
		if err := v.files.Shorten(no, end); err != nil {
			v.log.Warn("space of the log stays allocated", "volume", v.Name(), "err", err)
		}
	}
	v.named = rec.Next
	if err := v.startLogger(rec.Tail); err != nil {
		return err
	}
	v.sweepDue.Store(slices.ContainsFunc(v.snaps, func(s layout.Snapshot) bool { return s.Hidden }))
	if v.sweepDue.Load() {
		v.kickUpkeep()
	}
	go v.maintain()
	return nil
}

// keep notes that a segment has no account, though it should have one: it is
// read, and otherwise left alone.
func (v *Volume) keep(no layout.SegmentNo, why error) {
	v.log.Error("a segment's account is lost; the segment is kept as it is", "volume", v.Name(), "segment", no, "err", why)
	v.kept[no] = true
}

// removeLeftovers removes segment files that neither the log nor an account
// names: prepared, pooled or half-compacted ones of a process that was killed.
// The segment that the log's last record names stays, though it is empty: a
// log that misses it is damaged, until the next session has begun.
func (v *Volume) removeLeftovers(rec *recovered) error {
	var unknown []layout.SegmentNo
	for _, no := range v.files.List() {
		if _, known := v.space.get(no); !known && !v.kept[no] {
			unknown = append(unknown, no)
		}
	}
	if err := v.keepUsed(unknown); err != nil {
		return err
	}
	for _, no := range unknown {
		if _, inLog := rec.ends[no]; inLog || no == rec.Next || v.kept[no] {
			continue
		}
		if err := v.files.Retire(no, 0, false); err != nil {
			return err
		}
	}
	return nil
}

// keepUsed keeps those of the segments without an account in which extents lie
// that the head may need: the index has lost something. A leftover has none,
// since a segment's extents go before its account does, and come after it.
func (v *Volume) keepUsed(unknown []layout.SegmentNo) error {
	if len(unknown) == 0 {
		return nil
	}
	return v.store.db.Scan(layout.ExtentPrefix(v.id), func(key, val []byte) error {
		_, id, ok := layout.ExtentOfKey(key)
		x, err := layout.DecodeExtentRecord(val)
		if !ok || err != nil || id.Birth() > v.head.Log.Seq || v.kept[x.Segment] || !slices.Contains(unknown, x.Segment) {
			return nil
		}
		v.keep(x.Segment, fmt.Errorf("extent %x lies there: %w", uint64(id), ErrDamaged))
		return nil
	})
}

// close lets calls that are under way finish, except for writers that wait for
// space, commits and checkpoints, and stops the volume's goroutines.
func (v *Volume) close() error {
	v.mu.Lock()
	v.closing = true
	v.changed.Broadcast()
	v.mu.Unlock()
	v.calls.close()
	var err error
	if !v.ro {
		err = v.closeWritable()
	}
	v.upkeep.Lock() // whoever has it may need the keys
	defer v.upkeep.Unlock()
	v.mu.Lock()
	v.closed = true
	v.changed.Broadcast()
	v.mu.Unlock()
	v.wipe()
	return err
}

func (v *Volume) closeWritable() error {
	v.mu.RLock()
	dirty := v.dirtyLocked() || !v.overlay.empty() || len(v.waiting) > 0
	failed := v.failed
	v.mu.RUnlock()
	err := failed
	if dirty && failed == nil && !v.discard {
		err = v.finalCheckpoint()
	}
	close(v.stop)
	<-v.logDone
	<-v.mainDone
	return errors.Join(err, v.files.DrainPool())
}

func (v *Volume) finalCheckpoint() error {
	v.upkeep.Lock()
	defer v.upkeep.Unlock()
	return v.checkpointLocked(context.Background(), true)
}

// wipe forgets plaintext and keys.
func (v *Volume) wipe() {
	v.closeLoans() // before mu: who looks for a lent key looks at the head
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, b := range append(v.frozen, v.active) {
		if b != nil {
			v.store.pool.putBuffer(b)
		}
	}
	v.frozen, v.active = nil, nil
	v.store.pool.count(-v.weight)
	v.weight = 0
	v.layersLocked(func(o *overlay) bool {
		o.free()
		return true
	})
	v.overlay, v.waiting = newOverlay(), nil
	v.cache.forget()
	if v.bag != nil {
		v.bag.Wipe()
	}
	if v.auth != nil {
		v.auth.Wipe()
	}
}
