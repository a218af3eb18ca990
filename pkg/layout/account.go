package layout

import (
	"cmp"
	"slices"
)

const (
	accountPrefix = 'a' // | volume be32 | row be64
	tallySize     = 16

	// Unborn is the label of blocks that no snapshot has yet.
	Unborn Seq = 1<<64 - 1
	// AliveRow is the row of what a volume's present state has; the row 0 is of
	// what died since its newest snapshot, and every other of what died in the
	// time before the snapshot of that sequence.
	AliveRow Seq = 1<<64 - 1
)

// AccountPrefix is the prefix of the keys of a volume's account.
func AccountPrefix(v VolumeID) []byte { return be.AppendUint32([]byte{accountPrefix}, uint32(v)) }

// AccountKey is the key of a row of a volume's account.
func AccountKey(v VolumeID, row Seq) []byte { return be.AppendUint64(AccountPrefix(v), uint64(row)) }

// AccountRow takes the row from a key.
func AccountRow(key []byte) (row Seq, ok bool) {
	if len(key) != 13 || key[0] != accountPrefix {
		return 0, false
	}
	return Seq(be.Uint64(key[5:])), true
}

// Count is how many blocks were born before the snapshot of the label, and after
// the one before that.
type Count struct {
	Label Seq
	N     uint64
}

// Tally is a row of an account: counts by ascending labels, none of them 0.
// Encoded it is label be64, count be64 each.
//
// A label stays when its snapshot is deleted: it then stands with those of the
// next one that there is.
type Tally []Count

// Find is the index of the count that blocks of a birth are in, as long as there
// is one.
func (t Tally) Find(birth Seq) int {
	i, _ := slices.BinarySearchFunc(t, birth, func(c Count, b Seq) int { return cmp.Compare(c.Label, b) })
	return i
}

// Add changes a count.
func (t Tally) Add(label Seq, n int64) Tally {
	i := t.Find(label)
	if i == len(t) || t[i].Label != label {
		if n <= 0 {
			return t
		}
		return slices.Insert(t, i, Count{label, uint64(n)})
	}
	if n < 0 && uint64(-n) >= t[i].N {
		return slices.Delete(t, i, i+1)
	}
	t[i].N += uint64(n)
	return t
}

// Sum adds up the counts with labels in (after, upTo].
func (t Tally) Sum(after, upTo Seq) (n uint64) {
	for _, c := range t {
		if c.Label > after && c.Label <= upTo {
			n += c.N
		}
	}
	return n
}

// Encode returns the row's bytes.
func (t Tally) Encode() []byte {
	b := make([]byte, 0, len(t)*tallySize)
	for _, c := range t {
		b = be.AppendUint64(be.AppendUint64(b, uint64(c.Label)), c.N)
	}
	return b
}

// DecodeTally reads a row.
func DecodeTally(b []byte) (t Tally, err error) {
	if len(b)%tallySize != 0 {
		return nil, corrupt("account", "cut")
	}
	for ; len(b) > 0; b = b[tallySize:] {
		c := Count{Seq(be.Uint64(b)), be.Uint64(b[8:])}
		if c.N == 0 || len(t) > 0 && c.Label <= t[len(t)-1].Label {
			return nil, corrupt("account", "out of order")
		}
		t = append(t, c)
	}
	return t, nil
}
