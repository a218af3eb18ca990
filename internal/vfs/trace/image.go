package trace

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// CrashImage makes dir, which must not exist or be empty, the recorded
// directory as it may be after a power cut before the operation at index cut
// (0 to len(Ops)). The same cut, seed and policy give the same image.
//
// Going through the cuts in ascending order is cheap: the durable state is
// carried along. Another order, or a change of Policy.Journaled, is correct and
// starts over.
func (t *Trace) CrashImage(dir string, cut int, seed uint64, p Policy) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if cut < 0 || cut > len(t.Ops) {
		return fmt.Errorf("cut %d of %d: %w", cut, len(t.Ops), fs.ErrInvalid)
	}
	if t.im != nil && (t.im.at > cut || t.im.journaled != p.Journaled) {
		if err := t.im.close(); err != nil {
			return err
		}
		t.im = nil
	}
	if t.im == nil {
		im, err := newImager(t, p.Journaled)
		if err != nil {
			return err
		}
		t.im = im
	}
	for t.im.at < cut {
		if err := t.im.advance(); err != nil {
			return fmt.Errorf("replay operation %d: %w", t.im.at, err)
		}
	}
	return t.im.image(dir, seed, p)
}

// imager holds what is durable after the operations before at, and the
// operations that are not. Unsynced files are objects in a flat directory.
type imager struct {
	t         *Trace
	journaled string // see Policy
	dir       string
	at        int
	durable   *Tree         // durable entries; also has the nodes without one
	names     []*Op         // changes of entries that are not durable, in order
	files     map[ID]*state // what is in each regular file
	where     map[ID]entry  // the program's last name for each node
}

// state is the durable content of a file and the changes since.
type state struct {
	source  string // where the durable content is; empty for none
	own     bool   // source is an object of the imager, and not of the base
	size    int64
	mode    uint32
	pending []change
}

type change struct {
	op *Op
	// lost: a failed sync has covered it; later syncs do not write its data.
	lost bool
}

func newImager(t *Trace, journaled string) (*imager, error) {
	dir, err := os.MkdirTemp(filepath.Dir(t.data.Name()), "durable")
	if err != nil {
		return nil, err
	}
	im := &imager{t: t, journaled: journaled, dir: dir, durable: NewTree(), files: map[ID]*state{}, where: map[ID]entry{}}
	if t.Base == "" {
		return im, nil
	}
	tree, paths, err := ReadTree(t.Base)
	if err != nil {
		return nil, err
	}
	im.durable = tree
	tree.noteNames(im.where)
	for id, path := range paths {
		if n := tree.Node(id); n.IsFile() {
			name := filepath.Join(t.Base, path)
			st, err := os.Stat(name)
			if err != nil {
				return nil, err
			}
			im.files[id] = &state{source: name, size: st.Size(), mode: n.Mode & 0o7777}
		}
	}
	return im, nil
}

func (im *imager) close() error { return os.RemoveAll(im.dir) }

// advance takes in the next operation.
func (im *imager) advance() error {
	op := &im.t.Ops[im.at]
	im.at++
	if op.Err != 0 && op.Kind != SyncLost {
		return nil
	}
	switch {
	case op.changesNames():
		if op.Kind == Create {
			im.durable.AddNode(op)
			if im.durable.Node(op.File).IsFile() {
				im.files[op.File] = &state{mode: op.Mode & 0o7777}
			}
		}
		im.names = append(im.names, op)
		noteName(im.where, op)
	case op.changesFile():
		if f := im.files[op.File]; f != nil {
			f.pending = append(f.pending, change{op: op})
		} else if n := im.durable.Node(op.File); n != nil && op.Kind == Chmod {
			n.Mode = n.Mode&^0o7777 | op.Mode&0o7777
		}
	case op.Kind == SyncLost:
		if f := im.files[op.File]; f != nil {
			for i := range f.pending {
				f.pending[i].lost = true
			}
		}
	case op.Kind == Sync || op.Kind == Datasync:
		return im.sync(op.File)
	}
	return nil
}

func (im *imager) sync(id ID) error {
	if n := im.durable.Node(id); n != nil && n.IsDir() {
		im.syncNames(func(op *Op) bool { return op.Dir == id || op.Kind == Rename && op.Dir2 == id })
		return nil
	}
	if at, ok := im.where[id]; ok && im.journaled != "" && (im.journaled == "*" || im.where[at.dir].name == im.journaled) {
		im.syncNames(func(op *Op) bool { return op.Dir == at.dir || op.Kind == Rename && op.Dir2 == at.dir })
	}
	f := im.files[id]
	if f == nil || len(f.pending) == 0 {
		return nil
	}
	obj, err := im.object(id, f)
	if err != nil {
		return err
	}
	defer obj.Close()
	keep := fates{data: All}
	f.size, f.mode, err = im.replay(obj, f, &keep)
	f.pending = nil
	return err
}

// object opens the file's own object, making it if there is none yet.
func (im *imager) object(id ID, f *state) (*os.File, error) {
	if f.own {
		return os.OpenFile(f.source, os.O_RDWR, 0)
	}
	name := filepath.Join(im.dir, strconv.FormatUint(uint64(id), 10))
	obj, err := copySparse(name, f.source)
	if err == nil {
		f.source, f.own = name, true
	}
	return obj, err
}

// syncNames makes the chosen changes of entries durable, and with each the
// earlier changes of the directories it touches: one directory's changes reach
// the disk in their order, and a rename reaches it in both directories.
func (im *imager) syncNames(chosen func(*Op) bool) {
	dirs := map[ID]bool{}
	keep := make([]bool, len(im.names))
	for i := len(im.names) - 1; i >= 0; i-- {
		op := im.names[i]
		if keep[i] = chosen(op) || dirs[op.Dir] || dirs[op.Dir2]; keep[i] {
			dirs[op.Dir] = true
			if op.Kind == Rename {
				dirs[op.Dir2] = true
			}
		}
	}
	var rest []*Op
	for i, op := range im.names {
		if keep[i] {
			im.durable.Apply(op)
		} else {
			rest = append(rest, op)
		}
	}
	im.names = rest
	im.forget()
}

// forget drops the content of files that no durable or pending entry names.
func (im *imager) forget() {
	named := map[ID]bool{}
	for _, op := range im.names {
		named[op.File], named[op.Over] = true, true
	}
	for id, f := range im.files {
		if im.durable.Node(id).Links == 0 && !named[id] {
			if f.own {
				os.Remove(f.source)
			}
			delete(im.files, id)
		}
	}
}

// image makes dir what survived.
func (im *imager) image(dir string, seed uint64, p Policy) error {
	rng := func(id ID) *rand.Rand { return rand.New(rand.NewPCG(seed, uint64(im.at)<<32|uint64(id))) }
	tree := im.durable
	if len(im.names) > 0 && p.Names != None {
		tree = tree.Clone()
		for _, op := range survivingNames(im.names, rng(0), p.Names) {
			tree.Apply(op)
		}
	}
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	first := map[ID]string{}
	return tree.Walk(func(path string, n *Node) error {
		path = filepath.Join(dir, path)
		switch {
		case n.IsDir():
			return os.Mkdir(path, os.FileMode(n.Mode&0o777))
		case first[n.ID] != "":
			return os.Link(first[n.ID], path)
		case n.IsFile():
			first[n.ID] = path
			keep := newFates(rng(n.ID), p.Data)
			return im.file(path, im.files[n.ID], &keep)
		}
		first[n.ID] = path
		return unix.Mknod(path, n.Mode, 0)
	})
}

func (im *imager) file(path string, f *state, keep *fates) error {
	out, err := copySparse(path, f.source)
	if err != nil {
		return err
	}
	mode := f.mode
	if len(f.pending) > 0 && keep.data != None {
		_, mode, err = im.replay(out, f, keep)
	}
	if err == nil && mode&0o777 != 0o600 {
		err = out.Chmod(os.FileMode(mode & 0o777))
	}
	return errors.Join(err, out.Close())
}

// survivingNames chooses among changes of entries, keeping their order.
func survivingNames(names []*Op, rng *rand.Rand, s Survival) []*Op {
	switch s {
	case All:
		return names
	case Torn:
		return anySubset(names, rng)
	}
	count := map[ID]int{}
	for _, op := range names {
		for _, d := range op.dirs() {
			count[d]++
		}
	}
	left := map[ID]int{} // how many more changes of a directory survive
	keep := fates{rng: rng, data: Some}
	var kept []*Op
	for _, op := range names {
		ok := true
		for _, d := range op.dirs() {
			if _, known := left[d]; !known {
				left[d] = keep.prefix(count[d])
			}
			ok = ok && left[d] > 0
		}
		for _, d := range op.dirs() {
			if left[d]--; !ok {
				left[d] = 0 // a change that did not survive ends the prefix in all its directories
			}
		}
		if ok {
			kept = append(kept, op)
		}
	}
	return kept
}

// anySubset keeps any changes, and with each the earlier ones about the same
// file, since the file's own record of its names is written as one.
func anySubset(names []*Op, rng *rand.Rand) []*Op {
	keep := make([]bool, len(names))
	files := map[ID]bool{}
	share := rng.Float64()
	for i := len(names) - 1; i >= 0; i-- {
		op := names[i]
		over := op.Over != 0 && files[op.Over]
		if keep[i] = rng.Float64() < share || files[op.File] || over; keep[i] {
			files[op.File] = true
			if op.Over != 0 {
				files[op.Over] = true
			}
		}
	}
	var kept []*Op
	for i, op := range names {
		if keep[i] {
			kept = append(kept, op)
		}
	}
	return kept
}

// dirs are the directories whose entries op changes.
func (op *Op) dirs() []ID {
	if op.Kind == Rename && op.Dir2 != op.Dir {
		return []ID{op.Dir, op.Dir2}
	}
	return []ID{op.Dir}
}
