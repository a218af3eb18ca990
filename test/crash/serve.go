package crash

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/fsximg/fsx/internal/vfs/faultfs"
	"github.com/fsximg/fsx/internal/vfs/trace"
)

const (
	childEnv  = "FSX_CRASH_RECORDER" // the configuration of a recorder process
	readyLine = "ready\n"
)

type childConfig struct {
	Work, Base string
	Seed       uint64
}

// serve mounts and records until its standard input ends.
func serve(conf []byte) error {
	var c childConfig
	if err := json.Unmarshal(conf, &c); err != nil {
		return err
	}
	s, err := newServer(c)
	if err != nil {
		return err
	}
	fsrv, err := fuse.NewServer(s, filepath.Join(c.Work, "mnt"), &fuse.MountOptions{
		FsName: "crash", Name: "crash", DirectMount: true, DisableXAttrs: true, DisableReadDirPlus: true,
		// Nobody else changes the files, so what the kernel has cached stays valid.
		ExplicitDataCacheControl: true,
		MaxWrite:                 1 << 20,
	})
	if err != nil {
		return err
	}
	go fsrv.Serve()
	if err := fsrv.WaitMount(); err != nil {
		return err
	}
	fmt.Print(readyLine)
	io.Copy(io.Discard, os.Stdin)
	err = unmount(fsrv)
	if err == nil {
		fsrv.Wait()
	}
	return errors.Join(err, s.flush(), s.log.Close())
}

// unmount tries for a while: a killed process may still hold a file.
func unmount(fsrv *fuse.Server) error {
	for deadline := time.Now().Add(3 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		err := fsrv.Unmount()
		if err == nil || time.Now().After(deadline) {
			return err
		}
	}
}

// server is the file system: a name space in memory over one flat directory of
// objects, which hold what is in the files.
type server struct {
	fuse.RawFileSystem // ENOSYS for what is not here
	*faultfs.Injector

	work  string
	space faultfs.Space
	log   *trace.Writer
	since time.Time

	mu    sync.Mutex // held across every change and its record
	tree  *trace.Tree
	files map[trace.ID]*object
	names map[trace.ID]name
}

// object is what is in a regular file.
type object struct {
	*os.File
	pages faultfs.Pages
	opens int
}

// name is where a node was last.
type name struct {
	dir  trace.ID
	last string
}

func newServer(c childConfig) (*server, error) {
	s := &server{RawFileSystem: fuse.NewDefaultRawFileSystem(), Injector: faultfs.NewInjector(c.Seed), work: c.Work,
		since: time.Now(), tree: trace.NewTree(), files: map[trace.ID]*object{}, names: map[trace.ID]name{}}
	if err := os.Mkdir(filepath.Join(c.Work, "objects"), 0o700); err != nil {
		return nil, err
	}
	if c.Base != "" {
		if err := s.load(c.Base); err != nil {
			return nil, err
		}
	}
	log, err := trace.NewWriter(c.Work)
	s.log = log
	return s, err
}

// load takes in the base directory.
func (s *server) load(base string) error {
	tree, paths, err := trace.ReadTree(base)
	if err != nil {
		return err
	}
	s.tree = tree
	for id, path := range paths {
		s.names[id] = name{trace.Root, path}
		if !tree.Node(id).IsFile() {
			continue
		}
		if err := trace.CopyFile(s.objectPath(id), filepath.Join(base, path)); err != nil {
			return err
		}
		if err := s.open(id, os.O_RDWR); err != nil {
			return err
		}
		st, err := s.files[id].Stat()
		if err != nil {
			return err
		}
		s.space.Take(&s.files[id].pages, 0, st.Size())
	}
	return nil
}

func (s *server) objectPath(id trace.ID) string {
	return filepath.Join(s.work, "objects", strconv.FormatUint(uint64(id), 10))
}

func (s *server) open(id trace.ID, flag int) error {
	f, err := os.OpenFile(s.objectPath(id), flag, 0o600)
	if err == nil {
		s.files[id] = &object{File: f}
	}
	return err
}

// drop ends a file that has neither names nor users. Needs mu.
func (s *server) drop(id trace.ID) {
	if f := s.files[id]; f != nil && f.opens == 0 && s.tree.Node(id).Links == 0 {
		s.space.Give(&f.pages, 0, -1)
		f.Close()
		os.Remove(s.objectPath(id))
		delete(s.files, id)
	}
}

// record appends to the trace. Needs mu.
func (s *server) record(op trace.Op, data []byte) fuse.Status {
	_, err := s.log.Append(op, data)
	return fuse.ToStatus(err)
}

// path is the node's path below the root, for rules. Needs mu.
func (s *server) path(id trace.ID, last ...string) string {
	var parts []string
	for at := id; at != trace.Root; {
		n, ok := s.names[at]
		if !ok {
			break
		}
		parts = append([]string{n.last}, parts...)
		at = n.dir
	}
	return filepath.Join(append(parts, last...)...)
}

// decide waits as the rules say, and returns what else they say.
func (s *server) decide(op faultfs.Op, id uint64, last ...string) (faultfs.Verdict, fuse.Status) {
	s.mu.Lock()
	path := s.path(trace.ID(id), last...)
	s.mu.Unlock()
	v := s.Decide(op, path)
	time.Sleep(v.Delay)
	return v, fuse.Status(v.Err)
}
