package relay

import (
	"cmp"
	"slices"

	"github.com/fsximg/fsx/internal/nbdclient/unflushed"
)

// request is one that was not answered.
type request struct {
	header        // cookie is the kernel's
	lane   *lane  // that waits for the answer; nil: a flush of the relay's own
	data   []byte // of a write
	ref    unflushed.Ref
	logged bool           // ref is a record of the log
	began  unflushed.Mark // of a flush

	order  uint64 // of entry
	number uint32 // how often the place was used: the upper half of our cookie
	used   bool
}

// table has the requests that were not answered. Their cookies on the link are the
// places here, made unique by a number, so that no late answer meets another
// request. The zero value is empty.
type table struct {
	places []request
	free   []uint32
	next   uint64
}

// enter gives a request a place, and its cookie for the link.
func (t *table) enter(q request) uint64 {
	if len(t.free) == 0 {
		t.places = append(t.places, request{})
		t.free = append(t.free, uint32(len(t.places)-1))
	}
	i := t.free[len(t.free)-1]
	t.free = t.free[:len(t.free)-1]
	q.used, q.order, q.number = true, t.next, t.places[i].number
	t.next++
	t.places[i] = q
	return uint64(q.number)<<32 | uint64(i)
}

// at finds a request by its cookie on the link; nil: there is none.
func (t *table) at(cookie uint64) *request {
	i := uint32(cookie)
	if int(i) >= len(t.places) || !t.places[i].used || t.places[i].number != uint32(cookie>>32) {
		return nil
	}
	return &t.places[i]
}

// leave frees the place of a request.
func (t *table) leave(cookie uint64) {
	i := uint32(cookie)
	t.places[i] = request{number: t.places[i].number + 1}
	t.free = append(t.free, i)
}

// all are the cookies of the requests, in the order of their entry.
func (t *table) all() []uint64 {
	var l []uint64
	for i, q := range t.places {
		if q.used {
			l = append(l, uint64(q.number)<<32|uint64(i))
		}
	}
	slices.SortFunc(l, func(a, b uint64) int { return cmp.Compare(t.at(a).order, t.at(b).order) })
	return l
}
