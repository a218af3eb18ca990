package volume

import (
	"context"
	"errors"
	"fmt"

	"github.com/fsximg/fsx/pkg/layout"
	"github.com/fsximg/fsx/pkg/layout/maptree"
)

// mapCheck walks one map.
type mapCheck struct {
	*checker
	name    string
	id      layout.VolumeID
	record  recordOf
	segs    map[layout.SegmentNo]*layout.SegmentRecord
	reached map[layout.SegmentNo][]byte // bitmaps of blocks that the map points to
	blocks  uint64
	kept    uint64 // of these, what only snapshots have
	opened  uint64 // of these, whose tag was checked
	last    extentName
	rec     layout.ExtentRecord
}

func (m *mapCheck) run(ctx context.Context, root layout.Root) error {
	return m.s.tree.Verify(ctx, root, maptree.VerifyOptions{
		Ref: m.ref,
		Damage: func(e *maptree.NodeError) error {
			blocks := int64(1) << maptree.Shift(e.Level)
			m.problem(Problem{m.name, int64(e.Index) * blocks * blockSize, blocks * blockSize, "map node is missing or altered"})
			return nil
		},
	})
}

// snapshots checks what snapshots have and the next newer one, or the volume
// itself, has not. Of an open volume (v is not nil) the tags too.
func (m *mapCheck) snapshots(ctx context.Context, snaps []layout.Snapshot, newer layout.Root, v *Volume) error {
	name := m.name
	defer func() { m.name = name }()
	buf := make([]byte, blockSize+slack)
	for i := len(snaps) - 1; i >= 0; i-- {
		s := &snaps[i]
		m.name = name + "@" + s.Name
		err := m.s.tree.Exclusive(ctx, s.Root, []layout.Root{newer}, maptree.ExclusiveOptions{
			Ref: func(b layout.BlockNo, ref *layout.BlockRef) error {
				m.kept++
				if err := m.ref(b, ref); err != nil || v == nil {
					return err
				}
				loc := [1]located{{kind: layout.Data, ref: *ref}}
				err := errMoved
				for try := 0; errors.Is(err, errMoved) && try < maxRetries; try++ {
					err = v.readRun(buf[:blockSize:blockSize+slack], b, loc[:], false)
				}
				if errors.Is(err, ErrKeyMissing) {
					return nil
				}
				if err != nil {
					var be *BlockError
					if errors.As(err, &be) {
						err = be.Err
					}
					m.problem(Problem{m.name, int64(b) * blockSize, blockSize, err.Error()})
					return nil
				}
				m.opened++
				return nil
			},
		})
		var ne *maptree.NodeError
		if errors.As(err, &ne) {
			blocks := int64(1) << maptree.Shift(ne.Level)
			m.problem(Problem{m.name, int64(ne.Index) * blocks * blockSize, blocks * blockSize, "map node is missing or altered"})
			err = nil
		}
		if err != nil {
			return err
		}
		newer = s.Root
	}
	return nil
}

func (m *mapCheck) ref(b layout.BlockNo, ref *layout.BlockRef) error {
	m.blocks++
	if name := (extentName{ref.Owner, ref.Extent}); name != m.last {
		rec, err := m.record(ref.Owner, ref.Extent)
		if errors.Is(err, ErrDamaged) {
			m.problem(Problem{m.name, int64(b) * blockSize, blockSize, "extent record is missing or altered"})
			return nil
		}
		if err != nil {
			return err
		}
		m.last, m.rec = name, rec
	}
	at, ok := m.rec.BlockAt(ref.Index)
	if !ok {
		m.problem(Problem{m.name, int64(b) * blockSize, blockSize, "block is not in its extent"})
		return nil
	}
	if ref.Owner != m.id {
		return nil // accounted for by its owner
	}
	seg := m.segs[m.rec.Segment]
	if seg == nil || at >= seg.Used {
		m.problem(Problem{m.name, int64(b) * blockSize, blockSize, "block's segment is not accounted for"})
		return nil
	}
	bits := m.reached[m.rec.Segment]
	if bits == nil {
		bits = make([]byte, len(seg.Live))
		m.reached[m.rec.Segment] = bits
	}
	switch {
	case seg.Live[at/8]>>(at%8)&1 == 0:
		m.problem(Problem{m.name, int64(b) * blockSize, blockSize, "block is accounted as dead"})
	case bits[at/8]>>(at%8)&1 != 0:
		m.problem(Problem{m.name, int64(b) * blockSize, blockSize, "block is mapped twice"})
	}
	bits[at/8] |= 1 << (at % 8)
	return nil
}

// accounts counts the blocks that are accounted as live and not reached.
func (m *mapCheck) accounts() (leaked uint64) {
	for no, seg := range m.segs {
		live := countBits(seg.Live)
		leaked += uint64(live) - uint64(countBits(m.reached[no]))
	}
	return leaked
}

// account compares what is said that the present state and each snapshot have
// alone with what their maps have.
func (m *mapCheck) account(ctx context.Context, snaps []layout.Snapshot, head layout.Root) error {
	u, err := m.s.usage(m.id, snaps)
	if err != nil {
		return err
	}
	count := func(name string, root layout.Root, others []layout.Root, want uint64) error {
		n := uint64(0)
		err := m.s.tree.Exclusive(ctx, root, others, maptree.ExclusiveOptions{Ref: func(_ layout.BlockNo, ref *layout.BlockRef) error {
			if ref.Owner == m.id {
				n++
			}
			return nil
		}})
		if errors.Is(err, maptree.ErrDamaged) {
			return nil // told already
		}
		if err == nil && n != want {
			m.problem(Problem{name, -1, 0, fmt.Sprintf("%d blocks are its alone, and accounted for are %d", n, want)})
		}
		return err
	}
	var others []layout.Root
	if n := len(snaps); n > 0 {
		others = append(others, snaps[n-1].Root)
	}
	if err := count(m.name, head, others, u.head); err != nil {
		return err
	}
	for i := range snaps {
		others = others[:0]
		if i > 0 {
			others = append(others, snaps[i-1].Root)
		}
		if i+1 < len(snaps) {
			others = append(others, snaps[i+1].Root)
		} else {
			others = append(others, head)
		}
		if err := count(m.name+"@"+snaps[i].Name, snaps[i].Root, others, u.snaps[snaps[i].Seq]); err != nil {
			return err
		}
	}
	return nil
}
