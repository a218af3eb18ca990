package volume

import (
	"errors"

	"github.com/fsximg/fsx/pkg/layout"
	"github.com/fsximg/fsx/pkg/layout/metadb"
)

// release frees what the durable head does not need.
func (c *checkpoint) release() error {
	v := c.v
	if err := v.store.deleteKeys(c.obsolete); err != nil {
		return err
	}
	if err := c.ch.punch(v.sealed); err != nil {
		return err
	}
	return v.retireDead()
}

func (s *Store) deleteKeys(keys [][]byte) error {
	if len(keys) == 0 {
		return nil
	}
	batch := s.db.NewBatch()
	defer batch.Cancel()
	for _, key := range keys {
		if err := batch.Delete(key); err != nil {
			return err
		}
	}
	return batch.Flush()
}

// sealed says that the log will not write to a segment any more and does not
// need it for recovery.
func (v *Volume) sealed(no layout.SegmentNo) bool {
	info, ok := v.space.get(no)
	v.mu.RLock()
	defer v.mu.RUnlock()
	return ok && info.last <= v.head.Log.Seq && no != v.head.Log.Segment && no != v.current
}

// retireDead removes segments without a live block, with their extents'
// records.
func (v *Volume) retireDead() error {
	dead := v.space.choose(func(_ layout.SegmentNo, s segmentInfo) bool { return s.live == 0 })
	var errs error
	for _, no := range dead {
		if !v.sealed(no) {
			continue
		}
		if err := v.retire(no); err != nil {
			errs = errors.Join(errs, err)
		}
	}
	return errs
}

func (v *Volume) retire(no layout.SegmentNo) error {
	info, _ := v.space.get(no)
	rec, err := v.segmentRecord(no, info.slot)
	if err != nil {
		return err
	}
	batch := v.store.db.NewBatch()
	defer batch.Cancel()
	err = v.eachExtent(no, rec, func(id layout.ExtentID, _ layout.ExtentRecord) error {
		v.cache.drop(extentName{v.id, id})
		return batch.Delete(layout.ExtentKey(v.id, id))
	})
	if err != nil {
		return err
	}
	if err := batch.Flush(); err != nil {
		return err
	}
	// The account goes after the extents: a segment that has extents and no
	// account is one whose account was lost.
	err = v.store.db.Update(func(tx *metadb.Txn) error {
		return errors.Join(tx.Delete(layout.SegmentKey(v.id, no, 0)), tx.Delete(layout.SegmentKey(v.id, no, 1)))
	})
	if err != nil {
		return err
	}
	v.space.remove(no)
	full := !rec.Punched && rec.Kind == layout.SegmentLog && rec.Used > 1<<rec.Class*3/4
	return v.files.Retire(no, rec.Class, full && !v.store.crowded())
}

// eachExtent calls fn with the extents that lie in a segment.
func (v *Volume) eachExtent(no layout.SegmentNo, rec *layout.SegmentRecord, fn func(layout.ExtentID, layout.ExtentRecord) error) error {
	if rec.Kind == layout.SegmentCompacted {
		for _, id := range rec.Extents {
			x, err := v.extentRecord(v.id, id)
			if errors.Is(err, ErrDamaged) {
				continue
			}
			if err == nil && x.Segment == no {
				err = fn(id, x)
			}
			if err != nil {
				return err
			}
		}
		return nil
	}
	from := layout.ExtentKey(v.id, layout.NewExtentID(rec.First, 0))
	err := v.store.db.ScanKeys(layout.ExtentPrefix(v.id), from, func(key []byte) error {
		_, id, ok := layout.ExtentOfKey(key)
		if !ok || id.Birth() > rec.Last {
			return errStop
		}
		x, err := v.extentRecord(v.id, id)
		if errors.Is(err, ErrDamaged) || err == nil && x.Segment != no {
			return nil
		}
		if err != nil {
			return err
		}
		return fn(id, x)
	})
	if errors.Is(err, errStop) {
		return nil
	}
	return err
}

// errStop ends a scan early.
var errStop = errors.New("stop")
