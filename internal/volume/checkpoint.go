package volume

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	"github.com/fsximg/fsx/pkg/crypt"
	"github.com/fsximg/fsx/pkg/layout"
	"github.com/fsximg/fsx/pkg/layout/maptree"
	"github.com/fsximg/fsx/pkg/layout/metadb"
)

func (v *Volume) signHead(parts ...[]byte) [32]byte {
	return v.auth.MAC(crypt.PurposeHead, parts...)
}

// maintain is the goroutine that checkpoints and compacts when asked to.
func (v *Volume) maintain() {
	defer close(v.mainDone)
	for {
		select {
		case <-v.maint:
		case <-v.stop:
			return
		}
		v.mu.RLock()
		due, waiting := v.checkpointDueLocked(), len(v.waiting) > 0
		v.mu.RUnlock()
		var err error
		if !waiting && v.sweepDue.Swap(false) {
			if err := v.sweep(context.Background(), false); err != nil {
				v.log.Warn("space of deleted snapshots stays allocated", "volume", v.Name(), "err", err)
			}
			due = true
		}
		switch {
		case due:
			err = v.checkpoint(context.Background())
		case waiting:
			err = v.catchUp(context.Background())
		default:
			continue
		}
		if errors.Is(err, ErrClosed) {
			return
		}
		if errors.Is(err, metadb.ErrNoSpace) {
			err = fmt.Errorf("%w: %w", err, syscall.ENOSPC)
		}
		v.mu.Lock()
		v.upkeepErr = err
		if errors.Is(err, metadb.ErrFailed) {
			v.poisonLocked(err) // the index takes no more writes
		}
		v.changed.Broadcast()
		v.mu.Unlock()
		if err != nil {
			v.log.Error("checkpoint failed; the log keeps everything", "volume", v.Name(), "err", err)
			select {
			case <-time.After(time.Second):
			case <-v.stop:
				return
			}
			v.kickUpkeep()
			continue
		}
		if v.sweepDue.Load() {
			v.kickUpkeep() // nothing is in its way any more
		}
		// The next checkpoint is followed by another attempt.
		if err := v.compactSome(context.Background(), false); err != nil {
			v.log.Error("compaction failed; nothing is lost", "volume", v.Name(), "err", err)
		}
	}
}

// Checkpoint commits everything and moves the log's mappings into the map
// tree. When it fails the log still has everything.
func (v *Volume) Checkpoint(ctx context.Context) error {
	if !v.calls.enter() {
		return ErrClosed
	}
	defer v.calls.leave()
	return v.checkpoint(ctx)
}

func (v *Volume) checkpoint(ctx context.Context) error {
	v.upkeep.Lock()
	defer v.upkeep.Unlock()
	return v.checkpointLocked(ctx, false)
}

// checkpointLocked is a checkpoint of everything up to now: first what waits,
// because of a snapshot or of a checkpoint that failed, then the rest. With
// clean the head says that the log ends there.
func (v *Volume) checkpointLocked(ctx context.Context, clean bool) error {
	if err := v.catchUpLocked(ctx, 0); err != nil {
		return err
	}
	state, err := v.takeOverlay()
	if err != nil {
		return err
	}
	end := layout.Seq(0)
	if clean {
		end = state.at.Seq
	}
	// A snapshot may have frozen another one just before.
	if err := v.catchUpLocked(ctx, end); err != nil || !clean {
		return err
	}
	v.mu.RLock()
	done := v.head.Clean && v.head.Log == state.at
	v.mu.RUnlock()
	if done {
		return nil
	}
	return v.checkpointOne(ctx, frozenState{at: state.at}, true)
}

// catchUp checkpoints what waits.
func (v *Volume) catchUp(ctx context.Context) error {
	v.upkeep.Lock()
	defer v.upkeep.Unlock()
	return v.catchUpLocked(ctx, 0)
}

// catchUpLocked is catchUp. The head of the checkpoint that ends at commit end
// says that the log ends there; 0 is none.
func (v *Volume) catchUpLocked(ctx context.Context, end layout.Seq) error {
	for {
		v.mu.RLock()
		var s frozenState
		if len(v.waiting) > 0 {
			s = frozenState{frozen: v.waiting[0], at: v.waiting[0].at}
		}
		v.mu.RUnlock()
		if s.frozen == nil {
			return nil
		}
		if err := v.checkpointOne(ctx, s, end != 0 && s.at.Seq == end); err != nil {
			return err
		}
	}
}

func (v *Volume) checkpointOne(ctx context.Context, state frozenState, clean bool) error {
	began := time.Now()
	c := &checkpoint{v: v, state: state, ch: v.newChanges(), book: v.newBookkeeping(), clean: clean}
	if err := c.run(ctx); err != nil {
		return fmt.Errorf("checkpoint of volume %s: %w", v.Name(), mapDamage(err))
	}
	v.stats.checkpoints.Add(1)
	v.stats.noteCheckpoint()
	v.log.Debug("checkpoint", "volume", v.Name(), "seq", state.at.Seq, "nodes", c.stats.Written, "took", time.Since(began))
	return nil
}

// takeOverlay has the log's goroutine commit and freeze the overlay, which then
// is the last of those that wait.
func (v *Volume) takeOverlay() (frozenState, error) {
	if v.ro {
		return frozenState{}, ErrReadOnly // there is no log's goroutine
	}
	v.mu.Lock()
	if v.failed != nil {
		defer v.mu.Unlock()
		return frozenState{}, v.failed
	}
	if v.logEnded {
		defer v.mu.Unlock()
		return frozenState{}, ErrClosed
	}
	ch := make(chan frozenState, 1)
	v.freeze = ch
	v.mu.Unlock()
	v.kick()
	s := <-ch
	return s, s.err
}

// checkpoint moves one frozen overlay into the tree. The order is I1 and I3:
// everything new under keys that the durable head does not reach, then the
// head in one transaction, and only then is anything freed.
type checkpoint struct {
	v        *Volume
	state    frozenState
	ch       *changes
	book     *bookkeeping
	clean    bool
	stats    maptree.Stats
	obsolete [][]byte
	snaps    []layout.Snapshot // that there are afterwards
	gone     []layout.Seq      // snapshots that were deleted
	hidden   []layout.Seq      // snapshots that were deleted and stay for their clones
}

func (c *checkpoint) run(ctx context.Context) error {
	v := c.v
	batch := v.store.db.NewBatch()
	defer batch.Cancel()
	v.mu.RLock()
	root, head := v.root, v.head
	c.snaps = v.snaps
	v.mu.RUnlock()

	head.Size = uint64(v.Size())
	if f := c.state.frozen; f != nil {
		o := f.overlay
		head.Size = uint64(f.size)
		head.Sealed += o.sealed
		for no, u := range o.segs {
			if err := c.ch.born(no, u); err != nil {
				return err
			}
		}
		var err error
		root, c.stats, err = v.store.tree.Update(ctx, maptree.UpdateOptions{
			Volume: v.id, Epoch: head.MapEpoch, Kept: head.NewestSnapshot, Root: root, Blocks: blocksOf(head.Size), Obsolete: c.addObsolete,
		}, newOverlayChanges(v.id, o, blocksOf(head.Size)), batch, c.dead)
		if err != nil {
			return err
		}
		c.book.born(c.stats.Added)
		if len(o.deletes) > 0 {
			// They are compared with the new tree, which must be there.
			if err := batch.Flush(); err != nil {
				return err
			}
			batch = v.store.db.NewBatch()
			defer batch.Cancel()
		}
		for _, seq := range o.deletes {
			if err := c.deleteSnapshot(ctx, seq, root); err != nil {
				return err
			}
		}
		if f.snap != nil {
			s := *f.snap
			s.Root = root
			c.snaps = append(slices.Clone(c.snaps), s)
			head.MapEpoch = s.Seq
			c.book.snapshot(s.Seq)
		}
		if err := c.writeExtents(batch); err != nil {
			return err
		}
		if err := c.ch.write(batch, c.state.at.Seq); err != nil {
			return err
		}
	}
	if err := batch.Flush(); err != nil {
		return err
	}

	head.Log = c.state.at
	head.Root = root
	head.MinSize = min(head.MinSize, head.Size)
	head.NextSegment = layout.SegmentNo(v.nextSegment.Load())
	head.Clean = c.clean
	head.Epoch++
	c.countSnapshots(&head)
	if err := v.store.db.Update(func(tx *metadb.Txn) error { return c.setHead(tx, &head) }); err != nil {
		return err
	}
	v.warnOfBytes(v.headNow().Sealed, head.Sealed)
	c.finish(root, head)
	return c.release()
}

// countSnapshots makes the head vouch for the snapshots.
func (c *checkpoint) countSnapshots(head *layout.Head) {
	head.Snapshots, head.NewestSnapshot = uint32(len(c.snaps)), 0
	if n := len(c.snaps); n > 0 {
		head.NewestSnapshot = c.snaps[n-1].Seq
	}
	head.SnapshotDigest = layout.SnapshotDigest(c.snaps)
}

// setHead stores the head together with the snapshots that came and went.
func (c *checkpoint) setHead(tx *metadb.Txn, head *layout.Head) error {
	if f := c.state.frozen; f != nil && f.snap != nil {
		s := &c.snaps[len(c.snaps)-1]
		if err := tx.Set(layout.SnapshotKey(c.v.id, s.Seq), s.Encode()); err != nil {
			return err
		}
	}
	for _, seq := range c.hidden {
		i := slices.IndexFunc(c.snaps, func(s layout.Snapshot) bool { return s.Seq == seq })
		if i < 0 {
			continue
		}
		if err := tx.Set(layout.SnapshotKey(c.v.id, seq), c.snaps[i].Encode()); err != nil {
			return err
		}
	}
	for _, seq := range c.gone {
		if err := tx.Delete(layout.SnapshotKey(c.v.id, seq)); err != nil {
			return err
		}
	}
	if err := c.book.write(tx); err != nil {
		return err
	}
	return tx.Set(layout.HeadKey(c.v.id), head.Encode(c.v.signHead))
}

// dead takes a block that the new map does not point to any more. It is freed
// if no snapshot can need it.
func (c *checkpoint) dead(ref layout.BlockRef) error {
	if ref.Owner != c.v.id {
		return nil
	}
	kept := ref.Extent.Birth() <= c.v.head.NewestSnapshot
	c.book.died(ref.Extent.Birth(), kept)
	if kept {
		return nil
	}
	return c.ch.died(ref)
}

func (c *checkpoint) addObsolete(key []byte) error {
	c.obsolete = append(c.obsolete, append([]byte(nil), key...))
	return nil
}

// writeExtents stores the records of extents that still have a live block.
func (c *checkpoint) writeExtents(batch *metadb.Batch) error {
	var key, val []byte
	for id, rec := range c.state.frozen.extents {
		s := c.ch.m[rec.Segment]
		alive := s == nil // its segment is kept as it is
		for at := rec.Offset; at < rec.Offset+uint32(rec.Blocks) && !alive; at++ {
			alive = s.rec.Live[at/8]>>(at%8)&1 != 0
		}
		if !alive {
			continue
		}
		key, val = layout.AppendExtentKey(key[:0], c.v.id, id), rec.Append(val[:0])
		if err := batch.Set(key, val); err != nil {
			return err
		}
	}
	return nil
}

// finish makes the new tree the one that readers descend.
func (c *checkpoint) finish(root maptree.Root, head layout.Head) {
	v := c.v
	v.mu.Lock()
	defer v.mu.Unlock()
	v.root, v.head = root, head
	v.gen++
	v.snaps = c.snaps
	v.account = c.book.account
	if c.state.frozen != nil {
		if v.waiting[0] != c.state.frozen {
			panic("volume: checkpoints out of order")
		}
		v.waiting[0].free()
		v.waiting = slices.Delete(v.waiting, 0, 1)
	}
	c.ch.apply()
	v.store.noteHead(head) // for when it is closed and others look at it
	v.changed.Broadcast()
}
