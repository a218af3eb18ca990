package volume

// limits say when a volume's upkeep is due.
type limits struct {
	overlay  int    // entries not checkpointed
	log      int64  // bytes of log not checkpointed
	cheapLog int64  // the same, when a checkpoint is cheap since homes lie together
	slack    uint64 // blocks that may be dead beyond the live ones before a compaction
}

func defaultLimits() limits {
	return limits{overlay: 384 << 10, log: 1 << 30, cheapLog: 256 << 20, slack: 64 << 10}
}

// checkpointDue says that what the log holds should go into the map tree.
func (v *Volume) checkpointDueLocked() bool {
	l := &v.store.limits
	sequential := v.overlay.runs*8 < v.overlay.count
	return v.overlay.weight() > l.overlay || v.logBytes > l.log || sequential && v.logBytes > l.cheapLog
}

// throttledLocked says that writers must wait for a checkpoint.
func (v *Volume) throttledLocked() bool {
	l := &v.store.limits
	return v.overlay.weight() > 2*l.overlay || v.logBytes > 2*l.log
}
