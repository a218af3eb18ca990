package volume

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fsximg/fsx/pkg/crypt"
	"github.com/fsximg/fsx/pkg/layout"
	"github.com/fsximg/fsx/pkg/layout/maptree"
	"github.com/fsximg/fsx/pkg/layout/seglog"
)

// Volume is an open volume: a block device whose content is sealed in the
// store. Its methods are safe for concurrent use.
//
// A write goes: buffer (plaintext, under mu) → frozen (immutable, waits for
// the log's goroutine) → sealed in a segment, mapped in the overlay → map tree
// (checkpoint). A read looks in that order.
type Volume struct {
	store *Store
	log   *slog.Logger
	id    layout.VolumeID
	uuid  layout.UUID
	label atomic.Pointer[string] // its name
	size  atomic.Int64           // bytes
	ro    bool
	// trusted says that it is known who made it; untrusted, that it is read-only
	// because that is not known.
	trusted, untrusted bool
	auth               *crypt.Authority
	bag                *crypt.Bag
	base               baseKeys
	files              *seglog.Files
	cache              *extentCache

	calls gate // of clients: Close waits for them
	users int  // clients that have it open; guarded by Store.mu

	// nextSegment is the lowest segment number never used.
	nextSegment atomic.Uint64
	// named is the empty segment that the last session's last record names; 0
	// if there is none, or this session has begun.
	named layout.SegmentNo
	// replayed is the last record that recovery has applied.
	replayed layout.Position

	// kept are the segments whose accounts are lost. It does not change once the
	// volume is open.
	kept map[layout.SegmentNo]bool

	mu        sync.RWMutex
	changed   *sync.Cond // on mu: space, frozen buffers, flushes or the overlay moved on
	active    *buffer
	frozen    []*buffer // oldest first
	overlay   *overlay
	waiting   []*frozenOverlay  // for checkpoints, oldest first
	snaps     []layout.Snapshot // that the index has, oldest first; replaced, not changed
	controls  []*control        // changes of state that wait for the log's goroutine
	devices   map[layout.Seq]*Snapshot
	current   layout.SegmentNo // the segment that the log appends to
	root      maptree.Root
	head      layout.Head
	gen       uint64 // grows when a mapping that a reader may hold is replaced
	versions  [versionStripes]uint32
	epoch     uint32             // version of ranges too long for stripes
	capacity  int                // blocks the log can take without a new segment
	unsynced  bool               // the log has operations that no commit covers
	flushSeq  uint64             // flushes asked for
	flushed   uint64             // flushes done
	retry     bool               // a writer is short of log space
	attempts  uint64             // retries answered
	leave     bool               // the log is to leave its segment
	noSegment error              // why the last attempt to make a segment failed, if it did
	freeze    chan<- frozenState // a checkpoint wants the overlay
	logBytes  int64              // log written since the last checkpoint
	failed    error              // poisoned: the volume is read-only (I7)
	closing   bool               // no write is taken any more
	discard   bool               // it was deleted: closing saves nothing
	logEnded  bool               // the log's goroutine answers no more
	closed    bool
	upkeepErr error // why the last checkpoint failed

	wake     chan struct{} // to the log's goroutine
	logDone  chan struct{}
	maint    chan struct{} // to the maintenance goroutine
	stop     chan struct{}
	mainDone chan struct{}
	// upkeep serialises checkpoints and compactions.
	upkeep     sync.Mutex
	account    account // as of the last checkpoint; guarded by upkeep
	space      spaceTable
	stats      counters
	flattening sync.Mutex
	weight     int          // of the overlay, as the pool has it
	light      atomic.Int64 // the same, for other volumes to see
	spill      atomic.Bool  // another volume needs the buffer
	pressed    atomic.Bool  // the store's overlays are too large together, and this one is the largest
	// sweepDue asks maintenance to delete hidden snapshots that nothing needs.
	sweepDue atomic.Bool
}

// frozenOverlay is an overlay that is immutable and waits for its checkpoint:
// what the log has up to a position. If a snapshot was made there, it goes into
// the index with the same checkpoint.
type frozenOverlay struct {
	*overlay
	at   layout.Position
	snap *layout.Snapshot // without its root
	log  int64            // bytes of log that it is the content of
	size int64            // of the volume, in bytes
}

// layersLocked calls fn with the overlays that the volume's present state is
// in, newest first, until fn returns false.
func (v *Volume) layersLocked(fn func(*overlay) bool) {
	if !fn(v.overlay) {
		return
	}
	for i := len(v.waiting) - 1; i >= 0 && fn(v.waiting[i].overlay); i-- {
	}
}

// versionStripes is the number of counters that detect a write between the
// read and the merge of a partial block.
const versionStripes = 1024

const (
	maxFrozen   = 2
	commitEvery = 5 * time.Second
)

var (
	// ErrReadOnly is returned for writes to a volume opened for reading.
	ErrReadOnly = errors.New("volume is read-only")
	// ErrClosed is returned after Close.
	ErrClosed = errors.New("volume is closed")
)

// Name is the volume's name.
func (v *Volume) Name() string { return *v.label.Load() }

// Size is the volume's size in bytes, a multiple of 512.
func (v *Volume) Size() int64 { return v.size.Load() }

// ReadOnly says that every write will be refused.
func (v *Volume) ReadOnly() bool { return v.ro }

func (v *Volume) blocks() uint64 { return blocksOf(uint64(v.Size())) }

// blocksOf is the number of blocks of a volume of size bytes.
func blocksOf(size uint64) uint64 { return (size + blockSize - 1) / blockSize }

// writable is the error that a write meets now, if any. The caller holds mu.
func (v *Volume) writableLocked() error {
	switch {
	case v.failed != nil:
		return v.failed
	case v.closing:
		return ErrClosed
	case v.untrusted:
		return untrustedError(crypt.ID(v.head.VolumeKey))
	case v.ro:
		return ErrReadOnly
	}
	return nil
}

// poison turns the volume read-only after a failed write or sync of the log.
func (v *Volume) poisonLocked(err error) {
	if v.failed == nil {
		v.failed = fmt.Errorf("volume %s is read-only since its log failed: %w", v.Name(), err)
		v.log.Error("volume is read-only now", "volume", v.Name(), "err", err)
	}
	v.changed.Broadcast()
}

// isClosed says that the volume has no keys any more.
func (v *Volume) isClosed() bool {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.closed
}

// newSegmentNo takes a segment number, which is never given again: the log and
// a compaction may want one at the same time.
func (v *Volume) newSegmentNo() layout.SegmentNo {
	return layout.SegmentNo(v.nextSegment.Add(1) - 1)
}

func (v *Volume) kick() {
	select {
	case v.wake <- struct{}{}:
	default:
	}
}

func (v *Volume) kickUpkeep() {
	select {
	case v.maint <- struct{}{}:
	default:
	}
}
