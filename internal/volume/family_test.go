package volume_test

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fsximg/fsx/internal/volume"
	"github.com/fsximg/fsx/pkg/crypt"
)

// relative is what a volume of the model has.
type relative struct {
	data  []byte
	names []string // of its snapshots, oldest first
	snaps map[string][]byte
	clone bool // it may share blocks with another
	early bool // it had a snapshot while it shared blocks
	loan  bool // it may have blocks under data keys that are not in its bag
}

func (r *relative) copy() *relative {
	return &relative{data: bytes.Clone(r.data), snaps: map[string][]byte{}}
}

// family is a store of several volumes, and plain arrays.
type family struct {
	t      *testing.T
	rng    *rand.Rand
	path   string
	limits volume.Limits
	s      *volume.Store
	m      map[string]*relative
	next   int
	count  int // operations done
}

// otherSecret opens what is under a key of its own.
func otherSecret(t testing.TB) crypt.Secret {
	t.Helper()
	s, err := crypt.NewKeyFile(bytes.Repeat([]byte{0x5a, 9, 8, 0xfe}, 8))
	must(t, err)
	return s
}

// TestFamilyModel makes random changes to volumes, snapshots and clones, with
// rollback, resizing, flattening, deletion, compaction, reopening and kills, and
// compares everything with plain arrays. check proves that what is allocated is
// what can be reached.
func TestFamilyModel(t *testing.T) {
	ops := operations(t, 12_000, 40_000, 2_000_000)
	seed, began := seedOf(t), time.Now()
	for i, size := range []int{3 * 4096, 1<<20 + 512, 6<<20 - 1536} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			f := &family{t: t, rng: rand.New(rand.NewPCG(seed, uint64(i))), path: filepath.Join(fastDir(t), "s.fsx"), limits: busy,
				m: map[string]*relative{"main": {data: make([]byte, size), snaps: map[string][]byte{}}}}
			f.s = createBusy(t, f.path, int64(size), f.limits)
			for checked := 0; f.count < ops/3 && !t.Failed(); f.count++ {
				f.step()
				if f.count-checked > 8000 {
					f.verify()
					checked = f.count
				}
			}
			f.verify()
			f.reopen()
			f.verify()
			f.deleteAll()
		})
	}
	t.Logf("RESULT family model: %d operations, FSX_SEED=%d, %v", ops, seed, time.Since(began).Round(time.Second))
}

func (f *family) some() (string, *relative, *volume.Volume) {
	f.t.Helper()
	names := slices.Sorted(maps.Keys(f.m))
	name := names[f.rng.IntN(len(names))]
	v, err := f.s.Volume(name)
	must(f.t, err)
	return name, f.m[name], v
}

func (f *family) fresh(prefix string) string {
	f.next++
	return fmt.Sprint(prefix, f.next)
}

func (f *family) step() {
	t := f.t
	name, r, v := f.some()
	size := int64(len(r.data))
	switch k := f.rng.IntN(100); {
	case k < 52:
		n := f.rng.IntN(60)
		for range n {
			f.use(v, r)
		}
		f.count += n
	case k < 62:
		if len(r.names) > 6 {
			return
		}
		snap := f.fresh("s")
		must(t, v.CreateSnapshot(ctx0, snap))
		r.names, r.snaps[snap] = append(r.names, snap), bytes.Clone(r.data)
		r.early = r.early || r.clone
	case k < 68:
		if len(r.names) > 0 {
			i := f.rng.IntN(len(r.names))
			must(t, v.DeleteSnapshot(ctx0, r.names[i]))
			delete(r.snaps, r.names[i])
			r.names = slices.Delete(r.names, i, i+1)
		}
	case k < 74:
		f.clone(name, r)
	case k < 77:
		if len(f.m) > 1 {
			must(t, f.s.DeleteVolume(ctx0, name))
			delete(f.m, name)
		} else if err := f.s.DeleteVolume(ctx0, name); !errors.Is(err, volume.ErrLastVolume) {
			t.Errorf("the last volume: %v", err)
		}
	case k < 80:
		f.rollback(name, r)
	case k < 83:
		f.resize(name, r)
	case k < 85:
		f.flatten(name, r)
	case k < 87:
		to := f.fresh("v")
		must(t, f.s.RenameVolume(ctx0, name, to))
		f.m[to] = r
		delete(f.m, name)
	case k < 88:
		f.rekey(name)
	case k < 89:
		f.reencrypt(name)
	case k < 91:
		must(t, v.Checkpoint(ctx0))
	case k < 93:
		must(t, v.CompactAll(ctx0))
	case k < 96:
		f.compareVolume(name)
	case k < 97:
		f.diff(name, r)
	case k < 98:
		if len(f.m) < 8 {
			other := f.fresh("n")
			must(t, f.s.CreateVolume(ctx0, other, size, volume.VolumeOptions{Like: name}))
			f.m[other] = &relative{data: make([]byte, size), snaps: map[string][]byte{}}
		}
	case k < 99:
		f.reopen()
	default:
		f.kill()
	}
}

// use reads or changes what is in a volume.
func (f *family) use(v *volume.Volume, r *relative) {
	t, size := f.t, int64(len(r.data))
	off := f.rng.Int64N(size)
	n := 1 + f.rng.Int64N(min(size-off, 20_000))
	switch k := f.rng.IntN(100); {
	case k < 50:
		p := r.data[off : off+n]
		for i := range p {
			p[i] = byte(f.rng.Uint32() | 1)
		}
		must(t, v.WriteAt(p, off, false))
	case k < 60:
		must(t, v.ZeroAt(off, n, f.rng.IntN(2) == 0))
		clear(r.data[off : off+n])
	case k < 63:
		must(t, v.Flush())
	default:
		got := make([]byte, n)
		must(t, v.ReadAt(got, off, false))
		if !bytes.Equal(got, r.data[off:off+n]) {
			t.Fatalf("read %d+%d differs", off, n)
		}
	}
}

func (f *family) clone(name string, r *relative) {
	if len(r.names) == 0 || len(f.m) >= 8 {
		return
	}
	from, to := r.names[f.rng.IntN(len(r.names))], f.fresh("c")
	var o volume.CloneOptions
	if f.rng.IntN(3) == 0 {
		o.Secrets = []crypt.Secret{otherSecret(f.t)}
		o.NoChain = f.rng.IntN(3) == 0 // all keys are open
	}
	must(f.t, f.s.Clone(ctx0, name, from, to, o))
	f.m[to] = &relative{data: bytes.Clone(r.snaps[from]), snaps: map[string][]byte{}, clone: true, loan: r.loan || o.NoChain}
	if err := f.s.Clone(ctx0, name, from, to, o); !errors.Is(err, volume.ErrExists) {
		f.t.Errorf("cloned to the same name: %v", err)
	}
}

func (f *family) rollback(name string, r *relative) {
	if len(r.names) == 0 {
		return
	}
	i := f.rng.IntN(len(r.names))
	newer, err := f.s.Rollback(ctx0, name, r.names[i], false)
	if i+1 < len(r.names) {
		if !errors.Is(err, volume.ErrNewerSnapshots) || !slices.Equal(newer, r.names[i+1:]) {
			f.t.Errorf("rollback over %v: %v, %v", r.names[i+1:], newer, err)
		}
		newer, err = f.s.Rollback(ctx0, name, r.names[i], true)
	}
	must(f.t, err)
	if !slices.Equal(newer, r.names[i+1:]) {
		f.t.Errorf("rollback deleted %v, want %v", newer, r.names[i+1:])
	}
	for _, gone := range r.names[i+1:] {
		delete(r.snaps, gone)
	}
	r.names = r.names[:i+1]
	r.data = bytes.Clone(r.snaps[r.names[i]])
	r.clone, r.early = true, true
}

func (f *family) resize(name string, r *relative) {
	size := max(512, (int64(len(r.data))/2+f.rng.Int64N(int64(len(r.data)+4096)))&^511)
	err := f.s.Resize(ctx0, name, size, false)
	if size < int64(len(r.data)) {
		if !errors.Is(err, volume.ErrShrink) {
			f.t.Errorf("shrunk without being told to: %v", err)
		}
		err = f.s.Resize(ctx0, name, size, true)
	}
	must(f.t, err)
	if size > 8<<20 {
		size = 3 << 20
		must(f.t, f.s.Resize(ctx0, name, size, true))
	}
	data := make([]byte, size)
	copy(data, r.data)
	r.data = data
}

func (f *family) flatten(name string, r *relative) {
	err := f.s.Flatten(ctx0, name, nil)
	if errors.Is(err, volume.ErrSharedBySnapshots) && r.early {
		return
	}
	must(f.t, err)
	r.clone, r.early = false, false
}

func (f *family) rekey(name string) {
	secrets := []crypt.Secret{secret(f.t), otherSecret(f.t)}
	r, err := f.s.Rekey(ctx0, name, volume.RekeyOptions{Secrets: secrets[f.rng.IntN(2):][:1]})
	must(f.t, err)
	if r.Old == r.New || slices.Contains(r.Shared, name) {
		f.t.Errorf("rekeyed: %+v", r)
	}
}

func (f *family) reencrypt(name string) {
	r, err := f.s.Reencrypt(ctx0, name, volume.ReencryptOptions{})
	must(f.t, err)
	v, err := f.s.Volume(name)
	must(f.t, err)
	keys := v.DataKeys()
	if want := 1 + len(r.Held); len(keys) > want || r.Unreadable != 0 { // the one that is written under may not be counted
		f.t.Errorf("%s has %d data keys, %d of them held: %+v", name, len(keys), len(r.Held), r)
	}
	if len(f.m[name].names) == 0 && len(r.Held) > 0 && !f.m[name].clone {
		f.t.Logf("%s: held without snapshots: %+v", name, r.Held)
	}
}

// diff checks that what is said not to differ does not.
func (f *family) diff(name string, r *relative) {
	if len(r.names) == 0 {
		return
	}
	i := f.rng.IntN(len(r.names))
	to, want := "", r.data
	if j := i + f.rng.IntN(len(r.names)-i+1); j < len(r.names) {
		to, want = r.names[j], r.snaps[r.names[j]]
	}
	old := make([]byte, len(want))
	copy(old, r.snaps[r.names[i]])
	at := int64(0)
	must(f.t, f.s.Diff(ctx0, name, r.names[i], to, func(d volume.DiffRun) bool {
		if !bytes.Equal(old[at:d.Start], want[at:d.Start]) {
			f.t.Errorf("%s: %s to %q differ between %d and %d", name, r.names[i], to, at, d.Start)
		}
		if at = d.Start + d.Length; d.Zero && len(bytes.TrimLeft(want[d.Start:at], "\x00")) > 0 {
			f.t.Errorf("%s: %d+%d is called zero", name, d.Start, d.Length)
		}
		return true
	}))
	if !bytes.Equal(old[at:], want[at:]) {
		f.t.Errorf("%s: %s to %q differ behind %d", name, r.names[i], to, at)
	}
}

func (f *family) compareVolume(name string) {
	f.t.Helper()
	v, err := f.s.Volume(name)
	must(f.t, err)
	r := f.m[name]
	m := &snapModel{t: f.t}
	if v.Size() != int64(len(r.data)) {
		f.t.Fatalf("%s has %d bytes, want %d", name, v.Size(), len(r.data))
	}
	m.compare(name, v, r.data)
	f.contexts(name, v, r.data, r)
	var have []string
	for _, s := range v.Snapshots() {
		have = append(have, s.Name)
	}
	if !slices.Equal(have, r.names) {
		f.t.Fatalf("%s has snapshots %v, want %v", name, have, r.names)
	}
	for _, snap := range r.names {
		d, err := v.Snapshot(snap)
		must(f.t, err)
		m.compare(name+"@"+snap, d, r.snaps[snap])
		f.contexts(name+"@"+snap, d, r.snaps[snap], r)
	}
}

// contexts checks what metadata contexts tell of a volume or snapshot.
func (f *family) contexts(name string, d interface {
	Contexts() []string
	StatusIn(context string, off, n int64, fn func(int64, uint32) bool) error
}, data []byte, r *relative) {
	f.t.Helper()
	for _, context := range d.Contexts() {
		then := make([]byte, len(data))
		since, dirty := strings.CutPrefix(context, volume.ContextDirty)
		if dirty {
			if r.snaps[since] == nil {
				f.t.Errorf("%s: context of an unknown snapshot: %s", name, context)
			}
			copy(then, r.snaps[since])
		}
		at := int64(0)
		must(f.t, d.StatusIn(context, 0, int64(len(data)), func(n int64, flags uint32) bool {
			switch {
			case flags == 0 && !bytes.Equal(data[at:at+n], then[at:at+n]):
				f.t.Errorf("%s: %s is 0 at %d+%d", name, context, at, n)
			case dirty && flags > 1, flags == volume.UnknownKey && !r.loan, flags > 1000 && flags != volume.UnknownKey:
				f.t.Errorf("%s: %s is %d at %d+%d", name, context, flags, at, n)
			}
			at += n
			return true
		}))
		if at != int64(len(data)) {
			f.t.Errorf("%s: %s covers %d of %d", name, context, at, len(data))
		}
	}
}

func (f *family) verify() {
	f.t.Helper()
	if have, want := f.s.Names(), slices.Sorted(maps.Keys(f.m)); !slices.Equal(have, want) {
		f.t.Fatalf("volumes %v, want %v", have, want)
	}
	for name := range f.m {
		f.compareVolume(name)
	}
	r, err := f.s.Check(ctx0, volume.CheckOptions{})
	must(f.t, err)
	for _, p := range r.Problems {
		f.t.Errorf("check: %v", p)
	}
	for _, v := range r.Volumes {
		if v.Leaked != 0 {
			f.t.Errorf("check: volume %s leaks %d of %d blocks", v.Name, v.Leaked, v.Blocks)
		}
		if v.Authentic && v.Verified != v.Blocks {
			f.t.Errorf("check: volume %s: %d of %d blocks verified", v.Name, v.Verified, v.Blocks)
		}
	}
}

func (f *family) open(path string, o volume.Options) *volume.Store {
	o.SetLimits(f.limits)
	s, err := volume.Open(path, o)
	must(f.t, err)
	must(f.t, s.Unlock([]crypt.Secret{secret(f.t), otherSecret(f.t)})) // there may be volumes under one of them only
	return s
}

func (f *family) reopen() {
	f.t.Helper()
	closeStore(f.t, f.s)
	f.s = f.open(f.path, options(f.t))
}

// kill goes on with what a killed process leaves.
func (f *family) kill() {
	f.t.Helper()
	release := f.s.HoldUpkeep()
	left := killed(f.t, f.path)
	release()
	must(f.t, f.s.Close())
	f.path = left
	f.s = f.open(f.path, options(f.t))
	f.verify()
}

// deleteAll deletes everything but one volume, of which then all space is.
func (f *family) deleteAll() {
	t := f.t
	names := slices.Collect(maps.Keys(f.m))
	keep := names[0]
	for _, name := range names[1:] {
		must(t, f.s.DeleteVolume(ctx0, name))
		delete(f.m, name)
	}
	v, err := f.s.Volume(keep)
	must(t, err)
	for _, snap := range f.m[keep].names {
		must(t, v.DeleteSnapshot(ctx0, snap))
	}
	f.m[keep].names, f.m[keep].snaps = nil, map[string][]byte{}
	must(t, f.s.Flatten(ctx0, keep, nil))
	f.verify()
	f.reopen()
	v, err = f.s.Volume(keep)
	must(t, err)
	must(t, v.Checkpoint(ctx0))
	f.verify()
	dirs, err := os.ReadDir(filepath.Join(f.path, "vol"))
	must(t, err)
	info, err := f.s.Info()
	must(t, err)
	if len(dirs) > 1 || len(info.Hidden) > 0 || len(f.s.Keyring().Bags()) != 1 {
		t.Errorf("left: folders %v, hidden volumes %v, %d bags", dirs, info.Hidden, len(f.s.Keyring().Bags()))
	}
	closeStore(t, f.s)
}
