package volume

import (
	"github.com/fsximg/fsx/pkg/layout"
)

// Status calls fn with consecutive runs of blocks from off on, until fn returns
// false or n bytes are covered. A run is a hole, allocated zeros, or data.
func (v *Volume) Status(off, n int64, fn func(length int64, hole, zero bool) bool) error {
	if err := v.checkRange(off, n); err != nil {
		return err
	}
	end := off + n
	first := layout.BlockNo(off / blockSize)
	var runStart = off
	var runKind layout.Kind
	open, stopped := false, false
	emit := func(to int64) bool {
		if open && to > runStart {
			if !fn(to-runStart, runKind == layout.Hole, runKind != layout.Data) {
				stopped = true
			}
			runStart = to
		}
		return !stopped
	}
	for b := first; int64(b)*blockSize < end && !stopped; {
		kind, count, err := v.kindRun(b, uint64((end+blockSize-1)/blockSize)-uint64(b))
		if err != nil {
			return err
		}
		if open && kind != runKind && !emit(int64(b)*blockSize) {
			return nil
		}
		open, runKind = true, kind
		b += layout.BlockNo(count)
	}
	if !stopped {
		emit(end)
	}
	return nil
}

// statusBatch bounds the blocks that are looked up under one lock.
const statusBatch = 64

// kindRun returns the kind of block b and how many blocks, at most limit, are
// known to be like it.
func (v *Volume) kindRun(b layout.BlockNo, limit uint64) (layout.Kind, uint64, error) {
	for try := 0; ; try++ {
		kind, n, gen, err := v.kindRunOnce(b, limit)
		if err == nil || try >= maxRetries {
			return kind, n, err
		}
		v.mu.RLock()
		moved := v.gen != gen
		v.mu.RUnlock()
		if !moved {
			return kind, n, err
		}
	}
}

func (v *Volume) kindRunOnce(b layout.BlockNo, limit uint64) (kind layout.Kind, n, gen uint64, err error) {
	v.mu.RLock()
	root, gen := v.root, v.gen
	kind, known := v.memoryKindLocked(b)
	n = 1
	quiet := v.quietLocked()
	for !quiet && n < min(limit, statusBatch) {
		k, ok := v.memoryKindLocked(b + layout.BlockNo(n))
		if ok != known || k != kind {
			break
		}
		n++
	}
	v.mu.RUnlock()
	if known {
		return kind, n, gen, nil
	}
	if quiet {
		n = limit
	}
	count := uint64(0)
	err = v.store.tree.Runs(root, b, b+layout.BlockNo(n), func(start layout.BlockNo, m uint64, k layout.Kind) bool {
		kind, count = k, m
		return false
	})
	if err != nil {
		return 0, 0, gen, v.blockError(b, err)
	}
	return kind, min(count, n), gen, nil
}

// quietLocked says that the map tree alone knows every block.
func (v *Volume) quietLocked() bool {
	return v.overlay.count == 0 && len(v.overlay.zeros) == 0 && v.ckpt == nil && len(v.frozen) == 0 && (v.active == nil || v.active.empty())
}

// memoryKindLocked is the kind of a block that a buffer or an overlay knows.
func (v *Volume) memoryKindLocked(b layout.BlockNo) (layout.Kind, bool) {
	for i := len(v.frozen); i >= 0; i-- {
		buf := v.active
		if i < len(v.frozen) {
			buf = v.frozen[i]
		}
		if buf == nil {
			continue
		}
		if buf.find(b) != nil {
			return layout.Data, true
		}
		if kind, ok := buf.zeros.find(b); ok {
			return kind, true
		}
	}
	for _, o := range []*overlay{v.overlay, v.ckpt} {
		if o == nil {
			continue
		}
		if e, ok := o.find(b); ok {
			return e.kind, true
		}
	}
	return layout.Hole, false
}
