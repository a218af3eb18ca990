package control

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"sync"
	"time"
)

// reply writes the lines of an answer. Its methods may be called concurrently.
//
// Items are kept until the operation is done: it may hold locks that a client
// that reads slowly would hold, too.
type reply struct {
	w      http.ResponseWriter
	cancel func() // of the operation, when nobody reads the answer

	mu    sync.Mutex
	begun bool
	told  time.Time // the last progress
	err   error     // of a write
	kept  spool
}

// progress tells how far the operation has come, now and then.
func (r *reply) progress(done, total int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now := time.Now(); now.Sub(r.told) >= progressEvery {
		r.told = now
		r.writeLocked(line{Progress: &progressLine{done, total}})
	}
}

// item adds an item to the answer.
func (r *reply) item(v any) error {
	b, err := json.Marshal(v)
	if err == nil {
		b, err = json.Marshal(line{Item: b})
	}
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.kept.add(append(b, '\n'))
}

// end writes the items and the last line.
func (r *reply) end(result any, failure *Failure) {
	r.mu.Lock()
	defer r.mu.Unlock()
	defer r.kept.close()
	last := line{Error: failure}
	if failure == nil {
		b, err := json.Marshal(result)
		if err == nil {
			err = r.kept.each(r.writeBytesLocked)
		}
		if err != nil {
			failure = &Failure{Kind: kindFailed, Message: err.Error()}
			last.Error = failure
		} else {
			last.Result = b
		}
	}
	if failure != nil && !r.begun {
		r.w.WriteHeader(failure.status())
	}
	r.writeLocked(last)
}

func (r *reply) writeLocked(l line) {
	if b, err := json.Marshal(l); err == nil {
		_ = r.writeBytesLocked(append(b, '\n'))
	}
}

// writeBytesLocked sends bytes now. After an error the operation is cancelled, and
// nothing more is sent.
func (r *reply) writeBytesLocked(b []byte) error {
	if r.err != nil {
		return r.err
	}
	r.begun = true
	c := http.NewResponseController(r.w)
	err := c.SetWriteDeadline(time.Now().Add(writeTimeout))
	if err == nil {
		_, err = r.w.Write(b)
	}
	if err == nil {
		err = c.Flush()
	}
	if err != nil {
		r.err = err
		r.cancel()
	}
	return err
}

// spoolMemory is how much of the items is in memory; the rest is in a file.
const spoolMemory = 1 << 20

// spool keeps bytes to read them once.
type spool struct {
	mem  bytes.Buffer
	file *os.File
	out  *bufio.Writer
}

func (s *spool) add(b []byte) (err error) {
	if s.file == nil && s.mem.Len()+len(b) > spoolMemory {
		if s.file, err = os.CreateTemp("", "fsx-items-"); err != nil {
			return err
		}
		if err = os.Remove(s.file.Name()); err != nil {
			return err
		}
		s.out = bufio.NewWriterSize(s.file, 64<<10)
	}
	if s.file != nil {
		_, err = s.out.Write(b)
		return err
	}
	s.mem.Write(b)
	return nil
}

// each calls fn with all that was added, in pieces.
func (s *spool) each(fn func([]byte) error) error {
	if s.mem.Len() > 0 {
		if err := fn(s.mem.Bytes()); err != nil {
			return err
		}
	}
	if s.file == nil {
		return nil
	}
	if err := s.out.Flush(); err != nil {
		return err
	}
	if _, err := s.file.Seek(0, io.SeekStart); err != nil {
		return err
	}
	b := make([]byte, 64<<10)
	for {
		n, err := s.file.Read(b)
		if n > 0 {
			if err := fn(b[:n]); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (s *spool) close() {
	if s.file != nil {
		s.file.Close()
	}
}
