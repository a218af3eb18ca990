package volume

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"

	"github.com/fsximg/fsx/pkg/crypt"
	"github.com/fsximg/fsx/pkg/layout"
)

var (
	// ErrNoKey says that a volume key is not there, so that it cannot be removed.
	ErrNoKey = errors.New("no such key")
	// ErrNotFlushed says that a volume key stays, because what was written under it
	// could not be made durable.
	ErrNotFlushed = errors.New("what was written could not be flushed")
	// ErrOnlyCopy says that a volume key is ephemeral: removed, it is gone, and so
	// is all that was written under it.
	ErrOnlyCopy = errors.New("it is in no slot, and would be lost with all that was written under it")
)

// KeyState is what a process has of a volume key. The states and what leads from
// one to another are those of the kernel's fscrypt (Documentation/filesystems/
// fscrypt.rst, "Removing keys").
type KeyState int

const (
	// KeyAbsent: neither the key nor anything derived from it is in memory.
	KeyAbsent KeyState = iota
	// KeyPresent: volumes under it open.
	KeyPresent
	// KeyIncompletelyRemoved: the key itself is wiped, and nothing new opens; volumes
	// that have clients keep what they derived from it until the last client leaves.
	KeyIncompletelyRemoved
)

func (k KeyState) String() string {
	switch k {
	case KeyPresent:
		return "present"
	case KeyIncompletelyRemoved:
		return "incompletely-removed"
	}
	return "absent"
}

// KeyStatus describes a volume key of the store.
type KeyStatus struct {
	ID        crypt.ID
	State     KeyState
	Ephemeral bool     // it is in no slot
	Volumes   []string // under it, sorted
	Clients   int      // of volumes under it
}

// KeyRemoval says what a removal did.
type KeyRemoval struct {
	KeyStatus
	// Lost are errors of volumes whose last writes may not be durable; there are
	// none unless it was forced.
	Lost []error
}

// KeyStates describes the volume keys of all volumes, sorted by identifier.
func (s *Store) KeyStates() []KeyStatus {
	s.mu.RLock()
	defer s.mu.RUnlock()
	byID := map[crypt.ID]*KeyStatus{}
	for id, h := range s.heads {
		key := crypt.ID(h.VolumeKey)
		k := byID[key]
		if k == nil {
			k = &KeyStatus{ID: key, Ephemeral: h.Ephemeral}
			byID[key] = k
			if s.keys[key] != nil {
				k.State = KeyPresent
			}
		}
		if s.fates[id] == 0 {
			k.Volumes = append(k.Volumes, h.Name)
		}
		if v := s.volumes[id]; v != nil {
			k.Clients += v.users
			if k.State == KeyAbsent {
				k.State = KeyIncompletelyRemoved
			}
		}
	}
	l := make([]KeyStatus, 0, len(byID))
	for _, k := range byID {
		slices.Sort(k.Volumes)
		l = append(l, *k)
	}
	slices.SortFunc(l, func(a, b KeyStatus) int { return slices.Compare(a.ID[:], b.ID[:]) })
	return l
}

// keyStatus describes one volume key, which is absent if no volume has it.
func (s *Store) keyStatus(id crypt.ID) KeyStatus {
	for _, k := range s.KeyStates() {
		if k.ID == id {
			return k
		}
	}
	return KeyStatus{ID: id}
}

// RemoveKey takes a volume key out of memory. First all volumes under it are
// flushed; if that fails nothing is removed, and the error is ErrNotFlushed. Then
// nothing opens under it any more. Volumes without clients are closed and all that
// was derived for them is wiped; the others are when their last client leaves, and
// until then they work on. Unlock brings the key back.
//
// With force, clients do not matter: after a flush every later request of these
// volumes fails with ErrClosed, and the key is absent when RemoveKey returns, also
// if the flush failed. ErrNoKey says that the key is absent, ErrOnlyCopy that it is
// ephemeral and force was not asked for.
func (s *Store) RemoveKey(ctx context.Context, id crypt.ID, force bool) (r KeyRemoval, err error) {
	if !s.calls.enter() {
		return r, ErrClosed
	}
	defer s.calls.leave()
	s.ops.Lock() // nobody is using the key itself
	defer s.ops.Unlock()
	switch k := s.keyStatus(id); {
	case k.State == KeyAbsent:
		return r, fmt.Errorf("volume key %s: %w", id, ErrNoKey)
	case k.Ephemeral && !force:
		return r, fmt.Errorf("volume key %s: %w", id, ErrOnlyCopy)
	}
	if err := ctx.Err(); err != nil {
		return r, err
	}
	for _, v := range s.openUnder(id) {
		if err := v.Flush(); err != nil && !force {
			return r, fmt.Errorf("volume key %s is not removed: volume %s: %w: %w", id, v.Name(), ErrNotFlushed, err)
		}
	}
	s.forgetKey(id)
	s.dropBases(id) // clones without a chain read no more of what is under it
	r.Lost = s.closeUnder(id, force)
	r.KeyStatus = s.keyStatus(id)
	s.log.Info("volume key removed", "key", id, "state", r.State, "clients", r.Clients, "force", force)
	return r, nil
}

// openUnder lists the open volumes under a volume key.
func (s *Store) openUnder(id crypt.ID) (l []*Volume) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for vid, v := range s.volumes {
		if crypt.ID(s.heads[vid].VolumeKey) == id {
			l = append(l, v)
		}
	}
	slices.SortFunc(l, func(a, b *Volume) int { return cmp.Compare(a.id, b.id) })
	return l
}

// forgetKey wipes a volume key, once no volume is being opened with it. The caller
// holds ops.
func (s *Store) forgetKey(id crypt.ID) {
	s.opening.Lock()
	defer s.opening.Unlock()
	s.mu.Lock()
	vk := s.keys[id]
	delete(s.keys, id)
	s.mu.Unlock()
	if vk != nil {
		vk.Wipe()
	}
}

// closeUnder closes the open volumes under a key that was forgotten: those that no
// client needs, or all of them. What could not be saved is returned. The caller holds
// ops, so that the key does not come back before they are closed.
func (s *Store) closeUnder(id crypt.ID, all bool) (lost []error) {
	needed := map[layout.VolumeID]bool{}
	if !all {
		needed = s.inUse()
	}
	closed := 0
	for _, v := range s.openUnder(id) {
		if needed[v.id] {
			continue
		}
		err := v.close()
		s.mu.Lock()
		// Only now: until then it must not be looked at as if it were closed.
		delete(s.volumes, v.id)
		s.settled[v.id] = err == nil
		s.mu.Unlock()
		closed++
		if err != nil {
			err = fmt.Errorf("close volume %s: %w", v.Name(), err)
			s.log.Error("what was written last may be lost", "volume", v.Name(), "key", id, "err", err)
			lost = append(lost, err)
		}
	}
	if closed > 0 {
		// The ciphers of single extents and the buffers of requests were in ordinary
		// memory, which nobody can wipe: it is collected, and the pages that are free
		// then go back to the system. What is in a sync.Pool outlives one collection.
		runtime.GC()
		debug.FreeOSMemory()
	}
	return lost
}

// inUse are the volumes that clients need: those that they use, and what these
// were before a rollback, where older snapshots are.
func (s *Store) inUse() map[layout.VolumeID]bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	l, needed := s.lineageLocked(), map[layout.VolumeID]bool{}
	for id, v := range s.volumes {
		if v.users == 0 {
			continue
		}
		needed[id] = true
		for _, part := range l.History(id) {
			needed[part.Volume] = true
		}
	}
	return needed
}

// UseVolume opens a volume for a client, until leave is called: when its key is
// removed meanwhile, it works on, unless that was forced. Errors are those of Volume.
func (s *Store) UseVolume(name string) (v *Volume, leave func(), err error) {
	v, err = s.Volume(name)
	if err == nil {
		leave, err = s.use(v)
	}
	if err != nil {
		return nil, nil, err
	}
	return v, leave, nil
}

// UseSnapshot opens a snapshot for a client, as UseVolume does.
func (s *Store) UseSnapshot(volume, snapshot string) (d *Snapshot, leave func(), err error) {
	v, leave, err := s.UseVolume(volume)
	if err != nil {
		return nil, nil, err
	}
	if d, err = v.Snapshot(snapshot); err != nil {
		leave()
		return nil, nil, err
	}
	return d, leave, nil
}

// use counts a client of an open volume, in one step with finding out that its key
// is there: a removal sees the client, or the client the removal.
func (s *Store) use(v *Volume) (leave func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.heads[v.id]
	switch {
	case h.Volume != 0 && s.keys[crypt.ID(h.VolumeKey)] == nil:
		return nil, keyMissing(h)
	case s.volumes[v.id] != v:
		return nil, ErrClosed
	}
	v.users++
	return sync.OnceFunc(func() { s.leave(v) }), nil
}

// leave counts a client out. The last one of a volume whose key was removed closes
// it.
func (s *Store) leave(v *Volume) {
	s.mu.Lock()
	v.users--
	key := s.heads[v.id].VolumeKey
	last := v.users == 0 && s.volumes[v.id] == v && s.keys[crypt.ID(key)] == nil
	s.mu.Unlock()
	if !last || !s.calls.enter() {
		return // Close closes it
	}
	defer s.calls.leave()
	s.ops.Lock()
	defer s.ops.Unlock()
	if s.keyOf(key) != nil {
		return // it was added again meanwhile
	}
	s.closeUnder(crypt.ID(key), false)
	k := s.keyStatus(crypt.ID(key))
	s.log.Info("a client left a volume whose key was removed", "volume", v.Name(), "key", k.ID, "state", k.State, "clients", k.Clients)
}

// keyMissing says that a volume cannot be opened without its key.
func keyMissing(h layout.Head) error {
	if h.Ephemeral {
		return fmt.Errorf("%w: %w", ErrLost, ErrKeyMissing)
	}
	return fmt.Errorf("volume key %s is not available: %w", h.VolumeKey, ErrKeyMissing)
}

// needsReplay says that a volume has a log that no head covers, as far as can be
// known without its key.
func (s *Store) needsReplay(id layout.VolumeID) bool {
	s.mu.RLock()
	seen := s.volumes[id] != nil || s.settled[id]
	s.mu.RUnlock()
	return s.dir.Unclean && !seen && s.hasLog(id)
}
