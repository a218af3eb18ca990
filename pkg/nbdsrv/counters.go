package nbdsrv

import (
	"math/bits"
	"strings"
	"sync/atomic"
	"time"
)

// How requests are counted. Each connection has counters of its own, on cache
// lines of their own, so that no two connections share one. What the receiving
// goroutine answers on the spot it first counts in a tally, which is nobody
// else's; with each send, the tally goes into the counters. So the clock is read
// and atomic additions are made once for a batch, not for a request. Tasks are
// counted when they are sent, one by one: they cost much more anyway.

// commandSlots is the number of commands that are told apart. DISC, which is not
// answered, lends its place to those that there are not.
const (
	commandSlots = int(cmdBlockStatus) + 1
	unknownSlot  = int(cmdDisc)
)

// countedErrors are the errors that replies have; what is none of them counts as
// the last.
var countedErrors = [...]uint32{wireEPERM, wireEINVAL, wireENOSPC, wireEOVERFLOW, wireENOTSUP, wireESHUTDOWN, wireEIO}

func commandSlot(cmd uint16) int {
	if int(cmd) < commandSlots {
		return int(cmd)
	}
	return unknownSlot
}

func slotName(slot int) string {
	if slot == unknownSlot {
		return "unknown"
	}
	return strings.ToLower(commandName(uint16(slot)))
}

// errorSlot is where an error of the wire is counted.
func errorSlot(errno uint32) int {
	for i, e := range countedErrors {
		if e == errno {
			return i
		}
	}
	return len(countedErrors) - 1
}

func errorName(slot int) string {
	return errnoNames[countedErrors[slot]]
}

var errnoNames = map[uint32]string{
	wireEPERM: "EPERM", wireEIO: "EIO", wireEINVAL: "EINVAL", wireENOSPC: "ENOSPC",
	wireEOVERFLOW: "EOVERFLOW", wireENOTSUP: "ENOTSUP", wireESHUTDOWN: "ESHUTDOWN",
}

// latencyClass is the class of a Latency that d belongs to.
func latencyClass(d time.Duration) int {
	us := uint64(max(d-1, 0)) / uint64(time.Microsecond)
	return min(max(bits.Len64(us)-2, 0), LatencyClasses)
}

// histogram is a Latency that many goroutines add to.
type histogram struct {
	sum     atomic.Int64
	classes [LatencyClasses + 1]atomic.Uint64
}

func (h *histogram) add(n uint64, each time.Duration) {
	h.sum.Add(int64(n) * int64(each))
	h.classes[latencyClass(each)].Add(n)
}

func (h *histogram) addTo(l *Latency) {
	l.Sum += time.Duration(h.sum.Load())
	for i := range h.classes {
		l.Classes[i] += h.classes[i].Load()
	}
}

// counters count the answered requests of one connection.
type counters struct {
	commands [commandSlots]struct {
		bytes   atomic.Uint64
		latency histogram
	}
	errors [commandSlots][len(countedErrors)]atomic.Uint64
	flush  histogram
}

// failed counts a request's error.
func (k *counters) failed(r request, errno uint32) {
	k.errors[commandSlot(r.cmd)][errorSlot(errno)].Add(1)
}

// answered counts n requests of a command that took the same time, and the bytes
// of those that succeeded.
func (k *counters) answered(slot int, n, bytes uint64, took time.Duration) {
	c := &k.commands[slot]
	if bytes > 0 {
		c.bytes.Add(bytes)
	}
	c.latency.add(n, took)
}

// tally counts the requests that the receiving goroutine has answered and not
// yet sent the replies of. It is its own.
type tally struct {
	used     uint32 // commands that there are some of, one bit each
	commands [commandSlots]struct{ requests, bytes uint64 }
}

// add counts a request and its bytes, 0 if it failed.
func (t *tally) add(r request, bytes uint64) {
	slot := commandSlot(r.cmd)
	t.used |= 1 << slot
	t.commands[slot].requests++
	t.commands[slot].bytes += bytes
}

// moveTo empties the tally into counters: the replies were sent took after the
// requests' receipt.
func (t *tally) moveTo(k *counters, took time.Duration) {
	for ; t.used != 0; t.used &= t.used - 1 {
		slot := bits.TrailingZeros32(t.used)
		c := &t.commands[slot]
		k.answered(slot, c.requests, c.bytes, took)
		*c = struct{ requests, bytes uint64 }{}
	}
}

// countSent counts the tasks of a list, whose replies are sent.
func (c *conn) countSent(list taskList) {
	if list.head == nil {
		return
	}
	now := time.Now()
	for t := list.head; t != nil; t = t.next {
		bytes := uint64(t.r.length)
		if t.errno != 0 {
			bytes = 0
			c.counts.failed(t.r, t.errno)
		}
		c.counts.answered(commandSlot(t.r.cmd), 1, bytes, now.Sub(t.arrived))
	}
}

// totals are counters, added up. Their zero value is nothing.
type totals struct {
	commands [commandSlots]struct {
		bytes   uint64
		latency Latency
	}
	errors [commandSlots][len(countedErrors)]uint64
	flush  Latency
}

func (t *totals) add(k *counters) {
	for i := range k.commands {
		t.commands[i].bytes += k.commands[i].bytes.Load()
		k.commands[i].latency.addTo(&t.commands[i].latency)
		for e := range k.errors[i] {
			t.errors[i][e] += k.errors[i][e].Load()
		}
	}
	k.flush.addTo(&t.flush)
}

func (t *totals) addTotals(o *totals) {
	for i := range o.commands {
		t.commands[i].bytes += o.commands[i].bytes
		t.commands[i].latency.Add(&o.commands[i].latency)
		for e, n := range o.errors[i] {
			t.errors[i][e] += n
		}
	}
	t.flush.Add(&o.flush)
}

// traffic describes what was counted.
func (t *totals) traffic() Traffic {
	out := Traffic{Flush: t.flush}
	for i := range t.commands {
		c := &t.commands[i]
		if c.latency.Count() == 0 {
			continue
		}
		s := CommandStats{Command: slotName(i), Bytes: c.bytes, Latency: c.latency, Errors: map[string]uint64{}}
		for e, n := range t.errors[i] {
			if n > 0 {
				s.Errors[errorName(e)] = n
			}
		}
		out.Commands = append(out.Commands, s)
	}
	return out
}
