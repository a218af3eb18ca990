// Package loopdev makes block devices of files through Linux's loop driver
// (drivers/block/loop.c, loop(4)).
//
// The kernel is the only place where the state is kept: what is attached is read from
// /sys/block/loopN/loop, so nothing needs to be put right after a crash.
//
// A device has blocks of 512 bytes, passes requests on with direct I/O, so that the
// page cache holds data once, above the device, and has its partition table scanned.
package loopdev

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

var (
	// ErrNoDriver is returned where the kernel's loop driver is not there.
	ErrNoDriver = errors.New("no loop devices")
	// ErrNotAttached is returned for a device without a backing file.
	ErrNotAttached = errors.New("loop device is not attached")
	// ErrBusy is returned for a device that is mounted, or otherwise held.
	ErrBusy = errors.New("loop device is in use")
	// ErrNotFlushed is returned by Detach if data could not be written back. The
	// device stays attached.
	ErrNotFlushed = errors.New("data could not be written back")
)

// blockSize is the size of a logical block in bytes. 4096 would break images with a
// GPT and small file systems.
const blockSize = 512

// control is the driver's own device.
const control = "/dev/loop-control"

// sysBlock is where the kernel tells about block devices.
const sysBlock = "/sys/block"

// Device is an attached loop device, as the kernel tells of it.
type Device struct {
	Number   int
	Path     string // of the device
	Backing  string // path of the file; " (deleted)" is at its end if it is
	Size     int64  // bytes
	ReadOnly bool
	DirectIO bool
	PartScan bool // its partition table is looked at
}

// List tells which loop devices are attached, in the order of their numbers.
func List() ([]Device, error) {
	dirs, err := filepath.Glob(sysBlock + "/loop*/loop")
	if err != nil {
		return nil, err
	}
	var l []Device
	for _, dir := range dirs {
		n, ok := Number("/dev/" + filepath.Base(filepath.Dir(dir)))
		if !ok {
			continue
		}
		d, err := Find(n)
		switch {
		case errors.Is(err, ErrNotAttached):
			continue // it has gone meanwhile
		case err != nil:
			return nil, err
		}
		l = append(l, d)
	}
	slices.SortFunc(l, func(a, b Device) int { return cmp.Compare(a.Number, b.Number) })
	return l, nil
}

// Find tells of the loop device with the number.
func Find(number int) (Device, error) {
	dir := fmt.Sprintf("%s/loop%d", sysBlock, number)
	d := Device{Number: number, Path: fmt.Sprintf("/dev/loop%d", number)}
	backing, err := os.ReadFile(dir + "/loop/backing_file")
	if gone(err) {
		return Device{}, fmt.Errorf("%s: %w", d.Path, ErrNotAttached)
	}
	if err != nil {
		return Device{}, err
	}
	d.Backing = strings.TrimSuffix(string(backing), "\n")
	sectors, err := readNumber(dir + "/size")
	d.Size = sectors * 512
	d.ReadOnly = flag(dir+"/ro", &err)
	d.DirectIO = flag(dir+"/loop/dio", &err)
	d.PartScan = flag(dir+"/loop/partscan", &err)
	if gone(err) {
		return Device{}, fmt.Errorf("%s: %w", d.Path, ErrNotAttached)
	}
	return d, err
}

// Number is the number of the loop device at a path, which may be a symbolic link to
// it. False is for anything else.
func Number(path string) (int, bool) {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	digits, found := strings.CutPrefix(path, "/dev/loop")
	n, err := strconv.Atoi(digits)
	return n, found && err == nil && n >= 0 && strconv.Itoa(n) == digits
}

func flag(path string, err *error) bool {
	if *err != nil {
		return false
	}
	var n int64
	n, *err = readNumber(path)
	return n != 0
}

func readNumber(path string) (int64, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
}

// gone is whether an error of sysfs says that the device is not attached (any more).
func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENODEV)
}
