package volume

import (
	"crypto/rand"
	"errors"
	"slices"
	"syscall"
	"time"

	"github.com/fsximg/fsx/pkg/crypt"
	"github.com/fsximg/fsx/pkg/layout"
	"github.com/fsximg/fsx/pkg/layout/seglog"
)

// logger is the one goroutine that seals buffers and writes a volume's log.
type logger struct {
	v       *Volume
	w       *seglog.Writer
	staging []byte // an extent's blocks, sealed in place
	order   []homeSlot
	homes   []uint64
	tags    []crypt.Tag
	written int64 // bytes of log since the last hand-over
}

type homeSlot struct {
	home uint64
	slot int
}

// frozenState is what one checkpoint brings into the index: a frozen overlay, and
// the position of the log where it ends.
type frozenState struct {
	frozen *frozenOverlay // nil for the position alone
	at     layout.Position
	err    error
}

func (v *Volume) startLogger(tail layout.Position) error {
	l := &logger{v: v}
	l.w = seglog.NewWriter(v.files, v.id, v.signRecord, tail, v.head.Log.Seq)
	go l.run()
	return nil
}

func (v *Volume) signRecord(parts ...[]byte) [32]byte {
	return v.auth.MAC(crypt.PurposeRecord, parts...)
}

// run serves the volume until stop is closed and everything is committed.
func (l *logger) run() {
	v := l.v
	defer close(v.logDone)
	tick := time.NewTicker(commitEvery)
	defer tick.Stop()
	for {
		timed, stopped := false, false
		select {
		case <-v.wake:
		case <-tick.C:
			timed = true
		case <-v.stop:
			stopped = true
		}
		if err := l.step(timed || stopped); err != nil {
			v.mu.Lock()
			v.poisonLocked(err)
			v.failControlsLocked(err)
			if v.freeze != nil {
				v.freeze <- frozenState{err: err}
				v.freeze = nil
			}
			v.mu.Unlock()
		}
		if stopped {
			l.end()
			if err := l.w.Close(); err != nil {
				v.log.Warn("space of the log stays allocated", "volume", v.Name(), "err", err)
			}
			return
		}
	}
}

// end answers the last checkpoint that waits for the log.
func (l *logger) end() {
	v := l.v
	v.mu.Lock()
	defer v.mu.Unlock()
	v.logEnded = true
	v.failControlsLocked(ErrClosed)
	if v.freeze != nil {
		v.freeze <- frozenState{err: ErrClosed}
		v.freeze = nil
	}
}

// step does what is asked for: seal full buffers; for a flush, a checkpoint or
// force, seal everything and commit.
func (l *logger) step(force bool) error {
	v := l.v
	v.mu.Lock()
	if v.failed != nil {
		defer v.mu.Unlock()
		v.failControlsLocked(v.failed)
		if v.freeze != nil {
			v.freeze <- frozenState{err: v.failed}
			v.freeze = nil
		}
		v.changed.Broadcast()
		return nil
	}
	ticket, freeze, retry, leave, controls := v.flushSeq, v.freeze, v.retry, v.leave, len(v.controls)
	v.retry, v.leave = false, false
	spill := v.spill.Swap(false)
	commit := force || leave || freeze != nil || ticket != v.flushed || controls > 0
	v.mu.Unlock()

	if err := l.sealFrozen(commit || retry || spill); err != nil {
		return err
	}
	if retry {
		if err := l.ready(); err != nil {
			return err
		}
	}
	if leave {
		if err := l.leaveSegment(); err != nil {
			return err
		}
	}
	for range controls {
		if err := l.control(); err != nil {
			return err
		}
	}
	if commit && l.w.Begun() && !l.w.Empty() {
		if err := l.commit(); err != nil {
			return err
		}
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.capacity = l.w.Capacity()
	if retry {
		v.attempts++
	}
	if commit {
		v.flushed = max(v.flushed, ticket)
		v.unsynced = !l.w.Empty()
	}
	if freeze != nil {
		l.handOverLocked(freeze)
	}
	v.weighLocked()
	if v.checkpointDueLocked() {
		v.kickUpkeep()
	}
	v.changed.Broadcast()
	return nil
}

// handOverLocked gives the overlay, which ends at a commit, to a checkpoint.
func (l *logger) handOverLocked(to chan<- frozenState) {
	v := l.v
	if !v.overlay.empty() {
		l.freezeLocked(nil)
	}
	to <- frozenState{at: l.w.Tail()}
	v.freeze = nil
}

// freezeLocked puts the overlay, which ends at a commit, behind those that wait
// for their checkpoints.
func (l *logger) freezeLocked(snap *layout.Snapshot) {
	v := l.v
	v.waiting = append(v.waiting, &frozenOverlay{v.overlay, l.w.Tail(), snap, v.logBytes, v.Size()})
	v.overlay = newOverlay()
	v.logBytes = 0
	v.pressed.Store(false)
}

// sealFrozen seals the frozen buffers, oldest first; with all, also the one
// that is active now. Buffers frozen meanwhile may come along, but not without
// end.
func (l *logger) sealFrozen(all bool) error {
	v := l.v
	for pass := 0; pass < 2; pass++ {
		v.mu.Lock()
		if pass == 1 {
			v.rotateLocked()
		}
		n := len(v.frozen)
		v.mu.Unlock()
		for range n {
			if err := l.sealOldest(); err != nil {
				return err
			}
		}
		if !all {
			return nil
		}
	}
	return nil
}

func (l *logger) sealOldest() error {
	v := l.v
	v.mu.Lock()
	b := v.frozen[0]
	v.unsynced = true
	l.w.SetCheckpoint(v.head.Log.Seq)
	v.mu.Unlock()
	if err := l.seal(b); err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.frozen = slices.Delete(v.frozen, 0, 1)
	v.capacity = l.w.Capacity()
	v.logBytes += l.written
	l.written = 0
	// A reader looks into a frozen buffer only under mu, so nobody is in it.
	v.store.pool.putBuffer(b)
	v.changed.Broadcast()
	return nil
}

// seal writes one buffer: first its zeros, then its blocks in the order of
// their homes, in extents of up to 256 blocks.
func (l *logger) seal(b *buffer) error {
	for _, z := range b.zeros {
		if err := l.zero(z); err != nil {
			return err
		}
	}
	l.order = l.order[:0]
	for i, h := range b.homes {
		if h != noHome {
			l.order = append(l.order, homeSlot{h, i})
		}
	}
	slices.SortFunc(l.order, func(a, b homeSlot) int {
		if a.home < b.home {
			return -1
		}
		return 1
	})
	rest := l.order[:0]
	var zero zeroRange
	for _, o := range l.order {
		if !isZero(b.slot(o.slot)) {
			rest = append(rest, o)
			continue
		}
		if h := layout.BlockNo(o.home); h != zero.end || zero.end == 0 {
			if err := l.zero(zero); err != nil {
				return err
			}
			zero = zeroRange{h, h, layout.Hole}
		}
		zero.end++
	}
	if err := l.zero(zero); err != nil {
		return err
	}
	if len(rest) == 0 {
		return nil
	}
	var err error
	if l.staging, err = l.v.store.pool.takeStaging(); err != nil {
		return err
	}
	defer func() {
		l.v.store.pool.putStaging(l.staging)
		l.staging = nil
	}()
	if l.tags == nil {
		l.tags = make([]crypt.Tag, layout.MaxExtentBlocks)
	}
	for len(rest) > 0 {
		room := l.w.Room()
		if room == 0 {
			if err := l.commit(); err != nil {
				return err
			}
			continue
		}
		n := min(room, len(rest))
		if err := l.extent(b, rest[:n]); err != nil {
			return err
		}
		rest = rest[n:]
	}
	return nil
}

// zero logs a range of zeros and maps it.
func (l *logger) zero(z zeroRange) error {
	if z.start == z.end {
		return nil
	}
	if !l.w.RoomForZero() {
		if err := l.commit(); err != nil {
			return err
		}
	}
	l.w.AppendZero(z.kind, z.start, uint64(z.end-z.start))
	l.v.mu.Lock()
	defer l.v.mu.Unlock()
	l.v.overlay.zero(z.start, z.end, z.kind)
	return nil
}

// extent seals blocks in one step, writes them and maps them.
func (l *logger) extent(b *buffer, blocks []homeSlot) error {
	v := l.v
	n := len(blocks)
	buf := l.staging[:n*blockSize]
	l.homes = l.homes[:0]
	op := layout.Op{Homes: make([]layout.HomeRun, 0, 8)}
	for i, o := range blocks {
		copy(buf[i*blockSize:], b.slot(o.slot))
		l.homes = append(l.homes, o.home)
		op.Homes = layout.AppendHome(op.Homes, layout.BlockNo(o.home))
	}
	key := v.bag.WriteKey()
	prev := [32]byte(l.w.Tail().MAC)
	nonce, err := v.auth.Seal(key, buf, l.homes, l.tags[:n], uint64(l.w.Seq()), &prev)
	if err != nil {
		clear(buf) // it is shared with other volumes
		return err
	}
	op.Mode, op.KID, op.Nonce = uint8(key.Mode()), layout.KeyID(key.ID()), [16]byte(nonce)
	op.Tags = make([]layout.Tag, n)
	for i := range op.Tags {
		op.Tags[i] = layout.Tag(l.tags[i])
	}
	id, seg, at, err := l.w.Append(buf, op)
	if err != nil {
		return err
	}
	l.written += int64(n) * blockSize
	rec := layout.ExtentRecord{Nonce: op.Nonce, KID: op.KID, Mode: op.Mode, Blocks: uint16(n), Offset: at, Segment: seg}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.overlay.runs += len(op.Homes)
	return v.overlay.add(id, rec, l.w.Class(), l.homes, op.Tags)
}

// commit closes the open commit; when that moved the log to the next segment,
// another one is prepared.
func (l *logger) commit() error { return l.commitWith(l.w.Commit) }

func (l *logger) commitWith(commit func(size uint64) error) error {
	v := l.v
	seq, seg, class := l.w.Seq(), l.w.Current(), l.w.Class()
	if err := commit(uint64(v.Size())); err != nil {
		return err
	}
	l.written += blockSize
	v.mu.Lock()
	v.overlay.segment(seg, class, seq, l.w.Tail().End)
	v.current = l.w.Current()
	v.mu.Unlock()
	v.stats.commits.Add(1)
	if l.w.NeedsSegment() {
		return l.prepare()
	}
	return nil
}

// leaveSegment moves the log to another segment, no larger than need be, so
// that the space of this one can go back. On a full disk it does nothing.
func (l *logger) leaveSegment() error {
	if !l.w.Begun() {
		return l.ready()
	}
	if l.w.PreparedClass() > l.v.space.nextClass(0) {
		if err := l.w.DropSegment(); err != nil {
			return err
		}
	}
	if l.w.NeedsSegment() {
		if err := l.prepare(); err != nil || l.w.NeedsSegment() {
			return err
		}
	}
	if err := l.commitWith(l.w.CommitLast); err != nil {
		return err
	}
	left := l.w.Tail()
	if err := l.v.files.Shorten(left.Segment, left.End); err != nil {
		l.v.log.Warn("space of the log stays allocated", "volume", l.v.Name(), "err", err)
	}
	return l.commit() // so that the head can name a record of the new one
}

// ready begins the session's log if need be and prepares a segment.
func (l *logger) ready() error {
	v := l.v
	if l.w.NeedsSegment() {
		if err := l.prepare(); err != nil || l.w.NeedsSegment() {
			return err
		}
	}
	if l.w.Begun() {
		return nil
	}
	var incarnation [16]byte
	if _, err := rand.Read(incarnation[:]); err != nil {
		return err
	}
	if err := l.w.Begin(incarnation, uint64(v.Size())); err != nil {
		return err
	}
	v.mu.Lock()
	v.overlay.segment(l.w.Current(), l.w.Class(), l.w.Tail().Seq, l.w.Tail().End)
	v.current = l.w.Current()
	v.mu.Unlock()
	l.dropNamed()
	return l.prepare()
}

// dropNamed removes the segment that the last session's last record names: the log
// goes on in one of this session's.
func (l *logger) dropNamed() {
	v := l.v
	if v.named == 0 {
		return
	}
	if err := v.files.Retire(v.named, 0, false); err != nil {
		v.log.Warn("space of the log stays allocated", "volume", v.Name(), "err", err)
	}
	v.named = 0
}

// prepare makes the segment that the log moves to next. That there is no space
// for one is noted and no error: nothing is lost, and the writers are told.
func (l *logger) prepare() error {
	v := l.v
	v.mu.RLock()
	recent := v.logBytes + l.written
	v.mu.RUnlock()
	class := v.space.nextClass(uint64(recent) / blockSize)
	var err error
	for {
		if err = v.store.allow(int64(blockSize) << class); err == nil {
			err = l.w.AddSegment(v.newSegmentNo(), class)
		}
		if err == nil || !isFull(err) || class == seglog.MinClass {
			break
		}
		class -= 2
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	was := v.noSegment != nil
	v.noSegment = nil
	if isFull(err) || isShort(err) {
		v.noSegment = err
		return nil
	}
	if was && err == nil {
		// Space came back: the reserve may have been given up meanwhile.
		if err := v.store.checkBallast(); err != nil {
			v.log.Warn("no reserve for the index", "err", err)
		}
	}
	return err
}

// isFull says that a disk or a quota is full.
func isFull(err error) bool { return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) }

// isShort says that the process or the machine is short of something: the same
// may go well later.
func isShort(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) || errors.Is(err, syscall.ENOMEM)
}

func isZero(b []byte) bool { return string(b) == string(zeroBlock[:]) }
