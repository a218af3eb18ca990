package volume

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/fsximg/fsx/pkg/layout"
	"github.com/fsximg/fsx/pkg/layout/metadb"
	"github.com/fsximg/fsx/pkg/layout/seglog"
)

// compactSome moves the live blocks out of segments that are mostly dead, if
// there is enough to gain; all, until there is nothing to gain at all. The
// caller holds upkeep.
func (v *Volume) compactSome(ctx context.Context, all bool) error {
	v.upkeep.Lock()
	defer v.upkeep.Unlock()
	return v.compactLocked(ctx, all)
}

func (v *Volume) compactLocked(ctx context.Context, all bool) error {
	if err := v.finishMoves(); err != nil {
		return fmt.Errorf("compact volume %s: %w", v.Name(), err)
	}
	for {
		live, used, _ := v.space.totals()
		if !all && !v.store.crowded() && used < 2*live+v.store.limits.slack {
			return nil
		}
		victims := v.victims(all)
		if len(victims) == 0 {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := v.compactSegments(victims); err != nil {
			return fmt.Errorf("compact volume %s: %w", v.Name(), err)
		}
	}
}

// victims are the emptiest sealed segments under half live that together fill
// at most one segment, which the disk has space for.
func (v *Volume) victims(all bool) []layout.SegmentNo {
	live := map[layout.SegmentNo]uint32{}
	l := v.space.choose(func(no layout.SegmentNo, s segmentInfo) bool {
		live[no] = s.live
		if s.punched && !all {
			return false // its dead blocks went back already
		}
		return s.live > 0 && s.live < s.used/2
	})
	l = slices.DeleteFunc(l, func(no layout.SegmentNo) bool { return !v.sealed(no) })
	slices.SortFunc(l, func(a, b layout.SegmentNo) int { return int(live[a]) - int(live[b]) })
	total, limit := uint32(0), v.compactRoom()
	for i, no := range l {
		total += live[no]
		if total > limit {
			return l[:i]
		}
	}
	return l
}

// compactRoom is the number of blocks of the largest segment that a compaction
// can make: it may use what is kept free of the log, but not of the index.
func (v *Volume) compactRoom() uint32 {
	free, err := v.store.fs.Free(v.store.dir.Path)
	class := uint8(seglog.MaxClass)
	for err == nil && class > 0 && int64(blockSize)<<class > free-2*v.store.limits.indexReserve {
		class -= 2
	}
	if class < seglog.MinClass {
		return 0
	}
	return 1 << class
}

// move copies an extent's live blocks into a compacted segment.
type move struct {
	id  layout.ExtentID
	rec layout.ExtentRecord
}

// compactSegments copies what lives in the victims into one new segment,
// verbatim: no key is needed, since what a block is authenticated with does
// not name its place. A block is in both places until the new one is durable
// and the extents' records point to it.
func (v *Volume) compactSegments(victims []layout.SegmentNo) error {
	total := uint32(0)
	for _, no := range victims {
		info, _ := v.space.get(no)
		total += info.live
	}
	class := uint8(seglog.MinClass)
	for class < seglog.MaxClass && total > 1<<class {
		class += 2
	}
	dest := v.newSegmentNo()
	if err := v.files.Create(dest, class); err != nil {
		return err
	}
	moves, used, err := v.copyLive(victims, dest)
	if err != nil {
		_ = v.files.Retire(dest, class, false)
		return err
	}
	// After an error some extents may have moved: a later compaction sorts dest
	// out, and may then drop the old places.
	err = v.repoint(moves, dest, class, used)
	for _, m := range moves {
		v.cache.drop(extentName{v.id, m.id})
	}
	// Only now that nobody can find the old places any more: a reader that
	// fails asks whether gen has moved since it began.
	v.mu.Lock()
	v.gen++
	v.mu.Unlock()
	if err != nil {
		return err
	}
	return v.dropVictims(victims)
}

func (v *Volume) copyLive(victims []layout.SegmentNo, dest layout.SegmentNo) (moves []move, used uint32, err error) {
	to, err := v.files.Acquire(dest)
	if err != nil {
		return nil, 0, err
	}
	defer to.Release()
	out, err := v.files.File(to)
	if err != nil {
		return nil, 0, err
	}
	buf := make([]byte, layout.MaxExtentBlocks*blockSize)
	for _, no := range victims {
		info, _ := v.space.get(no)
		rec, err := v.segmentRecord(no, info.slot)
		if err != nil {
			return nil, 0, err
		}
		err = v.eachExtent(no, rec, func(id layout.ExtentID, x layout.ExtentRecord) error {
			moved := layout.ExtentRecord{Nonce: x.Nonce, KID: x.KID, Mode: x.Mode, Blocks: x.Blocks, Offset: used, Segment: dest, Partial: true}
			n := uint32(0)
			for i := range x.Blocks {
				at, ok := x.BlockAt(uint8(i))
				if !ok || int(at/8) >= len(rec.Live) || rec.Live[at/8]>>(at%8)&1 == 0 {
					continue
				}
				if err := v.pread(v.id, no, buf[n*blockSize:(n+1)*blockSize], at, false); err != nil {
					return err
				}
				moved.Present[i/8] |= 1 << (i % 8)
				n++
			}
			if n == 0 {
				return nil
			}
			if moved.Partial = n < uint32(x.Blocks); !moved.Partial {
				moved.Present = [32]byte{}
			}
			if _, err := out.WriteAt(buf[:n*blockSize], int64(used)*blockSize); err != nil {
				return err
			}
			used += n
			moves = append(moves, move{id, moved})
			return nil
		})
		if err != nil {
			return nil, 0, err
		}
	}
	if err := out.Truncate(int64(used) * blockSize); err != nil {
		return nil, 0, err
	}
	// I1: the copy is durable before anything points to it.
	return moves, used, out.Datasync()
}

// repoint makes the new segment's record and the extents' new places durable,
// in that order: a record whose extents do not point to it only wastes space,
// and as long as it is marked, finishMoves finds out.
func (v *Volume) repoint(moves []move, dest layout.SegmentNo, class uint8, used uint32) error {
	v.mu.RLock()
	seq := v.head.Log.Seq
	v.mu.RUnlock()
	rec := &layout.SegmentRecord{Checkpoint: seq, Class: class, Kind: layout.SegmentCompacted, Moving: true, Used: used, Live: make([]byte, (used+7)/8)}
	for at := range used {
		rec.Live[at/8] |= 1 << (at % 8)
	}
	for _, m := range moves {
		rec.Extents = append(rec.Extents, m.id)
	}
	slices.Sort(rec.Extents)
	if err := v.setAccount(dest, rec, 0); err != nil {
		return err
	}
	batch := v.store.db.NewBatch()
	defer batch.Cancel()
	for _, m := range moves {
		if err := batch.Set(layout.ExtentKey(v.id, m.id), m.rec.Append(nil)); err != nil {
			return err
		}
	}
	if err := batch.Flush(); err != nil {
		return err
	}
	rec.Moving = false
	return v.setAccount(dest, rec, 0)
}

// setAccount replaces a segment's account with one that is right whether or not
// a crash follows.
func (v *Volume) setAccount(no layout.SegmentNo, rec *layout.SegmentRecord, slot uint8) error {
	if err := v.store.db.Update(func(tx *metadb.Txn) error {
		return tx.Set(layout.SegmentKey(v.id, no, slot), rec.Encode())
	}); err != nil {
		return err
	}
	v.space.set(no, infoOf(rec, slot))
	return nil
}

// finishMoves corrects the accounts of segments into which a compaction was
// moving extents when it was interrupted: where an extent's blocks are is what
// its record says, and a copy that it does not point to is dead.
func (v *Volume) finishMoves() error {
	for _, no := range v.space.choose(func(_ layout.SegmentNo, s segmentInfo) bool { return s.moving }) {
		info, _ := v.space.get(no)
		rec, err := v.segmentRecord(no, info.slot)
		if err != nil {
			return err
		}
		here := make([]byte, len(rec.Live))
		err = v.eachExtent(no, rec, func(_ layout.ExtentID, x layout.ExtentRecord) error {
			for i := range x.Blocks {
				if at, ok := x.BlockAt(uint8(i)); ok && at < rec.Used {
					here[at/8] |= 1 << (at % 8)
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		for i := range here {
			rec.Live[i] &= here[i]
		}
		rec.Moving = false
		if err := v.setAccount(no, rec, info.slot); err != nil {
			return err
		}
	}
	return nil
}

// dropVictims retires segments whose live blocks have all moved.
func (v *Volume) dropVictims(victims []layout.SegmentNo) error {
	for _, no := range victims {
		if err := v.retire(no); err != nil {
			return err
		}
	}
	return nil
}

// reclaim tries to free space for a writer that met a full disk: the segments
// that are dead, then those that are mostly dead, and at last every dead block
// in those that live.
func (v *Volume) reclaim() {
	v.upkeep.Lock()
	defer v.upkeep.Unlock()
	_ = v.files.DrainPool()
	live, _, _ := v.space.totals()
	want := min(max(int64(live)*blockSize/64, 4<<20), 256<<20)
	if v.store.allow(want) == nil {
		return // another writer was here before
	}
	err := v.checkpointLocked(context.Background(), false)
	if err == nil {
		err = v.compactLocked(context.Background(), false)
	}
	if err == nil {
		err = v.punchDead(want)
	}
	if err != nil {
		v.log.Warn("could not free space", "volume", v.Name(), "err", err)
	}
	_ = v.files.DrainPool()
}

// punchDead gives dead blocks back, however few lie together, until a segment
// of want bytes may be made. The fullest of them go first. It leaves files in
// many pieces and is for a full disk, or whoever asks for all space.
func (v *Volume) punchDead(want int64) error {
	type gain struct {
		no    layout.SegmentNo
		bytes int64
	}
	var gains []gain
	for _, no := range v.space.choose(func(_ layout.SegmentNo, s segmentInfo) bool { return s.live > 0 && s.live < s.used }) {
		info, _ := v.space.get(no)
		_, allocated, err := v.files.Usage(no)
		if g := allocated - int64(info.live)*blockSize; err == nil && g >= blockSize && v.sealed(no) {
			gains = append(gains, gain{no, g})
		}
	}
	slices.SortFunc(gains, func(a, b gain) int { return cmp.Compare(b.bytes, a.bytes) })
	for _, g := range gains {
		if v.store.allow(want) == nil {
			return nil
		}
		info, _ := v.space.get(g.no)
		rec, err := v.segmentRecord(g.no, info.slot)
		if err != nil {
			return err
		}
		all := slices.Repeat([]byte{0xff}, len(rec.Live))
		if err := v.punchSegment(g.no, deadRuns(rec.Live, all, rec.Used, 1)); err != nil {
			return err
		}
		rec.Punched = true
		if err := v.setAccount(g.no, rec, info.slot); err != nil {
			return err
		}
	}
	return nil
}

// compactAll gives back all space that it can, also that of the segment which
// the log is in.
func (v *Volume) compactAll(ctx context.Context) error {
	if !v.calls.enter() {
		return ErrClosed
	}
	defer v.calls.leave()
	if err := v.checkpoint(ctx); err != nil {
		return err
	}
	if err := v.compactSome(ctx, true); err != nil {
		return err
	}
	v.mu.Lock()
	end := v.head.Log.Segment
	info, ok := v.space.get(end)
	v.leave = ok && (info.class > v.space.nextClass(0) || info.used-info.live > 1<<seglog.MinClass)
	again := v.leave
	v.mu.Unlock()
	if again {
		if err := v.checkpoint(ctx); err != nil {
			return err
		}
		if err := v.compactSome(ctx, true); err != nil {
			return err
		}
	}
	if err := v.punchAll(); err != nil {
		return err
	}
	return v.files.DrainPool()
}

// punchAll gives back every dead block that a compaction has left.
func (v *Volume) punchAll() error {
	v.upkeep.Lock()
	defer v.upkeep.Unlock()
	return v.punchDead(math.MaxInt64 / 2)
}

// CompactReport says what a compaction gave back.
type CompactReport struct {
	Before, After int64 // bytes on disk
}

// Compact moves live blocks out of segments that are mostly dead, gives back
// those that are dead, and drops what the index does not need any more. Of
// volumes that are not open, for which no key is needed, that is what is dead as
// of their last checkpoints.
func (s *Store) Compact(ctx context.Context) (r CompactReport, err error) {
	if !s.calls.enter() {
		return r, ErrClosed
	}
	defer s.calls.leave()
	if s.opt.ReadOnly {
		return r, ErrReadOnly
	}
	before, err := s.Info()
	if err != nil {
		return r, err
	}
	if err := s.partApart(ctx); err != nil {
		return r, err
	}
	for _, v := range s.opened() {
		if v.ro {
			continue // it is not trusted
		}
		if err := v.compactAll(ctx); err != nil && !errors.Is(err, ErrClosed) { // it was deleted meanwhile
			return r, err
		}
	}
	if err := s.compactClosed(ctx); err != nil {
		return r, err
	}
	if !s.crowded() {
		if err := s.db.Flatten(); err != nil {
			return r, err
		}
	}
	after, err := s.Info()
	return CompactReport{before.Allocated, after.Allocated}, err
}

// compactClosed compacts the volumes that are not open. No ciphertext changes,
// so that none of their keys is needed; nor does a log that waits for its replay.
func (s *Store) compactClosed(ctx context.Context) error {
	if s.opt.ReadOnly {
		return nil
	}
	s.ops.Lock() // none of them goes meanwhile,
	defer s.ops.Unlock()
	s.opening.Lock() // and none is opened
	defer s.opening.Unlock()
	s.mu.RLock()
	var heads []layout.Head
	for id, h := range s.heads {
		if s.volumes[id] == nil && s.fates[id] != layout.Going {
			heads = append(heads, h)
		}
	}
	s.mu.RUnlock()
	for _, h := range heads {
		v := newClosedVolume(s, h)
		err := v.openFiles()
		if err == nil {
			err = errors.Join(v.retireDead(), v.compactLocked(ctx, true), v.punchDead(math.MaxInt64/2), v.files.DrainPool())
		}
		if err != nil {
			return fmt.Errorf("compact volume %s: %w", h.Name, err)
		}
	}
	return nil
}

// newClosedVolume is what can be done with a volume by its head, as it was found,
// alone: it has no keys and no log.
func newClosedVolume(s *Store, h layout.Head) *Volume {
	v := &Volume{
		store: s, log: s.log, id: h.Volume, cache: newExtentCache(s.extentShare), overlay: newOverlay(), kept: map[layout.SegmentNo]bool{},
		head: h, root: h.Root,
	}
	v.space.segs = map[layout.SegmentNo]segmentInfo{}
	v.label.Store(&h.Name)
	v.size.Store(int64(h.Size))
	return v
}
