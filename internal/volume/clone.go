package volume

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/fsximg/fsx/pkg/crypt"
	"github.com/fsximg/fsx/pkg/layout"
	"github.com/fsximg/fsx/pkg/layout/maptree"
	"github.com/fsximg/fsx/pkg/layout/metadb"
)

// CloneOptions say under which keys a clone is.
type CloneOptions struct {
	// Secrets become the slots of a volume key of its own. Without any, the clone
	// goes on under its parent's volume key.
	Secrets []crypt.Secret
	// NoChain keeps the parent's data keys out of the clone's bag: what it has
	// not written itself can be read only while its parent's volume key is open, too.
	NoChain bool
	// Ephemeral makes a volume key of its own that no slot has: it is gone with this
	// process, and so is what the clone wrote. Secrets must be empty.
	Ephemeral bool
	// Mode is the cipher of its data key; 0 is its parent's.
	Mode crypt.Mode
}

// Clone makes a writable volume that starts as a snapshot. It takes no time and
// no space, whatever the snapshot holds, but for one that still waits for its
// checkpoint. When it returns the clone is durable. ErrExists says that the name
// is taken.
func (s *Store) Clone(ctx context.Context, volume, snapshot, name string, o CloneOptions) error {
	if !s.calls.enter() {
		return ErrClosed
	}
	defer s.calls.leave()
	s.ops.Lock()
	defer s.ops.Unlock()
	if err := s.mayAdd(name); err != nil {
		return err
	}
	ownKey := len(o.Secrets) > 0 || o.Ephemeral
	if o.Ephemeral && len(o.Secrets) > 0 {
		return errors.New("an ephemeral volume key has no slot")
	}
	v, err := s.volumeToChange(volume)
	if err != nil {
		return err
	}
	w, info, err := v.findSnapshot(snapshot)
	if err != nil {
		return err
	}
	if ownKey {
		if err := s.partKeys(w); err != nil {
			return err
		}
	}
	w.upkeep.Lock()
	defer w.upkeep.Unlock()
	snap, err := w.checkpointedLocked(ctx, info.Number)
	if err != nil {
		return err
	}
	head := w.headNow()
	n := newVolume{name: name, origin: originOf(w, snap), mode: cmpMode(o.Mode, head.Mode), vk: s.keyOf(head.VolumeKey), ephemeral: head.Ephemeral}
	if err := n.takeKeys(w, snap.Keys, o.NoChain); err != nil {
		return err
	}
	defer n.wipe()
	if err := addWriteKey(n.bag, n.mode); err != nil {
		return err
	}
	if !ownKey {
		return s.addVolume(n)
	}
	if n.vk, err = crypt.NewVolumeKey(); err != nil {
		return err
	}
	n.secrets, n.ephemeral = o.Secrets, o.Ephemeral
	if k, ok := writeKeyNumber(w.bag); ok && k < snap.Keys {
		n.parent = w // what it writes from now on is none of the clone's business
	}
	return s.addVolume(n)
}

// partKeys gives every ancestor of w that writes under a data key of w's bag a fresh
// one: a clone of w may get the bag under a volume key of its own, and what they
// write from now on is none of its business. Others have no key in common with w
// that they write under: clones and rollbacks begin with a fresh one. The caller
// holds ops.
func (s *Store) partKeys(w *Volume) error {
	id := w.headNow().VolumeKey
	vk := s.keyOf(id)
	s.mu.RLock()
	var heads []layout.Head
	for v := range s.lineageLocked().Depths(w.id) {
		// One under another volume key has given its key away before; one that was
		// deleted writes no more.
		if h := s.heads[v]; v != w.id && h.VolumeKey == id && s.fates[v] == 0 {
			heads = append(heads, h)
		}
	}
	s.mu.RUnlock()
	for _, h := range heads {
		bag, err := s.Keyring().OpenBag(crypt.UUID(h.UUID), vk)
		if err != nil {
			return fmt.Errorf("key bag of volume %s: %w", h.Name, err)
		}
		shared := false
		if k := bag.WriteKey(); k != nil {
			_, shared = w.bag.Get(k.ID())
		}
		bag.Wipe()
		if !shared {
			continue
		}
		v, err := s.volumeByID(h.Volume)
		if err == nil {
			err = s.freshKey(v, vk)
		}
		if err != nil {
			return fmt.Errorf("volume %s, which shares its data key: %w", h.Name, err)
		}
	}
	return nil
}

// freshKey makes a volume write under a data key that no other has. The caller
// holds ops.
func (s *Store) freshKey(v *Volume, vk *crypt.VolumeKey) error {
	v.upkeep.Lock()
	defer v.upkeep.Unlock()
	fresh, err := v.freshBag(0)
	if err != nil {
		return err
	}
	defer fresh.Wipe()
	err = s.changeKeys(func(ring *crypt.Keyring) error { return ring.SetBag(crypt.UUID(v.uuid), vk, fresh) }, func(ring *crypt.Keyring) error {
		bag, _ := ring.BagDigest(crypt.UUID(v.uuid))
		return v.setHead(func(h *layout.Head) { h.BagDigest, h.Sealed = bag, 0 }, nil)
	}, func() {})
	if err != nil {
		return err
	}
	return v.bag.Adopt(fresh)
}

// countedBag copies the bag, with what the volume has sealed since it was stored.
// The head that names it counts nothing beside it.
func (v *Volume) countedBag() (*crypt.Bag, error) {
	if v.isClosed() {
		return nil, ErrClosed // its bag is empty
	}
	b, err := v.bag.Clone(math.MaxUint32)
	if err != nil {
		return nil, err
	}
	if k := b.WriteKey(); k != nil {
		b.AddBytes(k.ID(), v.headNow().Sealed)
	}
	return b, nil
}

// freshBag is countedBag with a fresh data key that is written under; mode 0 is the
// cipher of the one before.
func (v *Volume) freshBag(mode crypt.Mode) (*crypt.Bag, error) {
	b, err := v.countedBag()
	if err != nil {
		return nil, err
	}
	if err := addWriteKey(b, cmpMode(mode, v.headNow().Mode)); err != nil {
		b.Wipe()
		return nil, err
	}
	return b, nil
}

func cmpMode(mode crypt.Mode, parents uint8) crypt.Mode {
	if mode == 0 {
		return crypt.Mode(parents)
	}
	return mode
}

// addWriteKey makes a fresh data key the one that is written under.
func addWriteKey(b *crypt.Bag, mode crypt.Mode) error {
	k, err := crypt.NewDataKey(mode)
	if err != nil {
		return err
	}
	defer k.Wipe()
	return b.Add(k, true)
}

func writeKeyNumber(b *crypt.Bag) (uint32, bool) {
	for _, k := range b.Keys() {
		if k.Writable {
			return uint32(k.Number), true
		}
	}
	return 0, false
}

// mayAdd says whether a volume of this name may be made.
func (s *Store) mayAdd(name string) error {
	if !layout.ValidName(name) {
		return fmt.Errorf("volume name %q is not allowed", name)
	}
	if s.opt.ReadOnly {
		return ErrReadOnly
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.headless != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, s.headless)
	}
	if _, ok := s.lineageLocked().ByName(name); ok {
		return fmt.Errorf("volume %s: %w", name, ErrExists)
	}
	if s.greatest == math.MaxUint32 {
		return errors.New("no more volumes can be numbered")
	}
	return nil
}

func (s *Store) keyOf(id layout.KeyID) *crypt.VolumeKey {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.keys[crypt.ID(id)]
}

// findSnapshot finds the volume that has a snapshot, which is this one or what a
// rollback left behind.
func (v *Volume) findSnapshot(name string) (*Volume, SnapshotInfo, error) {
	s := v.store
	s.mu.RLock()
	history := s.lineageLocked().History(v.id)
	s.mu.RUnlock()
	for _, part := range history {
		w := v
		if part.Volume != v.id {
			var err error
			if w, err = s.volumeByID(part.Volume); err != nil {
				return nil, SnapshotInfo{}, err
			}
		}
		w.mu.RLock()
		info, ok := w.findSnapshotLocked(name)
		w.mu.RUnlock()
		if ok && info.Number <= part.UpTo {
			return w, info, nil
		}
	}
	return nil, SnapshotInfo{}, fmt.Errorf("%w: %s", ErrNoSnapshot, name)
}

// checkpointedLocked returns a snapshot when it is in the index, which it then
// cannot leave as long as the caller holds upkeep.
func (v *Volume) checkpointedLocked(ctx context.Context, seq layout.Seq) (snap layout.Snapshot, err error) {
	if err := v.catchUpLocked(ctx, 0); err != nil {
		return snap, err
	}
	v.mu.RLock()
	defer v.mu.RUnlock()
	if v.closed {
		return snap, ErrClosed
	}
	alive := slices.ContainsFunc(v.snapshotsLocked(), func(s SnapshotInfo) bool { return s.Number == seq })
	i := slices.IndexFunc(v.snaps, func(s layout.Snapshot) bool { return s.Seq == seq })
	if !alive || i < 0 {
		return snap, fmt.Errorf("snapshot %d of volume %s: %w", seq, v.Name(), ErrNoSnapshot)
	}
	return v.snaps[i], nil
}

// origin is what a volume starts from.
type origin struct {
	size     uint64
	root     layout.Root
	parent   layout.VolumeID
	snapshot layout.Seq
}

func originOf(v *Volume, s layout.Snapshot) origin { return origin{s.Size, s.Root, v.id, s.Seq} }

func emptyOrigin(size int64) origin {
	return origin{size: uint64(size), root: layout.Root{Height: maptree.HeightFor(blocksOf(uint64(size)))}}
}

// newVolume is a volume that is about to be made.
type newVolume struct {
	name string
	origin
	continues bool
	ephemeral bool
	mode      crypt.Mode
	vk        *crypt.VolumeKey
	secrets   []crypt.Secret // slots, if vk is new
	bag       *crypt.Bag
	loans     []loan
	parent    *Volume         // that gets a fresh data key, or nil; the caller holds its upkeep
	replaces  layout.VolumeID // that becomes hidden, or 0
}

// addVolume makes a volume's keys and its head durable, with all that goes with
// it, in one step. The caller holds ops.
func (s *Store) addVolume(n newVolume) error {
	h := layout.Head{
		Store: s.dir.Super.UUID, UUID: newUUID(), Clean: true, Continues: n.continues, Ephemeral: n.ephemeral, Epoch: 1,
		Size: n.size, MinSize: n.size, Created: time.Now().Truncate(time.Second), NextSegment: 1, Root: n.root,
		Parent: n.origin.parent, ParentSnapshot: n.snapshot, ParentHash: n.root.Hash,
		VolumeKey: layout.KeyID(n.vk.ID()), Superblock: s.dir.Super.Digest(), Mode: uint8(n.mode), Name: n.name,
		SnapshotDigest: layout.SnapshotDigest(nil),
	}
	s.mu.RLock()
	h.Volume = s.greatest + 1
	s.mu.RUnlock()
	auth, err := crypt.NewAuthority(n.vk, crypt.UUID(h.Store), crypt.UUID(h.UUID))
	if err != nil {
		return err
	}
	defer auth.Wipe()
	var fresh *crypt.Bag // of the parent
	if n.parent != nil {
		if fresh, err = n.parent.freshBag(0); err != nil {
			return err
		}
		defer fresh.Wipe()
	}
	change := func(ring *crypt.Keyring) error {
		for _, secret := range n.secrets {
			if _, err := ring.AddSlot(n.vk, secret); err != nil {
				return err
			}
		}
		if fresh != nil {
			if err := ring.SetBag(crypt.UUID(n.parent.uuid), s.keyOf(n.parent.headNow().VolumeKey), fresh); err != nil {
				return err
			}
		}
		if err := n.setLoans(ring, s, h.UUID); err != nil {
			return err
		}
		return ring.SetBag(crypt.UUID(h.UUID), n.vk, n.bag)
	}
	commit := func(ring *crypt.Keyring) error {
		bag, _ := ring.BagDigest(crypt.UUID(h.UUID))
		h.BagDigest, h.SlotsDigest = bag, ring.SlotsDigest(n.vk.ID())
		add := func(tx *metadb.Txn) error {
			errs := errors.Join(
				tx.Set(layout.HeadKey(h.Volume), h.Encode(func(parts ...[]byte) [32]byte { return auth.MAC(crypt.PurposeHead, parts...) })),
				tx.Set(layout.VolumesKey(), binary.BigEndian.AppendUint32(nil, uint32(h.Volume))))
			if n.replaces != 0 {
				errs = errors.Join(errs, tx.Set(layout.FateKey(n.replaces), []byte{byte(layout.Hidden)}))
			}
			return errs
		}
		if fresh == nil {
			return s.db.Update(add)
		}
		bag, _ = ring.BagDigest(crypt.UUID(n.parent.uuid))
		return n.parent.setHead(func(p *layout.Head) { p.BagDigest, p.Sealed = bag, 0 }, add)
	}
	err = s.changeKeys(change, commit, func() {
		s.heads[h.Volume], s.greatest = h, h.Volume
		s.keys[n.vk.ID()] = n.vk
		if n.replaces != 0 {
			s.fates[n.replaces] = layout.Hidden
		}
	})
	if err != nil {
		return fmt.Errorf("make volume %s: %w", n.name, err)
	}
	if len(n.secrets) > 0 {
		s.sawKeys(n.vk)
	}
	if fresh != nil {
		return n.parent.bag.Adopt(fresh)
	}
	return nil
}

// VolumeOptions say under which keys a new volume is.
type VolumeOptions struct {
	// Secrets become the slots of a volume key of its own. Without any, the
	// volume shares that of the volume Like.
	Secrets []crypt.Secret
	// Like is the volume whose volume key it shares; empty is main.
	Like string
	// Mode is the cipher of its data key; 0 is AES-256-GCM.
	Mode crypt.Mode
}

// CreateVolume makes an empty volume of size bytes, a multiple of 512.
func (s *Store) CreateVolume(ctx context.Context, name string, size int64, o VolumeOptions) error {
	if !s.calls.enter() {
		return ErrClosed
	}
	defer s.calls.leave()
	if err := checkSize(size); err != nil {
		return fmt.Errorf("create volume %s: %w", name, err)
	}
	s.ops.Lock()
	defer s.ops.Unlock()
	if err := s.mayAdd(name); err != nil {
		return err
	}
	n := newVolume{name: name, origin: emptyOrigin(size), mode: cmpMode(o.Mode, uint8(crypt.AES256GCM)), secrets: o.Secrets, bag: crypt.NewBag()}
	defer n.bag.Wipe()
	if err := addWriteKey(n.bag, n.mode); err != nil {
		return err
	}
	if len(o.Secrets) > 0 {
		var err error
		if n.vk, err = crypt.NewVolumeKey(); err != nil {
			return err
		}
		return s.addVolume(n)
	}
	if o.Like == "" {
		o.Like = mainName
	}
	like, err := s.headOf(o.Like)
	if err != nil {
		return err
	}
	n.ephemeral = like.Ephemeral
	if n.vk = s.keyOf(like.VolumeKey); n.vk == nil {
		return keyMissing(like)
	}
	if err := s.mustTrust(n.vk); err != nil {
		return err
	}
	return s.addVolume(n)
}

func checkSize(size int64) error {
	if size <= 0 || size%layout.SectorSize != 0 || size > layout.MaxVolumeSize {
		return fmt.Errorf("size %d is not a multiple of 512 up to 8 EiB - 4 KiB", size)
	}
	return nil
}

// RenameVolume gives a volume another name.
func (s *Store) RenameVolume(ctx context.Context, name, to string) error {
	if !s.calls.enter() {
		return ErrClosed
	}
	defer s.calls.leave()
	s.ops.Lock()
	defer s.ops.Unlock()
	if err := s.mayAdd(to); err != nil {
		return err
	}
	v, err := s.volumeToChange(name)
	if err != nil {
		return err
	}
	v.upkeep.Lock()
	defer v.upkeep.Unlock()
	return v.setHead(func(h *layout.Head) { h.Name = to }, nil)
}
