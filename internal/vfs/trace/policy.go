package trace

import "math/rand/v2"

// Survival says what of the unsynced part of something outlives a power cut.
type Survival uint8

const (
	// None: only what was synced.
	None Survival = iota
	// All: everything, as after a killed process.
	All
	// Some: of a file's data an arbitrary subset of the writes, each whole; of
	// a directory's entries an arbitrary number of the first changes.
	Some
	// Torn: of a file's data an arbitrary subset of the sectors of every
	// write; of a directory's entries an arbitrary subset of the changes, such
	// that changes about one file keep their order.
	Torn
	// Mixed: for every file another of the above, which finds what relies on
	// an order between files; for entries the same as Some.
	Mixed
)

// Policy says what survives a power cut: separately for what is in the files,
// and for the entries of the directories.
type Policy struct {
	Data  Survival
	Names Survival
	// Journaled is the last element of a directory's path ("*": of any). The
	// sync of a file there also makes durable what was changed before in the
	// directory's entries, which POSIX does not promise, but ext4, XFS and
	// btrfs do for a new file. Badger relies on it.
	Journaled string
}

// The usual policies.
var (
	DropUnsynced = Policy{Data: None, Names: None}
	KeepAll      = Policy{Data: All, Names: All}
	RandomWrites = Policy{Data: Some, Names: Some}
	RandomTorn   = Policy{Data: Torn, Names: Some}
	RandomMixed  = Policy{Data: Mixed, Names: Some}
	RandomNames  = Policy{Data: Mixed, Names: Torn}
)

// fates decides for one file. The zero value drops everything.
type fates struct {
	rng   *rand.Rand
	data  Survival
	share float64 // of the writes or sectors that survive
}

func newFates(rng *rand.Rand, s Survival) fates {
	if s == Mixed {
		s = []Survival{None, All, Some, Torn}[rng.IntN(4)]
	}
	return fates{rng: rng, data: s, share: []float64{0.1, 0.5, 0.5, 0.9}[rng.IntN(4)]}
}

// prefix chooses how many of n ordered changes survive.
func (f *fates) prefix(n int) int {
	switch {
	case f.data == None || n == 0:
		return 0
	case f.data == All:
		return n
	}
	switch f.rng.IntN(4) {
	case 0:
		return 0
	case 1:
		return n
	}
	return f.rng.IntN(n + 1)
}

// whole chooses whether a write survives; if some sectors may and others not,
// it returns torn, and sector chooses for each.
func (f *fates) whole() (kept, torn bool) {
	switch f.data {
	case All:
		return true, false
	case Some:
		return f.sector(), false
	case Torn:
		return false, true
	}
	return false, false
}

func (f *fates) sector() bool { return f.rng.Float64() < f.share }
