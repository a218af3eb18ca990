// Package snapshot is what can be known of volumes, snapshots and clones without
// a key: who descends from whom, and which snapshots a rule keeps.
package snapshot
