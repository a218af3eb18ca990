package crash

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/fsximg/fsx/internal/vfs/faultfs"
	"github.com/fsximg/fsx/internal/vfs/trace"
)

const (
	// controlName is a file in the root that is not listed: each write to it
	// is a command.
	controlName = ".crash-control"
	controlID   = trace.ID(1) << 60
	countFile   = "count" // how many operations the trace has
)

// command is what a write to the control file says.
type command struct {
	Mark   string        `json:",omitempty"`
	Arm    *faultfs.Rule `json:",omitempty"`
	Disarm bool          `json:",omitempty"`
	Free   *int64        `json:",omitempty"`
	Flush  bool          `json:",omitempty"`
}

func control(dir string, c command) error {
	data, err := json.Marshal(c)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(dir, controlName), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.Write(data)
	return err
}

// command obeys a write to the control file.
func (s *server) command(data []byte) fuse.Status {
	var c command
	if err := json.Unmarshal(data, &c); err != nil {
		return fuse.EINVAL
	}
	if c.Mark != "" {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.record(trace.Op{Kind: trace.Mark, Text: c.Mark}, nil)
	}
	if c.Arm != nil {
		s.Arm(*c.Arm)
	}
	if c.Disarm {
		s.DisarmAll()
	}
	if c.Free != nil {
		s.space.SetFree(*c.Free)
	}
	if c.Flush {
		return fuse.ToStatus(s.flush())
	}
	return fuse.OK
}

// flush makes the trace so far readable.
func (s *server) flush() error {
	n, err := s.log.Flush()
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(s.work, countFile), []byte(strconv.Itoa(n)), 0o600)
}
