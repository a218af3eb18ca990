package attach

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// Kind is how a device is made.
type Kind string

const (
	// NBD is a network block device of the kernel.
	NBD Kind = "nbd"
	// Loop is a loop device over a FUSE file, for kernels without the module nbd.
	Loop Kind = "loop"
)

// Link is how the keeper's way to the server is.
type Link string

const (
	// Connected: requests are answered.
	Connected Link = "connected"
	// Waiting: the server is gone, and requests wait for another.
	Waiting Link = "waiting"
	// Failed: they waited too long, and fail until a server comes.
	Failed Link = "failed"
)

// Record is what a keeper tells about its device. It is a convenience: that a device
// is attached, and what it shows, only the kernel tells (see Host.List).
type Record struct {
	Identity
	Path           string        `json:"path"` // of the store, absolute
	Device         string        `json:"device"`
	Kind           Kind          `json:"kind"`
	ReadOnly       bool          `json:"read_only"`
	Connections    int           `json:"connections"`
	Timeout        time.Duration `json:"timeout"`
	UntilUnmounted bool          `json:"until_unmounted"` // detach when the last mount has gone
	Since          time.Time     `json:"since"`
	Keeper         int           `json:"keeper"` // its process
	Link           Link          `json:"link"`
	LinkSince      time.Time     `json:"link_since"`
	Reason         string        `json:"reason,omitempty"` // why it is not connected
}

const (
	stateName = "state"
	lockName  = "lock"
	logName   = "log"
)

// writeRecord replaces the record in a keeper's folder; a reader sees the old one or
// the new one.
func writeRecord(folder string, r *Record) error {
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	name := filepath.Join(folder, stateName)
	if err := os.WriteFile(name+".new", text, 0o600); err != nil {
		return fmt.Errorf("write the device's state: %w", err)
	}
	return os.Rename(name+".new", name)
}

// readRecord reads it; without one, or with one that is not whole, ok is false.
func readRecord(folder string) (r Record, ok bool) {
	text, err := os.ReadFile(filepath.Join(folder, stateName))
	if err != nil || json.Unmarshal(text, &r) != nil {
		return Record{}, false
	}
	return r, r.Device != ""
}

// removeFolder removes what a keeper had, and the folders above that are empty then,
// up to the store's run directory. Whoever calls it has the keeper's lock, or knows
// that there is no keeper.
func (h *Host) removeFolder(id Identity) error {
	folder := h.folder(id)
	var failed error
	for _, name := range []string{stateName, stateName + ".new", logName, lockName} {
		if err := os.Remove(filepath.Join(folder, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			failed = errors.Join(failed, err)
		}
	}
	_ = os.Remove(h.mountpoint(id))
	_ = os.Remove(filepath.Dir(h.mountpoint(id)))
	_ = os.Remove(folder)
	_ = os.Remove(filepath.Dir(folder))
	_ = os.Remove(filepath.Join(h.Run, id.Store))
	return failed
}
