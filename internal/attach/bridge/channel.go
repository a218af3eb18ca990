package bridge

import (
	"errors"
	"log/slog"
	"os"
	"sync"
	"syscall"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/fsximg/fsx/internal/nbdclient/reconnect"
)

const (
	// readers is how many threads wait for the kernel's requests. One that has to wait
	// for the server hands its request over, so this is about speed only.
	readers = 2
	// maxPayload is the largest READ and WRITE in bytes.
	maxPayload = 1 << 20
	// smallReply is the largest READ whose buffer is one of the small ones.
	smallReply = 64 << 10
	// requestRoom is what the kernel wants to find room for: the largest WRITE and what
	// comes before it, with the kernel's own minimum of a page for headers.
	requestRoom = maxPayload + 4096

	outHeader = int(unsafe.Sizeof(fuse.OutHeader{}))
)

// channel is /dev/fuse: requests come out of it, and replies go into it, each with one
// system call. See link of package reconnect on why these block.
type channel struct {
	file   *os.File
	fd     int
	client *reconnect.Client
	log    *slog.Logger
	calls  sync.Pool // *call
	large  sync.Pool // *[]byte, for large READs
	out    sync.WaitGroup
}

func newChannel(f *os.File, client *reconnect.Client, log *slog.Logger) *channel {
	c := &channel{file: f, fd: int(f.Fd()), client: client, log: log}
	c.calls.New = func() any {
		k := &call{channel: c, small: make([]byte, outHeader+smallReply)}
		k.request.Done = k.done
		return k
	}
	c.large.New = func() any {
		b := make([]byte, outHeader+maxPayload)
		return &b
	}
	return c
}

// serve reads requests and begins to carry them out, until the mount is gone.
func (c *channel) serve() {
	in := make([]byte, requestRoom)
	for {
		n, err := unix.Read(c.fd, in)
		switch {
		case err == nil:
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOENT):
			continue // ENOENT: the request was interrupted before it came
		case errors.Is(err, unix.ENODEV):
			return
		default:
			c.log.Error("read from "+device, "err", err)
			return
		}
		if !c.handle(in[:n]) {
			in = make([]byte, requestRoom) // the request that waits keeps the old one
		}
	}
}

// close frees the device when the last reply is written.
func (c *channel) close() {
	c.out.Wait()
	c.file.Close()
}

// reply answers a request; p begins with room for the header. The kernel may have
// forgotten the request.
func (c *channel) reply(unique uint64, errno syscall.Errno, p []byte) {
	if errno != 0 {
		p = p[:outHeader]
	}
	h := (*fuse.OutHeader)(unsafe.Pointer(&p[0]))
	*h = fuse.OutHeader{Length: uint32(len(p)), Status: -int32(errno), Unique: unique}
	for {
		_, err := unix.Write(c.fd, p)
		switch {
		case err == nil, errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV), errors.Is(err, unix.EPERM):
		case errors.Is(err, unix.EINTR):
			continue
		default:
			c.log.Error("write to "+device, "err", err)
		}
		return
	}
}

// call is a request of the kernel that became one of the client's.
type call struct {
	channel *channel
	unique  uint64
	request reconnect.Request
	rest    int64   // of a change that is cut in pieces: bytes behind the request's
	small   []byte  // header and data of a reply
	large   *[]byte // the same of a large READ
}

func (c *channel) newCall(unique uint64, op reconnect.Op, off, n int64) *call {
	k := c.calls.Get().(*call)
	k.unique, k.rest = unique, 0
	k.request.Op, k.request.Off, k.request.Len, k.request.Data = op, off, n, nil
	c.out.Add(1)
	return k
}

// buffer is the room for a reply with n bytes of data.
func (k *call) buffer(n int) []byte {
	if n <= smallReply {
		return k.small[:outHeader+n]
	}
	k.large = k.channel.large.Get().(*[]byte)
	return (*k.large)[:outHeader+n]
}

// done answers the kernel. The client's receiver calls it.
func (k *call) done(r *reconnect.Request) {
	c := k.channel
	if r.Err == nil && k.rest > 0 {
		go c.submit(k.next()) // a receiver must not wait
		return
	}
	p := k.small[:outHeader]
	switch {
	case r.Op == reconnect.Read && k.large != nil:
		p = (*k.large)[:outHeader+int(r.Len)]
	case r.Op == reconnect.Read:
		p = k.small[:outHeader+int(r.Len)]
	case r.Op == reconnect.Write:
		p = k.small[:outHeader+int(unsafe.Sizeof(fuse.WriteOut{}))]
		*(*fuse.WriteOut)(unsafe.Pointer(&p[outHeader])) = fuse.WriteOut{Size: uint32(r.Len)}
	}
	c.reply(k.unique, errnoOf(r.Err), p)
	if k.large != nil {
		c.large.Put(k.large)
		k.large = nil
	}
	r.Data, r.Err = nil, nil
	c.calls.Put(k)
	c.out.Done()
}

// next is the call with its next piece.
func (k *call) next() *call {
	k.request.Off += k.request.Len
	k.request.Len = min(k.rest, maxEffect)
	k.rest -= k.request.Len
	return k
}

// submit sends a call, or waits until that is possible.
func (c *channel) submit(k *call) { c.client.Submit(&k.request) }

// start is submit without waiting: if it would wait, somebody else does, and it is
// false.
func (c *channel) start(k *call) bool {
	if c.client.TrySubmit(&k.request) {
		return true
	}
	go c.submit(k)
	return false
}
