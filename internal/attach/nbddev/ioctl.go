package nbddev

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Numbers of nbd.h, _IO(0xab, n); those that go-nbd's pkg/ioctl has are compared
// with it in a test. They are here because it has none for every architecture, and
// lacks NBD_SET_FLAGS.
const (
	nbdSetSock       = 0xab00
	nbdSetBlockSize  = 0xab01
	nbdDoIt          = 0xab03
	nbdClearSock     = 0xab04
	nbdSetSizeBlocks = 0xab07
	nbdDisconnect    = 0xab08
	nbdSetTimeout    = 0xab09
	nbdSetFlags      = 0xab0a

	blkRRPart = 0x125f // BLKRRPART, _IO(0x12, 95)
)

func ioctl(f *os.File, request uint, argument uintptr) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var errno unix.Errno
	if err := raw.Control(func(fd uintptr) { errno = ioctlFD(fd, request, argument) }); err != nil {
		return err
	}
	if errno != 0 {
		return &os.PathError{Op: "ioctl", Path: f.Name(), Err: errno}
	}
	return nil
}

func ioctlFD(fd uintptr, request uint, argument uintptr) unix.Errno {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, uintptr(request), argument)
	return errno
}

// session is the thread in which a device made by ioctl lives.
type session struct {
	done chan struct{}
	err  error // before done is closed
}

// connectIoctl makes a device by ioctl. There is no backend identifier, no
// dead-connection time-out and no Reconnect.
func (k *Kernel) connectIoctl(sockets []*os.File, opt Options) (*Connection, error) {
	candidates, err := k.candidates(opt)
	if err != nil {
		return nil, err
	}
	for _, index := range candidates {
		s, err := k.startSession(index, sockets, opt)
		if errors.Is(err, ErrInUse) && opt.Path == "" {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", k.path(index), err)
		}
		return &Connection{Index: index, Path: k.path(index), held: s}, nil
	}
	return nil, ErrNoDevice
}

// candidates are the numbers to try.
func (k *Kernel) candidates(opt Options) ([]int, error) {
	if index, ok := IndexOf(opt.Path); ok {
		return []int{index}, nil
	}
	l, err := k.List()
	if err != nil {
		return nil, err
	}
	var free []int
	for _, d := range l {
		if !d.Connected && !d.Open {
			free = append(free, d.Index)
		}
	}
	return free, nil
}

// startSession sets a device up and leaves NBD_DO_IT running in a thread of its own.
func (k *Kernel) startSession(index int, sockets []*os.File, opt Options) (*session, error) {
	f, err := os.Open(k.path(index)) // ioctls need no more, and a device that was read-only opens, too
	if err != nil {
		return nil, asOurs(err)
	}
	s := &session{done: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		// Never unlocked: the thread ends with the goroutine, and its signal mask with it.
		runtime.LockOSThread()
		defer f.Close()
		err := setUp(f, sockets, opt)
		started <- err
		if err == nil {
			s.err = doIt(f)
			close(s.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return s, nil
}

// setUp has to run in one thread: the kernel takes sockets from that one only.
func setUp(f *os.File, sockets []*os.File, opt Options) error {
	steps := []struct {
		request  uint
		argument uintptr
	}{
		{nbdSetBlockSize, uintptr(opt.BlockSize)},
		{nbdSetSizeBlocks, uintptr(opt.Size / uint64(opt.BlockSize))},
		{nbdSetFlags, uintptr(opt.Flags)},
		{nbdSetTimeout, uintptr(seconds(opt.RequestTimeout))},
	}
	return withDescriptors(sockets, func(fds []uint32) error {
		for i, fd := range fds {
			if err := ioctl(f, nbdSetSock, uintptr(fd)); err != nil {
				if i > 0 {
					err = errors.Join(err, ioctl(f, nbdClearSock, 0))
				}
				if errors.Is(err, unix.EINVAL) { // made by netlink
					err = fmt.Errorf("%w: %w", ErrInUse, err)
				}
				return asOurs(err)
			}
		}
		for _, s := range steps {
			if err := ioctl(f, s.request, s.argument); err != nil {
				return asOurs(errors.Join(err, ioctl(f, nbdClearSock, 0)))
			}
		}
		return nil
	})
}

// doIt is the device's life. A signal would end it, even one whose handler does
// nothing (Go's runtime sends SIGURG to its threads), so this thread takes none.
func doIt(f *os.File) error {
	var all unix.Sigset_t
	for i := range all.Val {
		all.Val[i] = ^all.Val[i]
	}
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &all, nil); err != nil {
		return errors.Join(err, ioctl(f, nbdClearSock, 0))
	}
	err := ioctl(f, nbdDoIt, 0)
	return errors.Join(err, ioctl(f, nbdClearSock, 0))
}

// endIoctl ends a device where there is no netlink, whoever made it.
func (k *Kernel) endIoctl(index int) error {
	f, err := os.Open(k.path(index))
	if err != nil {
		return asOurs(err)
	}
	defer f.Close()
	return asOurs(errors.Join(ioctl(f, nbdDisconnect, 0), ioctl(f, nbdClearSock, 0)))
}
