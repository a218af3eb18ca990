package volume

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"syscall"
	"time"

	"github.com/fsximg/fsx/pkg/layout"
	"github.com/fsximg/fsx/pkg/layout/maptree"
	"github.com/fsximg/fsx/pkg/layout/metadb"
)

var backgroundContext = context.Background()

// CheckOptions say how a check goes.
type CheckOptions struct {
	// Progress, if not nil, is told the bytes checked so far and in all.
	Progress func(done, total int64)
	// MaxProblems bounds the list; 0 is 1000.
	MaxProblems int
}

// Report is what a check found.
type Report struct {
	Volumes  []VolumeReport
	Problems []Problem
	More     int // problems not listed
}

// Clean says that nothing is wrong.
func (r *Report) Clean() bool { return len(r.Problems) == 0 }

// VolumeReport says what was checked of a volume.
type VolumeReport struct {
	Name     string
	Blocks   uint64 // mapped to data, now or in a snapshot; each block once
	Kept     uint64 // that only snapshots have
	Verified uint64 // whose tag was checked: 0 without a key
	Leaked   uint64 // blocks accounted as live that nothing points to
	// Authentic says that the volume was open, so that its head's MAC, its log
	// and every tag were checked.
	Authentic bool
}

// Problem is one thing that is wrong.
type Problem struct {
	Volume string
	Offset int64 // in the volume, bytes; -1 if it is no place in it
	Length int64
	Text   string
}

func (p Problem) String() string {
	if p.Offset < 0 {
		return fmt.Sprintf("volume %s: %s", p.Volume, p.Text)
	}
	return fmt.Sprintf("volume %s, offset %d, %d bytes: %s", p.Volume, p.Offset, p.Length, p.Text)
}

type checker struct {
	s   *Store
	opt CheckOptions
	rep *Report
}

func (c *checker) problem(p Problem) {
	if n := len(c.rep.Problems); n > 0 && p.Offset >= 0 {
		last := &c.rep.Problems[n-1]
		if last.Volume == p.Volume && last.Text == p.Text && last.Offset >= 0 && last.Offset+last.Length == p.Offset {
			last.Length += p.Length
			return
		}
	}
	if len(c.rep.Problems) >= c.opt.MaxProblems {
		c.rep.More++
		return
	}
	c.rep.Problems = append(c.rep.Problems, p)
}

// Check verifies the store. Of every volume: that each map node is what its
// pointer says, and that each block's extent, place and accounting exist. Of
// open volumes also every tag. What is wrong is in the report; the error is for
// a check that could not be carried out.
func (s *Store) Check(ctx context.Context, o CheckOptions) (*Report, error) {
	if !s.calls.enter() {
		return nil, ErrClosed
	}
	defer s.calls.leave()
	if o.MaxProblems == 0 {
		o.MaxProblems = 1000
	}
	c := &checker{s: s, opt: o, rep: &Report{}}
	heads := c.strayVolumes()
	sort.Slice(heads, func(i, j int) bool { return heads[i].Name < heads[j].Name })
	for _, h := range heads {
		if err := c.volumeNow(ctx, h.Volume); err != nil {
			return c.rep, err
		}
	}
	return c.rep, nil
}

// volumeNow checks a volume as it is when its turn comes. It may be opened, rolled
// back or deleted meanwhile: then what was found is not said, and it is looked at
// again.
func (c *checker) volumeNow(ctx context.Context, id layout.VolumeID) error {
	for {
		problems, more, volumes := len(c.rep.Problems), c.rep.More, len(c.rep.Volumes)
		last := Problem{}
		if problems > 0 {
			last = c.rep.Problems[problems-1]
		}
		h, v, found := c.find(id)
		if !found {
			return nil
		}
		var err error
		if v == nil || v.calls.enter() {
			err = c.volume(ctx, h, v)
			if v != nil {
				v.calls.leave()
				if !v.calls.shut.Load() {
					return err
				}
			}
		} else {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(time.Millisecond): // until it is closed
			}
		}
		if _, after, found := c.find(id); found && after == v && v == nil {
			return err
		}
		c.rep.Problems, c.rep.More, c.rep.Volumes = c.rep.Problems[:problems], more, c.rep.Volumes[:volumes]
		if problems > 0 {
			c.rep.Problems[problems-1] = last
		}
	}
}

// find looks a volume up, which may be deleted.
func (c *checker) find(id layout.VolumeID) (h layout.Head, v *Volume, found bool) {
	s := c.s
	s.mu.RLock()
	defer s.mu.RUnlock()
	h, found = s.heads[id]
	if s.fates[id] != 0 {
		h.Name += " (deleted)"
	}
	return h, s.volumes[id], found && s.fates[id] != layout.Going
}

// strayVolumes looks for volumes that have a bag or files but no head: an index
// that lost them. It returns the heads that there are.
func (c *checker) strayVolumes() (heads []layout.Head) {
	s := c.s
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, h := range s.heads {
		heads = append(heads, h)
	}
	for _, uuid := range strayBags(s.keyring, s.heads) {
		c.problem(Problem{Volume: layout.UUID(uuid).String(), Offset: -1, Text: "the keyring knows this volume, but the index has no head for it"})
	}
	return heads
}

func (c *checker) volume(ctx context.Context, h layout.Head, v *Volume) error {
	r := VolumeReport{Name: h.Name}
	r.Authentic = v != nil
	m, err := c.structure(ctx, h, v)
	if err != nil {
		return err
	}
	r.Blocks, r.Kept, r.Leaked = m.blocks, m.kept, m.accounts()
	if v != nil {
		if r.Verified, err = c.tags(ctx, v, int64(m.blocks)*blockSize); err != nil {
			return err
		}
		r.Verified += m.opened
	}
	c.rep.Volumes = append(c.rep.Volumes, r)
	return nil
}

// structure checks the map and the accounts of a volume. Of an open one (v is
// not nil) everything is checkpointed first, if there is space for that, and no
// checkpoint or compaction changes anything meanwhile.
func (c *checker) structure(ctx context.Context, h layout.Head, v *Volume) (*mapCheck, error) {
	root, record, upTo := h.Root, recordOf(c.s.indexRecord), h.Log.Seq
	var snaps []layout.Snapshot
	if v != nil {
		v.upkeep.Lock()
		defer v.upkeep.Unlock()
		if !v.ro {
			if err := v.checkpointLocked(ctx, false); err != nil && !errors.Is(err, metadb.ErrNoSpace) {
				return nil, err
			}
		}
		v.mu.RLock()
		root, record, upTo, snaps = v.root, v.extentRecord, v.head.Log.Seq, v.snaps
		v.mu.RUnlock()
	} else {
		var err error
		if snaps, err = c.s.snapshots(h.Volume); err != nil {
			c.problem(Problem{Volume: h.Name, Offset: -1, Text: err.Error()})
		} else if uint32(len(snaps)) != h.Snapshots || layout.SnapshotDigest(snaps) != h.SnapshotDigest {
			c.problem(Problem{Volume: h.Name, Offset: -1, Text: "the snapshots are not those that the head names"})
		}
	}
	segs, err := c.s.segmentRecords(h.Volume, upTo)
	if err != nil {
		return nil, err
	}
	m := &mapCheck{checker: c, name: h.Name, id: h.Volume, record: record, segs: segs, reached: map[layout.SegmentNo][]byte{}}
	if err := m.run(ctx, root); err != nil {
		return m, err
	}
	if err := m.snapshots(ctx, snaps, root, v); err != nil {
		return m, err
	}
	return m, m.account(ctx, snaps, root)
}

// checkChunk is how much is read at a time to verify tags.
const checkChunk = 1 << 20

// tags reads every block that holds data.
func (c *checker) tags(ctx context.Context, v *Volume, total int64) (verified uint64, err error) {
	buf := make([]byte, checkChunk, checkChunk+slack)
	done := int64(0)
	var runs []Run
	for off := int64(0); off < v.Size(); {
		runs = runs[:0]
		size := v.Size()
		next := size
		err := v.Status(off, min(size-off, 1<<36), func(n int64, _, zero bool) bool {
			if !zero {
				runs = append(runs, Run{Start: off, Length: n})
			}
			off += n
			next = off
			return len(runs) < 1024
		})
		if err != nil {
			var be *BlockError
			if errors.As(err, &be) && errors.Is(err, maptree.ErrDamaged) {
				next, err = max(be.At, off)+maptree.LeafBlocks*blockSize, nil // reported by the structural check
			}
		}
		if errors.Is(err, syscall.EINVAL) && v.Size() < size {
			continue // it was shrunk meanwhile
		}
		if err != nil {
			return verified, err
		}
		off = next
		for _, r := range runs {
			n, err := c.readRun(ctx, v, buf, r, &done, total)
			verified += n
			if err != nil {
				return verified, err
			}
		}
	}
	return verified, nil
}

func (c *checker) readRun(ctx context.Context, v *Volume, buf []byte, r Run, done *int64, total int64) (verified uint64, err error) {
	for r.Length > 0 {
		if err := ctx.Err(); err != nil {
			return verified, err
		}
		n := min(r.Length, checkChunk)
		if err := v.ReadAt(buf[:n], r.Start, false); err == nil {
			verified += uint64(n+blockSize-1) / blockSize
		} else {
			verified += c.blockByBlock(v, buf, r.Start, n)
		}
		r.Start, r.Length = r.Start+n, r.Length-n
		*done += n
		if c.opt.Progress != nil {
			c.opt.Progress(*done, max(total, *done))
		}
	}
	return verified, nil
}

// blockByBlock finds out which blocks of a range cannot be read.
func (c *checker) blockByBlock(v *Volume, buf []byte, off, n int64) (verified uint64) {
	for end := off + n; off < end; off += blockSize {
		m := min(blockSize, end-off)
		err := v.ReadAt(buf[:m], off, false)
		if err == nil {
			verified++
			continue
		}
		if errors.Is(err, ErrKeyMissing) {
			continue // a clone without its parent's data keys: not verified, nor wrong
		}
		if errors.Is(err, syscall.EINVAL) {
			continue // it was shrunk meanwhile
		}
		text := "cannot be read: " + err.Error()
		var be *BlockError
		if errors.As(err, &be) {
			text = be.Err.Error()
		}
		c.problem(Problem{v.Name(), off, m, text})
	}
	return verified
}

// mapDamage makes damage of the map an ErrDamaged.
func mapDamage(err error) error {
	if errors.Is(err, maptree.ErrDamaged) && !errors.Is(err, ErrDamaged) {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return err
}
