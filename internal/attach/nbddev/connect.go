package nbddev

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Transmission flags that this package looks at; the others are the kernel's to know.
const (
	FlagReadOnly     = 1 << 1
	FlagCanMultiConn = 1 << 8
)

const (
	defaultBlockSize = 512
	appearTimeout    = 10 * time.Second
	maxBackend       = 1 << 10 // sysfs shows a page at most

	resendInterval = 10 * time.Second // of a device with one socket
	patience       = 30 * time.Second // Linux's own, with several
)

// Way is how a device is made.
type Way int

const (
	Automatic Way = iota // netlink, or ioctl where there is no netlink family
	Netlink
	Ioctl
)

// Options are Connect's. The zero value of a field is its default.
type Options struct {
	Path  string // of the device wanted: /dev/nbd3; empty: the first that is free
	Size  uint64 // bytes, a multiple of BlockSize
	Flags uint16 // the transmission flags that the server gave

	BlockSize uint32 // 512; a power of two up to the page's size
	ReadOnly  bool   // though the server would take writes
	Backend   string // identifies what is connected: /sys/block/nbdN/backend, and Reconnect demands it

	// Whole seconds; parts of one count as one. See the package's documentation.
	RequestTimeout time.Duration // 0: none
	DeadTimeout    time.Duration // 0: fail at once when the last socket died
	// ResendInterval is how often the kernel looks at requests that are not answered,
	// without a RequestTimeout. With one socket it then sends those again whose socket
	// was replaced, and tells its log of the others; 10 s. With several it gives their
	// socket up; DeadTimeout and 30 s.
	ResendInterval time.Duration

	Way Way
}

func (o Options) validated(sockets int) (Options, error) {
	if o.BlockSize == 0 {
		o.BlockSize = defaultBlockSize
	}
	if o.ResendInterval == 0 {
		o.ResendInterval = resendInterval
		if sockets > 1 {
			o.ResendInterval = o.DeadTimeout + patience
		}
	}
	if o.ReadOnly {
		o.Flags |= FlagReadOnly
	}
	switch {
	case sockets == 0:
		return o, errors.New("a network block device needs a socket")
	case sockets > 1 && o.Flags&FlagCanMultiConn == 0:
		return o, fmt.Errorf("the server takes one connection for a device, not %d", sockets)
	case o.BlockSize < sectorSize || o.BlockSize&(o.BlockSize-1) != 0 || int(o.BlockSize) > os.Getpagesize():
		return o, fmt.Errorf("block size %d: not a power of two from %d to %d", o.BlockSize, sectorSize, os.Getpagesize())
	case o.Size == 0 || o.Size%uint64(o.BlockSize) != 0 || o.Size > 1<<63-1:
		return o, fmt.Errorf("size %d: not a multiple of %d", o.Size, o.BlockSize)
	case len(o.Backend) > maxBackend:
		return o, fmt.Errorf("backend identifier of %d bytes, at most %d", len(o.Backend), maxBackend)
	case o.RequestTimeout < 0 || o.DeadTimeout < 0 || o.ResendInterval < 0:
		return o, errors.New("a time-out below 0")
	}
	if _, ok := IndexOf(o.Path); o.Path != "" && !ok {
		return o, fmt.Errorf("%s is not a network block device", o.Path)
	}
	return o, nil
}

// Connection is a device that Connect made.
type Connection struct {
	Index int
	Path  string
	held  *session // by ioctl; nil by netlink
}

// Done is closed when the device of an ioctl has ended. By netlink it is nil: ask
// List, or Watch.
func (c *Connection) Done() <-chan struct{} {
	if c.held == nil {
		return nil
	}
	return c.held.done
}

// Err tells why Done was closed; nil: it was disconnected.
func (c *Connection) Err() error {
	<-c.held.done
	return c.held.err
}

// Connect gives sockets, which have been negotiated to the beginning of the
// transmission phase, to a device, and returns when the node exists, has its size,
// and its partitions were read. The kernel has its own hold of the sockets: the
// caller closes its files. After an error no device is left.
//
// Errors: ErrNoModule, ErrNoNetlink, ErrPermission, ErrNoDevice, ErrInUse.
func (k *Kernel) Connect(ctx context.Context, sockets []*os.File, opt Options) (*Connection, error) {
	opt, err := opt.validated(len(sockets))
	if err != nil {
		return nil, err
	}
	if err := k.Load(ctx); err != nil {
		return nil, err
	}
	var c *Connection
	switch opt.Way {
	case Ioctl:
		c, err = k.connectIoctl(sockets, opt)
	default:
		c, err = k.connectNetlink(sockets, opt)
		if errors.Is(err, ErrNoNetlink) && opt.Way == Automatic {
			c, err = k.connectIoctl(sockets, opt)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("connect a network block device: %w", err)
	}
	if err := k.settle(ctx, c, opt); err != nil {
		return nil, errors.Join(err, k.end(c.Index))
	}
	return c, nil
}

func (k *Kernel) connectNetlink(sockets []*os.File, opt Options) (*Connection, error) {
	size, block, flags := opt.Size, uint64(opt.BlockSize), uint64(opt.Flags)
	timeout, dead := seconds(opt.RequestTimeout), seconds(opt.DeadTimeout)
	cfg := configuration{size: &size, blockSize: &block, flags: &flags, timeout: &timeout, deadTimeout: &dead, backend: opt.Backend}
	if index, ok := IndexOf(opt.Path); ok {
		wanted := uint32(index)
		cfg.index = &wanted
	}
	index := 0
	err := withDescriptors(sockets, func(fds []uint32) error {
		cfg.sockets = fds
		data, err := cfg.encode()
		if err != nil {
			return err
		}
		answer, err := k.ask(cmdConnect, data, 0) // its answer is the acknowledgement
		if err != nil {
			return err
		}
		index, err = parseIndex(answer.Data)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &Connection{Index: index, Path: k.path(index)}, nil
}

// settle waits until the device can be used, and tunes it.
func (k *Kernel) settle(ctx context.Context, c *Connection, opt Options) error {
	ctx, cancel := context.WithTimeout(ctx, appearTimeout)
	defer cancel()
	err := poll(ctx, func() (bool, error) {
		d, err := k.Get(c.Index)
		if err != nil || d.Size != opt.Size {
			return false, nil
		}
		_, err = os.Stat(c.Path)
		return err == nil, nil
	})
	if err != nil {
		return fmt.Errorf("%s does not appear with %d bytes: %w", c.Path, opt.Size, err)
	}
	if c.held == nil && opt.RequestTimeout == 0 {
		k.tune(c.Index, opt)
	}
	err = k.scan(c.Path)
	k.announce(c.Index)
	return err
}

// announce has udev look at the device again: the kernel's own event came before the
// backend identifier, of which the rule makes a name. Without udev nobody listens.
func (k *Kernel) announce(index int) {
	_ = os.WriteFile(k.attribute(index, "uevent"), []byte("change\n"), 0)
}

// tune sets how often requests without an answer are looked at. A kernel without
// the file looks every 30 s; that is no reason to fail.
func (k *Kernel) tune(index int, opt Options) {
	text := fmt.Sprintf("%d\n", max(opt.ResendInterval.Milliseconds(), 1))
	_ = os.WriteFile(k.attribute(index, "queue/io_timeout"), []byte(text), 0)
}

// scan has the partition table read. A device that somebody else uses already is
// scanned by the kernel.
func (k *Kernel) scan(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	err = ioctl(f, blkRRPart, 0)
	if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EINVAL) { // EINVAL: the module's max_part is 0
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: read the partition table: %w", path, err)
	}
	return nil
}

// seconds rounds up, so that a wanted time-out never becomes none.
func seconds(d time.Duration) uint64 { return uint64((d + time.Second - 1) / time.Second) }

// withDescriptors calls f with the files' descriptors, which stay open meanwhile.
func withDescriptors(files []*os.File, f func(fds []uint32) error) error {
	fds := make([]uint32, 0, len(files))
	var next func(i int) error
	next = func(i int) error {
		if i == len(files) {
			return f(fds)
		}
		raw, err := files[i].SyscallConn()
		if err != nil {
			return err
		}
		var inner error
		if err := raw.Control(func(fd uintptr) {
			fds = append(fds, uint32(fd))
			inner = next(i + 1)
		}); err != nil {
			return err
		}
		return inner
	}
	return next(0)
}

// poll calls done until it is true, a little less often each time.
func poll(ctx context.Context, done func() (bool, error)) error {
	for wait := time.Millisecond; ; wait = min(wait*2, 100*time.Millisecond) {
		ok, err := done()
		if ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}
