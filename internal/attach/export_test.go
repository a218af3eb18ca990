package attach

import (
	"io"
	"os"
)

type Mount = mount

func (m Mount) Fields() [4]string { return [4]string{m.number, m.dir, m.fstype, m.source} }

var (
	ParseMounts     = parseMounts
	ReadOnlyOptions = readOnlyOptions
	AddOptions      = addOptions
	LockStore       = lockStore
	ErrKept         = errKept
	WriteRecord     = writeRecord
	ReadRecord      = readRecord
)

func (h *Host) Folder(id Identity) string                { return h.folder(id) }
func (h *Host) Disk(id Identity) string                  { return h.disk(id) }
func (h *Host) ParseDisk(file string) (Identity, bool)   { return h.parseDisk(file) }
func (h *Host) LockKeeper(id Identity) (*os.File, error) { return h.lockKeeper(id) }
func (h *Host) IsKept(id Identity) bool                  { return h.isKept(id) }
func (h *Host) RemoveFolder(id Identity) error           { return h.removeFolder(id) }
func Tell(w io.WriteCloser, device string, err error) error {
	return tell(w, started{Device: device}, err)
}
func Hear(r io.Reader) (device string, err error) { s, err := hear(r); return s.Device, err }
