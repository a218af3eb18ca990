package crash

import (
	"maps"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/fsximg/fsx/internal/vfs/faultfs"
	"github.com/fsximg/fsx/internal/vfs/trace"
)

// forever is how long the kernel may rely on names and attributes.
const forever = time.Hour

func (s *server) String() string { return "crash" }

// attr fills in a node's attributes. Needs mu.
func (s *server) attr(n *trace.Node, out *fuse.Attr) fuse.Status {
	if f := s.files[n.ID]; f != nil {
		var st syscall.Stat_t
		if err := syscall.Fstat(int(f.Fd()), &st); err != nil {
			return fuse.ToStatus(err)
		}
		out.FromStat(&st)
	} else {
		out.SetTimes(&s.since, &s.since, &s.since)
	}
	out.Ino, out.Mode, out.Nlink = uint64(n.ID), n.Mode, uint32(n.Links)
	out.Uid, out.Gid, out.Blksize = uint32(os.Getuid()), uint32(os.Getgid()), 4096
	return fuse.OK
}

func (s *server) entry(n *trace.Node, out *fuse.EntryOut) fuse.Status {
	out.NodeId, out.Generation = uint64(n.ID), 1
	out.SetEntryTimeout(forever)
	out.SetAttrTimeout(forever)
	return s.attr(n, &out.Attr)
}

func (s *server) Lookup(_ <-chan struct{}, h *fuse.InHeader, last string, out *fuse.EntryOut) fuse.Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	if h.NodeId == uint64(trace.Root) && last == controlName {
		out.NodeId, out.Generation = uint64(controlID), 1
		out.Attr = fuse.Attr{Ino: uint64(controlID), Mode: syscall.S_IFREG | 0o200, Nlink: 1}
		return fuse.OK
	}
	n := s.tree.Lookup(trace.ID(h.NodeId), last)
	if n == nil {
		return fuse.ENOENT
	}
	return s.entry(n, out)
}

func (s *server) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	if in.NodeId == uint64(controlID) {
		out.Attr = fuse.Attr{Ino: uint64(controlID), Mode: syscall.S_IFREG | 0o200, Nlink: 1}
		return fuse.OK
	}
	if _, status := s.decide(faultfs.Stat, in.NodeId); status != fuse.OK {
		return status
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	out.SetTimeout(forever)
	return s.attr(s.tree.Node(trace.ID(in.NodeId)), &out.Attr)
}

// create makes a node of any type.
func (s *server) create(op faultfs.Op, dir uint64, last string, mode uint32, out *fuse.EntryOut) fuse.Status {
	_, status := s.decide(op, dir, last)
	s.mu.Lock()
	defer s.mu.Unlock()
	rec := trace.Op{Kind: trace.Create, Dir: trace.ID(dir), Name: last, Mode: mode}
	if status != fuse.OK {
		rec.Err = syscall.Errno(status)
		s.record(rec, nil)
		return status
	}
	if s.tree.Lookup(rec.Dir, last) != nil {
		return fuse.Status(syscall.EEXIST)
	}
	rec.File = s.tree.NewID()
	if mode&syscall.S_IFMT == syscall.S_IFREG {
		if err := s.open(rec.File, os.O_RDWR|os.O_CREATE|os.O_EXCL); err != nil {
			return fuse.ToStatus(err)
		}
	}
	s.tree.Apply(&rec)
	s.names[rec.File] = name{rec.Dir, last}
	if status := s.record(rec, nil); status != fuse.OK {
		return status
	}
	return s.entry(s.tree.Node(rec.File), out)
}

func (s *server) Create(_ <-chan struct{}, in *fuse.CreateIn, last string, out *fuse.CreateOut) fuse.Status {
	status := s.create(faultfs.Create, in.NodeId, last, syscall.S_IFREG|in.Mode&0o7777, &out.EntryOut)
	if status == fuse.OK {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.files[trace.ID(out.NodeId)].opens++
		out.OpenFlags = fuse.FOPEN_KEEP_CACHE
	}
	return status
}

func (s *server) Mkdir(_ <-chan struct{}, in *fuse.MkdirIn, last string, out *fuse.EntryOut) fuse.Status {
	return s.create(faultfs.Mkdir, in.NodeId, last, syscall.S_IFDIR|in.Mode&0o7777, out)
}

func (s *server) Mknod(_ <-chan struct{}, in *fuse.MknodIn, last string, out *fuse.EntryOut) fuse.Status {
	if t := in.Mode & syscall.S_IFMT; t != syscall.S_IFREG && t != syscall.S_IFSOCK {
		return fuse.EPERM
	}
	return s.create(faultfs.Create, in.NodeId, last, in.Mode, out)
}

// change does and records a change of names that was decided on. Needs mu.
func (s *server) change(op trace.Op, status fuse.Status) fuse.Status {
	if status != fuse.OK {
		op.Err = syscall.Errno(status)
		s.record(op, nil)
		return status
	}
	s.tree.Apply(&op)
	switch op.Kind {
	case trace.Link:
		s.names[op.File] = name{op.Dir, op.Name}
	case trace.Rename:
		s.names[op.File] = name{op.Dir2, op.Name2}
	}
	for _, id := range []trace.ID{op.File, op.Over} {
		if id != 0 {
			s.drop(id)
		}
	}
	return s.record(op, nil)
}

func (s *server) Link(_ <-chan struct{}, in *fuse.LinkIn, last string, out *fuse.EntryOut) fuse.Status {
	_, status := s.decide(faultfs.Link, in.NodeId, last)
	s.mu.Lock()
	defer s.mu.Unlock()
	op := trace.Op{Kind: trace.Link, File: trace.ID(in.Oldnodeid), Dir: trace.ID(in.NodeId), Name: last}
	if status := s.change(op, status); status != fuse.OK {
		return status
	}
	return s.entry(s.tree.Node(op.File), out)
}

func (s *server) Unlink(_ <-chan struct{}, h *fuse.InHeader, last string) fuse.Status {
	_, status := s.decide(faultfs.Remove, h.NodeId, last)
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.tree.Lookup(trace.ID(h.NodeId), last)
	if n == nil {
		return fuse.ENOENT
	}
	if len(n.Entries) > 0 {
		return fuse.Status(syscall.ENOTEMPTY)
	}
	return s.change(trace.Op{Kind: trace.Unlink, File: n.ID, Dir: trace.ID(h.NodeId), Name: last}, status)
}

func (s *server) Rmdir(cancel <-chan struct{}, h *fuse.InHeader, last string) fuse.Status {
	return s.Unlink(cancel, h, last)
}

func (s *server) Rename(_ <-chan struct{}, in *fuse.RenameIn, last, last2 string) fuse.Status {
	_, status := s.decide(faultfs.Rename, in.NodeId, last)
	s.mu.Lock()
	defer s.mu.Unlock()
	n, over := s.tree.Lookup(trace.ID(in.NodeId), last), s.tree.Lookup(trace.ID(in.Newdir), last2)
	op := trace.Op{Kind: trace.Rename, Dir: trace.ID(in.NodeId), Name: last, Dir2: trace.ID(in.Newdir), Name2: last2}
	switch {
	case n == nil:
		return fuse.ENOENT
	case in.Flags&^unix.RENAME_NOREPLACE != 0:
		return fuse.EINVAL
	case over == nil:
	case in.Flags != 0:
		return fuse.Status(syscall.EEXIST)
	case over == n:
		return fuse.OK
	case n.IsDir() && !over.IsDir():
		return fuse.ENOTDIR
	case !n.IsDir() && over.IsDir():
		return fuse.Status(syscall.EISDIR)
	case len(over.Entries) > 0:
		return fuse.Status(syscall.ENOTEMPTY)
	}
	op.File = n.ID
	if over != nil {
		op.Over = over.ID
	}
	return s.change(op, status)
}

func (s *server) OpenDir(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	return fuse.OK
}

// ReadDir lists by the order of names; an offset is a count of entries, so a
// directory that changes while it is read may show an entry twice or never.
func (s *server) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	if in.Offset == 0 {
		if _, status := s.decide(faultfs.ReadDir, in.NodeId); status != fuse.OK {
			return status
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	entries := s.tree.Node(trace.ID(in.NodeId)).Entries
	names := slices.Sorted(maps.Keys(entries))
	for i := int(in.Offset); i < len(names); i++ {
		n := s.tree.Node(entries[names[i]])
		if !out.AddDirEntry(fuse.DirEntry{Name: names[i], Ino: uint64(n.ID), Mode: n.Mode, Off: uint64(i + 1)}) {
			break
		}
	}
	return fuse.OK
}

func (s *server) FsyncDir(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	v, status := s.decide(faultfs.SyncDir, in.NodeId)
	return s.synced(in.NodeId, trace.Sync, v, status)
}

func (s *server) StatFs(_ <-chan struct{}, h *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	if _, status := s.decide(faultfs.Free, h.NodeId); status != fuse.OK {
		return status
	}
	var st syscall.Statfs_t
	if err := syscall.Statfs(s.work, &st); err != nil {
		return fuse.ToStatus(err)
	}
	out.FromStatfsT(&st)
	if free, limited := s.space.Free(); limited {
		blocks := uint64(free) / uint64(st.Bsize)
		out.Bfree, out.Bavail = blocks, blocks
	}
	return fuse.OK
}
