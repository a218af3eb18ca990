package powercut_test

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
)

// inventory is what must be in a store: of each volume and snapshot, VOLUME or
// VOLUME@SNAPSHOT, the bytes. Changes make a new one; bytes are never changed.
type inventory struct {
	data  map[string][]byte
	snaps map[string][]string // of each volume, oldest first
	// unread is the snapshot of main that was made and not read yet: what it holds
	// follows from when. It is in data as nil.
	unread string
	from   int
}

func (v inventory) clone() inventory {
	v.data, v.snaps = maps.Clone(v.data), maps.Clone(v.snaps)
	return v
}

func (v inventory) volumes() []string { return slices.Sorted(maps.Keys(v.snaps)) }

func (v inventory) addSnapshot(volume, name string, data []byte) {
	v.data[volume+"@"+name] = data
	v.snaps[volume] = append(slices.Clone(v.snaps[volume]), name)
}

// keepSnapshots deletes the snapshots of a volume that are not in names.
func (v inventory) keepSnapshots(volume string, names []string) {
	for _, s := range v.snaps[volume] {
		if !slices.Contains(names, s) {
			delete(v.data, volume+"@"+s)
		}
	}
	v.snaps[volume] = slices.Clone(names)
}

func (v inventory) deleteVolume(volume string) {
	v.keepSnapshots(volume, nil)
	delete(v.data, volume)
	delete(v.snaps, volume)
}

func (v inventory) renameVolume(volume, to string) {
	data, snaps := v.data[volume], v.snaps[volume]
	kept := map[string][]byte{}
	for _, s := range snaps {
		kept[s] = v.data[volume+"@"+s]
	}
	v.deleteVolume(volume)
	v.data[to], v.snaps[to] = data, snaps
	for s, data := range kept {
		v.data[to+"@"+s] = data
	}
}

// diary is what one writer wrote to main, a block at a time, with one request
// under way: what the volume held at any moment, and a snapshot holds, is a prefix
// of it. After a kill it is a prefix that was flushed, and of each block perhaps a
// later write: between flushes there is no order among blocks.
type diary struct {
	mu      sync.Mutex
	base    []byte // main when it began
	writes  []blockWrite
	acked   int // writes that were answered
	durable int // of these, before a flush that was answered
}

type blockWrite struct {
	off  int64
	data []byte
}

func (d *diary) begin(w blockWrite) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.writes = append(d.writes, w)
}

func (d *diary) answered() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.acked++
}

// flushed says that a flush was answered, which no write ran beside.
func (d *diary) flushed() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.durable = d.acked
}

// moment is how many writes were answered and how many have begun.
func (d *diary) moment() (acked, begun int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.acked, len(d.writes)
}

// find is how many writes, from from to to, give what was read.
func (d *diary) find(got []byte, from, to int) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(got) != len(d.base) {
		return 0, fmt.Errorf("it has %d bytes, want %d", len(got), len(d.base))
	}
	state := bytes.Clone(d.base)
	wrong := map[int64]bool{} // blocks in which state and got differ
	look := func(off int64) {
		end := min(off+blockSize, int64(len(got)))
		if bytes.Equal(state[off:end], got[off:end]) {
			delete(wrong, off)
		} else {
			wrong[off] = true
		}
	}
	for off := int64(0); off < int64(len(got)); off += blockSize {
		look(off)
	}
	for k := 0; ; k++ {
		if k >= from && len(wrong) == 0 {
			return k, nil
		}
		if k == min(to, len(d.writes)) {
			return 0, fmt.Errorf("it is not what the first %d to %d writes leave; after all of them %d blocks differ", from, to, len(wrong))
		}
		copy(state[d.writes[k].off:], d.writes[k].data)
		look(d.writes[k].off)
	}
}

// survived checks main after a kill.
func (d *diary) survived(got []byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(got) != len(d.base) {
		return fmt.Errorf("it has %d bytes, want %d", len(got), len(d.base))
	}
	state, right := bytes.Clone(d.base), map[int64]bool{}
	look := func(off int64) {
		end := min(off+blockSize, int64(len(got)))
		right[off] = right[off] || bytes.Equal(state[off:end], got[off:end])
	}
	for _, w := range d.writes[:d.durable] {
		copy(state[w.off:], w.data)
	}
	for off := int64(0); off < int64(len(got)); off += blockSize {
		look(off)
	}
	for _, w := range d.writes[d.durable:] {
		copy(state[w.off:], w.data)
		look(w.off)
	}
	var errs error
	for off, ok := range right {
		if !ok {
			errs = errors.Join(errs, fmt.Errorf("block at %d holds neither what %d flushed writes left nor one of %d later ones", off, d.durable, len(d.writes)-d.durable))
		}
	}
	return errs
}

// settle finds out which of two inventories a store has that was found with got:
// old, or new, what the operation under way would have made of it. Of main it must
// hold at least the writes that were flushed, or that a snapshot of it has.
func settle(got map[string][]byte, d *diary, old, next inventory) (inventory, error) {
	if err := d.survived(got["main"]); err != nil {
		return old, fmt.Errorf("volume main: %w", err)
	}
	var errs []error
	for _, v := range []inventory{old, next} {
		err := v.match(got, d)
		if err == nil {
			v = v.clone()
			v.data, v.unread = got, ""
			return v, nil
		}
		errs = append(errs, err)
	}
	return old, fmt.Errorf("neither before (%w) nor after (%w)", errs[0], errs[1])
}

// match compares what was found, but for main, with the inventory.
func (v inventory) match(got map[string][]byte, d *diary) error {
	_, begun := d.moment()
	for name := range got {
		if _, ok := v.data[name]; !ok {
			return fmt.Errorf("%s is there", name)
		}
	}
	for name, want := range v.data {
		found, ok := got[name]
		switch {
		case !ok:
			return fmt.Errorf("%s is missing", name)
		case name == "main":
		case name == v.unread:
			if _, err := d.find(found, v.from, begun); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		case !bytes.Equal(found, want):
			return fmt.Errorf("%s holds something else", name)
		}
	}
	return nil
}
