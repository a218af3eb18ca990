// Package faultfs is a file system for tests: the operating system's, below
// one directory, where operations fail, wait, tear and are forgotten by rule,
// where the disk fills up, and where everything done can be recorded as a
// [trace.Trace], from which the images of power cuts are made.
//
// Syncs cost nothing: no data is forced to the real disk.
package faultfs

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/fsximg/fsx/internal/vfs"
	"github.com/fsximg/fsx/internal/vfs/trace"
)

// Options configure an FS; the zero value is a plain one.
type Options struct {
	// Seed drives all chances.
	Seed uint64
	// TraceDir is an existing, empty directory for a trace; empty: none.
	TraceDir string
	// DropOnFailedSync makes data that a failed sync was to write vanish from
	// the file at once, as it does on Linux when the memory is needed.
	DropOnFailedSync bool
}

// FS implements vfs.FS below its root, with absolute or relative names that
// lie in the root. Other programs' changes below the root are served but not
// recorded. Safe for concurrent use.
type FS struct {
	*Injector
	Space *Space

	base  vfs.FS
	root  string
	drop  bool
	log   *trace.Writer // nil: not recording
	logAt string
	from  string // the copy of the root at the start; empty if it was empty

	mu     sync.Mutex // held across every change and its record
	tree   *trace.Tree
	inodes map[trace.ID]*inode
}

// inode is what all open files of one file share. Guarded by FS.mu.
type inode struct {
	id    trace.ID
	pages Pages
	clean map[int64][]byte // synced content of pages written since; with drop only
}

// New returns the file system of the existing directory root.
func New(root string, o Options) (*FS, error) {
	tree, paths, err := trace.ReadTree(root)
	if err != nil {
		return nil, err
	}
	f := &FS{Injector: NewInjector(o.Seed), Space: &Space{}, base: vfs.OS(), root: filepath.Clean(root),
		drop: o.DropOnFailedSync, tree: tree, inodes: map[trace.ID]*inode{}}
	for id, path := range paths {
		st, err := os.Stat(filepath.Join(root, path))
		if err != nil {
			return nil, err
		}
		if st.Mode().IsRegular() {
			f.inodes[id] = &inode{id: id}
			f.Space.Take(&f.inodes[id].pages, 0, st.Size())
		}
	}
	if o.TraceDir == "" {
		return f, nil
	}
	if len(paths) > 0 {
		f.from = filepath.Join(o.TraceDir, "base")
		if err := trace.CopyTree(f.from, root); err != nil {
			return nil, err
		}
	}
	f.logAt = o.TraceDir
	f.log, err = trace.NewWriter(o.TraceDir)
	return f, err
}

// Mark notes the text in the trace.
func (f *FS) Mark(text string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.record(trace.Op{Kind: trace.Mark, Text: text}, nil)
}

// Trace returns what was recorded so far.
func (f *FS) Trace() (*trace.Trace, error) {
	if f.log == nil {
		return nil, errors.New("faultfs: not recording")
	}
	n, err := f.log.Flush()
	if err != nil {
		return nil, err
	}
	return trace.Load(f.logAt, f.from, n)
}

func (f *FS) record(op trace.Op, data []byte) error {
	if f.log == nil {
		return nil
	}
	_, err := f.log.Append(op, data)
	return err
}

// begin waits and fails as the rules say.
func (f *FS) begin(op Op, name string) (Verdict, error) {
	v := f.Decide(op, f.rel(name))
	time.Sleep(v.Delay)
	if v.Err != 0 {
		return v, &fs.PathError{Op: string(op), Path: name, Err: v.Err}
	}
	return v, nil
}

// rel is the path below the root, with slashes; "." is the root.
func (f *FS) rel(name string) string {
	rel, err := filepath.Rel(f.root, filepath.Clean(name))
	if err != nil {
		return name
	}
	return filepath.ToSlash(rel)
}

// entry returns the directory that holds the name, its last element, and what
// it is (nil: nothing known).
func (f *FS) entry(name string) (dir trace.ID, last string, node *trace.Node) {
	rel := f.rel(name)
	node = f.tree.Node(trace.Root)
	if rel == "." {
		return 0, "", node
	}
	parts := strings.Split(rel, "/")
	for i, part := range parts {
		if node == nil || !node.IsDir() {
			return 0, "", nil
		}
		dir, last = node.ID, part
		node = f.tree.Lookup(dir, part)
		if node == nil && i < len(parts)-1 {
			return 0, "", nil
		}
	}
	return dir, last, node
}

func (f *FS) OpenFile(name string, flag int, perm os.FileMode) (vfs.File, error) {
	f.mu.Lock()
	_, _, node := f.entry(name)
	f.mu.Unlock()
	op := Open
	if node == nil && flag&os.O_CREATE != 0 {
		op = Create
	}
	if _, err := f.begin(op, name); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	file, err := f.base.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	dir, last, node := f.entry(name)
	switch {
	case node == nil && dir != 0:
		node, err = f.created(dir, last, name)
	case node != nil && node.IsFile() && flag&os.O_TRUNC != 0:
		f.Space.Give(&f.inodes[node.ID].pages, 0, -1)
		err = f.record(trace.Op{Kind: trace.Truncate, File: node.ID}, nil)
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	h := &handle{File: file, fs: f, name: name}
	if node != nil {
		h.inode = f.inodes[node.ID]
	}
	if h.inode == nil { // outside the root, or made by another program
		h.inode = &inode{}
	}
	return h, nil
}

// created takes a new file or directory into the tree and the trace.
func (f *FS) created(dir trace.ID, last, name string) (*trace.Node, error) {
	var st syscall.Stat_t
	if err := syscall.Lstat(name, &st); err != nil {
		return nil, &fs.PathError{Op: "lstat", Path: name, Err: err}
	}
	op := trace.Op{Kind: trace.Create, File: f.tree.NewID(), Dir: dir, Name: last, Mode: st.Mode}
	f.tree.Apply(&op)
	node := f.tree.Node(op.File)
	if node.IsFile() {
		f.inodes[op.File] = &inode{id: op.File}
	}
	return node, f.record(op, nil)
}

func (f *FS) Mkdir(name string, perm os.FileMode) error {
	if _, err := f.begin(Mkdir, name); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.base.Mkdir(name, perm); err != nil {
		return err
	}
	dir, last, _ := f.entry(name)
	if dir == 0 {
		return nil
	}
	_, err := f.created(dir, last, name)
	return err
}

func (f *FS) Remove(name string) error {
	if _, err := f.begin(Remove, name); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.base.Remove(name); err != nil {
		return err
	}
	dir, last, node := f.entry(name)
	if node == nil {
		return nil
	}
	op := trace.Op{Kind: trace.Unlink, File: node.ID, Dir: dir, Name: last}
	f.tree.Apply(&op)
	f.release(node.ID)
	return f.record(op, nil)
}

// release gives back the space of a file without a name. (Linux waits for the
// last open descriptor; a test that needs this must not hold one.)
func (f *FS) release(id trace.ID) {
	if ino := f.inodes[id]; ino != nil && f.tree.Node(id).Links == 0 {
		f.Space.Give(&ino.pages, 0, -1)
	}
}

func (f *FS) Rename(oldname, newname string) error {
	if _, err := f.begin(Rename, oldname); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.base.Rename(oldname, newname); err != nil {
		return err
	}
	dir, last, node := f.entry(oldname)
	dir2, last2, over := f.entry(newname)
	if node == nil || dir2 == 0 || over == node {
		return nil
	}
	op := trace.Op{Kind: trace.Rename, File: node.ID, Dir: dir, Name: last, Dir2: dir2, Name2: last2}
	if over != nil {
		op.Over = over.ID
	}
	f.tree.Apply(&op)
	if over != nil {
		f.release(over.ID)
	}
	return f.record(op, nil)
}

func (f *FS) ReadDir(name string) ([]string, error) {
	if _, err := f.begin(ReadDir, name); err != nil {
		return nil, err
	}
	return f.base.ReadDir(name)
}

func (f *FS) Stat(name string) (os.FileInfo, error) {
	if _, err := f.begin(Stat, name); err != nil {
		return nil, err
	}
	return f.base.Stat(name)
}

func (f *FS) Free(name string) (int64, error) {
	if _, err := f.begin(Free, name); err != nil {
		return 0, err
	}
	n, err := f.base.Free(name)
	if left, limited := f.Space.Free(); err == nil && limited {
		n = min(n, left)
	}
	return n, err
}

func (f *FS) SyncDir(name string) error {
	v, err := f.begin(SyncDir, name)
	f.mu.Lock()
	defer f.mu.Unlock()
	_, _, node := f.entry(name)
	if _, serr := os.Stat(name); serr != nil && err == nil {
		return serr
	}
	if node == nil {
		return err
	}
	return errors.Join(err, f.record(trace.Op{Kind: syncKind(v, trace.Sync), File: node.ID, Err: v.Err}, nil))
}

// syncKind is what a sync becomes under a verdict.
func syncKind(v Verdict, k trace.Kind) trace.Kind {
	switch {
	case v.Err != 0:
		return trace.SyncLost
	case v.Ignore:
		return trace.SyncIgnored
	}
	return k
}
