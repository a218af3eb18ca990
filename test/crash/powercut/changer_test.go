package powercut_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/fsximg/fsx/internal/cliutil"
	"github.com/fsximg/fsx/internal/control"
	"github.com/fsximg/fsx/internal/volume"
)

// changer changes a served store, and knows what must be in it.
type changer struct {
	path  string
	rng   *rand.Rand
	srv   *server
	diary *diary

	now  inventory // after all changes that were answered
	next inventory // after the one that is under way, too
	what string    // is under way
	with string    // with these arguments
	done int
	did  []string
	made int // names
}

const (
	mostVolumes   = 6
	mostOfAVolume = 5 // snapshots
)

// change makes changes until the server is killed.
func (c *changer) change() error {
	ctx := context.Background()
	client, err := control.Dial(ctx, c.path)
	if err != nil {
		return c.srv.unlessDying(err)
	}
	for {
		do := c.choose(ctx, client)
		if do == nil {
			continue
		}
		err := again(do)
		if errors.Is(err, volume.ErrSharedBySnapshots) {
			c.next, err = c.now, nil // a flatten that may not be
		}
		if err != nil {
			if c.srv.dying.Load() {
				return nil
			}
			return fmt.Errorf("%s, after %v: %w", c.what, c.did, err)
		}
		c.now, c.done, c.did = c.next, c.done+1, append(c.did, c.what+" "+c.with)
		if err := c.readUnread(ctx, client); err != nil || c.srv.dying.Load() {
			return err
		}
		c.what, c.with = "nothing", ""
	}
}

// readUnread reads the snapshot of main that was just made: it holds what main
// held at one moment while it was.
func (c *changer) readUnread(ctx context.Context, client *control.Client) error {
	if c.now.unread == "" {
		return nil
	}
	_, begun := c.diary.moment()
	snap := c.now.snaps["main"][len(c.now.snaps["main"])-1]
	nbd, err := dialServed(ctx, client, "main", snap)
	if err != nil {
		return c.srv.unlessDying(err)
	}
	got := make([]byte, nbd.Size(), nbd.Size()+16)
	err = errors.Join(nbd.ReadAt(got, 0), nbd.Close())
	if err != nil {
		return c.srv.unlessDying(err)
	}
	k, err := c.diary.find(got, c.now.from, begun)
	if err != nil {
		return fmt.Errorf("snapshot %s: %w", snap, err)
	}
	c.diary.mu.Lock()
	c.diary.durable = max(c.diary.durable, k)
	c.diary.mu.Unlock()
	c.now = c.now.clone()
	c.now.data[c.now.unread], c.now.unread = got, ""
	c.next = c.now
	return nil
}

func (c *changer) fresh(prefix string) string {
	c.made++
	return fmt.Sprintf("%s%x-%d", prefix, c.rng.Uint32(), c.made)
}

// choose chooses a change: what it does, and in next what it leaves. Some are not
// possible now: nil.
func (c *changer) choose(ctx context.Context, o *control.Client) func() error {
	volumes := c.now.volumes()
	name := volumes[c.rng.IntN(len(volumes))]
	snaps := c.now.snaps[name]
	c.next = c.now.clone()
	switch k := c.rng.IntN(100); {
	case k < 25 && len(snaps) < mostOfAVolume:
		return c.snapshot(ctx, o, name)
	case k < 37 && len(snaps) > 0:
		snap := snaps[c.rng.IntN(len(snaps))]
		c.what, c.with = "snapshot delete", name+"@"+snap
		c.next.keepSnapshots(name, slices.DeleteFunc(slices.Clone(snaps), func(s string) bool { return s == snap }))
		return func() error { _, err := o.DeleteSnapshot(ctx, name, snap); return err }
	case k < 50 && len(snaps) > 0 && len(volumes) < mostVolumes:
		return c.clone(ctx, o, name, snaps[c.rng.IntN(len(snaps))])
	case k < 51:
		c.what, c.with = "compact", ""
		return func() error { _, err := o.Compact(ctx); return err }
	case k < 56:
		c.what, c.with = "rekey", name
		secret := cliutil.SlotSecret{Type: "key-file", Data: bytes.Clone(otherKey)}
		return func() error {
			_, err := o.Rekey(ctx, control.RekeyRequest{Volume: name, Secrets: []cliutil.SlotSecret{secret}})
			return err
		}
	case k < 58:
		c.what, c.with = "reencrypt", name
		return func() error {
			_, err := o.Reencrypt(ctx, control.ReencryptRequest{Volume: name}, nil)
			return err
		}
	case name == "main":
		return nil // it has a client
	case k < 64:
		return c.writeOne(ctx, o, name)
	case k < 72:
		c.what, c.with = "volume delete", name
		c.next.deleteVolume(name)
		return func() error { return o.DeleteVolume(ctx, name) }
	case k < 81 && len(snaps) > 0:
		i := c.rng.IntN(len(snaps))
		c.what, c.with = "rollback", name+"@"+snaps[i]
		c.next.data[name] = c.now.data[name+"@"+snaps[i]]
		c.next.keepSnapshots(name, snaps[:i+1])
		return func() error { _, err := o.Rollback(ctx, name, snaps[i], true); return err }
	case k < 89:
		return c.resize(ctx, o, name)
	case k < 95:
		c.what, c.with = "flatten", name
		return func() error { return o.Flatten(ctx, name, nil) }
	}
	to := c.fresh("v")
	c.what, c.with = "rename", name+" "+to
	c.next.renameVolume(name, to)
	return func() error { return o.RenameVolume(ctx, name, to) }
}

func (c *changer) snapshot(ctx context.Context, o *control.Client, name string) func() error {
	snap := c.fresh("s")
	c.what, c.with = "snapshot", name+"@"+snap
	if name != "main" {
		c.next.addSnapshot(name, snap, c.now.data[name])
	} else {
		c.next.addSnapshot(name, snap, nil)
		c.next.unread = "main@" + snap
		c.next.from, _ = c.diary.moment()
	}
	return func() error { _, err := o.CreateSnapshot(ctx, name, snap); return err }
}

func (c *changer) clone(ctx context.Context, o *control.Client, name, snap string) func() error {
	r := control.CloneRequest{Volume: name, Snapshot: snap, Name: c.fresh("c")}
	c.what, c.with = "clone", name+"@"+snap+" "+r.Name
	if c.rng.IntN(2) == 0 {
		r.Secrets = []cliutil.SlotSecret{{Type: "key-file", Data: bytes.Clone(otherKey)}}
	}
	c.next.data[r.Name], c.next.snaps[r.Name] = c.now.data[name+"@"+snap], nil
	return func() error { return o.Clone(ctx, r) }
}

func (c *changer) resize(ctx context.Context, o *control.Client, name string) func() error {
	size := (familySize/2 + c.rng.Int64N(familySize)) &^ 511
	c.what, c.with = "resize", fmt.Sprint(name, " ", size)
	data := make([]byte, size)
	copy(data, c.now.data[name])
	c.next.data[name] = data
	return func() error { return o.Resize(ctx, name, size, true) }
}

// writeOne writes and flushes one block of a volume that has no other client.
func (c *changer) writeOne(ctx context.Context, o *control.Client, name string) func() error {
	c.what, c.with = "write", name
	data := bytes.Clone(c.now.data[name])
	b := c.rng.Int64N(blocksOf(int64(len(data))))
	block := data[b*blockSize : min((b+1)*blockSize, int64(len(data)))]
	fill(block, c.rng.Uint64(), b, c.made)
	c.next.data[name] = data
	return func() error {
		nbd, err := dialServed(ctx, o, name, "")
		if err != nil {
			return err
		}
		err = nbd.WriteAt(block, b*blockSize)
		if err == nil {
			err = nbd.Flush()
		}
		return errors.Join(err, nbd.Close())
	}
}
