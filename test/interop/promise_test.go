package interop_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const (
	promiseBlock  = 4096
	promiseBlocks = 4 // of each writer
)

// versioned is a block that one writer changes, one request at a time. Its
// version counts the changes. Of what was told to clients follows which versions
// a read, and a server after a crash, may bring.
type versioned struct {
	off int64

	mu      sync.Mutex
	zero    []bool // by version: whether it reads as zeros
	acked   int    // the newest that was acknowledged
	durable int    // the newest that must survive
}

// next begins another version.
func (b *versioned) next(zero bool) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.zero = append(b.zero, zero)
	return len(b.zero) - 1
}

func (b *versioned) acknowledge(version int, durable bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.acked = version
	if durable {
		b.durable = version
	}
}

func (b *versioned) ackedNow() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.acked
}

// settle makes a version that a flush covered durable.
func (b *versioned) settle(version int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.durable = max(b.durable, version)
}

// content is what the block holds in a version that is not zeros.
func (b *versioned) content(version int) []byte {
	p := noise(rand.New(rand.NewPCG(uint64(b.off), uint64(version))), promiseBlock)
	binary.BigEndian.PutUint64(p, uint64(version))
	return p
}

// holds finds the version, from the oldest allowed on, that got is.
func (b *versioned) holds(got []byte, oldest int) (version int, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	version = int(binary.BigEndian.Uint64(got))
	if bytes.Equal(got, make([]byte, promiseBlock)) {
		for version = len(b.zero) - 1; version > oldest && !b.zero[version]; version-- {
		}
	}
	switch {
	case version < oldest || version >= len(b.zero):
		return 0, fmt.Errorf("block at %d has version %d, want %d to %d", b.off, version, oldest, len(b.zero)-1)
	case b.zero[version] != bytes.Equal(got, make([]byte, promiseBlock)), !b.zero[version] && !bytes.Equal(got, b.content(version)):
		return 0, fmt.Errorf("block at %d is not what version %d is", b.off, version)
	}
	return version, nil
}

// recover goes on from what a restarted server has.
func (b *versioned) recover(got []byte) (lost int, err error) {
	version, err := b.holds(got, b.durable)
	if err != nil {
		return 0, err
	}
	lost = b.acked - version
	// what was never acknowledged may be there, and is durable now that it was read
	// from a recovered store
	b.zero = b.zero[:version+1]
	b.acked, b.durable = version, version
	return max(lost, 0), nil
}

// promise is what clients were told about blocks on several connections.
type promise struct {
	blocks []*versioned
	fua    bool // each change is sent with FUA

	acked, flushes, reads atomic.Int64

	mu     sync.Mutex
	failed error // a read that broke it
}

func newPromise(writers int, fua bool) *promise {
	p := &promise{fua: fua}
	for i := range writers * promiseBlocks {
		// neighbours belong to different writers, so that they share extents
		p.blocks = append(p.blocks, &versioned{off: int64(i) * promiseBlock, zero: []bool{true}})
	}
	return p
}

// write changes a writer's blocks in turn until its connection breaks.
func (p *promise) write(c *client, writer, writers int, rng *rand.Rand) {
	for {
		b := p.blocks[writer+writers*rng.IntN(promiseBlocks)]
		kind := rng.IntN(8)
		version := b.next(kind < 2)
		flags := uint16(0)
		if p.fua {
			flags = flagFUA
		}
		var cl *call
		switch kind {
		case 0:
			cl = c.start(cmdZero, flags, b.off, promiseBlock, nil, nil)
		case 1:
			cl = c.start(cmdTrim, flags, b.off, promiseBlock, nil, nil)
		default:
			cl = c.start(cmdWrite, flags, b.off, promiseBlock, b.content(version), nil)
		}
		if <-cl.done != nil {
			return
		}
		b.acknowledge(version, p.fua)
		p.acked.Add(1)
	}
}

// flush flushes on a connection that wrote nothing: it covers what all others
// were told before.
func (p *promise) flush(c *client) {
	marks := make([]int, len(p.blocks))
	for {
		for i, b := range p.blocks {
			marks[i] = b.ackedNow()
		}
		if c.flush() != nil {
			return
		}
		for i, b := range p.blocks {
			b.settle(marks[i])
		}
		p.flushes.Add(1)
	}
}

// read reads on a third connection: never older than what a writer was told.
func (p *promise) read(c *client, rng *rand.Rand) {
	got := make([]byte, promiseBlock)
	for {
		b := p.blocks[rng.IntN(len(p.blocks))]
		oldest := b.ackedNow()
		if c.readAt(got, b.off) != nil {
			return
		}
		if _, err := b.holds(got, oldest); err != nil {
			p.mu.Lock()
			p.failed = fmt.Errorf("read beside the writers: %w", err)
			p.mu.Unlock()
			return
		}
		p.reads.Add(1)
	}
}

// verify reads all blocks from a restarted server.
func (p *promise) verify(t *testing.T, srv *server) (lost int) {
	t.Helper()
	c := dial(t, srv.socket, "main")
	defer c.close()
	got := make([]byte, promiseBlock)
	for _, b := range p.blocks {
		if err := c.readAt(got, b.off); err != nil {
			t.Fatal(err)
		}
		n, err := b.recover(got)
		if err != nil {
			t.Fatal(err)
		}
		lost += n
	}
	return lost
}

// keepPromise lets connections work on blocks and kills the server under them,
// again and again. With fua all changes are sent with FUA and nobody flushes;
// without it one connection flushes for the others.
func keepPromise(t *testing.T, fua bool) {
	need(t)
	const connections, depth = 3, 12 // depth writers share a connection
	rng := random(t)
	s := newStore(t, t.TempDir())
	s.create("64M")
	p := newPromise(connections*depth, fua)
	rounds := choose(8, 300)
	lost := 0
	for range rounds {
		srv := s.serve()
		lost += p.verify(t, srv)
		var wg sync.WaitGroup
		for n := range connections {
			c := dial(t, srv.socket, "main")
			for i := range depth {
				own := rand.New(rand.NewPCG(rng.Uint64(), 5))
				wg.Go(func() { p.write(c, n*depth+i, connections*depth, own) })
			}
		}
		reader, own := dial(t, srv.socket, "main"), rand.New(rand.NewPCG(rng.Uint64(), 6))
		wg.Go(func() { p.read(reader, own) })
		if !fua {
			flusher := dial(t, srv.socket, "main")
			wg.Go(func() { p.flush(flusher) })
		}
		time.Sleep(time.Duration(rng.IntN(400)+20) * time.Millisecond)
		srv.kill()
		wg.Wait()
		if p.failed != nil {
			t.Fatal(p.failed)
		}
	}
	srv := s.serve()
	lost += p.verify(t, srv)
	srv.stop()
	s.check()
	result(t, "%d kills, %d changes and %d flushes acknowledged, %d reads beside them, %d changes lost that were not promised",
		rounds, p.acked.Load(), p.flushes.Load(), p.reads.Load(), lost)
	if p.acked.Load() < int64(rounds)*20 || !fua && p.flushes.Load() < int64(rounds) || p.reads.Load() < int64(rounds) {
		t.Error("too few requests to prove anything")
	}
	if fua && lost > 0 {
		t.Errorf("%d changes were acknowledged with FUA and are lost", lost)
	}
}

// TestItem57FUASurvivesKill: WRITE, WRITE_ZEROES and TRIM with FUA are durable
// once they are acknowledged, without a flush.
func TestItem57FUASurvivesKill(t *testing.T) { keepPromise(t, true) }

// TestItem80FlushCoversOthersAcrossKill: a flush on one connection covers what
// others were told, and what they were told is read on a third.
func TestItem80FlushCoversOthersAcrossKill(t *testing.T) { keepPromise(t, false) }
