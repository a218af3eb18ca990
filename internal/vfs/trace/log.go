package trace

import (
	"bufio"
	"encoding/gob"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
)

// The files of a trace directory.
const (
	opsFile  = "ops"  // a gob stream of Op
	dataFile = "data" // the bytes of all Writes, one after the other
)

// Writer appends operations to a trace. Safe for concurrent use; the order of
// the calls is the order of the trace.
type Writer struct {
	mu      sync.Mutex
	n       int
	dataOff int64
	opsF    *os.File
	dataF   *os.File
	ops     *bufio.Writer
	data    *bufio.Writer
	enc     *gob.Encoder
}

// NewWriter starts a trace in the existing directory dir.
func NewWriter(dir string) (*Writer, error) {
	opsF, err := os.Create(filepath.Join(dir, opsFile))
	if err != nil {
		return nil, err
	}
	dataF, err := os.Create(filepath.Join(dir, dataFile))
	if err != nil {
		opsF.Close()
		return nil, err
	}
	w := &Writer{opsF: opsF, dataF: dataF, ops: bufio.NewWriterSize(opsF, 1<<16), data: bufio.NewWriterSize(dataF, 1<<20)}
	w.enc = gob.NewEncoder(w.ops)
	return w, nil
}

// Append adds op, with the bytes of a Write, and returns its index.
func (w *Writer) Append(op Op, data []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if op.Kind == Write {
		op.Data, op.Len = w.dataOff, int64(len(data))
		w.dataOff += op.Len
		if _, err := w.data.Write(data); err != nil {
			return 0, err
		}
	}
	if err := w.enc.Encode(&op); err != nil {
		return 0, err
	}
	w.n++
	return w.n - 1, nil
}

// Flush makes everything appended so far visible to Load, and returns how many
// operations that are.
func (w *Writer) Flush() (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.data.Flush(); err != nil {
		return 0, err
	}
	return w.n, w.ops.Flush()
}

// Close flushes and closes the trace.
func (w *Writer) Close() error {
	_, err := w.Flush()
	return errors.Join(err, w.opsF.Close(), w.dataF.Close())
}

// Trace is a recorded sequence of operations over a base directory. Its methods
// are safe for concurrent use.
type Trace struct {
	// Ops is the record; do not change it.
	Ops []Op
	// Base is the directory as it was at the start, wholly durable; empty for
	// an empty one. It must not change while the trace is in use.
	Base string
	data *os.File
	mu   sync.Mutex
	im   *imager // the running durable image behind CrashImage
}

// Load reads the first n operations of the trace in dir. Close it after use.
func Load(dir, base string, n int) (*Trace, error) {
	f, err := os.Open(filepath.Join(dir, opsFile))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	t := &Trace{Base: base, Ops: make([]Op, n)}
	dec := gob.NewDecoder(bufio.NewReader(f))
	for i := range t.Ops {
		if err := dec.Decode(&t.Ops[i]); err != nil {
			return nil, fmt.Errorf("read trace, operation %d: %w", i, err)
		}
	}
	t.data, err = os.Open(filepath.Join(dir, dataFile))
	return t, err
}

// Payload returns the bytes of the Write at index i.
func (t *Trace) Payload(i int) ([]byte, error) {
	return t.payload(&t.Ops[i])
}

func (t *Trace) payload(op *Op) ([]byte, error) {
	p := make([]byte, op.Len)
	_, err := t.data.ReadAt(p, op.Data)
	return p, err
}

// Close releases the trace and its running image.
func (t *Trace) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	var err error
	if t.im != nil {
		err = t.im.close()
		t.im = nil
	}
	return errors.Join(err, t.data.Close())
}
