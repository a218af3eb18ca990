package volume

import (
	"errors"
	"fmt"
	"sync"
	"syscall"

	"github.com/fsximg/fsx/pkg/layout"
)

// admitChunk is the number of blocks that are admitted together: with its
// records it fits into the smallest segment.
const admitChunk = 128

// trimReserve is the space of the log, in blocks, that only trims and zeros may
// use: on a full disk they are what makes space.
const trimReserve = 64

// WriteAt writes p at off. When it returns, every later read sees it; a later
// flush makes it durable. ENOSPC is answered here and not by the flush: space
// in the log is reserved before a block is taken. With nowait it returns
// ErrWouldBlock, having written nothing, where it would have to wait.
func (v *Volume) WriteAt(p []byte, off int64, nowait bool) error {
	if !v.calls.enter() {
		return ErrClosed
	}
	defer v.calls.leave()
	if err := checkRange(v.Size(), off, int64(len(p))); err != nil {
		return err
	}
	if nowait && len(p) > admitChunk*blockSize {
		return ErrWouldBlock
	}
	v.stats.writes.Add(1)
	v.stats.written.Add(uint64(len(p)))
	for len(p) > 0 {
		n := min(len(p), blockSize-int(off%blockSize))
		var err error
		if n == blockSize {
			n = min(len(p), admitChunk*blockSize) &^ (blockSize - 1)
			err = v.writeBlocks(p[:n], layout.BlockNo(off/blockSize), nowait)
		} else {
			err = v.merge(p[:n], off, nowait)
		}
		if err != nil {
			return err
		}
		p, off = p[n:], off+int64(n)
		nowait = nowait && len(p) == 0
	}
	return nil
}

func checkRange(size, off, n int64) error {
	if off < 0 || n < 0 || off > size || n > size-off {
		return fmt.Errorf("range %d+%d is outside the volume of %d bytes: %w", off, n, size, syscall.EINVAL)
	}
	return nil
}

// writeBlocks takes whole blocks into the buffer.
func (v *Volume) writeBlocks(p []byte, first layout.BlockNo, nowait bool) error {
	n := len(p) / blockSize
	v.mu.Lock()
	err := v.admitLocked(n, trimReserve, nowait)
	if err == nil {
		err = v.insideLocked(first + layout.BlockNo(n))
	}
	if err != nil {
		v.mu.Unlock()
		return err
	}
	for i := range n {
		b := first + layout.BlockNo(i)
		copy(v.active.put(b), p[i*blockSize:])
		v.versions[uint64(b)%versionStripes]++
	}
	v.tookLocked()
	v.mu.Unlock()
	return nil
}

// insideLocked refuses blocks that lie behind the end, which a shrinking may have
// moved since the range was checked.
func (v *Volume) insideLocked(end layout.BlockNo) error {
	if uint64(end) > v.blocks() {
		return fmt.Errorf("the volume was shrunk to %d bytes: %w", v.Size(), syscall.EINVAL)
	}
	return nil
}

// tookLocked hands the active buffer on when it is full.
func (v *Volume) tookLocked() {
	if !v.active.room(1) {
		v.rotateLocked()
		v.kick()
	}
}

// rotateLocked freezes the active buffer if there is a place for it.
func (v *Volume) rotateLocked() bool {
	if v.active == nil || v.active.empty() {
		return true
	}
	if len(v.frozen) >= maxFrozen {
		return false
	}
	v.frozen = append(v.frozen, v.active)
	v.active = nil
	return true
}

// admitLocked makes room for n blocks in the active buffer and in the log,
// where so many must stay free beyond them, or says why there is none. It may
// release mu while it waits.
func (v *Volume) admitLocked(n, reserve int, nowait bool) error {
	attempt, reclaimed := uint64(0), false
	for {
		if err := v.writableLocked(); err != nil {
			return err
		}
		if v.active != nil && !v.active.room(n) && !v.rotateLocked() || v.throttledLocked() {
			if nowait {
				return ErrWouldBlock
			}
			if v.upkeepErr != nil && v.throttledLocked() {
				return fmt.Errorf("volume %s: the log is full and its checkpoint fails: %w", v.Name(), v.upkeepErr)
			}
			v.kick()
			v.kickUpkeep()
			v.changed.Wait()
			continue
		}
		if logNeed(v.pendingLocked()+n)+reserve <= v.capacity {
			if v.active != nil {
				return nil
			}
			if err := v.newActiveLocked(nowait); err != nil {
				return err
			}
			continue // it may have been given up meanwhile
		}
		if nowait {
			return ErrWouldBlock
		}
		// The log's goroutine seals what waits and makes another segment, or
		// tells that it cannot.
		if attempt != 0 && v.attempts >= attempt && v.noSegment != nil {
			if reclaimed || !isFull(v.noSegment) {
				return fmt.Errorf("volume %s: no space for its log: %w", v.Name(), v.noSegment)
			}
			reclaimed, attempt = true, 0
			v.mu.Unlock()
			v.reclaim()
			v.mu.Lock()
			continue
		}
		if attempt == 0 || v.attempts >= attempt {
			attempt = v.attempts + 1
			v.retry = true
			v.kick()
		}
		v.changed.Wait()
	}
}

// pendingLocked is the number of blocks and operations that wait for the log.
func (v *Volume) pendingLocked() int {
	n := 0
	for _, b := range v.frozen {
		n += b.used + len(b.zeros)
	}
	if v.active != nil {
		n += v.active.used + len(v.active.zeros)
	}
	return n
}

// logNeed bounds the blocks of log that n admitted blocks take, with their
// records and the rests of two segments.
func logNeed(n int) int {
	return n + (n*(layout.TagSize+12+4))/blockSize + 16
}

// newActiveLocked gets a buffer. It may release mu while it waits for one.
func (v *Volume) newActiveLocked(nowait bool) error {
	b, _, err := v.store.pool.takeBuffer(false)
	if b == nil && err == nil {
		if nowait {
			return ErrWouldBlock
		}
		v.mu.Unlock()
		b, err = v.waitForBuffer()
		v.mu.Lock()
	}
	if err != nil {
		return err
	}
	if v.active != nil || v.closed {
		v.store.pool.putBuffer(b)
		return nil
	}
	v.active = b
	return nil
}

var blockPool = sync.Pool{New: func() any { b := make([]byte, blockSize+slack); return &b }}

// merge writes a part of one block. The old content is read without a lock;
// if the block was written meanwhile, it is read again.
func (v *Volume) merge(p []byte, off int64, nowait bool) error {
	b := layout.BlockNo(off / blockSize)
	at := int(off % blockSize)
	buf := blockPool.Get().(*[]byte)
	defer blockPool.Put(buf)
	old := (*buf)[: blockSize : blockSize+slack]
	defer clear(old)
	for {
		v.mu.RLock()
		stripe, epoch := v.versions[uint64(b)%versionStripes], v.epoch
		buffered := v.active != nil && v.active.find(b) != nil
		v.mu.RUnlock()
		if !buffered {
			if err := v.readBlocks(now, old, b, nowait); err != nil {
				return err
			}
		}
		v.mu.Lock()
		err := v.admitLocked(1, trimReserve, nowait)
		if err == nil {
			err = v.insideLocked(b + 1)
		}
		if err != nil {
			v.mu.Unlock()
			return err
		}
		if cur := v.active.find(b); cur != nil {
			copy(cur[at:], p)
		} else if !buffered && v.versions[uint64(b)%versionStripes] == stripe && v.epoch == epoch {
			dst := v.active.put(b)
			copy(dst, old)
			copy(dst[at:], p)
			v.tookLocked()
		} else {
			v.mu.Unlock()
			continue
		}
		v.versions[uint64(b)%versionStripes]++
		v.mu.Unlock()
		return nil
	}
}

// ZeroAt makes a range read as zeros. With noHole it stays allocated in the
// eyes of block status. Parts of blocks at its ends are written.
func (v *Volume) ZeroAt(off, n int64, noHole bool) error {
	if !v.calls.enter() {
		return ErrClosed
	}
	defer v.calls.leave()
	if err := checkRange(v.Size(), off, n); err != nil {
		return err
	}
	kind := layout.Hole
	if noHole {
		kind = layout.Zero
	}
	if head := min(n, -off&(blockSize-1)); head > 0 {
		if err := v.merge(zeroBlock[:head], off, false); err != nil {
			return err
		}
		off, n = off+head, n-head
	}
	if n == 0 {
		return nil
	}
	tail := n % blockSize
	if off+n == v.Size() {
		tail = 0 // nothing is visible behind the end
	}
	first, last := layout.BlockNo(off/blockSize), layout.BlockNo((off+n-tail+blockSize-1)/blockSize)
	if first < last {
		if err := v.zeroBlocks(first, last, kind); err != nil {
			return err
		}
	}
	if tail > 0 {
		return v.merge(zeroBlock[:tail], off+n-tail, false)
	}
	return nil
}

// TrimAt gives the whole blocks in a range back; they read as zeros.
func (v *Volume) TrimAt(off, n int64) error {
	if !v.calls.enter() {
		return ErrClosed
	}
	defer v.calls.leave()
	if err := checkRange(v.Size(), off, n); err != nil {
		return err
	}
	first := layout.BlockNo((off + blockSize - 1) / blockSize)
	last := layout.BlockNo((off + n) / blockSize)
	if off+n == v.Size() {
		last = layout.BlockNo(v.blocks())
	}
	if first >= last {
		v.mu.RLock()
		defer v.mu.RUnlock()
		return v.writableLocked()
	}
	return v.zeroBlocks(first, last, layout.Hole)
}

var zeroBlock [blockSize]byte

func (v *Volume) zeroBlocks(first, last layout.BlockNo, kind layout.Kind) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := errors.Join(v.admitLocked(1, 0, false), v.insideLocked(last)); err != nil {
		return err
	}
	v.stats.zeroed.Add(1)
	v.active.zero(first, last, kind)
	if last-first <= versionStripes {
		for b := first; b < last; b++ {
			v.versions[uint64(b)%versionStripes]++
		}
	} else {
		v.epoch++
	}
	v.tookLocked()
	return nil
}

// Flush makes every write that completed before the call durable, whichever
// client made it. Flushes that wait together are one commit.
func (v *Volume) Flush() error {
	if !v.calls.enter() {
		return ErrClosed
	}
	defer v.calls.leave()
	v.mu.Lock()
	defer v.mu.Unlock()
	v.stats.flushes.Add(1)
	if v.ro {
		return nil
	}
	if v.failed != nil {
		return v.failed
	}
	if !v.dirtyLocked() && v.flushSeq == v.flushed {
		return nil
	}
	v.flushSeq++
	ticket := v.flushSeq
	v.kick()
	for v.flushed < ticket {
		if v.failed != nil {
			return v.failed
		}
		v.changed.Wait()
	}
	return nil
}

// dirtyLocked says that something is not durable yet.
func (v *Volume) dirtyLocked() bool {
	return v.unsynced || len(v.frozen) > 0 || v.active != nil && !v.active.empty()
}
