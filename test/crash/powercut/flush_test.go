package powercut_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/fsximg/fsx/internal/vfs/trace"
	"github.com/fsximg/fsx/test/crash"
)

// What an NBD client was told is durable, is: through fsxnbd, to the disk and
// back after a power cut and a kill. The numbers are those of docs/nbd.md.

// nbdClient sends one request at a time to the export main of a server.
type nbdClient struct {
	t *testing.T
	net.Conn
}

func dialNBD(t *testing.T, socket string) *nbdClient {
	t.Helper()
	nc, err := net.Dial("unix", socket)
	must(t, err)
	t.Cleanup(func() { nc.Close() })
	must(t, nc.SetDeadline(time.Now().Add(2*time.Minute)))
	c := &nbdClient{t, nc}
	c.read(18) // the greeting
	p := binary.BigEndian.AppendUint32(nil, 3)
	p = append(p, "IHAVEOPT\x00\x00\x00\x01\x00\x00\x00\x04main"...)
	_, err = c.Write(p)
	must(t, err)
	c.read(10) // size and flags
	return c
}

func (c *nbdClient) read(n int) []byte {
	c.t.Helper()
	p := make([]byte, n)
	_, err := io.ReadFull(c, p)
	must(c.t, err)
	return p
}

// Commands and the flag FUA.
const (
	nbdWrite, nbdFlush, nbdTrim, nbdZero = 1, 3, 4, 6
	nbdFUA                               = 1
)

// do sends a request and waits for its success.
func (c *nbdClient) do(cmd, flags uint16, off, n int, payload []byte) {
	c.t.Helper()
	p := binary.BigEndian.AppendUint32(nil, 0x25609513)
	p = binary.BigEndian.AppendUint16(p, flags)
	p = binary.BigEndian.AppendUint16(p, cmd)
	p = binary.BigEndian.AppendUint64(p, 7)
	p = binary.BigEndian.AppendUint64(p, uint64(off))
	p = binary.BigEndian.AppendUint32(p, uint32(n))
	_, err := c.Write(append(p, payload...))
	must(c.t, err)
	if reply := c.read(16); binary.BigEndian.Uint32(reply) != 0x67446698 || binary.BigEndian.Uint32(reply[4:]) != 0 {
		c.t.Fatalf("command %d at %d+%d: reply %x", cmd, off, n, reply)
	}
}

// change sends a random change to c, and makes it in want.
func (c *nbdClient) change(rng *rand.Rand, flags uint16, want []byte) {
	c.t.Helper()
	n := 1 + rng.IntN(200_000)
	off := rng.IntN(len(want) - n)
	switch rng.IntN(4) {
	case 0:
		c.do(nbdZero, flags, off, n, nil)
		clear(want[off : off+n])
	case 1: // whole blocks, of which it is known what they become
		off, n = off/4096*4096, (n+4095)/4096*4096
		n = min(n, len(want)/4096*4096-off)
		c.do(nbdTrim, flags, off, n, nil)
		clear(want[off : off+n])
	default:
		p := make([]byte, n)
		for i := range p {
			p[i] = byte(rng.Uint32())
		}
		c.do(nbdWrite, flags, off, n, p)
		copy(want[off:], p)
	}
}

// durableSteps serves a new store on a recorded disk to two clients, calls step
// again and again, which changes want and sees to it that it is durable, and then
// compares what a power cut and a kill behind each step leave.
func durableSteps(t *testing.T, step func(a, b *nbdClient, rng *rand.Rand, want []byte)) {
	const steps = 12
	rng := rand.New(rand.NewPCG(seedOf(t), 57))
	rec := crash.Mount(t, crash.Options{})
	path, socket := filepath.Join(rec.Dir(), storeName), filepath.Join(t.TempDir(), "s")
	must(t, createStore(path, volumeSize))
	srv := startServerAt(t, serverProgram(t), path, socket, servedKeys(t))
	defer srv.kill()
	must(t, srv.ready())
	a, b := dialNBD(t, socket), dialNBD(t, socket)
	want, states := make([]byte, volumeSize), [][]byte{}
	for i := range steps {
		step(a, b, rng, want)
		rec.Mark(fmt.Sprint("durable ", i))
		states = append(states, bytes.Clone(want))
	}
	srv.kill()
	rec.Unmount()
	for i, want := range states {
		at := rec.Trace().MarkAt(fmt.Sprint("durable ", i))
		for name, p := range map[string]trace.Policy{"power cut": journaled(trace.DropUnsynced), "kill": journaled(trace.KeepAll)} {
			dir := rec.Image(at, rng.Uint64(), p)
			if err := expectContent(filepath.Join(dir, storeName), want); err != nil {
				t.Errorf("%s behind step %d: %v", name, i, err)
			}
			must(t, os.RemoveAll(dir))
		}
	}
}

// expectContent opens a store and compares main.
func expectContent(path string, want []byte) error {
	s, v, err := openStore(path, options())
	if err != nil {
		return err
	}
	got := make([]byte, len(want))
	err = v.ReadAt(got, 0, false)
	if err == nil && !bytes.Equal(got, want) {
		at := 0
		for got[at] == want[at] {
			at++
		}
		err = fmt.Errorf("byte %d differs", at)
	}
	return errors.Join(err, s.Close())
}

// TestItem57FUASurvivesAPowerCut: each change with FUA is on the disk when its
// reply comes.
func TestItem57FUASurvivesAPowerCut(t *testing.T) {
	durableSteps(t, func(a, _ *nbdClient, rng *rand.Rand, want []byte) { a.change(rng, nbdFUA, want) })
}

// TestItem80FlushSurvivesAPowerCut: a flush on one connection covers what was
// acknowledged on another.
func TestItem80FlushSurvivesAPowerCut(t *testing.T) {
	durableSteps(t, func(a, b *nbdClient, rng *rand.Rand, want []byte) {
		for range 1 + rng.IntN(5) {
			a.change(rng, 0, want)
		}
		b.do(nbdFlush, 0, 0, 0, nil)
	})
}
