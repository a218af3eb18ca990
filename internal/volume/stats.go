package volume

import "sync/atomic"

// counters count what a volume did since it was opened.
type counters struct {
	reads, read, writes, written, zeroed, flushes, commits, checkpoints atomic.Uint64

	damaged, keyMissing, unread atomic.Uint64 // blocks
	checkpointed                atomic.Int64  // when, the last time, Unix nanoseconds
}

// Stats are a volume's counters.
type Stats struct {
	Reads, ReadBytes     uint64
	Writes, WrittenBytes uint64
	Zeroes, Flushes      uint64
	Commits, Checkpoints uint64
	OverlayEntries       int
	LogBytes             int64 // log since the last checkpoint
	CacheBytes           int64 // map nodes in memory
}

// Stats returns the volume's counters.
func (v *Volume) Stats() Stats {
	s := Stats{
		Reads: v.stats.reads.Load(), ReadBytes: v.stats.read.Load(),
		Writes: v.stats.writes.Load(), WrittenBytes: v.stats.written.Load(),
		Zeroes: v.stats.zeroed.Load(), Flushes: v.stats.flushes.Load(),
		Commits: v.stats.commits.Load(), Checkpoints: v.stats.checkpoints.Load(),
		CacheBytes: v.store.tree.CacheBytes(),
	}
	v.mu.RLock()
	defer v.mu.RUnlock()
	s.OverlayEntries, s.LogBytes = v.overlay.count, v.logBytes
	return s
}
