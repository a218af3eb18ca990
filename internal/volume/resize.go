package volume

import (
	"context"
	"errors"
	"fmt"

	"github.com/fsximg/fsx/pkg/layout"
)

// ErrShrink says that a new size would cut something off.
var ErrShrink = errors.New("the new size is smaller")

// Resize changes a volume's size, in bytes, to a multiple of 512. What is new
// reads as zeros. Only with shrink may it become smaller; what is cut off is gone
// then, but not from its snapshots.
func (s *Store) Resize(ctx context.Context, volume string, size int64, shrink bool) error {
	if err := checkSize(size); err != nil {
		return err
	}
	v, err := s.volumeToChange(volume)
	if err != nil {
		return err
	}
	for {
		old := v.Size()
		if n := min(-old&(blockSize-1), size-old); n > 0 {
			// What is left behind the end of the last block, if the volume was
			// shrunk to there, must not be seen again.
			if err := v.clearTail(old); err != nil {
				return err
			}
		}
		err := v.ask(ctx, true, func() (control, error) {
			switch {
			case v.Size() != old:
				return control{}, errMoved
			case size < old && !shrink:
				return control{}, fmt.Errorf("%w: volume %s has %d bytes", ErrShrink, v.Name(), old)
			}
			return control{size: size}, nil
		})
		if !errors.Is(err, errMoved) {
			return err
		}
	}
}

// clearTail zeroes what is behind a size in its last block.
func (v *Volume) clearTail(size int64) error {
	if !v.calls.enter() {
		return ErrClosed
	}
	defer v.calls.leave()
	return v.merge(zeroBlock[:-size&(blockSize-1)], size, false)
}

// errMoved says that something changed meanwhile: what was tried starts again.
var errMoved = errors.New("changed meanwhile")

// resize makes a size durable: the next record has it. What was logged before
// goes into the map under the size it was written with.
func (l *logger) resize(size int64) error {
	v := l.v
	if err := l.commit(); err != nil {
		return err
	}
	v.mu.Lock()
	if !v.overlay.empty() {
		l.freezeLocked(nil)
	}
	first, last := layout.BlockNo(blocksOf(uint64(size))), layout.BlockNo(v.blocks())
	v.size.Store(size)
	if first < last {
		for _, b := range append([]*buffer{v.active}, v.frozen...) {
			if b != nil {
				b.zero(first, last, layout.Hole)
			}
		}
		v.overlay.zero(first, last, layout.Hole) // over what waits for a checkpoint
		v.epoch++
	}
	v.mu.Unlock()
	if first < last {
		l.w.AppendZero(layout.Hole, first, uint64(last-first))
	}
	if err := l.commit(); err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.answerLocked(nil)
	return nil
}
