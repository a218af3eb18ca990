package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/fsximg/fsx/internal/vfs"
	"github.com/fsximg/fsx/pkg/layout"
	"github.com/fsximg/fsx/pkg/layout/metadb"
	"github.com/fsximg/fsx/pkg/layout/seglog"
	"github.com/fsximg/fsx/pkg/layout/store"
)

// CopyLive copies the store to dst, which must not exist, while it is used: as it is
// at one moment, for every volume that can be opened. Until it is done, no volume is
// made, deleted or rolled back, and no checkpoint frees anything; reads and writes go
// on, as long as the log may grow. The copy is durable when CopyLive returns; after an
// error nothing is left at dst.
func (s *Store) CopyLive(ctx context.Context, dst string, progress func(done, total int64)) (err error) {
	if !s.calls.enter() {
		return ErrClosed
	}
	defer s.calls.leave()
	if s.opt.ReadOnly {
		return ErrReadOnly
	}
	if _, err := os.Lstat(dst); err == nil {
		return fmt.Errorf("copy to %s: %w", dst, fs.ErrExist)
	}
	s.ops.Lock()
	defer s.ops.Unlock()
	c := &liveCopy{s: s, dst: dst, progress: progress}
	defer c.release()
	if err := c.hold(ctx); err != nil {
		return err
	}
	if err := os.Mkdir(dst, 0o700); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.RemoveAll(dst)
		}
	}()
	if err := errors.Join(c.copyIndex(), c.copyKeyring()); err != nil {
		return err
	}
	if err := c.copySegments(ctx); err != nil {
		return err
	}
	if c.unclean {
		if err := copySparse(filepath.Join(dst, "lock"), filepath.Join(s.dir.Path, "lock")); err != nil {
			return err
		}
	}
	super := *s.dir.Super
	if err := store.At(vfs.OS(), dst).WriteSuperblock(&super); err != nil {
		return err
	}
	return vfs.OS().SyncDir(filepath.Dir(filepath.Clean(dst)))
}

// liveCopy is a copy of a store that is used.
type liveCopy struct {
	s        *Store
	dst      string
	progress func(done, total int64)
	held     []*Volume // whose upkeep is held
	segments []liveSegment
	unclean  bool // a volume could not be opened, and may need replay
}

// liveSegment is a segment file, of which so many blocks belong to the copy; -1 is
// all.
type liveSegment struct {
	volume layout.VolumeID
	no     layout.SegmentNo
	blocks int64
}

// hold opens what can be opened, and has every volume's head name the end of its log
// at one moment, as long as no checkpoint is made.
func (c *liveCopy) hold(ctx context.Context) error {
	s := c.s
	s.mu.RLock()
	ids := make([]layout.VolumeID, 0, len(s.heads))
	for id := range s.heads {
		ids = append(ids, id)
	}
	s.mu.RUnlock()
	slices.Sort(ids)
	var resume []func()
	defer func() {
		for _, f := range resume {
			f()
		}
	}()
	for _, id := range ids {
		v, err := s.volumeByID(id)
		if errors.Is(err, ErrKeyMissing) {
			c.unclean = c.unclean || s.needsReplay(id)
			if err := c.note(id, nil); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return err
		}
		v.upkeep.Lock()
		c.held = append(c.held, v)
		if v.ro { // not trusted: its log stands still
			c.unclean = c.unclean || s.needsReplay(id)
			if err := c.note(id, nil); err != nil {
				return err
			}
			continue
		}
		l, goOn, err := v.pauseLog(ctx)
		if err != nil {
			return fmt.Errorf("volume %s: %w", v.Name(), err)
		}
		resume = append(resume, goOn)
		if err := v.settle(ctx, l.w.Tail()); err != nil {
			return fmt.Errorf("volume %s: %w", v.Name(), err)
		}
		if err := c.note(id, l); err != nil {
			return err
		}
	}
	return nil
}

// note lists a volume's segments, as they are now. l is its log, which stands still,
// or nil.
func (c *liveCopy) note(id layout.VolumeID, l *logger) error {
	files, err := c.s.filesOf(id)
	if err != nil {
		return err
	}
	for _, no := range files.List() {
		blocks := int64(-1)
		if l != nil {
			switch tail := l.w.Tail(); no {
			case tail.Segment:
				blocks = int64(tail.End)
			case l.w.Current(), l.w.Prepared():
				blocks = 0 // what it gets comes later
			}
		}
		c.segments = append(c.segments, liveSegment{id, no, blocks})
	}
	return nil
}

func (c *liveCopy) release() {
	for _, v := range c.held {
		v.upkeep.Unlock()
	}
}

// copyIndex copies the index, which nobody changes: records as they are, in another
// database.
func (c *liveCopy) copyIndex() (err error) {
	if err := os.Mkdir(filepath.Join(c.dst, "meta"), 0o700); err != nil {
		return err
	}
	db, err := metadb.Open(filepath.Join(c.dst, "meta"), metadb.Options{
		Create: true, Log: c.s.log, Free: func() (int64, error) { return c.s.fs.Free(c.dst) }, MinFree: c.s.limits.indexReserve,
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	batch := db.NewBatch()
	defer batch.Cancel()
	if err := c.s.db.Scan(nil, batch.Set); err != nil {
		return err
	}
	return batch.Flush()
}

func (c *liveCopy) copyKeyring() error {
	dir, body := store.At(vfs.OS(), c.dst), c.s.Keyring().Encode()
	return errors.Join(dir.WriteKeyring(body, 1), dir.WriteKeyring(body, 2))
}

func (c *liveCopy) copySegments(ctx context.Context) error {
	vols := filepath.Join(c.dst, "vol")
	if err := os.Mkdir(vols, 0o700); err != nil {
		return err
	}
	total, done := int64(0), int64(0)
	for _, g := range c.segments {
		if info, err := os.Stat(filepath.Join(c.s.dir.Volume(g.volume), seglog.FileName(g.no))); err == nil {
			total += allocatedBytes(info)
		}
	}
	made := map[layout.VolumeID]bool{}
	for _, g := range c.segments {
		if err := ctx.Err(); err != nil {
			return err
		}
		dir := filepath.Join(vols, g.volume.String())
		if !made[g.volume] {
			if err := os.Mkdir(dir, 0o700); err != nil {
				return err
			}
			made[g.volume] = true
		}
		n, err := c.copySegment(dir, g)
		if err != nil {
			return fmt.Errorf("segment %d of volume %v: %w", g.no, g.volume, err)
		}
		if done += n; c.progress != nil {
			c.progress(min(done, total), total)
		}
	}
	for id := range made {
		if err := vfs.OS().SyncDir(filepath.Join(vols, id.String())); err != nil {
			return err
		}
	}
	return errors.Join(vfs.OS().SyncDir(vols), vfs.OS().SyncDir(c.dst))
}

func (c *liveCopy) copySegment(dir string, g liveSegment) (int64, error) {
	name := seglog.FileName(g.no)
	from, to := filepath.Join(c.s.dir.Volume(g.volume), name), filepath.Join(dir, name)
	if err := copySparse(to, from); err != nil {
		return 0, err
	}
	if g.blocks >= 0 { // what was appended meanwhile is not of the moment
		if err := os.Truncate(to, g.blocks*blockSize); err != nil {
			return 0, err
		}
	}
	info, err := os.Stat(to)
	if err != nil {
		return 0, err
	}
	return allocatedBytes(info), syncFile(to)
}
