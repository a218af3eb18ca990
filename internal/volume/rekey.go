package volume

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"

	"github.com/fsximg/fsx/pkg/crypt"
	"github.com/fsximg/fsx/pkg/layout"
	"github.com/fsximg/fsx/pkg/layout/metadb"
	"github.com/fsximg/fsx/pkg/layout/seglog"
)

// Rekeyed says what a rekeying did.
type Rekeyed struct {
	Old, New crypt.ID // volume keys
	// Removed are the slots of the old volume key, if no other volume is under it.
	Removed []crypt.SlotInfo
	// Shared are the volumes that stay under the old volume key.
	Shared []string
}

// RekeyOptions say what a volume gets.
type RekeyOptions struct {
	// Secrets become the slots of the new volume key. There must be at least one.
	Secrets []crypt.Secret
	// Mode is the cipher of the new data key; 0 is that of the one before.
	Mode crypt.Mode
}

// Rekey gives a volume a new volume key, and a new data key for all that it
// writes from now on. It takes the same time whatever the volume holds: the data
// keys that there are stay, in the bag under the new volume key, for reading. Who
// has the old volume key cannot read what is written later, and no head or record
// that he makes is accepted under the new one. It may be used meanwhile. When it
// returns that is durable; a crash leaves all as it was, or as it will be.
//
// What the volume's name stands for changes as a whole: also the volumes that
// rollbacks left behind.
func (s *Store) Rekey(ctx context.Context, volume string, o RekeyOptions) (r Rekeyed, err error) {
	if !s.calls.enter() {
		return r, ErrClosed
	}
	defer s.calls.leave()
	if s.opt.ReadOnly {
		return r, ErrReadOnly
	}
	if len(o.Secrets) == 0 {
		return r, errors.New("rekey: no secret for a slot")
	}
	s.ops.Lock()
	defer s.ops.Unlock()
	v, err := s.volumeToChange(volume)
	if err != nil {
		return r, err
	}
	k := &rekeying{s: s, old: v.headNow().VolumeKey, moved: map[crypt.UUID]crypt.UUID{}}
	defer k.end()
	if k.vk, err = crypt.NewVolumeKey(); err != nil {
		return r, err
	}
	if err := k.find(v); err != nil {
		return r, fmt.Errorf("rekey volume %s: %w", volume, err)
	}
	r.Old, r.New = crypt.ID(k.old), k.vk.ID()
	if r.Shared = k.others(); len(r.Shared) == 0 {
		r.Removed = k.slots()
	}
	// Deriving keys and asking a TPM takes long: nobody waits for it.
	slots, err := k.newSlots(o.Secrets, r.Removed)
	if err == nil {
		err = k.stop(ctx, v, o.Mode)
	}
	if err == nil {
		err = k.change(slots, len(r.Shared) == 0)
	}
	if err != nil {
		return r, fmt.Errorf("rekey volume %s: %w", volume, err)
	}
	if len(r.Shared) == 0 {
		s.distrustKey(r.Old)
	}
	s.sawKeys(s.keyOf(layout.KeyID(r.New)))
	s.keysAdded.Add(1)
	s.moveBases(r.Old, r.New) // what is lent is under the new one
	return r, nil
}

// rekeying is a change of the volume key of some volumes, in one step. Their logs
// stand still meanwhile, all that they have is in the index, and under the new key
// each begins a segment of its own: a record that the old key authenticates is not
// needed again, and those that its holder could make do not count.
type rekeying struct {
	s   *Store
	old layout.KeyID
	vk  *crypt.VolumeKey
	// volumes are what changes keys; parts are those of them that stand still.
	volumes []*Volume
	parts   []*rekeyed
	moved   map[crypt.UUID]crypt.UUID // names of what is lent to them, new ones by old ones
	done    bool                      // the change is durable
	failed  error                     // it may be durable: which key counts is not known
}

// rekeyed is a volume in between.
type rekeyed struct {
	*Volume
	log    *logger // that stands still
	resume func()
	auth   *crypt.Authority
	bag    *crypt.Bag
	w      *seglog.Writer
	begun  []layout.SegmentNo // of w
	head   layout.Head
}

// newSlots makes the slots of the new volume key, in a copy of the keyring of which
// nothing else counts, without those that go.
func (k *rekeying) newSlots(secrets []crypt.Secret, gone []crypt.SlotInfo) (*crypt.Keyring, error) {
	ring, err := crypt.ParseKeyring(k.s.Keyring().Encode(), crypt.UUID(k.s.UUID()))
	if err != nil {
		return nil, err
	}
	for _, slot := range gone {
		if err := ring.RemoveSlot(slot.Number); err != nil {
			return nil, err
		}
	}
	for _, secret := range secrets {
		if _, err := ring.AddSlot(k.vk, secret); err != nil {
			return nil, err
		}
	}
	return ring, nil
}

// renamed are heads as they will be: those of the volumes that change keys are under
// the new one.
func (k *rekeying) renamed(heads []layout.Head) []layout.Head {
	heads = slices.Clone(heads)
	for i := range heads {
		if k.takes(heads[i].Volume) {
			heads[i].VolumeKey = layout.KeyID(k.vk.ID())
		}
	}
	return heads
}

// find finds the volumes that change keys. v is the one with the name.
func (k *rekeying) find(v *Volume) error {
	s := k.s
	s.mu.RLock()
	history := s.lineageLocked().History(v.id)
	s.mu.RUnlock()
	for _, part := range history {
		w, err := s.volumeByID(part.Volume)
		if err != nil {
			return err
		}
		if w.headNow().VolumeKey == k.old {
			k.volumes = append(k.volumes, w)
		}
	}
	return nil
}

// stop has the logs stand still and does all that can fail without harm.
func (k *rekeying) stop(ctx context.Context, v *Volume, mode crypt.Mode) error {
	for _, w := range k.volumes {
		if err := k.take(ctx, w, w == v, mode); err != nil {
			return err
		}
	}
	return nil
}

// take stops a volume and makes what it goes on with.
func (k *rekeying) take(ctx context.Context, v *Volume, writes bool, mode crypt.Mode) (err error) {
	p := &rekeyed{Volume: v}
	v.upkeep.Lock() // until the end
	k.parts = append(k.parts, p)
	if p.log, p.resume, err = v.pauseLog(ctx); err != nil {
		return err
	}
	if err = v.settle(ctx, p.log.w.Tail()); err != nil {
		return err
	}
	if writes {
		p.bag, err = v.freshBag(mode)
	} else {
		p.bag, err = v.countedBag()
	}
	if err != nil {
		return err
	}
	p.head = v.headNow()
	if p.auth, err = crypt.NewAuthority(k.vk, crypt.UUID(p.head.Store), crypt.UUID(p.head.UUID)); err != nil {
		return err
	}
	if writes && mode != 0 {
		p.head.Mode = uint8(mode)
	}
	return p.begin()
}

// begin makes the log under the new key: its first record names the last one under
// the old key, and is durable before the head names it. It has room for what waits
// in the buffers. A log that is empty stays.
func (p *rekeyed) begin() error {
	v, tail, auth := p.Volume, p.head.Log, p.auth
	sign := func(parts ...[]byte) [32]byte { return auth.MAC(crypt.PurposeRecord, parts...) }
	p.w = seglog.NewWriter(v.files, v.id, sign, tail, tail.Seq)
	if tail.Seq == 0 {
		return nil
	}
	v.mu.RLock()
	need := v.capacity
	v.mu.RUnlock()
	class := uint8(seglog.MinClass)
	for class < seglog.MaxClass && 1<<class < need+seglog.RecordRoom {
		class += 2
	}
	if err := p.addSegment(class); err != nil {
		return err
	}
	var incarnation [16]byte
	if _, err := rand.Read(incarnation[:]); err != nil {
		return err
	}
	if err := p.w.Begin(incarnation, uint64(v.Size())); err != nil {
		return err
	}
	if p.w.Capacity() < need {
		return p.addSegment(class)
	}
	return nil
}

func (p *rekeyed) addSegment(class uint8) error {
	if err := p.store.allow(int64(blockSize) << class); err != nil {
		return err
	}
	no := p.newSegmentNo()
	p.begun = append(p.begun, no)
	return p.w.AddSegment(no, class)
}

// others names the volumes that stay under the old key; what has no name, by its
// number.
func (k *rekeying) others() (names []string) {
	k.s.mu.RLock()
	defer k.s.mu.RUnlock()
	for id, h := range k.s.heads {
		if h.VolumeKey != k.old || k.takes(id) {
			continue
		}
		if k.s.fates[id] != 0 {
			names = append(names, fmt.Sprintf("%v (deleted)", id))
			continue
		}
		names = append(names, h.Name)
	}
	slices.Sort(names)
	return names
}

func (k *rekeying) takes(id layout.VolumeID) bool {
	return slices.ContainsFunc(k.volumes, func(v *Volume) bool { return v.id == id })
}

// descends says whether a volume starts, over however many others, from one that
// changes its key. Store.mu is held.
func (k *rekeying) descends(id layout.VolumeID) bool {
	for ancestor := range k.s.lineageLocked().Depths(id) {
		if k.takes(ancestor) {
			return true
		}
	}
	return false
}

func (k *rekeying) slots() (l []crypt.SlotInfo) {
	for _, slot := range k.s.Keyring().Slots() {
		if slot.VolumeKey == crypt.ID(k.old) {
			l = append(l, slot)
		}
	}
	return l
}

// change makes the new keys durable together with the heads that name them. last
// says that no other volume is under the old one, whose slots go then.
func (k *rekeying) change(slots *crypt.Keyring, last bool) error {
	s := k.s
	s.mu.RLock()
	old := s.keys[crypt.ID(k.old)]
	var borrowers []layout.Head // to whom something may be lent under the old key
	for id, h := range s.heads {
		if last || k.descends(id) {
			borrowers = append(borrowers, h)
		}
	}
	s.mu.RUnlock()
	edit := func(ring *crypt.Keyring) error {
		ring.TakeSlots(slots)
		for _, p := range k.parts {
			h := p.headNow()
			if err := renameLoans(ring, &h, layout.KeyID(k.vk.ID()), func(id crypt.ID) *crypt.VolumeKey { return s.keyOf(layout.KeyID(id)) }, k.moved); err != nil {
				return err
			}
		}
		if err := resealLoans(ring, old, k.vk, k.renamed(borrowers)); err != nil {
			return err
		}
		for _, p := range k.parts {
			if err := ring.SetBag(crypt.UUID(p.uuid), k.vk, p.bag); err != nil {
				return err
			}
		}
		return nil
	}
	commit := func(ring *crypt.Keyring) error {
		err := s.db.Update(func(tx *metadb.Txn) error { return k.setHeads(tx, ring) })
		if errors.Is(err, metadb.ErrFailed) {
			k.failed = err
		}
		return err
	}
	return s.changeKeys(edit, commit, func() { k.adoptLocked(last) })
}

func (k *rekeying) setHeads(tx *metadb.Txn, ring *crypt.Keyring) error {
	slots := ring.SlotsDigest(k.vk.ID())
	for _, p := range k.parts {
		bag, _ := ring.BagDigest(crypt.UUID(p.uuid))
		h := &p.head
		h.VolumeKey, h.BagDigest, h.SlotsDigest = layout.KeyID(k.vk.ID()), bag, slots
		h.Epoch++
		h.Log, h.Sealed, h.Ephemeral = p.w.Tail(), 0, false
		h.NextSegment = layout.SegmentNo(p.nextSegment.Load())
		sign := func(parts ...[]byte) [32]byte { return p.auth.MAC(crypt.PurposeHead, parts...) }
		if err := tx.Set(layout.HeadKey(p.id), h.Encode(sign)); err != nil {
			return err
		}
	}
	return nil
}

// adoptLocked takes over what is durable now. Store.mu is held.
func (k *rekeying) adoptLocked(last bool) {
	s := k.s
	s.keys[k.vk.ID()] = k.vk
	if old := s.keys[crypt.ID(k.old)]; last && old != nil {
		delete(s.keys, crypt.ID(k.old))
		old.Wipe()
	}
	k.vk, k.done = nil, true
	for _, p := range k.parts {
		s.heads[p.id] = p.head
	}
}

// end lets the volumes go on: under the new keys if they are durable, and else as
// they were.
func (k *rekeying) end() {
	for _, p := range k.parts {
		switch {
		case k.failed != nil:
			p.mu.Lock()
			p.poisonLocked(k.failed)
			p.mu.Unlock()
		case k.done:
			p.goOn()
			p.renamedLoans(k.moved)
		default:
			p.giveUp()
		}
		if p.bag != nil {
			p.bag.Wipe()
		}
		if p.resume != nil {
			p.resume()
		}
		p.upkeep.Unlock()
	}
	if k.vk != nil {
		k.vk.Wipe()
	}
}

// goOn has the volume use its new keys and its new log.
func (p *rekeyed) goOn() {
	v, l := p.Volume, p.log
	if err := l.w.Close(); err != nil {
		v.log.Warn("space of the log stays allocated", "volume", v.Name(), "err", err)
	}
	v.auth.Wipe()
	v.auth, l.w = p.auth, p.w
	err := v.bag.Adopt(p.bag)
	v.mu.Lock()
	v.head, v.capacity = p.head, l.w.Capacity()
	if l.w.Begun() {
		tail := l.w.Tail()
		v.overlay.segment(l.w.Current(), l.w.Class(), tail.Seq, tail.End)
		v.current = l.w.Current()
	}
	if err != nil {
		v.poisonLocked(err)
	}
	v.mu.Unlock()
	if l.w.Begun() {
		l.dropNamed()
	}
}

// giveUp removes what was prepared.
func (p *rekeyed) giveUp() {
	if p.w != nil {
		_ = p.w.Close() // its segments go next
	}
	for _, no := range p.begun {
		if err := p.files.Retire(no, 0, false); err != nil {
			p.Volume.log.Warn("space of the log stays allocated", "volume", p.Name(), "err", err)
		}
	}
	if p.auth != nil {
		p.auth.Wipe()
	}
}
