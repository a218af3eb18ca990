package vfstest

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/fsximg/fsx/internal/vfs"
)

// Churn does n random operations on files and directories below the empty
// directory dir, from several goroutines, each in its own part and together in
// a common one.
func Churn(t *testing.T, v vfs.FS, dir string, seed uint64, n int) {
	t.Helper()
	t.Logf("churn with seed %d", seed)
	common := filepath.Join(dir, "common")
	if err := v.Mkdir(common, 0o700); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for g := range uint64(3) {
		wg.Go(func() {
			c := churn{v: v, rng: rand.New(rand.NewPCG(seed, g)), dirs: []string{common, filepath.Join(dir, fmt.Sprint(g))}}
			if err := v.Mkdir(c.dirs[1], 0o700); err != nil {
				t.Error(err)
				return
			}
			for range n / 3 {
				if err := c.step(); err != nil && !errors.Is(err, fs.ErrNotExist) {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

type churn struct {
	v    vfs.FS
	rng  *rand.Rand
	dirs []string
}

func (c *churn) name() string {
	return filepath.Join(c.dirs[c.rng.IntN(len(c.dirs))], fmt.Sprint("f", c.rng.IntN(6)))
}

func (c *churn) step() error {
	switch c.rng.IntN(10) {
	case 0:
		return c.v.Remove(c.name())
	case 1:
		return c.v.Rename(c.name(), c.name())
	case 2:
		return c.v.SyncDir(c.dirs[c.rng.IntN(len(c.dirs))])
	}
	f, err := c.v.OpenFile(c.name(), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	for range c.rng.IntN(4) {
		err = errors.Join(err, c.change(f))
	}
	return errors.Join(err, f.Close())
}

func (c *churn) change(f vfs.File) error {
	off, n := c.rng.Int64N(60000), 1+c.rng.Int64N(20000)
	switch c.rng.IntN(8) {
	case 0:
		return f.Truncate(off)
	case 1:
		return f.Allocate(off, n)
	case 2:
		if err := f.PunchHole(off, n); !errors.Is(err, vfs.ErrUnsupported) {
			return err
		}
		return nil
	case 3:
		return f.Datasync()
	}
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(c.rng.Uint32())
	}
	_, err := f.WriteAt(p, off)
	return err
}
