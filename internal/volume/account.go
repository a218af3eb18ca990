package volume

import (
	"errors"
	"slices"

	"github.com/fsximg/fsx/pkg/layout"
	"github.com/fsximg/fsx/pkg/layout/metadb"
)

// account tells what each snapshot, and the present state, has alone. It counts
// the volume's own blocks by the snapshot before which they were born, and those
// that died, but are kept, also by the snapshot before which that was: a snapshot
// has alone what was born behind the one before it and died before the next. It
// is kept by checkpoints, in the transaction of the head, and is a hint that
// check verifies.
type account struct {
	alive layout.Tally // in the present state
	since layout.Tally // died since the newest snapshot
}

func (a account) clone() account { return account{slices.Clone(a.alive), slices.Clone(a.since)} }

// accountRow reads a row; one that is not there is empty.
func (s *Store) accountRow(id layout.VolumeID, row layout.Seq) (t layout.Tally, err error) {
	err = s.db.Get(layout.AccountKey(id, row), func(val []byte) error {
		t, err = layout.DecodeTally(val)
		return err
	})
	if errors.Is(err, metadb.ErrNotFound) {
		err = nil
	}
	return t, err
}

func (s *Store) account(id layout.VolumeID) (a account, err error) {
	var errs [2]error
	a.alive, errs[0] = s.accountRow(id, layout.AliveRow)
	a.since, errs[1] = s.accountRow(id, 0)
	return a, errors.Join(errs[:]...)
}

// bookkeeping is a volume's account while a checkpoint changes it.
type bookkeeping struct {
	account
	v       *Volume
	rows    map[layout.Seq]layout.Tally // that the checkpoint writes; an empty one is removed
	changed bool
}

func (v *Volume) newBookkeeping() *bookkeeping {
	return &bookkeeping{account: v.account.clone(), v: v, rows: map[layout.Seq]layout.Tally{}}
}

// died notes that the present state has a block no more; kept says that a
// snapshot has it.
func (b *bookkeeping) died(birth layout.Seq, kept bool) {
	b.changed = true
	i := b.alive.Find(birth)
	if i == len(b.alive) {
		return // the account is wrong already
	}
	label := b.alive[i].Label
	b.alive = b.alive.Add(label, -1)
	if kept {
		b.since = b.since.Add(label, 1)
	}
}

// born notes that the present state has so many blocks more.
func (b *bookkeeping) born(n uint64) {
	b.changed = b.changed || n > 0
	b.alive = b.alive.Add(layout.Unborn, int64(n))
}

// snapshot notes that everything up to now is kept under a sequence.
func (b *bookkeeping) snapshot(seq layout.Seq) {
	b.changed = true
	b.rows[seq], b.since = b.since, nil
	if n := len(b.alive); n > 0 && b.alive[n-1].Label == layout.Unborn {
		b.alive[n-1].Label = seq
	}
}

// row returns what died before a snapshot, or since the newest.
func (b *bookkeeping) row(seq layout.Seq) (layout.Tally, error) {
	if seq == 0 {
		return b.since, nil
	}
	if t, ok := b.rows[seq]; ok {
		return t, nil
	}
	return b.v.store.accountRow(b.v.id, seq)
}

// deleted notes that the snapshot between two others is gone; next is 0 if it
// was the newest.
func (b *bookkeeping) deleted(before, seq, next layout.Seq) error {
	b.changed = true
	gone, err := b.row(seq)
	if err != nil {
		return err
	}
	into, err := b.row(next)
	if err != nil {
		return err
	}
	into = slices.DeleteFunc(slices.Clone(into), func(c layout.Count) bool { return c.Label > before && c.Label <= seq })
	for _, c := range gone {
		into = into.Add(c.Label, int64(c.N))
	}
	b.rows[seq] = nil
	if next == 0 {
		b.since = into
	} else {
		b.rows[next] = into
	}
	return nil
}

// write puts what changed into a transaction.
func (b *bookkeeping) write(tx *metadb.Txn) error {
	if !b.changed {
		return nil
	}
	b.rows[layout.AliveRow], b.rows[0] = b.alive, b.since
	for row, t := range b.rows {
		key := layout.AccountKey(b.v.id, row)
		err := error(nil)
		if len(t) == 0 {
			err = tx.Delete(key)
		} else {
			err = tx.Set(key, t.Encode())
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// usage is what a volume has alone, in blocks.
type usage struct {
	head  uint64                // its present state
	snaps map[layout.Seq]uint64 // each snapshot
}

// usage reads a volume's account. snaps are all its snapshots in the index.
func (s *Store) usage(id layout.VolumeID, snaps []layout.Snapshot) (usage, error) {
	u := usage{snaps: map[layout.Seq]uint64{}}
	rows := map[layout.Seq]layout.Tally{}
	err := s.db.Scan(layout.AccountPrefix(id), func(key, val []byte) error {
		row, ok := layout.AccountRow(key)
		t, err := layout.DecodeTally(val)
		if ok && err == nil {
			rows[row] = t
		}
		return err
	})
	if errors.Is(err, layout.ErrCorrupt) {
		err = nil // told by check
	}
	if err != nil {
		return u, err
	}
	before := layout.Seq(0)
	for i := range snaps {
		next := layout.Seq(0)
		if i+1 < len(snaps) {
			next = snaps[i+1].Seq
		}
		u.snaps[snaps[i].Seq] = rows[next].Sum(before, snaps[i].Seq)
		before = snaps[i].Seq
	}
	u.head = rows[layout.AliveRow].Sum(before, layout.Unborn)
	return u, nil
}
