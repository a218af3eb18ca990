package metadb

import (
	"errors"
	"fmt"
	"sync"

	"github.com/dgraph-io/badger/v4"
)

const (
	// batchBytes and batchKeys are when a batch hands its writes to Badger:
	// below the limits of a transaction, which are 15 % of a memtable, and as
	// many skip list nodes as fit there (about 4,900).
	batchBytes = memTableSize / 8
	batchKeys  = 4_500
	// batchTxns is how many transactions a batch has under way: one fills while
	// another syncs.
	batchTxns = 2
	// arenaChunk is the unit in which copies of keys and values are allocated.
	arenaChunk = 64 << 10
)

// Batch writes any number of keys, quickly and with little memory, but not
// atomically: after a crash or an error any subset may be there. It is for one
// goroutine. End it with Flush, or with Cancel.
type Batch struct {
	db    *DB
	txn   *badger.Txn
	ready chan *badger.Txn // empty transactions
	size  int              // of what txn holds, as Badger counts
	keys  int
	arena []byte

	pending sync.WaitGroup
	mu      sync.Mutex
	err     error // first failure, guarded by mu
}

// NewBatch starts a batch.
func (d *DB) NewBatch() *Batch {
	b := &Batch{db: d, ready: make(chan *badger.Txn, batchTxns)}
	for range batchTxns {
		b.ready <- d.db.NewTransaction(true)
	}
	return b
}

// Set stores val under key. Both are copied.
func (b *Batch) Set(key, val []byte) error {
	if len(val) > MaxValue {
		return fmt.Errorf("write metadata: %w: value of %d bytes", ErrTooLarge, len(val))
	}
	if err := b.room(len(key) + len(val)); err != nil {
		return err
	}
	k := b.copy(key)
	return b.put(b.txn.SetEntry(badger.NewEntry(k, b.copy(val))))
}

// Delete removes a key; one without a value is no error.
func (b *Batch) Delete(key []byte) error {
	if err := b.room(len(key)); err != nil {
		return err
	}
	return b.put(b.txn.Delete(b.copy(key)))
}

func (b *Batch) put(err error) error {
	if err != nil {
		return fmt.Errorf("write metadata: %w", err)
	}
	return nil
}

// copy takes a copy that lives as long as the transaction needs it.
func (b *Batch) copy(p []byte) []byte {
	if cap(b.arena)-len(b.arena) < len(p) {
		b.arena = make([]byte, 0, max(arenaChunk, len(p)))
	}
	n := len(b.arena)
	b.arena = append(b.arena, p...)
	return b.arena[n:len(b.arena):len(b.arena)]
}

// room makes sure that a transaction is open that can take n more bytes.
func (b *Batch) room(n int) error {
	const overhead = 24 // what Badger counts for each entry, generously
	if b.txn != nil && (b.size+n+overhead > batchBytes || b.keys == batchKeys) {
		if err := b.commit(); err != nil {
			return err
		}
	}
	if b.txn == nil {
		if err := b.failure(); err != nil {
			return err
		}
		b.txn, b.size, b.keys = <-b.ready, 0, 0
	}
	b.keys++
	b.size += n + overhead
	return nil
}

// commit sends the open transaction off and returns without waiting for it.
func (b *Batch) commit() error {
	if err := b.failure(); err != nil {
		return err
	}
	if err := b.db.writable(); err != nil {
		b.setFailure(err)
		return err
	}
	txn := b.txn
	b.txn = nil
	b.pending.Add(1)
	// Badger runs the callback on a goroutine of its own, which Flush and
	// Cancel wait for.
	txn.CommitWith(func(err error) {
		defer b.pending.Done()
		if err != nil {
			b.setFailure(b.db.fail(fmt.Errorf("commit metadata batch: %w", err)))
		}
		// A new transaction waits for all commits that have begun, hence here
		// and not where the caller would wait for it.
		b.ready <- b.db.db.NewTransaction(true)
	})
	return nil
}

// Flush writes what is pending and returns when all of the batch is durable
// and visible to readers. The batch has then ended, whatever the outcome.
func (b *Batch) Flush() error {
	var err error
	if b.txn != nil {
		err = b.commit()
	}
	b.end()
	if err == nil {
		err = b.failure()
	}
	b.setFailure(errBatchEnded)
	if err != nil {
		return err
	}
	if err := syncDir(b.db.dir); err != nil {
		return b.db.fail(err)
	}
	b.db.renewView()
	return nil
}

// Cancel ends the batch. What it was given may be there or not.
func (b *Batch) Cancel() {
	b.end()
	b.setFailure(errBatchEnded)
}

var errBatchEnded = errors.New("metadata batch has ended")

func (b *Batch) end() {
	b.pending.Wait()
	if b.txn != nil {
		b.txn.Discard()
		b.txn = nil
	}
	for {
		select {
		case txn := <-b.ready:
			txn.Discard()
		default:
			return
		}
	}
}

func (b *Batch) failure() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.err
}

func (b *Batch) setFailure(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err == nil {
		b.err = err
	}
}
