package volume

import (
	"sync"
	"time"

	"github.com/fsximg/fsx/pkg/layout"
)

const (
	// maxBuffers is how many buffers of plaintext all volumes of a store have
	// together, before one has to be sealed for another: 64 MiB.
	maxBuffers = 16
	// spareBuffers of them are kept when nobody needs them.
	spareBuffers = 4
	// bufferPatience is how long a writer waits for another volume's buffer. Then
	// it gets one all the same: that volume may wait for space.
	bufferPatience = 50 * time.Millisecond
)

// pool is the memory that the volumes of a store share, however many they are.
// Its lock is taken last.
type pool struct {
	mu      sync.Mutex
	spare   []*buffer
	out     int           // buffers that volumes have
	came    chan struct{} // closed, and replaced, when one comes back
	staging [][]byte      // for sealing an extent

	entries int // of all volumes' overlays
}

func newPool() *pool { return &pool{came: make(chan struct{})} }

// takeBuffer returns a buffer, or nil if volumes have as many as they may;
// then came is closed when one comes back. With over it returns one anyway.
func (p *pool) takeBuffer(over bool) (b *buffer, came <-chan struct{}, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.out >= maxBuffers && !over {
		return nil, p.came, nil
	}
	if n := len(p.spare); n > 0 {
		b, p.spare = p.spare[n-1], p.spare[:n-1]
	} else if b, err = newBuffer(); err != nil {
		return nil, nil, err
	}
	p.out++
	return b, nil, nil
}

// putBuffer wipes a buffer and takes it back.
func (p *pool) putBuffer(b *buffer) {
	b.reset()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.out--
	if len(p.spare) < spareBuffers && p.out < maxBuffers {
		p.spare = append(p.spare, b)
	} else {
		b.free()
	}
	close(p.came)
	p.came = make(chan struct{})
}

// takeStaging returns memory for the largest extent; putStaging takes it back.
func (p *pool) takeStaging() ([]byte, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.staging); n > 0 {
		b := p.staging[n-1]
		p.staging = p.staging[:n-1]
		return b, nil
	}
	return mapAnonymous(layout.MaxExtentBlocks*blockSize + slack)
}

func (p *pool) putStaging(b []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.staging) < spareBuffers {
		p.staging = append(p.staging, b)
	} else {
		unmap(b)
	}
}

// count notes that overlays have grown by n entries, and returns how many they
// have together.
func (p *pool) count(n int) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.entries += n
	return p.entries
}

// bytes is the memory of the buffers.
func (p *pool) bytes() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return int64(p.out+len(p.spare)) * bufferBlocks * blockSize
}

// free gives everything back that no volume has.
func (p *pool) free() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, b := range p.spare {
		b.free()
	}
	for _, b := range p.staging {
		unmap(b)
	}
	p.spare, p.staging = nil, nil
}

// waitForBuffer has the other volumes of the store seal what they have, and
// waits for a buffer.
func (v *Volume) waitForBuffer() (*buffer, error) {
	p := v.store.pool
	deadline := time.NewTimer(bufferPatience)
	defer deadline.Stop()
	for {
		b, came, err := p.takeBuffer(false)
		if b != nil || err != nil {
			return b, err
		}
		for _, other := range v.store.opened() {
			if other != v {
				other.spill.Store(true)
				other.kick()
			}
		}
		select {
		case <-came:
		case <-deadline.C:
			b, _, err := p.takeBuffer(true)
			return b, err
		}
	}
}

// weighLocked tells the pool how large the overlay is. When all of them are too
// large together, the largest goes into the index.
func (v *Volume) weighLocked() {
	w := v.overlay.weight()
	total := v.store.pool.count(w - v.weight)
	v.weight = w
	v.light.Store(int64(w))
	if total <= 2*v.store.limits.overlay {
		return
	}
	heaviest := v
	for _, other := range v.store.opened() {
		if other.light.Load() > heaviest.light.Load() {
			heaviest = other
		}
	}
	if !heaviest.pressed.Swap(true) {
		heaviest.kickUpkeep()
	}
}
