package convert

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"sync"

	"github.com/fsximg/fsx/internal/nbdclient"
)

// writesInFlight is how many writes an NBD sink has under way, each with a
// copy of its piece.
const writesInFlight = 4

// nbdWriter writes pieces to an NBD server, several at a time. Ranges never
// overlap, so their order does not matter.
type nbdWriter struct {
	c     *nbdclient.Client
	slots chan []byte
	wg    sync.WaitGroup
	mu    sync.Mutex
	err   error
}

func newNBDWriter(c *nbdclient.Client) *nbdWriter {
	w := &nbdWriter{c: c, slots: make(chan []byte, writesInFlight)}
	for range writesInFlight {
		w.slots <- make([]byte, pieceSize)
	}
	return w
}

func (w *nbdWriter) failed() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

// Write copies p and returns; an error may come from a later call.
func (w *nbdWriter) Write(p []byte, off int64) error {
	for len(p) > 0 {
		buf := <-w.slots
		if err := w.failed(); err != nil {
			w.slots <- buf
			return err
		}
		part := buf[:copy(buf, p)]
		at := off
		w.wg.Go(func() {
			if err := w.c.WriteAt(part, at); err != nil {
				w.mu.Lock()
				w.err = fmt.Errorf("write at %d: %w", at, err)
				w.mu.Unlock()
			}
			w.slots <- buf
		})
		p, off = p[len(part):], off+int64(len(part))
	}
	return nil
}

// flush waits for all writes and makes them durable.
func (w *nbdWriter) flush() error {
	w.wg.Wait()
	if err := w.failed(); err != nil {
		return err
	}
	return w.c.Flush()
}

// nbdSink is an NBD server's export.
type nbdSink struct {
	*nbdWriter
	close func() error
}

// ToNBD makes a sink of the export that a URI names. It must have at least the
// given size; what lies behind stays as it is.
func ToNBD(ctx context.Context, name string, size int64) (Sink, error) {
	c, err := nbdclient.Dial(ctx, name)
	if err != nil {
		return nil, err
	}
	switch {
	case c.ReadOnly():
		err = fmt.Errorf("%s: %w", name, os.ErrPermission)
	case c.Size() < size:
		err = fmt.Errorf("%s: %w: %d bytes for %d", name, ErrTooSmall, c.Size(), size)
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return &nbdSink{newNBDWriter(c), c.Close}, nil
}

func (s *nbdSink) Zero(off, n int64) error { return s.c.ZeroAt(off, n) }
func (s *nbdSink) Finish() error           { return s.flush() }

func (s *nbdSink) Abort() {
	s.wg.Wait()
	s.close()
}

// qcow2Sink is a new qcow2 image, written through qemu-nbd.
type qcow2Sink struct {
	*nbdWriter
	q     *qemu
	place *place
	done  bool
}

// ToQcow2 makes a sink of a new qcow2 image, as ToFile does of a raw one.
func ToQcow2(ctx context.Context, path string, size int64, replace bool) (Sink, error) {
	program, err := lookProgram(qemuImg)
	if err != nil {
		return nil, err
	}
	p, f, err := newPlace(path, replace)
	if err != nil {
		return nil, err
	}
	f.Close()
	s := &qcow2Sink{place: p}
	out, err := exec.CommandContext(ctx, program, "create", "-q", "-f", "qcow2", p.tmp,
		strconv.FormatInt(size, 10)).CombinedOutput()
	if err != nil {
		s.Abort()
		return nil, fmt.Errorf("%s create: %w: %s", qemuImg, err, out)
	}
	desc, err := blockDevice(p.tmp, false, false)
	if err == nil {
		s.q, err = startQemuNBD(ctx, desc)
	}
	if err != nil {
		s.Abort()
		return nil, err
	}
	s.nbdWriter = newNBDWriter(s.q.Client)
	return s, nil
}

// Zero has nothing to do: the image is new.
func (s *qcow2Sink) Zero(off, n int64) error { return nil }

func (s *qcow2Sink) Finish() error {
	s.done = true
	err := s.flush()
	if closeErr := s.q.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = s.sync()
	}
	if err != nil {
		return err
	}
	return s.place.settle()
}

// sync makes the image durable, for qemu-nbd does not promise to.
func (s *qcow2Sink) sync() error {
	f, err := os.Open(s.place.tmp)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

func (s *qcow2Sink) Abort() {
	if s.q != nil && !s.done {
		s.wg.Wait()
		s.q.Close()
	}
	s.done = true
	s.place.discard()
}
