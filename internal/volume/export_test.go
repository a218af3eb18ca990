package volume

import (
	"context"

	"github.com/fsximg/fsx/pkg/crypt"
)

// Limits are when upkeep is due, for tests that want it all the time. A zero
// field is the default.
type Limits struct {
	Overlay      int
	Log          int64
	Slack        uint64
	LogReserve   int64
	IndexReserve int64
}

// SetLimits changes the limits of a store that is opened with these options.
func (o *Options) SetLimits(l Limits) {
	d := defaultLimits()
	if l.Overlay != 0 {
		d.overlay = l.Overlay
	}
	if l.Log != 0 {
		d.log, d.cheapLog = l.Log, l.Log
	}
	if l.Slack != 0 {
		d.slack = l.Slack
	}
	if l.LogReserve != 0 {
		d.logReserve = l.LogReserve
	}
	if l.IndexReserve != 0 {
		d.indexReserve = l.IndexReserve
	}
	o.limits = d
}

// CompactAll compacts what can be compacted, without a checkpoint before.
func (v *Volume) CompactAll(ctx context.Context) error { return v.compactSome(ctx, true) }

// HoldUpkeep keeps the checkpoints and compactions of all open volumes, hidden
// ones too, from running until release is called; everything is flushed then.
func (s *Store) HoldUpkeep() (release func()) {
	open := s.opened()
	for _, v := range open {
		v.upkeep.Lock()
		_ = v.Flush()
	}
	return func() {
		for _, v := range open {
			v.upkeep.Unlock()
		}
	}
}

// HoldUpkeep keeps checkpoints and compactions from running until release is
// called.
func (v *Volume) HoldUpkeep() (release func()) {
	v.upkeep.Lock()
	return v.upkeep.Unlock
}

// WritesUnderKeyOf says whether v writes under a data key that w has.
func (v *Volume) WritesUnderKeyOf(w *Volume) bool {
	_, ok := w.bag.Get(v.bag.WriteKey().ID())
	return ok
}

// CountBytes has the volume's data key have encrypted n more bytes.
func (v *Volume) CountBytes(n uint64) { v.bag.AddBytes(v.bag.WriteKey().ID(), n) }

// HoldLoans keeps the data keys that are lent to the volume from being looked at
// until release is called.
func (v *Volume) HoldLoans() (release func()) {
	v.base.mu.Lock()
	return v.base.mu.Unlock
}

// OpenLoans looks for a data key that is not there among those that are lent, and
// counts the bags that are open then.
func (v *Volume) OpenLoans() int {
	v.baseKey(crypt.ID{})
	v.base.mu.Lock()
	defer v.base.mu.Unlock()
	return len(v.base.loans)
}

// LentKey finds a data key among those that are lent to the volume; what it returns
// uses it.
func (v *Volume) LentKey(id crypt.ID) func() error {
	k, ok := v.baseKey(id)
	return func() error {
		if !ok {
			return ErrKeyMissing
		}
		_, err := k.Extent(crypt.Nonce{}, 1)
		return err
	}
}
