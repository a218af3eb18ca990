package volume

import (
	"cmp"
	"errors"
	"io/fs"
	"slices"
	"time"

	"github.com/fsximg/fsx/pkg/layout"
	"github.com/fsximg/fsx/pkg/layout/seglog"
)

// StoreStats are what a store does now. What they count begins when the store, or
// the volume, was opened.
type StoreStats struct {
	Volumes []VolumeStats // that are open, by name
	Keys    []KeyStatus   // of all volumes
	// Free is how many bytes the disk has left for the store.
	Free int64
	// MapCache is the memory for map nodes that all volumes share, in use and at
	// most. A lookup that needs a node is a hit if it is there, and a miss if it has
	// to be read from the index.
	MapCacheBytes, MapCacheLimit int64
	MapCacheHits, MapCacheMisses uint64
	// BufferBytes is the memory that holds writes which are not sealed yet.
	BufferBytes int64
}

// VolumeStats are what an open volume does now.
type VolumeStats struct {
	Name     string
	Size     int64 // bytes
	ReadOnly bool
	// Failed says that its log failed, so that it takes no write any more.
	Failed bool
	Lag    Lag
	// ExtentHits and ExtentMisses tell whether the extents that reads needed were
	// open, with their ciphers.
	ExtentHits, ExtentMisses uint64
	Faults                   Faults
	Stats
}

// Lag is what the log has and the map tree has not yet: what a recovery would have
// to read.
type Lag struct {
	Bytes   int64 // of log
	Records int64 // mappings of blocks, and ranges
	// Since is when the last checkpoint ended, or the volume was opened, if there
	// was none.
	Since time.Time
}

// Faults count blocks that could not be read, each attempt for itself.
type Faults struct {
	Damaged    uint64 // missing or altered
	KeyMissing uint64 // their data key is not in the bag
	Other      uint64 // the disk's errors
}

// CountStats tells what the store does now. It reads no file.
func (s *Store) CountStats() (StoreStats, error) {
	if !s.calls.enter() {
		return StoreStats{}, ErrClosed
	}
	defer s.calls.leave()
	free, err := s.fs.Free(s.dir.Path)
	if err != nil {
		return StoreStats{}, err
	}
	out := StoreStats{
		Keys: s.KeyStates(), Free: free, BufferBytes: s.pool.bytes(),
		MapCacheBytes: s.tree.CacheBytes(), MapCacheLimit: s.opt.Memory,
	}
	out.MapCacheHits, out.MapCacheMisses = s.tree.CacheUse()
	for _, v := range s.opened() {
		if s.fate(v.id) != 0 {
			continue // it is hidden, and another may have its name
		}
		out.Volumes = append(out.Volumes, v.countStats())
	}
	slices.SortFunc(out.Volumes, func(a, b VolumeStats) int { return cmp.Compare(a.Name, b.Name) })
	return out, nil
}

func (v *Volume) countStats() VolumeStats {
	out := VolumeStats{Name: v.Name(), Size: v.Size(), ReadOnly: v.ro, Stats: v.Stats(), Faults: v.stats.faults()}
	out.ExtentHits, out.ExtentMisses = v.cache.use()
	v.mu.RLock()
	defer v.mu.RUnlock()
	out.Failed = v.failed != nil
	out.Lag = Lag{Bytes: v.logBytes, Records: int64(v.overlay.count), Since: time.Unix(0, v.stats.checkpointed.Load())}
	for _, w := range v.waiting {
		out.Lag.Bytes += w.log
		out.Lag.Records += int64(w.count)
	}
	return out
}

// noteCheckpoint notes that all is in the map tree that was in the log, as far as a
// checkpoint goes.
func (k *counters) noteCheckpoint() { k.checkpointed.Store(time.Now().UnixNano()) }

func (k *counters) faults() Faults {
	return Faults{Damaged: k.damaged.Load(), KeyMissing: k.keyMissing.Load(), Other: k.unread.Load()}
}

// noteFault counts a block that could not be read. What moved is read again.
func (k *counters) noteFault(err error) {
	switch {
	case errors.Is(err, errMoved), errors.Is(err, ErrClosed):
	case errors.Is(err, ErrDamaged):
		k.damaged.Add(1)
	case errors.Is(err, ErrKeyMissing):
		k.keyMissing.Add(1)
	default:
		k.unread.Add(1)
	}
}

// Allocated is how many bytes the store takes on its disk. It looks at every
// segment file.
func (s *Store) Allocated() (int64, error) {
	if !s.calls.enter() {
		return 0, ErrClosed
	}
	defer s.calls.leave()
	total, err := s.db.Size()
	if err != nil {
		return 0, err
	}
	if n, err := s.allocated(s.ballastPath()); err == nil {
		total += n
	}
	s.mu.RLock()
	ids := make([]layout.VolumeID, 0, len(s.heads))
	for id := range s.heads {
		ids = append(ids, id)
	}
	s.mu.RUnlock()
	for _, id := range ids {
		n, err := s.allocatedBy(id)
		if err != nil {
			return 0, err
		}
		total += n
	}
	return total, nil
}

// allocatedBy is what the segment files of a volume take.
func (s *Store) allocatedBy(id layout.VolumeID) (total int64, err error) {
	s.listing.RLock()
	defer s.listing.RUnlock()
	s.mu.RLock()
	_, found := s.heads[id]
	s.mu.RUnlock()
	if !found {
		return 0, nil // it went meanwhile
	}
	files, err := s.filesOf(id)
	if err != nil {
		return 0, err
	}
	for _, no := range files.List() {
		_, n, err := files.Usage(no)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, seglog.ErrNoSegment) {
			continue // it went meanwhile
		}
		if err != nil {
			return 0, err
		}
		total += n
	}
	return total, nil
}
