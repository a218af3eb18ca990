package reconnect_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/fsximg/fsx/internal/nbdclient/reconnect"
	"github.com/fsximg/fsx/pkg/nbdsrv"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// disk is a device whose memory is lost when its server is killed.
type disk struct {
	mu              sync.Mutex
	durable, memory []byte
	readOnly        bool
	writeErr        error
	flushErr        error
	stuck           chan struct{} // writes wait for it, if it is not nil
	flushes, writes atomic.Int64
	lost            int // bytes that kills took
}

func newDisk(size int) *disk { return &disk{durable: make([]byte, size), memory: make([]byte, size)} }

func (d *disk) Size() int64    { return int64(len(d.memory)) }
func (d *disk) ReadOnly() bool { return d.readOnly }

func (d *disk) ReadAt(p []byte, off int64, _ bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	copy(p, d.memory[off:])
	return nil
}

func (d *disk) WriteAt(p []byte, off int64, nowait bool) error {
	d.mu.Lock()
	stuck := d.stuck
	d.mu.Unlock()
	if stuck != nil {
		if nowait {
			return nbdsrv.ErrWouldBlock
		}
		<-stuck
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.writeErr != nil {
		return d.writeErr
	}
	d.writes.Add(1)
	copy(d.memory[off:], p)
	return nil
}

func (d *disk) ZeroAt(off, n int64, _ bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.memory[off : off+n])
	return nil
}

func (d *disk) TrimAt(off, n int64) error { return errors.New("nobody trims") }

func (d *disk) Flush() error {
	d.flushes.Add(1)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.flushErr != nil {
		return d.flushErr
	}
	copy(d.durable, d.memory)
	return nil
}

func (d *disk) Status(_, n int64, fn func(int64, bool, bool) bool) error {
	fn(n, false, false)
	return nil
}

func (d *disk) Prefetch(_, _ int64) error { return nil }

func (d *disk) List(*nbdsrv.Client) []nbdsrv.ExportInfo { return nil }

func (d *disk) Open(string, *nbdsrv.Client) (nbdsrv.Export, func(), error) {
	return nbdsrv.Export{Device: d}, func() {}, nil
}

// forget has the disk lose what was not flushed.
func (d *disk) forget() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range d.memory {
		if d.memory[i] != d.durable[i] {
			d.lost++
		}
	}
	copy(d.memory, d.durable)
}

// machine is where servers of one disk are started and killed.
type machine struct {
	t      testing.TB
	dir    string
	disk   *disk
	socket atomic.Pointer[string] // nil: there is no server
	stop   func()
	n      int
}

func newMachine(t testing.TB, d *disk) *machine {
	m := &machine{t: t, dir: t.TempDir(), disk: d}
	m.start()
	t.Cleanup(m.kill)
	return m
}

// start starts a server, each time on another socket.
func (m *machine) start() {
	m.n++
	path := filepath.Join(m.dir, string(rune('a'+m.n%26)))
	ln, err := net.Listen("unix", path)
	must(m.t, err)
	srv := nbdsrv.New(nbdsrv.Config{Exports: m.disk})
	var mu sync.Mutex
	var conns []net.Conn
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, conn)
			mu.Unlock()
			wg.Go(func() { _ = srv.ServeConn(conn) })
		}
	})
	m.stop = func() {
		ln.Close()
		mu.Lock()
		for _, c := range conns {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	}
	m.socket.Store(&path)
}

// cut breaks all connections; the server's memory stays.
func (m *machine) cut() {
	m.socket.Store(nil)
	if m.stop != nil {
		m.stop()
	}
	m.stop = nil
}

// kill is kill -9.
func (m *machine) kill() {
	m.cut()
	m.disk.forget()
}

func (m *machine) redial(context.Context) (string, error) {
	if s := m.socket.Load(); s != nil {
		return "nbd+unix:///?socket=" + *s, nil
	}
	return "", syscall.ECONNREFUSED
}

func (m *machine) dial(o reconnect.Options) *reconnect.Client {
	m.t.Helper()
	if o.Redial == nil {
		o.Redial = m.redial
	}
	c, err := reconnect.Dial(context.Background(), o)
	must(m.t, err)
	m.t.Cleanup(func() { c.Close() })
	return c
}

// do submits a request and waits for it.
func do(c *reconnect.Client, op reconnect.Op, off int64, p []byte) error {
	return <-submit(c, op, off, p)
}

func submit(c *reconnect.Client, op reconnect.Op, off int64, p []byte) <-chan error {
	done := make(chan error, 1)
	r := &reconnect.Request{Op: op, Off: off, Len: int64(len(p)), Done: func(r *reconnect.Request) { done <- r.Err }}
	if op == reconnect.Read || op == reconnect.Write {
		r.Data = p
	}
	c.Submit(r)
	return done
}

func write(c *reconnect.Client, off int64, p []byte) error { return do(c, reconnect.Write, off, p) }
func flush(c *reconnect.Client) error                      { return do(c, reconnect.Flush, 0, nil) }

func wantRead(t testing.TB, c *reconnect.Client, off int64, want []byte) {
	t.Helper()
	got := make([]byte, len(want))
	if err := do(c, reconnect.Read, off, got); err != nil {
		t.Errorf("read at %d: %v", off, err)
	} else if !bytes.Equal(got, want) {
		t.Errorf("at %d: %.20q instead of %.20q", off, got, want)
	}
}

func within(t testing.TB, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", limit, what)
		}
	}
}
