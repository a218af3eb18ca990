package volume

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"
	"syscall"

	"github.com/fsximg/fsx/internal/vfs"
	"github.com/fsximg/fsx/pkg/crypt"
	"github.com/fsximg/fsx/pkg/layout"
	"github.com/fsximg/fsx/pkg/layout/maptree"
	"github.com/fsximg/fsx/pkg/layout/seglog"
)

// ErrWouldBlock is returned by calls with nowait that would have to wait.
var ErrWouldBlock = vfs.ErrWouldBlock

// BlockError is an error of one block: it could not be read, or is not what
// was written there. It is an I/O error to clients.
type BlockError struct {
	Volume string
	At     int64 // byte offset of the block in the volume
	Err    error
}

func (e *BlockError) Error() string {
	return fmt.Sprintf("volume %s, offset %d: %v", e.Volume, e.At, e.Err)
}

// Unwrap gives the cause, and EIO.
func (e *BlockError) Unwrap() []error { return []error{e.Err, syscall.EIO} }

// Offset is the byte offset of the block.
func (e *BlockError) Offset() int64 { return e.At }

// ReadAt fills p from off, or fails as a whole. With nowait it returns
// ErrWouldBlock where it would have to wait for the disk; p is undefined then.
// If cap(p) allows, the 16 bytes behind p are overwritten.
func (v *Volume) ReadAt(p []byte, off int64, nowait bool) error {
	return v.readAt(now, v.Size(), p, off, nowait)
}

// now is the volume's present state, in place of a snapshot's number.
const now layout.Seq = 0

// readAt reads from a state of the volume, now or a snapshot, of size bytes.
func (v *Volume) readAt(state layout.Seq, size int64, p []byte, off int64, nowait bool) error {
	if !v.calls.enter() {
		return ErrClosed
	}
	defer v.calls.leave()
	if err := checkRange(size, off, int64(len(p))); err != nil {
		return err
	}
	v.stats.reads.Add(1)
	v.stats.read.Add(uint64(len(p)))
	if head := int(off % blockSize); head != 0 || len(p) < blockSize {
		n := min(len(p), blockSize-head)
		if err := v.readPart(state, p[:n], off, nowait); err != nil {
			return err
		}
		p, off = p[n:], off+int64(n)
	}
	tail := len(p) % blockSize
	body := len(p) - tail
	if body > 0 {
		if cap(p) < body+slack {
			// No room to open the last block in place.
			if err := v.readPart(state, p[body-blockSize:body], off+int64(body-blockSize), nowait); err != nil {
				return err
			}
			body -= blockSize
		}
		if body > 0 {
			if err := v.readBlocks(state, p[:body:body+slack], layout.BlockNo(off/blockSize), nowait); err != nil {
				return err
			}
		}
	}
	if tail > 0 {
		return v.readPart(state, p[len(p)-tail:], off+int64(len(p)-tail), nowait)
	}
	return nil
}

// readPart reads a part of one block.
func (v *Volume) readPart(state layout.Seq, p []byte, off int64, nowait bool) error {
	buf := blockPool.Get().(*[]byte)
	defer blockPool.Put(buf)
	b := (*buf)[: blockSize : blockSize+slack]
	if err := v.readBlocks(state, b, layout.BlockNo(off/blockSize), nowait); err != nil {
		return err
	}
	copy(p, b[off%blockSize:])
	clear(b)
	return nil
}

// located is where a block of a read is to be had from.
type located struct {
	kind  layout.Kind
	state lookup
	ref   layout.BlockRef
}

type lookup uint8

const (
	done   lookup = iota // p has it
	inTree               // to be looked up in the map tree
	mapped               // ref says where
)

// batchBlocks bounds the blocks that are located together.
const batchBlocks = 256

type batch struct {
	loc  [batchBlocks]located
	root maptree.Root
	gen  uint64
}

var batchPool = sync.Pool{New: func() any { return new(batch) }}

// readBlocks reads whole blocks; cap(p) >= len(p)+slack.
func (v *Volume) readBlocks(state layout.Seq, p []byte, first layout.BlockNo, nowait bool) error {
	bt := batchPool.Get().(*batch)
	defer batchPool.Put(bt)
	for len(p) > 0 {
		n := min(len(p), batchBlocks*blockSize)
		if err := v.readBatch(state, bt, p[:n:n+slack], first, nowait); err != nil {
			return err
		}
		p, first = p[n:], first+layout.BlockNo(n/blockSize)
	}
	return nil
}

// maxRetries bounds how often a read starts again because a checkpoint or a
// compaction replaced what it had looked up.
const maxRetries = 1000

func (v *Volume) readBatch(state layout.Seq, bt *batch, p []byte, first layout.BlockNo, nowait bool) error {
	for try := 0; ; try++ {
		err := v.readOnce(state, bt, p, first, nowait)
		if err == nil || errors.Is(err, ErrWouldBlock) || try >= maxRetries {
			return err
		}
		v.mu.RLock()
		moved := v.gen != bt.gen
		v.mu.RUnlock()
		if !moved && !errors.Is(err, errMoved) {
			v.log.Debug("read failed", "volume", v.Name(), "err", err) // whoever asked is told, and says so
			return err
		}
	}
}

// readOnce locates the blocks and reads them, adjacent ones together.
func (v *Volume) readOnce(state layout.Seq, bt *batch, p []byte, first layout.BlockNo, nowait bool) error {
	n := len(p) / blockSize
	if err := v.locate(state, bt, p, first, n); err != nil {
		return err
	}
	for i := 0; i < n; {
		l := &bt.loc[i]
		if l.state == done {
			i++
			continue
		}
		if l.kind != layout.Data {
			clear(p[i*blockSize : (i+1)*blockSize])
			i++
			continue
		}
		run := 1
		for i+run < n {
			m := &bt.loc[i+run]
			if m.state == done || m.kind != layout.Data || m.ref.Owner != l.ref.Owner || m.ref.Extent != l.ref.Extent ||
				int(m.ref.Index) != int(l.ref.Index)+run {
				break
			}
			run++
		}
		end := (i + run) * blockSize
		if err := v.readRun(p[i*blockSize:end:end+slack], first+layout.BlockNo(i), bt.loc[i:i+run], nowait); err != nil {
			return err
		}
		i += run
	}
	return nil
}

// locate finds every block in memory, in the overlays or in the map tree.
func (v *Volume) locate(state layout.Seq, bt *batch, p []byte, first layout.BlockNo, n int) error {
	v.mu.RLock()
	if v.closed {
		v.mu.RUnlock()
		return ErrClosed
	}
	layers, root, err := v.stateLocked(state)
	if err != nil {
		v.mu.RUnlock()
		return err
	}
	bt.root, bt.gen = root, v.gen
	missing := false
	for i := range n {
		l := &bt.loc[i]
		b := first + layout.BlockNo(i)
		if state == now && v.buffered(l, b, p[i*blockSize:(i+1)*blockSize]) {
			continue
		}
		e, ok := v.findLocked(state, layers, b)
		if !ok {
			l.state, missing = inTree, true
			continue
		}
		l.state, l.kind = mapped, e.kind
		l.ref = layout.BlockRef{Owner: v.id, Extent: e.extent, Index: e.index, Tag: e.tag}
	}
	v.mu.RUnlock()
	if !missing {
		return nil
	}
	for i := range n {
		l := &bt.loc[i]
		if l.state != inTree {
			continue
		}
		kind, ref, err := v.store.tree.Lookup(bt.root, first+layout.BlockNo(i))
		if err != nil {
			return v.blockError(first+layout.BlockNo(i), err)
		}
		l.state, l.kind, l.ref = mapped, kind, ref
	}
	return nil
}

// buffered fills dst if a buffer has the block. The caller holds mu.
func (v *Volume) buffered(l *located, b layout.BlockNo, dst []byte) bool {
	for i := len(v.frozen); i >= 0; i-- {
		buf := v.active
		if i < len(v.frozen) {
			buf = v.frozen[i]
		}
		if buf == nil {
			continue
		}
		if src := buf.find(b); src != nil {
			copy(dst, src)
			l.state = done
			return true
		}
		if kind, ok := buf.zeros.find(b); ok {
			l.state, l.kind = mapped, kind
			return true
		}
	}
	return false
}

// readRun reads blocks that follow each other in one extent.
func (v *Volume) readRun(p []byte, first layout.BlockNo, loc []located, nowait bool) error {
	ref := &loc[0].ref
	x, err := v.extent(ref.Owner, ref.Extent)
	if err != nil {
		return v.blockError(first, err)
	}
	at, ok := x.rec.BlockAt(ref.Index)
	lastAt, lastOK := x.rec.BlockAt(loc[len(loc)-1].ref.Index)
	if !ok || !lastOK || int(lastAt-at) != len(loc)-1 {
		if len(loc) > 1 { // scattered by a compaction: one by one
			for i := range loc {
				end := (i + 1) * blockSize
				if err := v.readRun(p[i*blockSize:end:end+slack], first+layout.BlockNo(i), loc[i:i+1], nowait); err != nil {
					return err
				}
			}
			return nil
		}
		return v.blockError(first, fmt.Errorf("%w: block is not in its extent", ErrDamaged))
	}
	if err := v.pread(ref.Owner, x.rec.Segment, p, at, nowait); err != nil {
		return v.blockError(first, v.unlessMoved(ref, x, err))
	}
	for i := range loc {
		end := (i + 1) * blockSize
		tag := crypt.Tag(loc[i].ref.Tag)
		home := first + layout.BlockNo(i)
		if err := x.cipher.Open(p[i*blockSize:end:end+slack], uint64(home), int(loc[i].ref.Index), &tag); err != nil {
			return v.blockError(home, v.unlessMoved(ref, x, fmt.Errorf("%w: %w", ErrDamaged, err)))
		}
	}
	return nil
}

// unlessMoved explains a failure to read blocks of an extent: by errMoved if they
// lie elsewhere now. Another volume's compaction does not tell this volume.
func (v *Volume) unlessMoved(ref *layout.BlockRef, x *openExtent, err error) error {
	if ref.Owner == v.id || errors.Is(err, ErrWouldBlock) {
		return err
	}
	if rec, now := v.extentRecord(ref.Owner, ref.Extent); now == nil && rec != x.rec {
		v.cache.drop(extentName{ref.Owner, ref.Extent})
		return errMoved
	}
	return err
}

// pread reads ciphertext while holding its segment, so that it is not reused
// meanwhile.
func (v *Volume) pread(owner layout.VolumeID, no layout.SegmentNo, p []byte, at uint32, nowait bool) error {
	files, err := v.files, error(nil)
	if owner != v.id {
		if files, err = v.store.filesOf(owner); err != nil {
			return err
		}
	}
	s, err := files.Acquire(no)
	if err != nil {
		return fmt.Errorf("%w: segment %d: %w", ErrDamaged, no, err)
	}
	defer s.Release()
	f, err := files.File(s)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("%w: %w", ErrDamaged, seglog.ErrNoSegment)
		}
		return err
	}
	if nowait {
		_, err = f.ReadAtNoWait(p, int64(at)*blockSize)
	} else {
		_, err = f.ReadAt(p, int64(at)*blockSize)
	}
	if errors.Is(err, io.EOF) {
		err = fmt.Errorf("%w: segment %d ends before block %d", ErrDamaged, no, at)
	}
	return err
}

func (v *Volume) blockError(b layout.BlockNo, err error) error {
	var be *BlockError
	if errors.As(err, &be) || errors.Is(err, ErrWouldBlock) {
		return err
	}
	err = mapDamage(err)
	v.stats.noteFault(err)
	return &BlockError{Volume: v.Name(), At: int64(b) * blockSize, Err: err}
}

// Prefetch is a hint that a range will be read.
func (v *Volume) Prefetch(off, n int64) error { return checkRange(v.Size(), off, n) }
