package volume_test

import (
	"errors"
	"os"
	"testing"

	"github.com/fsximg/fsx/internal/volume"
)

// Whoever only looks at a store keeps nobody from opening it.
func TestIdentify(t *testing.T) {
	dir := t.TempDir()
	if _, err := volume.Identify(dir + "/none"); !errors.Is(err, volume.ErrNotStore) {
		t.Errorf("no store: %v", err)
	}
	path := dir + "/a.fsx"
	st, err := volume.Create(path, createOptions(t, 1<<20))
	if err != nil {
		t.Fatal(err)
	}
	if id, err := volume.Identify(path); err != nil || id != st.UUID() {
		t.Errorf("an open store is %v, %v; want %v", id, err, st.UUID())
	}
	if h, held := volume.HolderOf(path); !held || h.PID != os.Getpid() {
		t.Errorf("an open store is held: %v by %+v", held, h)
	}
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
	if h, held := volume.HolderOf(path); held {
		t.Errorf("a closed store is held by %+v", h)
	}
}
