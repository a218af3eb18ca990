package crypt

import (
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const (
	cellSize   = 512      // the largest fixed-size secret: a data key and two SHA-512 states
	arenaSize  = 16 << 10 // one mmap
	arenaCells = arenaSize / cellSize
)

// vault is where secrets live: anonymous mappings outside the Go heap, locked
// into RAM and left out of core dumps. It is the one mutable thing of the
// package, because locked memory is a resource of the process.
var vault = memory{lock: unix.Mlock}

// memory hands out cells from arenas of locked pages. A cell that is returned
// is wiped first; an arena whose cells are all back is unmapped.
type memory struct {
	lock func([]byte) error

	mu       sync.Mutex
	arenas   []*arena
	bytes    int64 // mapped now
	unlocked int64 // of these, not locked
	err      error // why, the first time
}

type arena struct {
	home   *memory
	mem    []byte
	locked bool
	mapped bool
	used   int // cells
	inUse  [arenaCells]bool
}

// MemoryStatus says how secrets are kept.
type MemoryStatus struct {
	Bytes    int64 // mapped for secrets
	Unlocked int64 // of these, not locked into RAM: they may reach swap
	Err      error // the first failure to lock, nil if there was none
}

// Locked tells whether every secret of the process is in locked memory. It is
// usually false because RLIMIT_MEMLOCK is too small; the program works on.
func (s MemoryStatus) Locked() bool { return s.Unlocked == 0 && s.Err == nil }

// Memory reports on the memory that holds this process's secrets.
func Memory() MemoryStatus { return vault.status() }

func (m *memory) status() MemoryStatus {
	m.mu.Lock()
	defer m.mu.Unlock()
	return MemoryStatus{Bytes: m.bytes, Unlocked: m.unlocked, Err: m.err}
}

// cell is a piece of locked memory with one owner. It must be freed; if its
// owner forgets, ownedBy returns it when the owner is collected.
type cell struct {
	b     []byte
	arena *arena
	index int // first cell in the arena, -1: the arena is this cell's own
	freed atomic.Bool
}

// newCell returns n zeroed bytes. It never fails: what cannot be mapped comes
// from the Go heap and is counted as unlocked.
func newCell(n int) *cell { return vault.newCell(n) }

func (m *memory) newCell(n int) *cell {
	m.mu.Lock()
	defer m.mu.Unlock()
	if n > cellSize {
		a := m.mapLocked(n)
		return &cell{b: a.mem[:n:n], arena: a, index: -1}
	}
	for _, a := range m.arenas {
		if a.used < arenaCells {
			return a.take(n)
		}
	}
	a := m.mapLocked(arenaSize)
	m.arenas = append(m.arenas, a)
	return a.take(n)
}

func (a *arena) take(n int) *cell {
	for i := range a.inUse {
		if !a.inUse[i] {
			a.inUse[i] = true
			a.used++
			off := i * cellSize
			return &cell{b: a.mem[off : off+n : off+n], arena: a, index: i}
		}
	}
	panic("crypt: arena is full")
}

// mapLocked maps n bytes. The pages are kept out of dumps before they are
// locked, so that no secret ever sits in a page that could be dumped.
func (m *memory) mapLocked(n int) *arena {
	mem, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		a := &arena{home: m, mem: make([]byte, n)}
		m.noteLocked(a, err)
		return a
	}
	a := &arena{home: m, mem: mem, mapped: true}
	if err = unix.Madvise(mem, unix.MADV_DONTDUMP); err == nil {
		err = m.lock(mem)
	}
	a.locked = err == nil
	m.noteLocked(a, err)
	return a
}

func (m *memory) noteLocked(a *arena, err error) {
	m.bytes += int64(len(a.mem))
	if !a.locked {
		m.unlocked += int64(len(a.mem))
	}
	if err != nil && m.err == nil {
		m.err = err
	}
}

// free wipes the cell and gives it back. Only the first call does anything.
func (c *cell) free() {
	if c == nil || c.freed.Swap(true) {
		return
	}
	clear(c.b)
	a := c.arena
	m := a.home
	m.mu.Lock()
	defer m.mu.Unlock()
	c.b, c.arena = nil, nil
	if c.index >= 0 {
		a.inUse[c.index] = false
		if a.used--; a.used > 0 || len(m.arenas) == 1 {
			return
		}
		m.dropLocked(a)
	}
	m.unmapLocked(a)
}

func (m *memory) dropLocked(a *arena) {
	for i, x := range m.arenas {
		if x == a {
			m.arenas = append(m.arenas[:i], m.arenas[i+1:]...)
			return
		}
	}
}

func (m *memory) unmapLocked(a *arena) {
	m.bytes -= int64(len(a.mem))
	if !a.locked {
		m.unlocked -= int64(len(a.mem))
	}
	if a.mapped {
		_ = unix.Munmap(a.mem) // munlocks; the bytes are wiped already
	}
}

// ownedBy frees c when owner is collected without having been wiped.
func ownedBy[T any](owner *T, c *cell) {
	runtime.AddCleanup(owner, func(c *cell) { c.free() }, c)
}
