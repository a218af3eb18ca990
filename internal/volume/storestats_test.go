package volume_test

import (
	"bytes"
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/fsximg/fsx/internal/volume"
)

func countStats(t *testing.T, s *volume.Store) (volume.StoreStats, volume.VolumeStats) {
	t.Helper()
	st, err := s.CountStats()
	if err != nil {
		t.Fatal(err)
	}
	if len(st.Volumes) != 1 || st.Volumes[0].Name != "main" {
		t.Fatalf("open volumes: %v", st.Volumes)
	}
	return st, st.Volumes[0]
}

func TestLagIsWhatARecoveryReads(t *testing.T) {
	s := create(t, filepath.Join(t.TempDir(), "s"), 16<<20)
	defer s.Close()
	if st, err := s.CountStats(); err != nil || len(st.Volumes) != 0 || st.Free <= 0 || len(st.Keys) != 1 {
		t.Fatalf("before a volume is open: %+v, %v", st, err)
	}
	v := mainVolume(t, s)
	data := bytes.Repeat([]byte{7}, 64<<10)
	if err := v.WriteAt(data, 0, false); err != nil {
		t.Fatal(err)
	}
	if err := v.Flush(); err != nil {
		t.Fatal(err)
	}
	st, before := countStats(t, s)
	if before.Lag.Bytes < int64(len(data)) || before.Lag.Records != 16 {
		t.Errorf("16 blocks are in the log, the lag is %+v", before.Lag)
	}
	if st.BufferBytes == 0 || st.MapCacheLimit == 0 || before.Flushes != 1 {
		t.Errorf("%+v", st)
	}
	time.Sleep(2 * time.Millisecond)
	if err := v.Checkpoint(context.Background()); err != nil {
		t.Fatal(err)
	}
	_, after := countStats(t, s)
	if after.Lag.Bytes != 0 || after.Lag.Records != 0 || !after.Lag.Since.After(before.Lag.Since) {
		t.Errorf("the lag after a checkpoint is %+v, and was %+v", after.Lag, before.Lag)
	}

	// Reading finds extents and map nodes in the caches, from the second time on.
	p := make([]byte, 4096, 4096+64)
	for range 3 {
		if err := v.ReadAt(p, 0, false); err != nil {
			t.Fatal(err)
		}
	}
	st, read := countStats(t, s)
	if read.ExtentMisses == 0 || read.ExtentHits < 2 || st.MapCacheHits+st.MapCacheMisses < 3 {
		t.Errorf("extents: %d hits, %d misses; nodes: %d hits, %d misses", read.ExtentHits, read.ExtentMisses, st.MapCacheHits, st.MapCacheMisses)
	}
	if n, err := s.Allocated(); err != nil || n < int64(len(data)) {
		t.Errorf("%d bytes are allocated, %v", n, err)
	} else if info, err := s.Info(); err != nil || info.Allocated != n {
		t.Errorf("%d bytes are allocated, info says %d, %v", n, info.Allocated, err)
	}
}

func TestFaultsCountBlocksThatCannotBeRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	s := create(t, path, 1<<20)
	v := mainVolume(t, s)
	if err := v.WriteAt(bytes.Repeat([]byte{7}, 4096), 0, false); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	segments, err := filepath.Glob(filepath.Join(path, "vol/*/*.seg"))
	if err != nil || len(segments) != 1 {
		t.Fatal(segments, err)
	}
	flip(t, segments[0], 4096, 0) // the block lies there
	s = open(t, path)
	defer s.Close()
	v = mainVolume(t, s)
	p := make([]byte, 4096, 4096+64)
	for range 2 {
		if err := v.ReadAt(p, 0, false); !errors.Is(err, volume.ErrDamaged) {
			t.Fatalf("read of a damaged block: %v", err)
		}
	}
	if _, st := countStats(t, s); st.Faults != (volume.Faults{Damaged: 2}) {
		t.Errorf("two reads failed, counted are %+v", st.Faults)
	}
	if err := v.ReadAt(p, 8192, false); err != nil { // a hole
		t.Fatal(err)
	}
	if _, st := countStats(t, s); st.Faults != (volume.Faults{Damaged: 2}) {
		t.Errorf("a hole is counted: %+v", st.Faults)
	}
}
