package powercut_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/fsximg/fsx/internal/volume"
	"github.com/fsximg/fsx/pkg/crypt"
	"github.com/fsximg/fsx/pkg/layout"
	"github.com/fsximg/fsx/test/crash"
)

// TestFamilyCuts cuts the power during changes of what volumes and snapshots
// there are, and of their keys: clone, delete, rename, rollback, resize, flatten,
// rekey, reencrypt, compact. Every
// step is durable when it returns, so that a cut leaves the state before the
// step that is under way, or the one after it.
func TestFamilyCuts(t *testing.T) {
	seed, n := seedOf(t), wanted(t)/2
	if full() {
		n = 2000
	}
	began, rng, cuts := time.Now(), rand.New(rand.NewPCG(seed, 2)), 0
	for round := 0; cuts < n && !t.Failed(); round++ {
		t.Run(fmt.Sprint("round", round), func(t *testing.T) { cuts += familyRound(t, rng, false) })
	}
	t.Logf("RESULT family: %d cuts, FSX_SEED=%d, %v", cuts, seed, time.Since(began).Round(time.Second))
}

// TestKeyCuts is the same where every other step is a rekeying, a reencryption, a change of slots or a
// restoration of the keyring: the old keys or the new ones, and no flush that is lost.
func TestKeyCuts(t *testing.T) {
	seed, n := seedOf(t), wanted(t)/4
	if full() {
		n = 1000
	}
	began, rng, cuts := time.Now(), rand.New(rand.NewPCG(seed, 4)), 0
	for round := 0; cuts < n && !t.Failed(); round++ {
		t.Run(fmt.Sprint("round", round), func(t *testing.T) { cuts += familyRound(t, rng, true) })
	}
	t.Logf("RESULT keys: %d cuts, FSX_SEED=%d, %v", cuts, seed, time.Since(began).Round(time.Second))
}

// content is what can be seen of a store: of volumes and snapshots the sums, and
// of the volume keys.
type content map[string]uint64

// families makes steps, and knows what is to be seen after each.
type families struct {
	t      *testing.T
	rng    *rand.Rand
	path   string
	s      *volume.Store
	names  []string            // of volumes
	snaps  map[string][]string // of each, oldest first
	next   int
	keys   bool // every other step changes keys
	spare  *layout.KeyringBackup
	soon   []func() string // the next steps
	states []content
	what   []string
}

// otherKey is the key file of clones with a key of their own.
var otherKey = bytes.Repeat([]byte{0x5a, 9, 8, 0xfe}, 8)

func otherSecret() crypt.Secret {
	s, _ := crypt.NewKeyFile(otherKey)
	return s
}

func openFamily(path string) (*volume.Store, error) { return openFamilyWith(path, options()) }

func openFamilyWith(path string, o volume.Options) (*volume.Store, error) {
	s, err := volume.Open(path, o)
	if err != nil {
		return nil, err
	}
	keys, err := secrets()
	if err == nil {
		err = s.Unlock(append(keys, otherSecret()))
	}
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

const familySize = 512<<10 - 1536

func familyRound(t *testing.T, rng *rand.Rand, keys bool) int {
	rec := crash.Mount(t, crash.Options{})
	path := filepath.Join(rec.Dir(), storeName)
	must(t, createStore(path, familySize))
	s, err := openFamily(path)
	must(t, err)
	f := &families{t: t, rng: rng, path: path, s: s, names: []string{"main"}, snaps: map[string][]string{}, keys: keys}
	start, err := see(f.s)
	must(t, err)
	f.states, f.what = append(f.states, start), append(f.what, "start")
	rec.Mark(stepMark(0))
	for i := range 40 {
		what := f.step()
		got, err := see(f.s)
		must(t, err)
		f.states, f.what = append(f.states, got), append(f.what, what)
		rec.Mark(stepMark(i + 1))
	}
	must(t, f.s.Close())
	rec.Unmount()
	return f.cut(rec)
}

func stepMark(i int) string { return fmt.Sprint("step ", i) }

// cut cuts the recording and verifies what is left.
func (f *families) cut(rec *crash.Recorder) int {
	t, tr := f.t, rec.Trace()
	from := tr.MarkAt(stepMark(0))
	all := everySync(tr, from, f.rng)
	f.rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	all = append(all[:min(len(all), 60)], somewhere(tr, from, 30, f.rng)...)
	slices.SortFunc(all, func(a, b cut) int { return a.at - b.at })
	var wg sync.WaitGroup
	slots := make(chan struct{}, verifiers)
	for _, c := range all {
		done := 0 // steps that were done
		for done+1 < len(f.states) && tr.MarkAt(stepMark(done+1)) <= c.at {
			done++
		}
		img := rec.Image(c.at, c.seed, c.Policy)
		slots <- struct{}{}
		wg.Add(1)
		go func() {
			defer wg.Done()
			defer func() { <-slots }()
			defer os.RemoveAll(img)
			allowed := f.states[done:min(done+2, len(f.states))]
			next := "the end"
			if done+1 < len(f.what) {
				next = f.what[done+1]
			}
			if err := verifyFamily(filepath.Join(img, storeName), allowed, c.seed); err != nil {
				t.Errorf("%v, in %q after %q: %v", c, next, f.what[done], err)
			}
		}()
	}
	wg.Wait()
	return len(all)
}

// verifyFamily opens what is left: it must be one of the allowed states, without
// damage or leak, and go on to work.
func verifyFamily(path string, allowed []content, seed uint64) error {
	s, err := openFamily(path)
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	got, err := see(s)
	if err == nil && !slices.ContainsFunc(allowed, func(c content) bool { return maps.Equal(c, got) }) {
		err = fmt.Errorf("between: %v, may be %v", got, allowed)
	}
	if err == nil {
		err = useFamily(s, rand.New(rand.NewPCG(seed, 3)))
	}
	if err = errors.Join(err, s.Close()); err != nil {
		return err
	}
	if s, err = openFamily(path); err != nil {
		return fmt.Errorf("open again: %w", err)
	}
	_, err = see(s)
	return errors.Join(err, checkFamily(s, false), s.Close())
}

// checkFamily runs check. What leaks, the next compaction must have given back.
func checkFamily(s *volume.Store, leaks bool) error {
	r, err := s.Check(context.Background(), volume.CheckOptions{})
	if err != nil {
		return err
	}
	for _, p := range r.Problems {
		err = errors.Join(err, fmt.Errorf("check: %v", p))
	}
	for _, v := range r.Volumes {
		if v.Leaked != 0 && !leaks {
			err = errors.Join(err, fmt.Errorf("check: volume %s leaks %d blocks", v.Name, v.Leaked))
		}
	}
	return err
}

// useFamily uses what was found: writes, snapshots, clones, deletes.
func useFamily(s *volume.Store, rng *rand.Rand) error {
	ctx := context.Background()
	if err := checkFamily(s, true); err != nil {
		return err
	}
	for i, name := range s.Names() {
		v, err := s.Volume(name)
		if err != nil {
			return err
		}
		p := bytes.Repeat([]byte{byte(i + 1)}, 5000)
		if err := v.WriteAt(p, rng.Int64N(max(v.Size()-5000, 1)), false); v.Size() >= 5000 && err != nil {
			return err
		}
		if err := v.CreateSnapshot(ctx, "go-on"); err != nil {
			return err
		}
	}
	names := s.Names()
	if err := s.Clone(ctx, names[rng.IntN(len(names))], "go-on", "goes-on", volume.CloneOptions{}); err != nil {
		return err
	}
	if err := s.DeleteVolume(ctx, names[rng.IntN(len(names))]); err != nil {
		return err
	}
	_, err := s.Compact(ctx)
	return err
}

func (f *families) fresh(prefix string) string {
	f.next++
	return fmt.Sprint(prefix, f.next)
}

// step makes one change, and says which.
func (f *families) step() string {
	t, ctx := f.t, context.Background()
	if len(f.soon) > 0 {
		next := f.soon[0]
		f.soon = f.soon[1:]
		return next()
	}
	name := f.names[f.rng.IntN(len(f.names))]
	v, err := f.s.Volume(name)
	must(t, err)
	snaps := f.snaps[name]
	switch k := f.rng.IntN(100); {
	case f.keys && k%4 == 0:
		return f.rekey(name)
	case f.keys && k%8 == 1:
		return f.reencrypt(name)
	case f.keys && k%8 == 5:
		return f.slots(name)
	case f.keys && k%16 == 7:
		return f.restoration(name)
	case k < 25:
		b := f.rng.Int64N(v.Size() / blockSize)
		p := make([]byte, blockSize)
		fill(p, 1, b, f.next)
		f.next++
		must(t, v.WriteAt(p, b*blockSize, false))
		must(t, v.Flush())
		return "write " + name
	case k < 40:
		snap := f.fresh("s")
		must(t, v.CreateSnapshot(ctx, snap))
		f.snaps[name] = append(snaps, snap)
		return "snapshot " + name
	case k < 47 && len(snaps) > 0:
		i := f.rng.IntN(len(snaps))
		must(t, v.DeleteSnapshot(ctx, snaps[i]))
		f.snaps[name] = slices.Delete(slices.Clone(snaps), i, i+1)
		return "delete snapshot of " + name
	case k < 62 && len(snaps) > 0:
		to := f.fresh("c")
		var o volume.CloneOptions
		if f.rng.IntN(2) == 0 {
			o.Secrets = []crypt.Secret{otherSecret()}
		}
		must(t, f.s.Clone(ctx, name, snaps[f.rng.IntN(len(snaps))], to, o))
		f.names = append(f.names, to)
		return "clone " + name
	case k < 68 && len(f.names) > 1:
		must(t, f.s.DeleteVolume(ctx, name))
		f.names = slices.DeleteFunc(f.names, func(n string) bool { return n == name })
		delete(f.snaps, name)
		return "delete " + name
	case k < 76 && len(snaps) > 0:
		i := f.rng.IntN(len(snaps))
		_, err := f.s.Rollback(ctx, name, snaps[i], true)
		must(t, err)
		f.snaps[name] = snaps[: i+1 : i+1]
		return "rollback " + name
	case k < 82:
		size := (familySize/2 + f.rng.Int64N(familySize)) &^ 511
		must(t, f.s.Resize(ctx, name, size, true))
		return "resize " + name
	case k < 86:
		if err := f.s.Flatten(ctx, name, nil); err != nil && !errors.Is(err, volume.ErrSharedBySnapshots) {
			t.Fatal(err)
		}
		return "flatten " + name
	case k < 90:
		to := f.fresh("v")
		must(t, f.s.RenameVolume(ctx, name, to))
		f.names[slices.Index(f.names, name)] = to
		f.snaps[to] = snaps
		delete(f.snaps, name)
		return "rename " + name
	case k < 92:
		return f.rekey(name)
	case k < 93:
		return f.reencrypt(name)
	case k < 96:
		_, err := f.s.Compact(ctx)
		must(t, err)
		return "compact"
	case k < 98:
		must(t, v.Checkpoint(ctx))
		return "checkpoint " + name
	}
	must(t, f.s.Close())
	f.s, err = openFamily(f.path)
	must(t, err)
	return "reopen"
}

func (f *families) rekey(name string) string {
	o, err := volume.RekeyOptions{Secrets: []crypt.Secret{otherSecret()}}, error(nil)
	if f.rng.IntN(2) == 0 {
		o.Secrets, err = secrets()
		must(f.t, err)
	}
	_, err = f.s.Rekey(context.Background(), name, o)
	must(f.t, err)
	return "rekey " + name
}

func (f *families) reencrypt(name string) string {
	_, err := f.s.Reencrypt(context.Background(), name, volume.ReencryptOptions{})
	must(f.t, err)
	return "reencrypt " + name
}

func (f *families) keyOf(name string) crypt.ID {
	volumes, err := f.s.Volumes()
	must(f.t, err)
	return volumes[slices.IndexFunc(volumes, func(v volume.VolumeInfo) bool { return v.Name == name })].VolumeKey
}

func (f *families) slotsOf(name string) []crypt.SlotInfo {
	id := f.keyOf(name)
	return slices.DeleteFunc(f.s.Keyring().Slots(), func(s crypt.SlotInfo) bool { return s.VolumeKey != id })
}

// slots changes the slots of a volume's key: one comes, or another gets another
// secret, or goes.
func (f *families) slots(name string) string {
	t, ctx := f.t, context.Background()
	own := f.slotsOf(name)
	switch {
	case len(own) < 2:
		_, err := f.s.AddSlot(ctx, f.keyOf(name), otherSecret())
		must(t, err)
		return "add slot of " + name
	case f.rng.IntN(2) == 0:
		must(t, f.s.ChangeSlot(ctx, own[0].Number, otherSecret()))
		return "change slot of " + name
	}
	must(t, f.s.RemoveSlot(ctx, own[0].Number, false))
	return "remove slot of " + name
}

// restoration is some steps: a volume key gets slots, a backup of the keyring is
// made, one of the slots changes or goes, and the backup is restored.
func (f *families) restoration(name string) string {
	if len(f.slotsOf(name)) == 2 { // the first step may remove one
		f.soon = append(f.soon, func() string { return f.slots(name) })
	}
	f.soon = append(f.soon, func() string {
		f.spare = &layout.KeyringBackup{Store: f.s.UUID(), Body: f.s.Keyring().Encode()}
		return f.slots(name)
	}, f.restore)
	return f.slots(name)
}

func (f *families) restore() string {
	t := f.t
	must(t, f.s.Close())
	s, err := volume.OpenForRestore(f.path, options(), f.spare)
	must(t, err)
	keys, err := secrets()
	must(t, err)
	r, err := s.RestoreKeyring(context.Background(), f.spare, volume.RestoreOptions{Secrets: append(keys, otherSecret()), Force: true})
	if err != nil && !errors.Is(err, volume.ErrSlotTaken) {
		t.Fatal("restore: ", err)
	}
	must(t, s.Close())
	f.s, err = openFamily(f.path)
	must(t, err)
	return fmt.Sprintf("restore of %d slots, %d of them replaced", len(r.Slots), len(r.Replaced))
}
