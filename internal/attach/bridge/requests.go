package bridge

import (
	"bytes"
	"encoding/binary"
	"math"
	"syscall"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/fsximg/fsx/internal/nbdclient/reconnect"
)

// Operations of FUSE (include/uapi/linux/fuse.h) that are answered; ENOSYS is for the
// rest, which the kernel then never asks for again.
const (
	opLookup      = 1
	opForget      = 2
	opGetAttr     = 3
	opOpen        = 14
	opRead        = 15
	opWrite       = 16
	opStatFS      = 17
	opRelease     = 18
	opFsync       = 20
	opInit        = 26
	opOpenDir     = 27
	opReadDir     = 28
	opReleaseDir  = 29
	opDestroy     = 38
	opBatchForget = 42
	opFallocate   = 43
)

const (
	protocolMajor = 7
	protocolMinor = 28 // of 4.20: MAX_PAGES

	rootNode = fuse.FUSE_ROOT_ID
	diskNode = 2

	// maxEffect is the longest change without data in bytes, of one NBD request.
	maxEffect = 1 << 30
	// blockSize is what statfs tells, and with that the granularity of a loop device's
	// discards, in bytes.
	blockSize = 4096
)

// handle begins to carry out a request. False means that it keeps in.
func (c *channel) handle(in []byte) bool {
	if len(in) < int(unsafe.Sizeof(fuse.InHeader{})) {
		c.log.Error("short request from " + device)
		return true
	}
	h := (*fuse.InHeader)(unsafe.Pointer(&in[0]))
	switch h.Opcode {
	case opRead:
		c.read((*fuse.ReadIn)(unsafe.Pointer(h)))
	case opWrite:
		return c.write((*fuse.WriteIn)(unsafe.Pointer(h)), in)
	case opFsync:
		c.start(c.newCall(h.Unique, reconnect.Flush, 0, 0))
	case opFallocate:
		c.fallocate((*fuse.FallocateIn)(unsafe.Pointer(h)))
	case opForget, opBatchForget: // have no reply
	default:
		c.answer(h, in)
	}
	return true
}

func (c *channel) read(in *fuse.ReadIn) {
	size := c.client.Export().Size
	n := min(int64(in.Size), size-int64(in.Offset), maxPayload)
	if in.NodeId != diskNode || int64(in.Offset) < 0 || n <= 0 {
		c.reply(in.Unique, 0, make([]byte, outHeader)) // the end of the file
		return
	}
	k := c.newCall(in.Unique, reconnect.Read, int64(in.Offset), n)
	k.request.Data = k.buffer(int(n))[outHeader:]
	c.start(k)
}

// write is false if the data in in is still needed.
func (c *channel) write(in *fuse.WriteIn, all []byte) bool {
	data := all[unsafe.Sizeof(*in):]
	if int(in.Size) > len(data) || in.Size == 0 {
		c.reply(in.Unique, syscall.EINVAL, make([]byte, outHeader))
		return true
	}
	k := c.newCall(in.Unique, reconnect.Write, int64(in.Offset), int64(in.Size))
	k.request.Data = data[:in.Size]
	return c.start(k)
}

func (c *channel) fallocate(in *fuse.FallocateIn) {
	var op reconnect.Op
	switch in.Mode &^ unix.FALLOC_FL_KEEP_SIZE {
	case unix.FALLOC_FL_PUNCH_HOLE:
		op = reconnect.Discard
	case unix.FALLOC_FL_ZERO_RANGE:
		op = reconnect.Zero
	default:
		c.reply(in.Unique, syscall.EOPNOTSUPP, make([]byte, outHeader))
		return
	}
	off, n := int64(in.Offset), int64(min(in.Length, math.MaxInt64))
	n = min(n, c.client.Export().Size-off) // a hole may reach behind the end
	first := min(n, maxEffect)
	k := c.newCall(in.Unique, op, off, first)
	k.rest = n - first
	c.start(k)
}

// answer replies to what needs no server.
func (c *channel) answer(h *fuse.InHeader, in []byte) {
	out := make([]byte, outHeader, outHeader+256)
	errno := syscall.Errno(0)
	switch h.Opcode {
	case opInit:
		out, errno = c.init((*fuse.InitIn)(unsafe.Pointer(h)), out)
	case opLookup:
		name, _, _ := bytes.Cut(in[unsafe.Sizeof(*h):], []byte{0})
		if h.NodeId != rootNode || string(name) != FileName {
			errno = syscall.ENOENT
			break
		}
		out = with(out, &fuse.EntryOut{NodeId: diskNode, EntryValid: forever, AttrValid: forever, Attr: c.attr(diskNode)})
	case opGetAttr:
		out = with(out, &fuse.AttrOut{AttrValid: forever, Attr: c.attr(h.NodeId)})
	case opOpen:
		out, errno = c.open((*fuse.OpenIn)(unsafe.Pointer(h)), out)
	case opOpenDir:
		out = with(out, &fuse.OpenOut{})
	case opReadDir:
		out = readDir(out, (*fuse.ReadIn)(unsafe.Pointer(h)))
	case opStatFS:
		blocks := uint64(c.client.Export().Size) / blockSize
		out = with(out, &fuse.StatfsOut{Blocks: blocks, Files: 1, Bsize: blockSize, Frsize: blockSize, NameLen: 255})
	case opRelease, opReleaseDir, opDestroy:
	default:
		errno = syscall.ENOSYS
	}
	c.reply(h.Unique, errno, out)
}

// forever is how long names and attributes hold, in seconds.
const forever = 1 << 30

// with appends the bytes of a structure.
func with[T any](out []byte, v *T) []byte {
	return append(out, unsafe.Slice((*byte)(unsafe.Pointer(v)), unsafe.Sizeof(*v))...)
}

// init agrees on what the kernel may do: large requests, and direct I/O of which many
// are under way.
func (c *channel) init(in *fuse.InitIn, out []byte) ([]byte, syscall.Errno) {
	if in.Major != protocolMajor || in.Minor < protocolMinor {
		c.log.Error("the kernel's FUSE is too old: 7.28 of Linux 4.20 is needed", "major", in.Major, "minor", in.Minor)
		return out, syscall.EPROTO
	}
	return with(out, &fuse.InitOut{
		Major:               protocolMajor,
		Minor:               protocolMinor,
		MaxReadAhead:        in.MaxReadAhead,
		Flags:               in.Flags & (fuse.CAP_ASYNC_READ | fuse.CAP_BIG_WRITES | fuse.CAP_ASYNC_DIO | fuse.CAP_MAX_PAGES),
		MaxBackground:       reconnect.MaxInFlight,
		CongestionThreshold: reconnect.MaxInFlight * 3 / 4,
		MaxWrite:            uint32(min(maxPayload, c.client.Export().MaxPayload)),
		MaxPages:            maxPayload / 4096,
	}), 0
}

func (c *channel) attr(node uint64) fuse.Attr {
	if node == rootNode {
		return fuse.Attr{Ino: rootNode, Mode: unix.S_IFDIR | 0o500, Nlink: 2, Blksize: blockSize}
	}
	e := c.client.Export()
	a := fuse.Attr{Ino: diskNode, Mode: unix.S_IFREG | 0o600, Nlink: 1, Blksize: blockSize}
	if e.ReadOnly() {
		a.Mode = unix.S_IFREG | 0o400
	}
	a.Size, a.Blocks = uint64(e.Size), uint64(e.Size+511)/512
	return a
}

func (c *channel) open(in *fuse.OpenIn, out []byte) ([]byte, syscall.Errno) {
	if in.Flags&unix.O_ACCMODE != unix.O_RDONLY && c.client.Export().ReadOnly() {
		return out, syscall.EROFS
	}
	return with(out, &fuse.OpenOut{OpenFlags: fuse.FOPEN_DIRECT_IO | fuse.FOPEN_PARALLEL_DIRECT_WRITES | fuse.FOPEN_NOFLUSH}), 0
}

// readDir lists the folder in one piece.
func readDir(out []byte, in *fuse.ReadIn) []byte {
	if in.Offset > 0 {
		return out
	}
	le := binary.NativeEndian
	for i, e := range []struct {
		node, kind uint64
		name       string
	}{{rootNode, unix.DT_DIR, "."}, {rootNode, unix.DT_DIR, ".."}, {diskNode, unix.DT_REG, FileName}} {
		out = le.AppendUint64(out, e.node)
		out = le.AppendUint64(out, uint64(i+1))
		out = le.AppendUint32(out, uint32(len(e.name)))
		out = le.AppendUint32(out, uint32(e.kind))
		out = append(out, e.name...)
		for (len(out)-outHeader)%8 != 0 {
			out = append(out, 0)
		}
	}
	return out
}
