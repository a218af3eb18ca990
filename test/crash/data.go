package crash

import (
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/fsximg/fsx/internal/vfs/faultfs"
	"github.com/fsximg/fsx/internal/vfs/trace"
)

func (s *server) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if in.NodeId == uint64(controlID) {
		out.OpenFlags = fuse.FOPEN_DIRECT_IO
		return fuse.OK
	}
	if _, status := s.decide(faultfs.Open, in.NodeId); status != fuse.OK {
		return status
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.files[trace.ID(in.NodeId)]
	if f == nil {
		return fuse.ENOENT
	}
	f.opens++
	out.OpenFlags = fuse.FOPEN_KEEP_CACHE
	if in.Flags&syscall.O_TRUNC != 0 {
		return s.truncate(trace.ID(in.NodeId), 0)
	}
	return fuse.OK
}

func (s *server) Release(_ <-chan struct{}, in *fuse.ReleaseIn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.files[trace.ID(in.NodeId)]; f != nil {
		f.opens--
		s.drop(trace.ID(in.NodeId))
	}
}

// Flush is a close(2), which makes nothing durable.
func (s *server) Flush(_ <-chan struct{}, in *fuse.FlushIn) fuse.Status {
	if in.NodeId == uint64(controlID) {
		return fuse.OK
	}
	_, status := s.decide(faultfs.Close, in.NodeId)
	return status
}

// file returns the object. It stays while the caller's request is under way,
// since the caller has it open.
func (s *server) file(id uint64) *object {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.files[trace.ID(id)]
}

func (s *server) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	f := s.file(in.NodeId)
	if f == nil {
		return nil, fuse.EIO
	}
	if _, status := s.decide(faultfs.Read, in.NodeId); status != fuse.OK {
		return nil, status
	}
	return fuse.ReadResultFd(f.Fd(), int64(in.Offset), len(buf)), fuse.OK
}

func (s *server) Lseek(_ <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	f := s.file(in.NodeId)
	if f == nil {
		return fuse.EIO
	}
	off, err := unix.Seek(int(f.Fd()), int64(in.Offset), int(in.Whence))
	out.Offset = uint64(off)
	return fuse.ToStatus(err)
}

func (s *server) Write(_ <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	if in.NodeId == uint64(controlID) {
		return uint32(len(data)), s.command(data)
	}
	v, status := s.decide(faultfs.Write, in.NodeId)
	s.mu.Lock()
	defer s.mu.Unlock()
	id := trace.ID(in.NodeId)
	f := s.files[id]
	if f == nil {
		return 0, fuse.EIO
	}
	fit := int64(len(data))
	switch {
	case v.Torn:
		s.tear(id, f, data, int64(in.Offset))
	case v.Err != 0:
		s.write(id, f, data[:min(v.Keep, len(data))], int64(in.Offset))
	default:
		fit = s.space.Take(&f.pages, int64(in.Offset), fit)
	}
	// A page of a mapping is written or not; a write(2) may be short.
	if status == fuse.OK && (fit == 0 && len(data) > 0 || fit < int64(len(data)) && in.WriteFlags&fuse.WRITE_CACHE != 0) {
		status = fuse.Status(syscall.ENOSPC)
	}
	if status != fuse.OK {
		s.record(trace.Op{Kind: trace.Write, File: id, Off: int64(in.Offset), Err: syscall.Errno(status)}, nil)
		return 0, status
	}
	return s.write(id, f, data[:fit], int64(in.Offset))
}

// write writes and records. Needs mu.
func (s *server) write(id trace.ID, f *object, data []byte, off int64) (uint32, fuse.Status) {
	if len(data) == 0 {
		return 0, fuse.OK
	}
	n, err := f.WriteAt(data, off)
	if n > 0 {
		if status := s.record(trace.Op{Kind: trace.Write, File: id, Off: off}, data[:n]); status != fuse.OK {
			return uint32(n), status
		}
	}
	return uint32(n), fuse.ToStatus(err)
}

// tear writes some of the sectors. Needs mu.
func (s *server) tear(id trace.ID, f *object, data []byte, off int64) {
	for _, keep := range s.Sectors(len(data)/trace.SectorSize + 2) {
		n := min(trace.SectorSize-int(off%trace.SectorSize), len(data))
		if keep {
			s.space.Take(&f.pages, off, int64(n))
			s.write(id, f, data[:n], off)
		}
		data, off = data[n:], off+int64(n)
	}
}

func (s *server) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	id := trace.ID(in.NodeId)
	if id == controlID {
		return fuse.OK
	}
	var status fuse.Status
	size, resize := in.GetSize()
	if resize {
		_, status = s.decide(faultfs.Truncate, in.NodeId)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	node := s.tree.Node(id)
	if resize && status != fuse.OK {
		s.record(trace.Op{Kind: trace.Truncate, File: id, Off: int64(size), Err: syscall.Errno(status)}, nil)
		return status
	}
	if resize {
		status = s.truncate(id, int64(size))
	}
	if mode, ok := in.GetMode(); ok && status == fuse.OK {
		node.Mode = node.Mode&syscall.S_IFMT | mode&0o7777
		status = s.record(trace.Op{Kind: trace.Chmod, File: id, Mode: mode & 0o7777}, nil)
	}
	if status != fuse.OK {
		return status
	}
	out.SetTimeout(forever)
	return s.attr(node, &out.Attr)
}

// truncate changes a file's size. Needs mu.
func (s *server) truncate(id trace.ID, size int64) fuse.Status {
	f := s.files[id]
	if f == nil {
		return fuse.EINVAL
	}
	if err := f.Truncate(size); err != nil {
		return fuse.ToStatus(err)
	}
	s.space.Give(&f.pages, size, -1)
	return s.record(trace.Op{Kind: trace.Truncate, File: id, Off: size}, nil)
}

func (s *server) Fallocate(_ <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	punch := in.Mode == unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE
	if !punch && in.Mode&^unix.FALLOC_FL_KEEP_SIZE != 0 {
		return fuse.Status(syscall.EOPNOTSUPP)
	}
	kind := faultfs.Allocate
	op := trace.Op{Kind: trace.Allocate, File: trace.ID(in.NodeId), Off: int64(in.Offset), Len: int64(in.Length)}
	if punch {
		kind, op.Kind = faultfs.Punch, trace.Punch
	}
	_, status := s.decide(kind, in.NodeId)
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.files[op.File]
	if f == nil {
		return fuse.EIO
	}
	if status == fuse.OK && !punch && !s.space.TakeAll(&f.pages, op.Off, op.Len) {
		status = fuse.Status(syscall.ENOSPC)
	}
	if status == fuse.OK {
		status = fuse.ToStatus(syscall.Fallocate(int(f.Fd()), in.Mode, op.Off, op.Len))
	}
	if op.Err = syscall.Errno(status); op.Err == 0 && punch {
		s.space.Give(&f.pages, op.Off, op.Len)
	}
	if in.Mode == unix.FALLOC_FL_KEEP_SIZE {
		return status // nothing that an image shows
	}
	if rec := s.record(op, nil); status == fuse.OK {
		status = rec
	}
	return status
}

func (s *server) Fsync(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	if in.NodeId == uint64(controlID) {
		return fuse.OK
	}
	kind := trace.Sync
	if in.FsyncFlags&1 != 0 {
		kind = trace.Datasync
	}
	v, status := s.decide(faultfs.Sync, in.NodeId)
	return s.synced(in.NodeId, kind, v, status)
}

// synced records a sync. By now the kernel has sent every page that was dirty
// when it began.
func (s *server) synced(id uint64, kind trace.Kind, v faultfs.Verdict, status fuse.Status) fuse.Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case status != fuse.OK:
		kind = trace.SyncLost
	case v.Ignore:
		kind = trace.SyncIgnored
	}
	if rec := s.record(trace.Op{Kind: kind, File: trace.ID(id), Err: syscall.Errno(status)}, nil); rec != fuse.OK {
		return rec
	}
	return status
}
