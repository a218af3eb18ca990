package unflushed_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/fsximg/fsx/internal/nbdclient/unflushed"
)

const blocks = 16 // of one byte each: overlaps are frequent

// server is a server's export: what is durable, and what a kill would lose.
type server struct {
	durable, memory []byte
}

func carryOut(disk []byte, c unflushed.Change) {
	if c.Kind == unflushed.Write {
		copy(disk[c.Off:], c.Data)
	} else {
		clear(disk[c.Off : c.Off+c.Len])
	}
}

// sent is a change or a flush under way.
type sent struct {
	change unflushed.Change
	ref    unflushed.Ref
	flush  bool
	mark   unflushed.Mark
	// reached is whether the server has carried it out; the answer is still missing.
	reached bool
	holds   []byte // of a flush: what was made durable
}

// model drives a log with random changes, flushes, failures and kills.
type model struct {
	t   *testing.T
	rng *rand.Rand
	log *unflushed.Log
	srv server
	// told is what a client that saw all answers may rely on; where a change is under
	// way or has failed, unsure.
	told   [blocks]byte
	unsure [blocks]bool
	out    []*sent
	kills  int
	full   int
}

func seeds(t *testing.T) []uint64 {
	if s := os.Getenv("FSX_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return []uint64{n}
	}
	first := uint64(time.Now().UnixNano())
	var l []uint64
	for i := range uint64(200) {
		l = append(l, first+i)
	}
	return l
}

// TestModel kills the server again and again: after the changes of the log were
// carried out again it has what every acknowledged change left, and nothing older.
func TestModel(t *testing.T) {
	kills, full := 0, 0
	for _, seed := range seeds(t) {
		m := &model{t: t, rng: rand.New(rand.NewPCG(seed, 0)), log: unflushed.New(32, 12)}
		m.srv = server{make([]byte, blocks), make([]byte, blocks)}
		for range 300 {
			m.step()
			if t.Failed() {
				t.Fatalf("FSX_SEED=%d", seed)
			}
		}
		kills, full = kills+m.kills, full+m.full
	}
	if kills < 100 || full < 100 {
		t.Errorf("%d kills, %d times full: too few to tell", kills, full)
	}
}

func (m *model) step() {
	switch n := m.rng.IntN(20); {
	case n < 8:
		m.send()
	case n < 10:
		m.sendFlush()
	case n < 13:
		m.reach()
	case n < 18:
		m.answer()
	case n < 19:
		m.fail()
	default:
		m.kill()
	}
}

func (m *model) overlaps(off, n int64) bool {
	return slices.ContainsFunc(m.out, func(s *sent) bool {
		return !s.flush && off < s.change.Off+s.change.Len && s.change.Off < off+n
	})
}

func (m *model) send() {
	off := m.rng.Int64N(blocks)
	n := 1 + m.rng.Int64N(blocks-off)
	if m.overlaps(off, n) {
		return
	}
	kind := unflushed.Kind(m.rng.IntN(3))
	ref, data, ok := m.log.Add(kind, off, n)
	if !ok {
		m.full++
		return
	}
	for i := range data {
		data[i] = byte(1 + m.rng.IntN(255))
	}
	m.out = append(m.out, &sent{change: unflushed.Change{Kind: kind, Off: off, Len: n, Data: data}, ref: ref})
	for i := off; i < off+n; i++ {
		m.unsure[i] = true
	}
}

func (m *model) sendFlush() {
	m.out = append(m.out, &sent{flush: true, mark: m.log.Begin()})
}

// reach has the server carry out something that is under way.
func (m *model) reach() {
	if len(m.out) == 0 {
		return
	}
	s := m.out[m.rng.IntN(len(m.out))]
	if s.reached {
		return
	}
	s.reached = true
	if s.flush {
		copy(m.srv.durable, m.srv.memory)
	} else {
		carryOut(m.srv.memory, s.change)
	}
}

func (m *model) take() *sent {
	var l []int
	for i, s := range m.out {
		if s.reached {
			l = append(l, i)
		}
	}
	if len(l) == 0 {
		return nil
	}
	i := l[m.rng.IntN(len(l))]
	s := m.out[i]
	m.out = slices.Delete(m.out, i, i+1)
	return s
}

func (m *model) answer() {
	s := m.take()
	switch {
	case s == nil:
	case s.flush:
		m.log.Flushed(s.mark)
	default:
		m.log.Done(s.ref)
		carryOut(m.told[:], s.change)
		for i := s.change.Off; i < s.change.Off+s.change.Len; i++ {
			m.unsure[i] = false
		}
	}
}

// fail has a change fail: its blocks stay unsure until the next one.
func (m *model) fail() {
	if s := m.take(); s != nil && !s.flush {
		m.log.Failed(s.ref)
	}
}

// kill loses the server's memory, and repeats what the log has, then what was under
// way.
func (m *model) kill() {
	m.kills++
	copy(m.srv.memory, m.srv.durable)
	for ref := unflushed.Ref(0); ; {
		c, next, ok := m.log.Pending(ref)
		if !ok {
			break
		}
		carryOut(m.srv.memory, c)
		ref = next
	}
	for i, got := range m.srv.memory {
		if !m.unsure[i] && got != m.told[i] {
			m.t.Errorf("block %d is %#x instead of %#x", i, got, m.told[i])
		}
	}
	for _, s := range m.out {
		s.reached = false
	}
}

// TestRoom fills a log to its last byte and record, again and again.
func TestRoom(t *testing.T) {
	for _, size := range []int64{1, 3, 5, 8, 16} {
		l := unflushed.New(16, 8)
		for round := range 50 {
			var refs []unflushed.Ref
			var all [][]byte
			for {
				ref, data, ok := l.Add(unflushed.Write, 0, size)
				if !ok {
					break
				}
				if int64(len(data)) != size {
					t.Fatalf("room for %d bytes: %d", size, len(data))
				}
				copy(data, bytes.Repeat([]byte{byte(len(all) + 1)}, int(size)))
				refs, all = append(refs, ref), append(all, data)
			}
			if want := min(8, 16/size-2); int64(len(all)) < want || len(all) == 0 {
				t.Fatalf("size %d, round %d: room for %d", size, round, len(all))
			}
			for i, data := range all {
				if !bytes.Equal(data, bytes.Repeat([]byte{byte(i + 1)}, int(size))) {
					t.Fatalf("size %d: data of %d was overwritten: %v", size, i, data)
				}
			}
			for _, ref := range refs[:len(refs)-round%2] {
				l.Done(ref)
			}
			l.Flushed(l.Begin())
			if round%2 == 1 {
				if l.Len() != 1 {
					t.Fatalf("one is under way: %d records", l.Len())
				}
				l.Failed(refs[len(refs)-1])
			}
			if l.Len() != 0 || l.Used() != 0 {
				t.Fatalf("size %d: %d records, %v used", size, l.Len(), l.Used())
			}
		}
	}
}

// TestRing has records come and go: none of them touches another's data.
func TestRing(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	l := unflushed.New(16, 8)
	type held struct {
		ref        unflushed.Ref
		data, want []byte
	}
	var queue []held
	refused := 0
	for i := range 20000 {
		n := 1 + rng.Int64N(6)
		ref, data, ok := l.Add(unflushed.Write, 0, n)
		if ok {
			for j := range data {
				data[j] = byte(i)
			}
			queue = append(queue, held{ref, data, bytes.Clone(data)})
		} else {
			refused++
		}
		for _, h := range queue {
			if !bytes.Equal(h.data, h.want) {
				t.Fatalf("step %d: data of record %d was overwritten", i, h.ref)
			}
		}
		for len(queue) > 0 && (!ok || rng.IntN(3) == 0) {
			l.Failed(queue[0].ref)
			queue, ok = queue[1:], true
		}
	}
	if refused < 1000 {
		t.Errorf("only %d times full", refused)
	}
}

// TestOnlyWhatCameBefore has a flush that began before a change was acknowledged.
func TestOnlyWhatCameBefore(t *testing.T) {
	l := unflushed.New(16, 8)
	first, _, _ := l.Add(unflushed.Zero, 0, 1)
	second, _, _ := l.Add(unflushed.Discard, 1, 1)
	l.Done(first)
	mark := l.Begin()
	l.Done(second)
	l.Flushed(mark)
	c, next, ok := l.Pending(0)
	if want := (unflushed.Change{Kind: unflushed.Discard, Off: 1, Len: 1}); !ok || fmt.Sprint(c) != fmt.Sprint(want) {
		t.Errorf("%+v, %v", c, ok)
	}
	if c, _, ok := l.Pending(next); ok {
		t.Errorf("and %+v", c)
	}
	if used := l.Used(); used != 1.0/8 {
		t.Errorf("used %v", used)
	}
}

func BenchmarkLog(b *testing.B) {
	l := unflushed.New(64<<20, 1<<16)
	payload := make([]byte, 4096)
	b.SetBytes(4096)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		ref, data, ok := l.Add(unflushed.Write, int64(i), 4096)
		if !ok {
			b.Fatal("no room")
		}
		copy(data, payload)
		l.Done(ref)
		if i%1000 == 999 {
			l.Flushed(l.Begin())
		}
	}
}
