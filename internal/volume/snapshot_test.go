package volume_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fsximg/fsx/internal/volume"
)

// snapModel is a volume with snapshots, and what is in them.
type snapModel struct {
	t      *testing.T
	rng    *rand.Rand
	path   string
	limits volume.Limits
	s      *volume.Store
	v      *volume.Volume
	data   []byte
	snaps  map[string][]byte
	next   int
}

// TestSnapshotModel makes random changes, snapshots and deletions, reopens and
// kills, and compares everything with plain arrays.
func TestSnapshotModel(t *testing.T) {
	ops := operations(t, 240, 2400, 500_000)
	seed, began := seedOf(t), time.Now()
	for i, size := range []int64{3 * 4096, 1<<20 + 512, 12<<20 - 1536} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			m := &snapModel{t: t, rng: rand.New(rand.NewPCG(seed, uint64(i))), path: filepath.Join(fastDir(t), "s.fsx"), limits: busy,
				data: make([]byte, size), snaps: map[string][]byte{}}
			m.s = createBusy(t, m.path, size, m.limits)
			m.v = mainVolume(t, m.s)
			for range ops / 3 {
				m.step()
				if t.Failed() {
					return
				}
			}
			m.verify()
			m.reopen()
			m.verify()
			for name := range m.snaps {
				must(t, m.v.DeleteSnapshot(ctx0, name))
				delete(m.snaps, name)
			}
			must(t, m.v.Checkpoint(ctx0))
			m.verify()
			checkClean(t, m.s)
			closeStore(t, m.s)
		})
	}
	t.Logf("RESULT snapshot model: %d operations, FSX_SEED=%d, %v", ops, seed, time.Since(began).Round(time.Second))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (m *snapModel) step() {
	t, size := m.t, int64(len(m.data))
	off := m.rng.Int64N(size)
	n := 1 + m.rng.Int64N(min(size-off, 60_000))
	switch k := m.rng.IntN(100); {
	case k < 50:
		p := m.data[off : off+n]
		for i := range p {
			p[i] = byte(m.rng.Uint32() | 1)
		}
		must(t, m.v.WriteAt(p, off, false))
	case k < 58:
		must(t, m.v.ZeroAt(off, n, m.rng.IntN(2) == 0))
		clear(m.data[off : off+n])
	case k < 68:
		must(t, m.v.Flush())
	case k < 78:
		m.next++
		name := fmt.Sprint("s", m.next)
		must(t, m.v.CreateSnapshot(ctx0, name))
		m.snaps[name] = bytes.Clone(m.data)
		if err := m.v.CreateSnapshot(ctx0, name); !errors.Is(err, volume.ErrExists) {
			t.Errorf("the same name again: %v", err)
		}
	case k < 88:
		if names := m.names(); len(names) > 3 {
			name := names[m.rng.IntN(len(names))]
			must(t, m.v.DeleteSnapshot(ctx0, name))
			delete(m.snaps, name)
			if err := m.v.DeleteSnapshot(ctx0, name); !errors.Is(err, volume.ErrNoSnapshot) {
				t.Errorf("deleted again: %v", err)
			}
		}
	case k < 91:
		must(t, m.v.Checkpoint(ctx0))
	case k < 94:
		must(t, m.v.CompactAll(ctx0))
	case k < 98:
		if names := m.names(); len(names) > 0 {
			m.compareSnapshot(names[m.rng.IntN(len(names))])
		}
	case k < 99:
		m.reopen()
	default:
		m.kill()
	}
}

func (m *snapModel) names() []string { return slices.Sorted(maps.Keys(m.snaps)) }

func (m *snapModel) compareSnapshot(name string) {
	m.t.Helper()
	d, err := m.v.Snapshot(name)
	must(m.t, err)
	m.compare(name, d, m.snaps[name])
}

func (m *snapModel) compare(name string, d interface {
	Size() int64
	ReadAt([]byte, int64, bool) error
	Status(off, n int64, fn func(int64, bool, bool) bool) error
}, want []byte) {
	m.t.Helper()
	got := make([]byte, len(want), len(want)+16)
	must(m.t, d.ReadAt(got, 0, false))
	if !bytes.Equal(got, want) {
		at := 0
		for got[at] == want[at] {
			at++
		}
		m.t.Fatalf("%s differs at %d", name, at)
	}
	at := int64(0)
	must(m.t, d.Status(0, d.Size(), func(n int64, _, zero bool) bool {
		end := min(at+n, int64(len(want)))
		if zero && len(bytes.TrimLeft(want[at:end], "\x00")) > 0 {
			m.t.Errorf("%s: data at %d+%d is called zero", name, at, n)
		}
		at = end
		return true
	}))
}

func (m *snapModel) verify() {
	m.t.Helper()
	m.compare("main", m.v, m.data)
	var have []string
	for _, s := range m.v.Snapshots() {
		have = append(have, s.Name)
	}
	slices.Sort(have)
	if !slices.Equal(have, m.names()) {
		m.t.Fatalf("snapshots %v, want %v", have, m.names())
	}
	for name := range m.snaps {
		m.compareSnapshot(name)
	}
	if !m.v.ReadOnly() {
		checkClean(m.t, m.s)
	}
}

func (m *snapModel) reopen() {
	m.t.Helper()
	closeStore(m.t, m.s)
	m.s = openBusy(m.t, m.path, m.limits)
	m.v = mainVolume(m.t, m.s)
	m.verify()
}

// kill goes on with what a killed process leaves.
func (m *snapModel) kill() {
	m.t.Helper()
	release := m.v.HoldUpkeep() // snapshots may wait for their checkpoints
	must(m.t, m.v.Flush())      // so that the content is one of a kind
	left := killed(m.t, m.path)
	release()
	must(m.t, m.s.Close())
	o := options(m.t)
	o.ReadOnly = true
	ro := *m
	ro.s = openWith(m.t, left, o)
	ro.v = mainVolume(m.t, ro.s)
	ro.verify()
	closeStore(m.t, ro.s)
	m.path = left
	m.s = openBusy(m.t, m.path, m.limits)
	m.v = mainVolume(m.t, m.s)
	m.verify()
}

// TestSnapshotIsOneMoment takes snapshots while goroutines write: in each, what
// a goroutine wrote is there up to some write and nothing after it.
func TestSnapshotIsOneMoment(t *testing.T) {
	const blocks, writers = 2048, 3
	s := createBusy(t, filepath.Join(fastDir(t), "s.fsx"), writers*blocks*blockBytes, busy)
	v := mainVolume(t, s)
	var wg sync.WaitGroup
	var done [writers]atomic.Int64 // writes that have returned
	stop := make(chan struct{})
	for w := range int64(writers) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for n := int64(0); ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				if err := v.WriteAt(block(int(n)), (w*blocks+n%blocks)*blockBytes, false); err != nil {
					t.Error(err)
					return
				}
				done[w].Store(n + 1)
			}
		}()
	}
	for i := range 25 {
		var floor, ceil [writers]int64
		for w := range writers {
			floor[w] = done[w].Load()
		}
		name := fmt.Sprint("s", i)
		must(t, v.CreateSnapshot(context.Background(), name))
		for w := range writers {
			ceil[w] = done[w].Load() + 1
		}
		d, err := v.Snapshot(name)
		must(t, err)
		for w := range int64(writers) {
			oneMoment(t, d, w*blocks, blocks, floor[w], ceil[w])
		}
		if i%3 == 2 {
			must(t, v.DeleteSnapshot(ctx0, name))
		}
	}
	close(stop)
	wg.Wait()
	checkClean(t, s)
	closeStore(t, s)
}

// oneMoment checks that a region holds the state after k writes, one behind the
// other around the region, for some k from floor to ceil.
func oneMoment(t *testing.T, d *volume.Snapshot, first, blocks, floor, ceil int64) {
	t.Helper()
	last := make([]int64, blocks) // number of the last write of a block, from 1
	buf := make([]byte, blocks*blockBytes, blocks*blockBytes+16)
	must(t, d.ReadAt(buf, first*blockBytes, false))
	count := int64(0)
	for b := range blocks {
		p := buf[b*blockBytes:][:blockBytes]
		if n := numberOf(p); n > 0 {
			last[b] = n
			count = max(count, n)
		}
	}
	if count < floor || count > ceil {
		t.Errorf("%d writes are in the snapshot, %d had returned before it, %d had begun", count, floor, ceil)
	}
	for b := range blocks {
		want := int64(0)
		if b < count {
			want = b + 1 + (count-1-b)/blocks*blocks
		}
		if last[b] != want {
			t.Fatalf("block %d has write %d, want %d of %d", b, last[b], want, count)
		}
	}
}

// TestSnapshotRace has goroutines make and delete snapshots of the same names at
// the same time: of those that meet, one succeeds.
func TestSnapshotRace(t *testing.T) {
	s := createBusy(t, filepath.Join(fastDir(t), "s.fsx"), 4<<20, busy)
	v := mainVolume(t, s)
	each := func(want error, change func(ctx context.Context, name string) error, name string) {
		t.Helper()
		var wg sync.WaitGroup
		var done atomic.Int64
		for range 8 {
			wg.Add(1)
			go func() {
				defer wg.Done()
				if err := change(ctx0, name); err == nil {
					done.Add(1)
				} else if !errors.Is(err, want) {
					t.Error(err)
				}
			}()
		}
		wg.Wait()
		if done.Load() != 1 {
			t.Errorf("%s: %d succeeded", name, done.Load())
		}
	}
	for i := range 40 {
		name := fmt.Sprint("s", i)
		put(t, v, int64(i), i)
		each(volume.ErrExists, v.CreateSnapshot, name)
		each(volume.ErrNoSnapshot, v.DeleteSnapshot, name)
	}
	must(t, v.Checkpoint(ctx0))
	checkClean(t, s)
	closeStore(t, s)
}

func TestSnapshotNames(t *testing.T) {
	s := create(t, filepath.Join(t.TempDir(), "s.fsx"), 1<<20)
	v := mainVolume(t, s)
	for _, name := range []string{"", "a/b", "-a", "a b"} {
		if err := v.CreateSnapshot(ctx0, name); err == nil {
			t.Errorf("%q is accepted", name)
		}
	}
	if _, err := v.Snapshot("none"); !errors.Is(err, volume.ErrNoSnapshot) {
		t.Errorf("got %v", err)
	}
	must(t, v.CreateSnapshot(ctx0, "empty"))
	d, err := v.Snapshot("empty")
	must(t, err)
	if err := d.WriteAt(make([]byte, 512), 0, false); !errors.Is(err, volume.ErrReadOnly) {
		t.Errorf("a write: %v", err)
	}
	if again, _ := v.Snapshot("empty"); again != d {
		t.Error("opened twice, two devices")
	}
	closeStore(t, s)
	if err := v.CreateSnapshot(ctx0, "late"); !errors.Is(err, volume.ErrClosed) {
		t.Errorf("after close: %v", err)
	}
}
