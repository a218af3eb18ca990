package attach

import (
	"path/filepath"
	"regexp"
	"strings"

	"github.com/fsximg/fsx/internal/cliutil"
)

// Identity is what a device shows: a volume, or a snapshot of it. It is the same
// wherever the store's folder is moved.
type Identity struct {
	Store    string // UUID, in its text form
	Volume   string
	Snapshot string // empty: the volume itself
}

// Export is VOLUME or VOLUME@SNAPSHOT.
func (id Identity) Export() string {
	if id.Snapshot == "" {
		return id.Volume
	}
	return id.Volume + "@" + id.Snapshot
}

// String names it in messages.
func (id Identity) String() string {
	if id.Snapshot == "" {
		return "volume " + id.Volume
	}
	return "snapshot " + id.Export()
}

// backendPrefix begins the backend identifier of our network block devices, which
// the kernel keeps and shows in /sys/block/nbdN/backend.
const backendPrefix = "fsx:"

// Backend is the backend identifier of its network block device.
func (id Identity) Backend() string { return backendPrefix + id.Store + ":" + id.Export() }

var uuidText = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

// ParseBackend reads a backend identifier; ok is false for one of somebody else.
func ParseBackend(s string) (id Identity, ok bool) {
	rest, ours := strings.CutPrefix(s, backendPrefix)
	store, export, found := strings.Cut(rest, ":")
	if !ours || !found {
		return id, false
	}
	return parseIdentity(store, export)
}

func parseIdentity(store, export string) (id Identity, ok bool) {
	id.Store = store
	var isSnapshot bool
	id.Volume, id.Snapshot, isSnapshot = strings.Cut(export, "@")
	ok = uuidText.MatchString(store) && cliutil.CheckName("volume", id.Volume) == nil &&
		(!isSnapshot || cliutil.CheckName("snapshot", id.Snapshot) == nil)
	return id, ok
}

// The places of an attached volume, below a run directory /run/fsx/UUID:
//
//	attach/EXPORT/        where the FUSE file system of a loop device is mounted
//	attach/EXPORT/disk    its one file
//	keeper/EXPORT/        what the keeper has: lock, state, log
const (
	fuseFolder   = "attach"
	keeperFolder = "keeper"
	diskName     = "disk"
)

// mountpoint is where the FUSE file system of a loop device is mounted.
func (h *Host) mountpoint(id Identity) string {
	return filepath.Join(h.Run, id.Store, fuseFolder, id.Export())
}

// disk is the file that a loop device has.
func (h *Host) disk(id Identity) string { return filepath.Join(h.mountpoint(id), diskName) }

// parseDisk is the identity of which file is the disk; ok is false for another file.
func (h *Host) parseDisk(file string) (id Identity, ok bool) {
	rest, below := strings.CutPrefix(file, h.Run+"/")
	w := strings.Split(rest, "/")
	if !below || len(w) != 4 || w[1] != fuseFolder || w[3] != diskName {
		return id, false
	}
	return parseIdentity(w[0], w[2])
}

// folder is the keeper's.
func (h *Host) folder(id Identity) string {
	return filepath.Join(h.Run, id.Store, keeperFolder, id.Export())
}
