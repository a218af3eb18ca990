// Package store is a store's directory: its identity, its lock and its keyring
// file. It does not read the keyring's content.
package store

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/fsximg/fsx/internal/vfs"
	"github.com/fsximg/fsx/pkg/layout"
)

var (
	// ErrNotStore says that a path is not a store.
	ErrNotStore = errors.New("not an fsx store")
	// ErrBusy says that another process has the store open.
	ErrBusy = errors.New("store is in use")
)

// BusyError is an ErrBusy that names the lock's holder as far as it is known.
type BusyError struct {
	Path   string
	Holder Holder
}

func (e *BusyError) Error() string {
	if e.Holder.PID == 0 {
		return fmt.Sprintf("%s is in use by another process", e.Path)
	}
	return fmt.Sprintf("%s is in use by %s (pid %d) since %s", e.Path, e.Holder.Program, e.Holder.PID,
		e.Holder.Since.Local().Format("2006-01-02 15:04:05"))
}

// Is makes errors.Is(err, ErrBusy) true.
func (e *BusyError) Is(target error) bool { return target == ErrBusy }

// Holder names the process that has a store open.
type Holder struct {
	PID     int       `json:"pid"`
	Program string    `json:"program"`
	Since   time.Time `json:"since"`
}

var be = binary.BigEndian

// Names in a store's directory.
const (
	superblockName = "fsx"
	keyringName    = "keyring"
	holderName     = "lock"
	metaName       = "meta"
	volumesName    = "vol"
)

// Content lists the folders and files of a store that make it up, by paths
// relative to it, folders before what is in them, without the superblock, and
// the bytes that they take. What belongs to a process that has it open is left
// out, but for the note that it was not closed, with unclean.
func Content(path string, unclean bool) (names []string, total int64, err error) {
	err = filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == path {
			return err
		}
		name, err := filepath.Rel(path, p)
		if err != nil || !d.IsDir() && !d.Type().IsRegular() || name == superblockName || d.Name() == "LOCK" || name == holderName && !unclean {
			return err // sockets, and Badger's lock
		}
		names = append(names, name)
		if info, err := d.Info(); err == nil && !d.IsDir() {
			total += info.Sys().(*syscall.Stat_t).Blocks * 512
		}
		return nil
	})
	return names, total, err
}

// Dir is an open, locked store directory.
type Dir struct {
	Path  string
	Super *layout.Superblock
	// Unclean says that the last process that had the store open did not close
	// it.
	Unclean bool
	// Immutable says that this process may not write here: it was opened for
	// reading, from a read-only file system or without the permission.
	Immutable bool

	fs   vfs.FS
	lock vfs.File
}

// At is a folder that is to become a store, without its lock: WriteKeyring and
// WriteSuperblock are for it.
func At(fsys vfs.FS, path string) *Dir { return &Dir{Path: path, fs: fsys} }

// WriteSuperblock makes the folder a store, when everything in it is durable.
func (d *Dir) WriteSuperblock(super *layout.Superblock) error {
	f, err := d.fs.OpenFile(filepath.Join(d.Path, superblockName), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteAt(super.Encode(), 0); err != nil {
		return err
	}
	return errors.Join(f.Datasync(), d.fs.SyncDir(d.Path))
}

// Meta is the path of the Badger directory.
func (d *Dir) Meta() string { return filepath.Join(d.Path, metaName) }

// Volume is the path of a volume's segments.
func (d *Dir) Volume(v layout.VolumeID) string {
	return filepath.Join(d.Path, volumesName, v.String())
}

// Create makes a store's directory and takes its lock. The superblock is not
// written before Finish: until then the directory is not a store. The path
// must not exist (fs.ErrExist).
func Create(fsys vfs.FS, path, program string, super *layout.Superblock) (d *Dir, err error) {
	if err := fsys.Mkdir(path, 0o700); err != nil {
		return nil, err
	}
	d = &Dir{Path: path, Super: super, fs: fsys}
	for _, name := range []string{metaName, volumesName} {
		if err := fsys.Mkdir(filepath.Join(path, name), 0o700); err != nil {
			return nil, err
		}
	}
	d.lock, err = fsys.OpenFile(filepath.Join(path, superblockName), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	if err := d.hold(program); err != nil {
		d.lock.Close()
		return nil, err
	}
	return d, nil
}

// Finish makes the directory a store, after everything in it is durable.
func (d *Dir) Finish() error {
	if _, err := d.lock.WriteAt(d.Super.Encode(), 0); err != nil {
		return err
	}
	if err := d.lock.Datasync(); err != nil {
		return err
	}
	if err := d.fs.SyncDir(d.Path); err != nil {
		return err
	}
	return d.fs.SyncDir(filepath.Dir(filepath.Clean(d.Path)))
}

// Open opens a store's directory and takes its lock. To read it, no permission
// to write is needed.
func Open(fsys vfs.FS, path, program string, readOnly bool) (*Dir, error) {
	info, err := fsys.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("%s: %w", path, ErrNotStore)
	}
	f, err := fsys.OpenFile(filepath.Join(path, superblockName), os.O_RDWR, 0)
	immutable := readOnly && isForbidden(err)
	if immutable {
		f, err = fsys.OpenFile(filepath.Join(path, superblockName), os.O_RDONLY, 0)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", path, ErrNotStore)
	}
	if err != nil {
		return nil, err
	}
	d := &Dir{Path: path, Immutable: immutable, fs: fsys, lock: f}
	err = d.load(program)
	if err == nil {
		err = d.settle()
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return d, nil
}

// isForbidden says that a file may not be written, by whoever decides that.
func isForbidden(err error) bool {
	return errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EROFS)
}

// Is says whether a folder has what begins like a superblock. It takes no lock.
func Is(path string) bool {
	f, err := os.OpenFile(filepath.Join(path, superblockName), os.O_RDONLY|syscall.O_NONBLOCK, 0) // it may be a FIFO
	if err != nil {
		return false
	}
	defer f.Close()
	magic := make([]byte, len(layout.SuperblockMagic))
	_, err = io.ReadFull(f, magic)
	return err == nil && string(magic) == layout.SuperblockMagic
}

// settle makes durable that this is a store. A process that was killed while it
// made it, or copied it here, may have left that in the page cache only.
func (d *Dir) settle() error {
	if err := errors.Join(d.lock.Datasync(), d.fs.SyncDir(d.Path)); err != nil {
		return err
	}
	err := d.fs.SyncDir(filepath.Dir(filepath.Clean(d.Path)))
	if errors.Is(err, fs.ErrPermission) {
		return nil // who may not list the directory did not make the store
	}
	return err
}

func (d *Dir) load(program string) error {
	b := make([]byte, layout.SuperblockSize)
	n, err := d.lock.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if n == 0 {
		return fmt.Errorf("%s: %w: its creation was interrupted; remove it and create it again", d.Path, ErrNotStore)
	}
	if d.Super, err = layout.DecodeSuperblock(b[:n]); err != nil {
		return fmt.Errorf("%s: %w", d.Path, err)
	}
	return d.hold(program)
}

// hold takes the lock and leaves a note who has it.
func (d *Dir) hold(program string) error {
	note := filepath.Join(d.Path, holderName)
	if err := d.lock.TryLock(); err != nil {
		if !errors.Is(err, vfs.ErrLocked) {
			return err
		}
		return &BusyError{Path: d.Path, Holder: d.readHolder(note)}
	}
	_, err := d.fs.Stat(note)
	d.Unclean = err == nil
	if d.Immutable {
		return nil
	}
	text, err := json.Marshal(Holder{PID: os.Getpid(), Program: program, Since: time.Now().Truncate(time.Second)})
	if err != nil {
		return err
	}
	f, err := d.fs.OpenFile(note, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	// On a full disk the note stays empty; the lock is what counts.
	_, _ = f.WriteAt(text, 0)
	return nil
}

func (d *Dir) readHolder(note string) (h Holder) {
	f, err := d.fs.OpenFile(note, os.O_RDONLY, 0)
	if err != nil {
		return h
	}
	defer f.Close()
	b := make([]byte, 4096)
	n, _ := f.ReadAt(b, 0)
	if json.Unmarshal(b[:n], &h) != nil {
		return Holder{}
	}
	return h
}

// Close releases the lock. clean says that nothing needs recovery.
func (d *Dir) Close(clean bool) error {
	var err error
	if clean && !d.Immutable {
		err = d.fs.Remove(filepath.Join(d.Path, holderName))
	}
	return errors.Join(err, d.lock.Close())
}
