package faultfs

import (
	"errors"
	"io"
	"io/fs"
	"syscall"
	"time"

	"github.com/fsximg/fsx/internal/vfs"
	"github.com/fsximg/fsx/internal/vfs/trace"
)

// handle is an open file. The embedded File is the real one.
type handle struct {
	vfs.File
	fs    *FS
	inode *inode
	name  string // when it was opened; rules match it
}

func (h *handle) ReadAt(p []byte, off int64) (int, error) {
	if _, err := h.fs.begin(Read, h.name); err != nil {
		return 0, err
	}
	return h.File.ReadAt(p, off)
}

func (h *handle) ReadAtNoWait(p []byte, off int64) (int, error) {
	v := h.fs.Decide(Read, h.fs.rel(h.name))
	switch {
	case v.Delay > 0:
		return 0, vfs.ErrWouldBlock
	case v.Err != 0:
		return 0, h.error("read", v.Err)
	}
	return h.File.ReadAtNoWait(p, off)
}

func (h *handle) error(op string, err error) error {
	return &fs.PathError{Op: op, Path: h.name, Err: err}
}

func (h *handle) WriteAt(p []byte, off int64) (int, error) {
	v := h.fs.Decide(Write, h.fs.rel(h.name))
	time.Sleep(v.Delay)
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	if v.Torn {
		return 0, errors.Join(h.error("write", v.Err), h.tear(p, off))
	}
	var err error
	if v.Err != 0 {
		p, err = p[:min(v.Keep, len(p))], h.error("write", v.Err)
	}
	if fit := h.fs.Space.Take(&h.inode.pages, off, int64(len(p))); fit < int64(len(p)) {
		p, err = p[:fit], h.error("write", syscall.ENOSPC)
	}
	n, werr := h.write(p, off)
	if werr == nil {
		werr = err
	}
	return n, werr
}

// write writes and records without faults. Needs fs.mu.
func (h *handle) write(p []byte, off int64) (int, error) {
	if err := h.remember(off, int64(len(p))); err != nil {
		return 0, err
	}
	n, err := h.File.WriteAt(p, off)
	if n > 0 {
		err = errors.Join(err, h.record(trace.Op{Kind: trace.Write, Off: off}, p[:n]))
	}
	return n, err
}

func (h *handle) record(op trace.Op, data []byte) error {
	if h.inode.id == 0 {
		return nil
	}
	op.File = h.inode.id
	return h.fs.record(op, data)
}

// tear writes some of the sectors. Needs fs.mu.
func (h *handle) tear(p []byte, off int64) error {
	for _, keep := range h.fs.Sectors(len(p)/trace.SectorSize + 2) {
		n := min(trace.SectorSize-int(off%trace.SectorSize), len(p))
		if keep && n > 0 {
			h.fs.Space.Take(&h.inode.pages, off, int64(n))
			if _, err := h.write(p[:n], off); err != nil {
				return err
			}
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// remember keeps the synced content of the pages that a write will change.
// Needs fs.mu.
func (h *handle) remember(off, n int64) error {
	if !h.fs.drop {
		return nil
	}
	if h.inode.clean == nil {
		h.inode.clean = map[int64][]byte{}
	}
	for page := off / pageSize; page*pageSize < off+n; page++ {
		if h.inode.clean[page] != nil {
			continue
		}
		buf := make([]byte, pageSize) // zeros past the end
		if _, err := h.File.ReadAt(buf, page*pageSize); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		h.inode.clean[page] = buf
	}
	return nil
}

// forgetDirty puts the synced content back; the size stays. Needs fs.mu.
func (h *handle) forgetDirty() error {
	size, err := h.File.Size()
	if err != nil {
		return err
	}
	for page, buf := range h.inode.clean {
		at := page * pageSize
		if at >= size {
			continue
		}
		if _, err := h.File.WriteAt(buf[:min(pageSize, size-at)], at); err != nil {
			return err
		}
	}
	h.inode.clean = nil
	return nil
}

func (h *handle) Datasync() error {
	v, err := h.fs.begin(Sync, h.name)
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	kind := syncKind(v, trace.Datasync)
	if kind == trace.SyncLost {
		err = errors.Join(err, h.forgetDirty())
	} else if kind == trace.Datasync {
		h.inode.clean = nil
	}
	return errors.Join(err, h.record(trace.Op{Kind: kind, Err: v.Err}, nil))
}

func (h *handle) Truncate(size int64) error {
	if _, err := h.fs.begin(Truncate, h.name); err != nil {
		return err
	}
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	if err := h.File.Truncate(size); err != nil {
		return err
	}
	h.fs.Space.Give(&h.inode.pages, size, -1)
	for page, buf := range h.inode.clean {
		if from := size - page*pageSize; from < pageSize {
			clear(buf[max(from, 0):])
		}
	}
	return h.record(trace.Op{Kind: trace.Truncate, Off: size}, nil)
}

func (h *handle) Allocate(off, n int64) error {
	if _, err := h.fs.begin(Allocate, h.name); err != nil {
		return err
	}
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	if !h.fs.Space.TakeAll(&h.inode.pages, off, n) {
		return h.error("fallocate", syscall.ENOSPC)
	}
	if err := h.File.Allocate(off, n); err != nil {
		return err
	}
	return h.record(trace.Op{Kind: trace.Allocate, Off: off, Len: n}, nil)
}

func (h *handle) PunchHole(off, n int64) error {
	if _, err := h.fs.begin(Punch, h.name); err != nil {
		return err
	}
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	if err := h.File.PunchHole(off, n); err != nil {
		return err
	}
	h.fs.Space.Give(&h.inode.pages, off, n)
	for page, buf := range h.inode.clean {
		at := page * pageSize
		if from, to := max(off, at), min(off+n, at+pageSize); from < to {
			clear(buf[from-at : to-at])
		}
	}
	return h.record(trace.Op{Kind: trace.Punch, Off: off, Len: n}, nil)
}

func (h *handle) TryLock() error {
	if _, err := h.fs.begin(Lock, h.name); err != nil {
		return err
	}
	return h.File.TryLock()
}

func (h *handle) Close() error {
	_, err := h.fs.begin(Close, h.name)
	return errors.Join(err, h.File.Close())
}
