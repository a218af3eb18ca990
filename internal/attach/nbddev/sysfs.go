package nbddev

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
)

const sectorSize = 512 // of sysfs' size, whatever the device's block size

// Device is a network block device as sysfs shows it.
type Device struct {
	Index     int
	Path      string // of the device node
	Connected bool   // it has sockets, living or dead
	Open      bool   // not connected, but somebody has it open or sets it up
	PID       int    // the task that connected it; it may have ended long ago
	Backend   string // as given to Connect; empty: none, or a kernel before 5.14
	Size      uint64 // bytes
	ReadOnly  bool
}

// IndexOf is the number of a device node: 3 of /dev/nbd3. A partition has none.
func IndexOf(path string) (int, bool) {
	digits, ok := strings.CutPrefix(filepath.Base(path), "nbd")
	index, err := strconv.Atoi(digits)
	return index, ok && err == nil && strconv.Itoa(index) == digits && index >= 0
}

func (k *Kernel) path(index int) string { return filepath.Join(k.dev, fmt.Sprintf("nbd%d", index)) }

func (k *Kernel) attribute(index int, name string) string {
	return filepath.Join(k.sys, "block", fmt.Sprintf("nbd%d", index), name)
}

// List returns all devices that exist, in the order of their numbers. Without the
// netlink family it does not know which ones are merely open.
func (k *Kernel) List() ([]Device, error) {
	paths, err := filepath.Glob(filepath.Join(k.sys, "block", "nbd*"))
	if err != nil {
		return nil, err
	}
	configured, err := k.status()
	if err != nil && !errors.Is(err, ErrNoNetlink) && !errors.Is(err, ErrNoModule) {
		return nil, err
	}
	var l []Device
	for _, path := range paths {
		index, ok := IndexOf(path)
		if !ok {
			continue
		}
		d, err := k.Get(index)
		if errors.Is(err, fs.ErrNotExist) {
			continue // it went while we looked
		}
		if err != nil {
			return nil, err
		}
		d.Open = configured[index] && !d.Connected
		l = append(l, d)
	}
	slices.SortFunc(l, func(a, b Device) int { return cmp.Compare(a.Index, b.Index) })
	return l, nil
}

// Get reads what sysfs says of a device; fs.ErrNotExist: there is none of that
// number. Open is left false.
func (k *Kernel) Get(index int) (Device, error) {
	d := Device{Index: index, Path: k.path(index)}
	sectors, err := k.number(index, "size")
	if err != nil {
		return d, err
	}
	d.Size = sectors * sectorSize
	readOnly, err := k.number(index, "ro")
	if err != nil {
		return d, err
	}
	d.ReadOnly = readOnly != 0
	pid, err := k.number(index, "pid")
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return d, nil
	case err != nil:
		return d, err
	}
	d.Connected, d.PID = true, int(pid)
	backend, err := os.ReadFile(k.attribute(index, "backend"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return d, err
	}
	d.Backend = strings.TrimSuffix(string(backend), "\n")
	return d, nil
}

func (k *Kernel) number(index int, name string) (uint64, error) {
	text, err := os.ReadFile(k.attribute(index, name))
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
}

// status asks which devices have a configuration.
func (k *Kernel) status() (map[int]bool, error) {
	answer, err := k.ask(cmdStatus, nil, 0)
	if err != nil {
		return nil, err
	}
	return parseStatus(answer.Data)
}

// partitions are the device's, in sysfs.
func (k *Kernel) partitions(index int) []string {
	l, err := filepath.Glob(k.attribute(index, fmt.Sprintf("nbd%dp*", index)))
	if err != nil {
		return nil
	}
	return l
}
