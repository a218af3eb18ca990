// Package seglog keeps a volume's segments: the files that hold blocks of
// ciphertext and commit records. It knows places and records, never a key or
// plaintext; records are made and checked with a layout.Signer.
//
// docs/format.md section 4 is the byte map, docs/ordering.md tells every sync.
package seglog

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/fsximg/fsx/internal/vfs"
	"github.com/fsximg/fsx/pkg/layout"
)

// ErrNoSegment is returned for a segment that is not (any more) in the volume.
var ErrNoSegment = errors.New("no such segment")

// MinClass and MaxClass bound a segment's class, the log2 of its blocks:
// 1 MiB and 64 MiB.
const (
	MinClass = 8
	MaxClass = 14
)

// Files is the directory of one volume's segments. It
// keeps a small pool of dead files for reuse. All methods are
// safe for concurrent use.
type Files struct {
	fs    vfs.FS
	dir   string
	descs *Descriptors

	mu   sync.RWMutex
	segs map[layout.SegmentNo]*Segment

	poolMu sync.Mutex
	pool   []pooled
	named  atomic.Bool // the directory's own entry is durable
}

// Descriptors bounds the open descriptors of many volumes' files together. It is
// safe for concurrent use.
type Descriptors struct {
	limit int
	open  atomic.Int64

	mu   sync.Mutex
	all  []*Files
	hand int // whose idle descriptors are closed next
}

// NewDescriptors allows so many descriptors, and a few more for a moment.
func NewDescriptors(limit int) *Descriptors { return &Descriptors{limit: max(limit, 8)} }

func (d *Descriptors) add(f *Files) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.all = append(d.all, f)
}

func (d *Descriptors) remove(f *Files) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.all = slices.DeleteFunc(d.all, func(g *Files) bool { return g == f })
}

// closeIdle closes descriptors of segments nobody holds, sparing those touched
// since its last pass. The caller holds a reference of its own segment.
func (d *Descriptors) closeIdle() {
	d.mu.Lock()
	defer d.mu.Unlock()
	enough := int64(d.limit * 3 / 4)
	for range 2 * len(d.all) {
		d.hand = (d.hand + 1) % len(d.all)
		if d.all[d.hand].closeIdle(enough) {
			return
		}
	}
}

type pooled struct {
	no    layout.SegmentNo // the name it still has
	class uint8
}

// poolLimit bounds the dead files kept for reuse.
const poolLimit = 8

// Segment is one segment file. A reader holds it between Acquire and Release;
// Retire waits for that before the file is reused or removed.
type Segment struct {
	No layout.SegmentNo

	refs atomic.Int64
	used atomic.Bool // touched since the descriptor clock last passed
	mu   sync.Mutex  // guards opening and closing of file
	file atomic.Pointer[vfs.File]
	dead chan struct{} // closed when retired and unreferenced
	gone atomic.Bool
	once sync.Once
}

// OpenFiles lists a volume's segment files. The directory may be missing: the
// volume was never written.
func OpenFiles(fsys vfs.FS, dir string, descs *Descriptors) (*Files, error) {
	f := &Files{fs: fsys, dir: dir, descs: descs, segs: map[layout.SegmentNo]*Segment{}}
	names, err := fsys.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	descs.add(f)
	for _, name := range names {
		if no, ok := parseName(name); ok {
			f.segs[no] = newSegment(no)
		}
	}
	return f, nil
}

func newSegment(no layout.SegmentNo) *Segment { return &Segment{No: no, dead: make(chan struct{})} }

// FileName is the name of a segment's file in its volume's folder.
func FileName(no layout.SegmentNo) string { return fmt.Sprintf("%016x.seg", uint64(no)) }

func parseName(name string) (layout.SegmentNo, bool) {
	hex, ok := strings.CutSuffix(name, ".seg")
	if !ok || len(hex) != 16 {
		return 0, false
	}
	n, err := strconv.ParseUint(hex, 16, 64)
	return layout.SegmentNo(n), err == nil && n != 0 && FileName(layout.SegmentNo(n)) == name
}

func (f *Files) path(no layout.SegmentNo) string { return filepath.Join(f.dir, FileName(no)) }

// List returns the numbers of all segment files, in no order.
func (f *Files) List() []layout.SegmentNo {
	f.mu.RLock()
	defer f.mu.RUnlock()
	l := make([]layout.SegmentNo, 0, len(f.segs))
	for no := range f.segs {
		l = append(l, no)
	}
	return l
}

// Acquire returns a segment for reading, or ErrNoSegment. The caller calls
// Release.
func (f *Files) Acquire(no layout.SegmentNo) (*Segment, error) {
	f.mu.RLock()
	s := f.segs[no]
	if s != nil {
		s.refs.Add(1)
	}
	f.mu.RUnlock()
	if s == nil {
		return nil, ErrNoSegment
	}
	return s, nil
}

// Usage is the length of a segment's file and the space it takes, in bytes.
func (f *Files) Usage(no layout.SegmentNo) (size, allocated int64, err error) {
	s, err := f.Acquire(no)
	if err != nil {
		return 0, 0, err
	}
	defer s.Release()
	file, err := f.File(s)
	if err != nil {
		return 0, 0, err
	}
	if size, err = file.Size(); err == nil {
		allocated, err = file.Allocated()
	}
	return size, allocated, err
}

// Release gives a segment back.
func (s *Segment) Release() {
	if s.refs.Add(-1) == 0 && s.gone.Load() {
		s.once.Do(func() { close(s.dead) })
	}
}

// File returns the segment's open file; it stays open until Release.
func (f *Files) File(s *Segment) (vfs.File, error) {
	if !s.used.Load() {
		s.used.Store(true)
	}
	if p := s.file.Load(); p != nil {
		return *p, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.file.Load(); p != nil {
		return *p, nil
	}
	file, err := f.fs.OpenFile(f.path(s.No), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EROFS) {
		file, err = f.fs.OpenFile(f.path(s.No), os.O_RDONLY, 0)
	}
	if err != nil {
		return nil, err
	}
	s.file.Store(&file)
	if f.descs.open.Add(1) > int64(f.descs.limit) {
		f.descs.closeIdle()
	}
	return file, nil
}

// closeIdle is Descriptors.closeIdle for one volume; it says whether so few are
// open now that it is enough.
func (f *Files) closeIdle(enough int64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range f.segs {
		if s.refs.Load() != 0 || s.file.Load() == nil || s.used.Swap(false) {
			continue
		}
		// refs only grow under f.mu, which we hold.
		(*s.file.Swap(nil)).Close()
		if f.descs.open.Add(-1) <= enough {
			return true
		}
	}
	return f.descs.open.Load() <= enough
}

// Create makes segment no with room for 1<<class blocks, from a dead file of
// the pool if there is one, and makes its directory entry durable. All its
// space is allocated, or the error is ENOSPC and nothing is left.
func (f *Files) Create(no layout.SegmentNo, class uint8) error {
	if err := f.ensureDir(); err != nil {
		return err
	}
	size := int64(1) << class * layout.BlockSize
	file, err := f.createFile(no, class)
	if err != nil {
		return err
	}
	if err = file.Allocate(0, size); err != nil && !errors.Is(err, vfs.ErrUnsupported) {
		file.Close()
		return errors.Join(err, f.fs.Remove(f.path(no)))
	}
	// The size must be durable before a record is believed, and the entry
	// before another record names this segment.
	if err = errors.Join(file.Datasync(), f.fs.SyncDir(f.dir)); err != nil {
		file.Close()
		return errors.Join(err, f.fs.Remove(f.path(no)))
	}
	s := newSegment(no)
	s.file.Store(&file)
	f.descs.open.Add(1)
	f.mu.Lock()
	f.segs[no] = s
	f.mu.Unlock()
	return nil
}

func (f *Files) createFile(no layout.SegmentNo, class uint8) (vfs.File, error) {
	if old, ok := f.takePooled(class); ok {
		if err := f.fs.Rename(f.path(old), f.path(no)); err != nil {
			return nil, err
		}
		return f.fs.OpenFile(f.path(no), os.O_RDWR, 0)
	}
	return f.fs.OpenFile(f.path(no), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
}

func (f *Files) takePooled(class uint8) (layout.SegmentNo, bool) {
	f.poolMu.Lock()
	defer f.poolMu.Unlock()
	for i, p := range f.pool {
		if p.class == class {
			f.pool = append(f.pool[:i], f.pool[i+1:]...)
			return p.no, true
		}
	}
	return 0, false
}

// ensureDir makes the directory. Once in a session its own entry is synced: the
// one who made it may have been killed before.
func (f *Files) ensureDir() error {
	if f.named.Load() {
		return nil
	}
	if err := f.fs.Mkdir(f.dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	err := f.fs.SyncDir(filepath.Dir(f.dir))
	f.named.Store(err == nil)
	return err
}

// Retire takes a dead segment out of the volume, waits for its readers, and
// keeps the file for reuse or removes it. Its content may be overwritten from
// then on: the caller has made durable that nothing needs it (I3).
func (f *Files) Retire(no layout.SegmentNo, class uint8, reuse bool) error {
	f.mu.Lock()
	s := f.segs[no]
	delete(f.segs, no)
	f.mu.Unlock()
	if s == nil {
		return nil
	}
	s.gone.Store(true)
	if s.refs.Load() == 0 {
		s.once.Do(func() { close(s.dead) })
	}
	<-s.dead
	if p := s.file.Swap(nil); p != nil {
		(*p).Close()
		f.descs.open.Add(-1)
	}
	if reuse {
		f.poolMu.Lock()
		if len(f.pool) < poolLimit {
			f.pool = append(f.pool, pooled{no, class})
			f.poolMu.Unlock()
			return nil
		}
		f.poolMu.Unlock()
	}
	return f.fs.Remove(f.path(no))
}

// Shorten cuts off what a segment's file has behind a block: space that was
// allocated and not used. The segment may be gone.
func (f *Files) Shorten(no layout.SegmentNo, blocks uint32) error {
	s, err := f.Acquire(no)
	if err != nil {
		return nil
	}
	defer s.Release()
	file, err := f.File(s)
	if err != nil {
		return err
	}
	end := int64(blocks) * layout.BlockSize
	if size, err := file.Size(); err != nil || size <= end {
		return err
	}
	return file.Truncate(end)
}

// DrainPool removes the dead files kept for reuse.
func (f *Files) DrainPool() error {
	f.poolMu.Lock()
	pool := f.pool
	f.pool = nil
	f.poolMu.Unlock()
	var errs error
	for _, p := range pool {
		errs = errors.Join(errs, f.fs.Remove(f.path(p.no)))
	}
	return errs
}

// Close closes all descriptors. Nobody may hold a segment.
func (f *Files) Close() error {
	f.descs.remove(f)
	f.mu.Lock()
	defer f.mu.Unlock()
	var errs error
	for _, s := range f.segs {
		if p := s.file.Swap(nil); p != nil {
			errs = errors.Join(errs, (*p).Close())
			f.descs.open.Add(-1)
		}
	}
	return errs
}

// RemoveAll removes what is left of the volume's directory: its segments are
// gone for ever. Nobody may hold one.
func (f *Files) RemoveAll() error {
	errs := errors.Join(f.DrainPool(), f.Close())
	for _, no := range f.List() {
		if err := f.fs.Remove(f.path(no)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = errors.Join(errs, err)
		}
	}
	if errs != nil {
		return errs
	}
	err := f.fs.Remove(f.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return errors.Join(err, f.fs.SyncDir(filepath.Dir(f.dir)))
}

// SyncDir makes the directory's entries, and its own, durable.
func (f *Files) SyncDir() error {
	if _, err := f.fs.Stat(f.dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return errors.Join(f.fs.SyncDir(f.dir), f.fs.SyncDir(filepath.Dir(f.dir)))
}
