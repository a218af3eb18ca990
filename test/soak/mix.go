package main

import "math/rand/v2"

const (
	blockSize  = 4096
	maxRequest = 1 << 20 // bytes of the largest request
	oddMax     = 20000   // bytes of the largest request to the odd part
)

// request is one request of the soak.
type request struct {
	cmd, flags uint16
	off        int64
	n          int
	taken      bool // its units are reserved
	change     bool // for a change

	// repair is a write over a range whose last change was sent on a connection
	// that broke, so that nobody knows whether it was carried out; either is a
	// read of such a range, which a repair follows. old is what it held before.
	repair, either bool
	old            content

	cookie  uint64
	covered int // bytes that chunks of a structured reply have brought
	entry   int // in the history
}

// source says what a connection sends next.
type source interface {
	// next returns a request whose units are taken, or false at the end.
	next(m *model, rng *rand.Rand, structured bool) (request, bool)
}

// sweep goes through the volume in order: filling it, or reading all of it.
type sweep struct {
	cmd      uint16
	at, to   int64
	piece    int
	leaveOut int64 // every n-th piece is left out, if not 0
	count    int64
}

func (s *sweep) next(m *model, _ *rand.Rand, _ bool) (request, bool) {
	for {
		if s.count++; s.at >= s.to {
			return request{}, false
		}
		r := request{cmd: s.cmd, off: s.at, n: int(min(int64(s.piece), s.to-s.at)), taken: true, change: s.cmd == cmdWrite}
		if r.off < m.oddAt {
			r.n = int(min(int64(r.n), m.oddAt-r.off)) // in one part
		}
		s.at += int64(r.n)
		if s.leaveOut > 0 && s.count%s.leaveOut == 0 {
			continue
		}
		return r, m.take(r.off, r.n, r.change) // nobody else is there
	}
}

// mixture is the soak itself: requests of every kind at random.
type mixture struct {
	syncs    int // a FLUSH, and a FUA, once in so many requests
	finished func() bool
}

func (x mixture) next(m *model, rng *rand.Rand, structured bool) (request, bool) {
	if x.finished() {
		return request{}, false
	}
	if rng.IntN(x.syncs) == 0 {
		return request{cmd: cmdFlush}, true
	}
	for range 64 {
		r := pick(rng, structured)
		if rng.IntN(20) == 0 {
			placeOdd(&r, m, rng)
		} else {
			place(&r, m, rng)
		}
		if r.change && rng.IntN(x.syncs) == 0 {
			r.flags |= flagFUA
		}
		if r.cmd == cmdCache {
			return r, true // changes nothing and tells nothing
		}
		if m.take(r.off, r.n, r.change) {
			r.taken = true
			return r, true
		}
	}
	return request{cmd: cmdCache, n: blockSize}, true
}

// pick chooses the command.
func pick(rng *rand.Rand, structured bool) request {
	switch k := rng.IntN(1000); {
	case k < 340:
		return request{cmd: cmdWrite, change: true}
	case k < 370:
		flags := []uint16{0, flagNoHole, flagFast, flagFast | flagNoHole}
		return request{cmd: cmdZero, flags: flags[rng.IntN(4)], change: true}
	case k < 390:
		return request{cmd: cmdTrim, change: true}
	case k < 410:
		return request{cmd: cmdCache}
	case k < 440 && structured:
		return request{cmd: cmdStatus, flags: uint16(rng.IntN(2)) * flagOne}
	case k < 500 && structured:
		return request{cmd: cmdRead, flags: flagDF}
	}
	return request{cmd: cmdRead}
}

// place chooses a range before the odd part, of whole units: mostly a block.
func place(r *request, m *model, rng *rand.Rand) {
	unit := int64(blockSize)
	switch k := rng.IntN(1000); {
	case k < 760:
		r.n = blockSize
	case k < 900: // parts of blocks
		r.n, unit = (rng.IntN(16)+1)*unitSize, unitSize
	case k < 985:
		r.n = (rng.IntN(8) + 1) * blockSize
	case k < 999:
		r.n = (rng.IntN(32) + 1) * blockSize
	default:
		r.n = (rng.IntN(maxRequest/blockSize) + 1) * blockSize
	}
	if r.cmd == cmdTrim { // may be rounded inwards
		r.n, unit = (r.n+blockSize-1)&^(blockSize-1), blockSize
	}
	room := m.oddAt
	if rng.IntN(4) == 0 {
		room = max(room/64, maxRequest) // a part that is changed much more often
	}
	r.off = rng.Int64N((room-int64(r.n))/unit+1) * unit
}

// placeOdd chooses any bytes of the odd part.
func placeOdd(r *request, m *model, rng *rand.Rand) {
	r.n = rng.IntN(oddMax) + 1
	if rng.IntN(2) == 0 {
		r.n = rng.IntN(3*unitSize) + 1
	}
	r.off = m.oddAt + rng.Int64N(m.size-m.oddAt-int64(r.n)+1)
}

// apply brings the model to what a change leaves behind, and appends the payload
// of a write to p. Its units are taken.
func (m *model) apply(p []byte, r *request, salt uint64) []byte {
	m.save(&r.old, r.off, r.n)
	switch r.cmd {
	case cmdWrite:
		return m.write(p, r.off, r.n, salt)
	case cmdZero:
		m.clear(r.off, r.n)
	case cmdTrim: // fsx gives back whole blocks and leaves the rest alone
		from := (r.off + blockSize - 1) &^ (blockSize - 1)
		to := (r.off + int64(r.n)) &^ (blockSize - 1)
		if from < to {
			m.clear(from, int(to-from))
		}
	}
	return p
}
