package trace

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"syscall"
)

// Node is a file, directory or socket. Entries is nil but for directories.
type Node struct {
	ID      ID
	Mode    uint32 // st_mode with the type bits
	Links   int    // names that refer to it; the root has one
	Entries map[string]ID
}

// IsDir reports whether n is a directory.
func (n *Node) IsDir() bool { return n.Mode&syscall.S_IFMT == syscall.S_IFDIR }

// IsFile reports whether n is a regular file.
func (n *Node) IsFile() bool { return n.Mode&syscall.S_IFMT == syscall.S_IFREG }

// Tree is a name space: nodes and the entries that name them. Nodes whose last
// name is gone stay. Not safe for concurrent use.
type Tree struct {
	nodes map[ID]*Node
	next  ID
}

// NewTree returns a tree with an empty root.
func NewTree() *Tree {
	t := &Tree{nodes: map[ID]*Node{}, next: Root}
	t.nodes[Root] = &Node{ID: Root, Mode: syscall.S_IFDIR | 0o755, Links: 1, Entries: map[string]ID{}}
	t.next++
	return t
}

// ReadTree returns the tree of the directory dir, numbered in a fixed order,
// and where each node other than the root is, relative to dir. Only files,
// directories and sockets count.
func ReadTree(dir string) (*Tree, map[ID]string, error) {
	t, paths := NewTree(), map[ID]string{}
	inodes := map[[2]uint64]ID{}
	return t, paths, t.read(Root, dir, "", paths, inodes)
}

func (t *Tree) read(parent ID, dir, rel string, paths map[ID]string, inodes map[[2]uint64]ID) error {
	entries, err := os.ReadDir(filepath.Join(dir, rel))
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(rel, e.Name())
		var st syscall.Stat_t
		if err := syscall.Lstat(filepath.Join(dir, path), &st); err != nil {
			return &os.PathError{Op: "lstat", Path: path, Err: err}
		}
		key := [2]uint64{uint64(st.Dev), st.Ino}
		if id, ok := inodes[key]; ok {
			t.Apply(&Op{Kind: Link, File: id, Dir: parent, Name: e.Name()})
			continue
		}
		id := t.NewID()
		t.Apply(&Op{Kind: Create, File: id, Dir: parent, Name: e.Name(), Mode: st.Mode})
		paths[id] = path
		if t.nodes[id].IsDir() {
			if err := t.read(id, dir, path, paths, inodes); err != nil {
				return err
			}
		} else {
			inodes[key] = id
		}
	}
	return nil
}

// NewID returns an ID that was never used.
func (t *Tree) NewID() ID {
	t.next++
	return t.next - 1
}

// Node returns the node, or nil.
func (t *Tree) Node(id ID) *Node { return t.nodes[id] }

// Lookup returns what dir/name is, or nil.
func (t *Tree) Lookup(dir ID, name string) *Node {
	if d := t.nodes[dir]; d != nil {
		return t.nodes[d.Entries[name]]
	}
	return nil
}

// AddNode makes the node that a Create makes, without a name.
func (t *Tree) AddNode(op *Op) {
	n := &Node{ID: op.File, Mode: op.Mode}
	if n.IsDir() {
		n.Entries = map[string]ID{}
	}
	t.nodes[n.ID] = n
	t.next = max(t.next, n.ID+1)
}

// Apply changes the entries as op did. It does not check: a name that is
// already taken is replaced, and one that names something else by now stays.
func (t *Tree) Apply(op *Op) {
	switch op.Kind {
	case Create:
		if t.nodes[op.File] == nil {
			t.AddNode(op)
		}
		t.set(op.Dir, op.Name, op.File)
	case Link:
		t.set(op.Dir, op.Name, op.File)
	case Unlink:
		t.unset(op.Dir, op.Name, op.File)
	case Rename:
		t.unset(op.Dir, op.Name, op.File)
		t.set(op.Dir2, op.Name2, op.File)
	}
}

func (t *Tree) set(dir ID, name string, id ID) {
	entries := t.nodes[dir].Entries
	if old, ok := entries[name]; ok {
		t.nodes[old].Links--
	}
	entries[name] = id
	t.nodes[id].Links++
}

func (t *Tree) unset(dir ID, name string, id ID) {
	if entries := t.nodes[dir].Entries; entries[name] == id {
		delete(entries, name)
		t.nodes[id].Links--
	}
}

// Clone returns a deep copy.
func (t *Tree) Clone() *Tree {
	c := &Tree{nodes: make(map[ID]*Node, len(t.nodes)), next: t.next}
	for id, n := range t.nodes {
		m := *n
		m.Entries = maps.Clone(n.Entries)
		c.nodes[id] = &m
	}
	return c
}

// Walk calls visit for everything below the root, directories before what is
// in them, in the order of names.
func (t *Tree) Walk(visit func(path string, n *Node) error) error {
	return t.walk(t.nodes[Root], "", visit)
}

func (t *Tree) walk(dir *Node, rel string, visit func(string, *Node) error) error {
	for _, name := range slices.Sorted(maps.Keys(dir.Entries)) {
		n, path := t.nodes[dir.Entries[name]], filepath.Join(rel, name)
		if err := visit(path, n); err != nil {
			return err
		}
		if n.IsDir() {
			if err := t.walk(n, path, visit); err != nil {
				return err
			}
		}
	}
	return nil
}

// entry is a name that a node has or had.
type entry struct {
	dir  ID
	name string
}

// noteNames adds a name of each node.
func (t *Tree) noteNames(where map[ID]entry) {
	for id, n := range t.nodes {
		for name, child := range n.Entries {
			where[child] = entry{id, name}
		}
	}
}

// noteName adds the name that op gives.
func noteName(where map[ID]entry, op *Op) {
	switch op.Kind {
	case Create, Link:
		where[op.File] = entry{op.Dir, op.Name}
	case Rename:
		where[op.File] = entry{op.Dir2, op.Name2}
	}
}
