package volume

// limits say when a volume's upkeep is due, and what stays free on the disk.
// Tests make them small.
type limits struct {
	overlay  int    // entries not checkpointed
	log      int64  // bytes of log not checkpointed
	cheapLog int64  // the same, when a checkpoint is cheap since homes lie together
	slack    uint64 // blocks that may be dead beyond the live ones before a compaction

	logReserve   int64 // bytes that a new segment must leave free
	indexReserve int64 // bytes that every write to the index must find free
}

func defaultLimits() limits {
	return limits{
		overlay: 384 << 10, log: 1 << 30, cheapLog: 256 << 20, slack: 64 << 10,
		logReserve: 48 << 20, indexReserve: 8 << 20,
	}
}

// checkpointDue says that what the log holds should go into the map tree.
func (v *Volume) checkpointDueLocked() bool {
	l := &v.store.limits
	sequential := v.overlay.runs*8 < v.overlay.count
	return v.overlay.weight() > l.overlay || v.pressed.Load() || v.logBytes > l.log || sequential && v.logBytes > l.cheapLog
}

// heldBackLocked is the size of what waits behind the checkpoint that is next or
// under way.
func (v *Volume) heldBackLocked() (entries int, log int64) {
	entries, log = v.overlay.weight(), v.logBytes
	for i := 1; i < len(v.waiting); i++ {
		entries += v.waiting[i].weight()
		log += v.waiting[i].log
	}
	return entries, log
}

// throttledLocked says that writers must wait for a checkpoint.
func (v *Volume) throttledLocked() bool {
	l := &v.store.limits
	entries, log := v.heldBackLocked()
	return entries > 2*l.overlay || log > 2*l.log
}
