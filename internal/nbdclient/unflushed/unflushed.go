// Package unflushed keeps the changes that an NBD server has acknowledged and not yet
// made durable, so that they can be sent again to a server that was restarted.
//
// A server that is killed loses what it had in memory. Whoever wrote it was told that
// it is done, and will not write it again: a kernel keeps such data in memory only
// until its device has acknowledged it, since only a power cut, which it would not
// survive itself, may undo it then. What is in a Log bridges that gap.
//
// What a flush covers is known by order only: a flush makes durable what was
// acknowledged before it was sent. A record leaves the log when such a flush has
// succeeded. Overlapping changes must not be under way at the same time; then the
// records, carried out again in the order of the log, leave what was there.
package unflushed

import "golang.org/x/sys/unix"

// Kind is what a change does.
type Kind uint8

// The kinds of changes. Zero keeps its space, Discard gives it back; both read as
// zeros afterwards.
const (
	Write Kind = iota
	Zero
	Discard
)

// Change is one change of an export.
type Change struct {
	Kind     Kind
	Off, Len int64  // bytes
	Data     []byte // of a Write; it is in the log's memory
}

// Ref names a record of a log.
type Ref uint64

// Mark is a moment, of which Begin tells.
type Mark uint64

type state uint8

const (
	underWay state = iota
	done           // acknowledged
	settled        // durable, or has failed: it is only in the way
)

// record is a change and where its data is.
type record struct {
	Change
	state state
	when  Mark // it was acknowledged
	end   int  // of its data in memory
}

// Log is a queue of changes, bounded in bytes and in records. The zero value is not
// ready for use. It is not safe for concurrent use; only the data of records may be
// filled and read by others.
type Log struct {
	memory  []byte   // the data of records, as a ring of whole pieces
	records []record // as a ring
	// first is the oldest record, next the one to come: records[ref % len].
	first, next Ref
	// Data is in [tail, head), or, if head < tail, in [tail, len) and [0, head). Both
	// are 0 when there are no records.
	tail, head int
	now        Mark
}

// New makes a log for so many bytes of data and so many changes.
func New(bytes, changes int) *Log {
	l := &Log{memory: make([]byte, bytes), records: make([]record, changes)}
	if bytes > 0 {
		// Memory that is touched for the first time would cost a page fault for each
		// 4 KiB, ten times as much as the copy. Without large pages it just does.
		_ = unix.Madvise(l.memory, unix.MADV_HUGEPAGE)
	}
	return l
}

// Add makes a record of a change that is about to be sent. The caller fills the data,
// which is c.Len bytes for a Write. False means that there is no room, until a flush.
func (l *Log) Add(kind Kind, off, n int64) (ref Ref, data []byte, ok bool) {
	if l.next-l.first == Ref(len(l.records)) {
		return 0, nil, false
	}
	r := record{Change: Change{Kind: kind, Off: off, Len: n}, end: l.head}
	if kind == Write {
		at, ok := l.place(n)
		if !ok {
			return 0, nil, false
		}
		r.end = at + int(n)
		r.Data = l.memory[at:r.end:r.end]
		l.head = r.end
	}
	ref = l.next
	*l.at(ref) = r
	l.next++
	return ref, r.Data, true
}

// place finds n bytes in one piece. They end before the tail: head == tail is an
// empty memory.
func (l *Log) place(n int64) (at int, ok bool) {
	size := int64(len(l.memory))
	switch {
	case l.head >= l.tail && n <= size-int64(l.head):
		return l.head, true
	case l.head >= l.tail:
		return 0, n < int64(l.tail)
	}
	return l.head, n < int64(l.tail-l.head)
}

func (l *Log) at(ref Ref) *record { return &l.records[ref%Ref(len(l.records))] }

// Done is told that a change was acknowledged.
func (l *Log) Done(ref Ref) {
	r := l.at(ref)
	r.state, r.when = done, l.now
}

// Failed is told that a change was not carried out: nobody may rely on it.
func (l *Log) Failed(ref Ref) {
	l.at(ref).state = settled
	l.release()
}

// Begin is told that a flush is about to be sent.
func (l *Log) Begin() Mark {
	l.now++
	return l.now
}

// Flushed is told that the flush that began then has succeeded: what was acknowledged
// before it is durable.
func (l *Log) Flushed(began Mark) {
	for ref := l.first; ref != l.next; ref++ {
		if r := l.at(ref); r.state == done && r.when < began {
			r.state = settled
		}
	}
	l.release()
}

// release makes room, up to the first record that is still needed.
func (l *Log) release() {
	for l.first != l.next && l.at(l.first).state == settled {
		l.tail = l.at(l.first).end
		*l.at(l.first) = record{}
		l.first++
	}
	if l.first == l.next {
		l.tail, l.head = 0, 0 // memory that is used already is cheaper
	}
}

// Pending is the first change from a record on, 0 being the oldest, that is to be sent
// again: it was acknowledged and is not known to be durable. next is where to go on.
// Other changes may fail between two calls; nothing may be flushed.
func (l *Log) Pending(from Ref) (c Change, next Ref, ok bool) {
	for ref := max(from, l.first); ref < l.next; ref++ {
		if r := l.at(ref); r.state == done {
			return r.Change, ref + 1, true
		}
	}
	return Change{}, l.next, false
}

// Used tells how full the log is, from 0 to 1: of bytes or records, whichever is
// fuller.
func (l *Log) Used() float64 {
	bytes := l.head - l.tail
	if bytes < 0 {
		bytes += len(l.memory)
	}
	return max(float64(bytes)/float64(max(1, len(l.memory))), float64(l.next-l.first)/float64(len(l.records)))
}

// Len is the number of records, some of which may be settled.
func (l *Log) Len() int { return int(l.next - l.first) }
