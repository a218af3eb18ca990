// Package trust is a file outside of all stores that says what is known about them:
// which volume keys their user has accepted, and how far their volumes had got. Who
// can write a store cannot write this file, and so can neither slip in a key of his
// own unseen, nor put an old copy in its place.
package trust

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
)

// Version of the file's format.
const Version = 1

// maxFile bounds what is read, in bytes.
const maxFile = 16 << 20

// ErrFormat says that a file is not a trust file of this version.
var ErrFormat = errors.New("not a trust file of this version")

// File is a trust file. It need not exist. Methods may be called concurrently, also by
// several processes.
type File struct{ path string }

// At is the trust file at a path.
func At(path string) *File { return &File{path} }

// Path is where the file is, or would be.
func (f *File) Path() string { return f.path }

// Default is where the trust file of this user is: of root in /var/lib/fsx, of others
// in $XDG_STATE_HOME/fsx or ~/.local/state/fsx; empty if there is no such place.
func Default(getenv func(string) string, uid int) string {
	if uid == 0 {
		return "/var/lib/fsx/trust.json"
	}
	dir := getenv("XDG_STATE_HOME")
	if !filepath.IsAbs(dir) { // as the specification of base directories wants it
		if !filepath.IsAbs(getenv("HOME")) {
			return ""
		}
		dir = filepath.Join(getenv("HOME"), ".local", "state")
	}
	return filepath.Join(dir, "fsx", "trust.json")
}

// Store is what is known about a store.
type Store struct {
	// VolumeKeys are the identifiers of those that were accepted, sorted.
	VolumeKeys []string `json:"volume_keys"`
	// Epochs are the greatest numbers of heads that were seen, by volume UUID.
	Epochs map[string]uint64 `json:"epochs"`
	// Gone are identifiers of volume keys that were replaced, sorted: they are
	// accepted no more.
	Gone []string `json:"gone,omitempty"`
}

// Trusts says whether a volume key was accepted.
func (s *Store) Trusts(key string) bool { return slices.Contains(s.VolumeKeys, key) }

// content is the whole file.
type content struct {
	Version int               `json:"version"`
	Stores  map[string]*Store `json:"stores"` // by UUID
}

// Store is what is known about a store; nothing of one that the file does not have.
func (f *File) Store(uuid string) (Store, error) {
	c, err := f.read()
	if err != nil {
		return Store{}, err
	}
	if s := c.Stores[uuid]; s != nil {
		return *s, nil
	}
	return Store{}, nil
}

// Record is what is to be remembered of a store.
type Record struct {
	Store      string
	VolumeKeys []string
	Epochs     map[string]uint64
	Gone       []string // volume keys that are accepted no more
	// Accept takes volume keys that are gone, too.
	Accept bool
	// Lower accepts epochs that are less than those that were seen.
	Lower bool
}

// Remember adds a record to the file, which it makes if need be. Nothing is written
// if the file has it all. The file is replaced in one step.
func (f *File) Remember(r Record) error {
	if c, err := f.read(); err != nil || !c.add(r) {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(f.path), 0o700); err != nil {
		return fmt.Errorf("trust file: %w", err)
	}
	release, err := f.lock()
	if err != nil {
		return fmt.Errorf("trust file: %w", err)
	}
	defer release()
	c, err := f.read() // what others have written meanwhile
	if err != nil || !c.add(r) {
		return err
	}
	if err := f.replace(c); err != nil {
		return fmt.Errorf("trust file %s: %w", f.path, err)
	}
	return nil
}

// add says whether the record has anything new.
func (c *content) add(r Record) (changed bool) {
	s := c.Stores[r.Store]
	if s == nil {
		s = &Store{VolumeKeys: []string{}, Epochs: map[string]uint64{}}
	}
	if s.Epochs == nil {
		s.Epochs = map[string]uint64{}
	}
	for _, k := range r.Gone {
		if i, found := slices.BinarySearch(s.Gone, k); !found {
			s.Gone = slices.Insert(s.Gone, i, k)
			changed = true
		}
		if i, found := slices.BinarySearch(s.VolumeKeys, k); found {
			s.VolumeKeys = slices.Delete(s.VolumeKeys, i, i+1)
			changed = true
		}
	}
	for _, k := range r.VolumeKeys {
		i, gone := slices.BinarySearch(s.Gone, k)
		if gone && !r.Accept {
			continue
		}
		if gone {
			s.Gone = slices.Delete(s.Gone, i, i+1)
			changed = true
		}
		if i, found := slices.BinarySearch(s.VolumeKeys, k); !found {
			s.VolumeKeys = slices.Insert(s.VolumeKeys, i, k)
			changed = true
		}
	}
	for v, n := range r.Epochs {
		if old, found := s.Epochs[v]; !found || n > old || n < old && r.Lower {
			s.Epochs[v] = n
			changed = true
		}
	}
	if changed {
		c.Stores[r.Store] = s
	}
	return changed
}

func (f *File) read() (*content, error) {
	c := &content{Version: Version, Stores: map[string]*Store{}}
	file, err := os.Open(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	if err != nil {
		return nil, fmt.Errorf("trust file: %w", err)
	}
	defer file.Close()
	b, err := io.ReadAll(io.LimitReader(file, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("trust file: %w", err)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	c = &content{}
	if err := d.Decode(c); err != nil || len(b) > maxFile || c.Version != Version || c.Stores == nil {
		return nil, fmt.Errorf("%s: %w", f.path, ErrFormat)
	}
	for _, s := range c.Stores {
		if s == nil {
			return nil, fmt.Errorf("%s: %w", f.path, ErrFormat)
		}
		slices.Sort(s.VolumeKeys)
		slices.Sort(s.Gone)
	}
	return c, nil
}

// lock waits for other writers. The lock is a file of its own, since the trust file
// is replaced.
func (f *File) lock() (release func(), err error) {
	l, err := os.OpenFile(f.path+".lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err = syscall.Flock(int(l.Fd()), syscall.LOCK_EX)
		if !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	if err != nil {
		l.Close()
		return nil, err
	}
	return func() { l.Close() }, nil
}

// replace writes a new file, durably, and puts it in the place of the old one.
func (f *File) replace(c *content) error {
	b, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return err
	}
	tmp := f.path + ".new" // the lock is held
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	file, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = file.Write(append(b, '\n'))
	if err = errors.Join(err, file.Sync(), file.Close()); err == nil {
		err = os.Rename(tmp, f.path)
	}
	if err != nil {
		os.Remove(tmp)
		return err
	}
	dir, err := os.Open(filepath.Dir(f.path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
