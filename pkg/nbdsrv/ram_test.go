package nbdsrv_test

import (
	"bytes"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/fsximg/fsx/pkg/nbdsrv"
)

const ramBlock = 4096

// ramDevice keeps its bytes in memory and can be told to misbehave.
type ramDevice struct {
	readOnly bool
	// cold makes every nowait call answer ErrWouldBlock.
	cold atomic.Bool
	// noisy clobbers the slack behind ReadAt's buffer.
	noisy bool

	mu       sync.RWMutex
	data     []byte
	state    []byte // per block: 0 hole, 1 zero, 2 data
	contexts []ramContext

	hooks      sync.RWMutex
	onRead     func(off int64, n int) error
	onWrite    func(off int64, n int) error // only calls that may wait, if cold
	onFlush    func() error
	onZero     func(off, n int64, noHole bool) error
	onTrim     func(off, n int64) error
	onStatusIn func(context string) error

	flushes, prefetches, trims, zeroes atomic.Int64
}

// ramContext is a metadata context: its name, and the flags of each block.
type ramContext struct {
	name  string
	flags func(block int64) uint32
}

func newRAM(size int64) *ramDevice {
	return &ramDevice{data: make([]byte, size), state: make([]byte, (size+ramBlock-1)/ramBlock)}
}

func (d *ramDevice) Size() int64    { return int64(len(d.data)) }
func (d *ramDevice) ReadOnly() bool { return d.readOnly }

// snapshot is a copy of everything.
func (d *ramDevice) snapshot() []byte {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return bytes.Clone(d.data)
}

func (d *ramDevice) hook(set func()) {
	d.hooks.Lock()
	defer d.hooks.Unlock()
	set()
}

func (d *ramDevice) inside(off int64, n int64) {
	if off < 0 || n <= 0 || off+n > d.Size() {
		panic(fmt.Sprintf("range %d+%d was not validated", off, n))
	}
}

func (d *ramDevice) ReadAt(p []byte, off int64, nowait bool) error {
	d.inside(off, int64(len(p)))
	if cap(p)-len(p) < nbdsrv.ReadSlack {
		panic("no slack behind the buffer")
	}
	if nowait && d.cold.Load() {
		return nbdsrv.ErrWouldBlock
	}
	d.hooks.RLock()
	hook := d.onRead
	d.hooks.RUnlock()
	if hook != nil {
		if err := hook(off, len(p)); err != nil {
			return err
		}
	}
	d.mu.RLock()
	copy(p, d.data[off:])
	d.mu.RUnlock()
	if d.noisy {
		slack := p[len(p) : len(p)+nbdsrv.ReadSlack]
		for i := range slack {
			slack[i] = 0xee
		}
	}
	return nil
}

func (d *ramDevice) WriteAt(p []byte, off int64, nowait bool) error {
	d.inside(off, int64(len(p)))
	if nowait && d.cold.Load() {
		return nbdsrv.ErrWouldBlock
	}
	d.hooks.RLock()
	hook := d.onWrite
	d.hooks.RUnlock()
	if hook != nil {
		if err := hook(off, len(p)); err != nil {
			return err
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	copy(d.data[off:], p)
	d.mark(off, int64(len(p)), 2, false)
	return nil
}

// mark sets the state of the blocks a range touches, or with whole only of
// those it covers.
func (d *ramDevice) mark(off, n int64, state byte, whole bool) {
	first, last := off/ramBlock, (off+n-1)/ramBlock
	for b := first; b <= last; b++ {
		if whole && (b*ramBlock < off || (b+1)*ramBlock > off+n) {
			if d.state[b] == 0 {
				d.state[b] = 1
			}
			continue
		}
		d.state[b] = state
	}
}

func (d *ramDevice) ZeroAt(off, n int64, noHole bool) error {
	d.inside(off, n)
	d.zeroes.Add(1)
	d.hooks.RLock()
	hook := d.onZero
	d.hooks.RUnlock()
	if hook != nil {
		if err := hook(off, n, noHole); err != nil {
			return err
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.data[off : off+n])
	if noHole {
		d.mark(off, n, 1, true)
	} else {
		d.mark(off, n, 0, true)
	}
	return nil
}

func (d *ramDevice) TrimAt(off, n int64) error {
	d.inside(off, n)
	d.trims.Add(1)
	d.hooks.RLock()
	hook := d.onTrim
	d.hooks.RUnlock()
	if hook != nil {
		if err := hook(off, n); err != nil {
			return err
		}
	}
	end := (off + n) / ramBlock * ramBlock
	off = (off + ramBlock - 1) / ramBlock * ramBlock
	if off >= end {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.data[off:end])
	d.mark(off, end-off, 0, true)
	return nil
}

func (d *ramDevice) Flush() error {
	d.flushes.Add(1)
	d.hooks.RLock()
	hook := d.onFlush
	d.hooks.RUnlock()
	if hook != nil {
		return hook()
	}
	return nil
}

func (d *ramDevice) Status(off, n int64, fn func(int64, bool, bool) bool) error {
	d.inside(off, n)
	d.mu.RLock()
	defer d.mu.RUnlock()
	for end := off + n; off < end; {
		next := min((off/ramBlock+1)*ramBlock, end)
		state := d.state[off/ramBlock]
		if !fn(next-off, state == 0, state < 2) {
			return nil
		}
		off = next
	}
	return nil
}

// offer replaces the metadata contexts.
func (d *ramDevice) offer(contexts ...ramContext) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.contexts = contexts
}

func (d *ramDevice) Contexts() (names []string) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	for _, c := range d.contexts {
		names = append(names, c.name)
	}
	return names
}

func (d *ramDevice) StatusIn(context string, off, n int64, fn func(int64, uint32) bool) error {
	d.inside(off, n)
	d.hooks.RLock()
	hook := d.onStatusIn
	d.hooks.RUnlock()
	if hook != nil {
		if err := hook(context); err != nil {
			return err
		}
	}
	d.mu.RLock()
	defer d.mu.RUnlock()
	i := slices.IndexFunc(d.contexts, func(c ramContext) bool { return c.name == context })
	if i < 0 {
		return fmt.Errorf("context %q is gone: %w", context, syscall.EINVAL)
	}
	for end := off + n; off < end; {
		next := min((off/ramBlock+1)*ramBlock, end)
		if !fn(next-off, d.contexts[i].flags(off/ramBlock)) {
			return nil
		}
		off = next
	}
	return nil
}

func (d *ramDevice) Prefetch(off, n int64) error {
	d.inside(off, n)
	d.prefetches.Add(1)
	return nil
}

var _ nbdsrv.Contexts = (*ramDevice)(nil)

// exportMap serves devices by name; "" is its own entry.
type exportMap struct {
	mu      sync.Mutex
	exports map[string]nbdsrv.Export
	order   []string
	opened  map[string]int // by name, not yet released
	refuse  error
	allow   func(name string, client *nbdsrv.Client) error // nil: everything
}

func newExports() *exportMap {
	return &exportMap{exports: map[string]nbdsrv.Export{}, opened: map[string]int{}}
}

func (m *exportMap) add(e nbdsrv.Export) *exportMap {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.exports[e.Name] = e
	m.order = append(m.order, e.Name)
	return m
}

func (m *exportMap) List(client *nbdsrv.Client) (list []nbdsrv.ExportInfo) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, name := range m.order {
		if m.allow != nil && m.allow(name, client) != nil {
			continue
		}
		list = append(list, nbdsrv.ExportInfo{Name: name, Description: m.exports[name].Description})
	}
	return list
}

func (m *exportMap) Open(name string, client *nbdsrv.Client) (nbdsrv.Export, func(), error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.refuse != nil {
		return nbdsrv.Export{}, nil, m.refuse
	}
	if name == "" && len(m.order) > 0 {
		name = m.order[0]
	}
	e, ok := m.exports[name]
	if !ok {
		return nbdsrv.Export{}, nil, fmt.Errorf("export %q: %w", name, nbdsrv.ErrUnknownExport)
	}
	if m.allow != nil {
		if err := m.allow(name, client); err != nil {
			return nbdsrv.Export{}, nil, err
		}
	}
	m.opened[name]++
	var once sync.Once
	return e, func() {
		once.Do(func() {
			m.mu.Lock()
			defer m.mu.Unlock()
			m.opened[name]--
		})
	}, nil
}

func (m *exportMap) inUse() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := 0
	for _, k := range m.opened {
		n += k
	}
	return n
}

// placedError is a read error that knows where it happened.
type placedError int64

func (e placedError) Error() string { return "block failed authentication" }
func (e placedError) Offset() int64 { return int64(e) }
func (e placedError) Unwrap() error { return syscall.EIO }
