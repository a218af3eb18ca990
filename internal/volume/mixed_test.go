package volume_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/fsximg/fsx/internal/volume"
	"github.com/fsximg/fsx/pkg/crypt"
)

func mixedFill(p []byte, first int64, seed uint64) {
	for i := 0; i*4096 < len(p); i++ {
		b := p[i*4096 : (i+1)*4096]
		binary.LittleEndian.PutUint64(b, uint64(first)+uint64(i)+1)
		binary.LittleEndian.PutUint64(b[8:], seed)
		for j := 16; j < 4096; j += 8 {
			binary.LittleEndian.PutUint64(b[j:], (uint64(first)+uint64(i)+1)*0x9e3779b97f4a7c15+seed*uint64(j))
		}
	}
}

func mixedCheck(p []byte, first int64) error {
	var want [4096]byte
	for i := 0; i*4096 < len(p); i++ {
		b := p[i*4096 : (i+1)*4096]
		if bytes.Equal(b, make([]byte, 4096)) {
			continue
		}
		mixedFill(want[:], first+int64(i), binary.LittleEndian.Uint64(b[8:]))
		n := 512 // a resize may have cut it off
		for n < 4096 && bytes.Equal(b[:n+512], want[:n+512]) {
			n += 512
		}
		clear(want[n:])
		if !bytes.Equal(b, want[:]) {
			return fmt.Errorf("block %d is wrong: starts %x", first+int64(i), b[:24])
		}
	}
	return nil
}

// TestEverythingAtOnce has many goroutines do everything that a store can, in one
// store.
func TestEverythingAtOnce(t *testing.T) {
	d := time.Duration(operations(t, 3, 10, 120)) * time.Second
	watchdog(t, d+90*time.Second)
	seed := seedOf(t)
	path := filepath.Join(fastDir(t), "s.fsx")
	const blocks = 1024
	s := createBusy(t, path, blocks*4096, busy)
	golden := make([]byte, blocks*4096)
	mixedFill(golden, 0, 42)
	v := mainVolume(t, s)
	must(t, v.WriteAt(golden, 0, false))
	must(t, v.CreateSnapshot(ctx0, "golden"))
	must(t, s.Clone(ctx0, "main", "golden", "keep", volume.CloneOptions{}))
	must(t, s.CreateVolume(ctx0, "stay", 4096*blocks, volume.VolumeOptions{}))

	ok := []error{volume.ErrNotFound, volume.ErrNoSnapshot, volume.ErrExists, volume.ErrClosed, volume.ErrSharedBySnapshots,
		volume.ErrNewerSnapshots, volume.ErrLastVolume, syscall.EINVAL, volume.ErrShrink, context.DeadlineExceeded}
	var counts sync.Map
	tell := func(what string, err error) {
		key := what
		if err != nil {
			good := false
			for _, e := range ok {
				if errors.Is(err, e) {
					good = true
					key += ": " + e.Error()
					break
				}
			}
			if !good {
				t.Errorf("%s: %v", what, err)
			}
		}
		n, _ := counts.LoadOrStore(key, new(atomic.Int64))
		n.(*atomic.Int64).Add(1)
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	worker := func(no int, fn func(rng *rand.Rand)) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			rng := rand.New(rand.NewPCG(seed, uint64(no)))
			for !t.Failed() {
				select {
				case <-stop:
					return
				default:
				}
				fn(rng)
			}
		}()
	}
	some := func(rng *rand.Rand) string {
		l := s.Names()
		for range 5 {
			if n := l[rng.IntN(len(l))]; n != "keep" {
				return n
			}
		}
		return "stay"
	}
	someSnap := func(rng *rand.Rand, name string) string {
		v, err := s.Volume(name)
		if err != nil {
			return "none"
		}
		l := v.Snapshots()
		if len(l) == 0 {
			return "none"
		}
		n := l[rng.IntN(len(l))].Name
		if n == "golden" {
			n = l[rng.IntN(len(l))].Name
		}
		return n
	}
	var next atomic.Int64
	fresh := func(p string) string { return fmt.Sprint(p, next.Add(1)) }
	manage := func(rng *rand.Rand) {
		name := some(rng)
		ctx, cancel := context.WithTimeout(ctx0, 20*time.Second)
		defer cancel()
		switch k := rng.IntN(100); {
		case k < 25:
			v, err := s.Volume(name)
			if err == nil && len(v.Snapshots()) < 8 {
				err = v.CreateSnapshot(ctx, fresh("s"))
			}
			tell("snapshot", err)
		case k < 37:
			v, err := s.Volume(name)
			if err == nil {
				if n := someSnap(rng, name); n != "golden" {
					err = v.DeleteSnapshot(ctx, n)
				}
			}
			tell("delete snapshot", err)
		case k < 55:
			if len(s.Names()) > 12 {
				return
			}
			o := volume.CloneOptions{}
			if rng.IntN(3) == 0 {
				o.Secrets = []crypt.Secret{otherSecret(t)}
			}
			tell("clone", s.Clone(ctx, name, someSnap(rng, name), fresh("c"), o))
		case k < 68:
			if name != "stay" && len(s.Names()) > 4 {
				tell("delete", s.DeleteVolume(ctx, name))
			}
		case k < 78:
			_, err := s.Rollback(ctx, name, someSnap(rng, name), rng.IntN(3) > 0)
			tell("rollback", err)
		case k < 88:
			tell("resize", s.Resize(ctx, name, 512*(1+rng.Int64N(blocks*16)), rng.IntN(2) == 0))
		case k < 95:
			tell("flatten", s.Flatten(ctx, name, nil))
		case k < 97:
			if name != "stay" {
				tell("rename", s.RenameVolume(ctx, name, fresh("r")))
			}
		case k < 98:
			if len(s.Names()) < 12 {
				tell("create", s.CreateVolume(ctx, fresh("v"), 4096*(1+rng.Int64N(blocks)), volume.VolumeOptions{}))
			}
		default:
			r, err := s.Check(ctx, volume.CheckOptions{})
			tell("check", err)
			for _, p := range r.Problems {
				t.Errorf("check meanwhile: %v", p)
			}
		}
	}
	use := func(rng *rand.Rand) {
		name := some(rng)
		v, err := s.Volume(name)
		if err != nil {
			tell("open", err)
			return
		}
		size := v.Size() / 4096
		if size == 0 {
			return
		}
		first := rng.Int64N(size)
		n := 1 + rng.Int64N(min(size-first, 40))
		p := make([]byte, n*4096, n*4096+16)
		switch k := rng.IntN(100); {
		case k < 40:
			mixedFill(p, first, rng.Uint64())
			tell("write", v.WriteAt(p, first*4096, false))
		case k < 50:
			tell("zero", v.ZeroAt(first*4096, n*4096, k < 45))
		case k < 80:
			err := v.ReadAt(p, first*4096, false)
			tell("read", err)
			if err == nil {
				if err := mixedCheck(p, first); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
		case k < 92:
			sn, err := v.Snapshot(someSnap(rng, name))
			if err != nil {
				tell("open snapshot", err)
				return
			}
			if (first+n)*4096 > sn.Size() {
				return
			}
			err = sn.ReadAt(p, first*4096, false)
			tell("read snapshot", err)
			if err == nil {
				if err := mixedCheck(p, first); err != nil {
					t.Errorf("%s: %v", sn.Name(), err)
				}
			}
		case k < 93:
			tell("flush", v.Flush())
		case k < 94:
			tell("status", v.Status(first*4096, n*4096, func(int64, bool, bool) bool { return true }))
		case k < 95:
			tell("checkpoint", v.Checkpoint(ctx0))
		case k < 99 && rng.IntN(2) == 0:
			tell("diff", s.Diff(ctx0, name, someSnap(rng, name), someSnap(rng, name), func(volume.DiffRun) bool { return true }))
		case k < 99:
			_, err := s.Info()
			tell("info", err)
		default:
			if rng.IntN(20) == 0 {
				_, err := s.Compact(ctx0)
				tell("compact", err)
			}
		}
	}
	keep := func(rng *rand.Rand) {
		v, err := s.Volume("keep")
		if err != nil {
			t.Errorf("keep: %v", err)
			return
		}
		first := rng.Int64N(blocks)
		n := 1 + rng.Int64N(min(blocks-first, 256))
		p := make([]byte, n*4096, n*4096+16)
		if err := v.ReadAt(p, first*4096, false); err != nil {
			t.Errorf("keep: %v", err)
		} else if !bytes.Equal(p, golden[first*4096:(first+n)*4096]) {
			t.Errorf("keep: wrong data")
		}
	}
	for i := range 3 {
		worker(i, manage)
	}
	for i := range 4 {
		worker(10+i, use)
	}
	worker(20, keep)
	time.AfterFunc(d, func() { close(stop) })
	wg.Wait()
	counts.Range(func(k, n any) bool { t.Logf("%6d %s", n.(*atomic.Int64).Load(), k); return true })
	if t.Failed() {
		return
	}
	for _, n := range s.Names() {
		v, err := s.Volume(n)
		must(t, err)
		must(t, v.Checkpoint(ctx0))
	}
	checkClean(t, s)
	closeStore(t, s)
	s = open(t, path)
	_ = s.Unlock([]crypt.Secret{otherSecret(t)}) // no such clone may be left
	for _, n := range s.Names() {
		v, err := s.Volume(n)
		must(t, err)
		must(t, v.Checkpoint(ctx0))
	}
	r, err := s.Check(ctx0, volume.CheckOptions{})
	must(t, err)
	for _, p := range r.Problems {
		t.Errorf("check: %v", p)
	}
	for _, n := range s.Names() {
		if len(s.Names()) > 1 {
			must(t, s.DeleteVolume(ctx0, n))
		}
	}
	r, err = s.Check(ctx0, volume.CheckOptions{})
	must(t, err)
	for _, p := range r.Problems {
		t.Errorf("check: %v", p)
	}
	closeStore(t, s)
}
