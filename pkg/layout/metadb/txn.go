package metadb

import (
	"errors"
	"fmt"

	"github.com/dgraph-io/badger/v4"
)

// Txn is what a function run by Update writes to.
type Txn struct{ txn *badger.Txn }

// Set stores val under key. Neither may change before Update returns.
func (t *Txn) Set(key, val []byte) error {
	if len(val) > MaxValue {
		return fmt.Errorf("write metadata: %w: value of %d bytes", ErrTooLarge, len(val))
	}
	return writeError(t.txn.SetEntry(badger.NewEntry(key, val)))
}

// Delete removes a key, which may not change before Update returns.
func (t *Txn) Delete(key []byte) error { return writeError(t.txn.Delete(key)) }

// GetAppend appends the value of key to dst; it sees the transaction's own writes.
func (t *Txn) GetAppend(key, dst []byte) ([]byte, error) {
	return getAppend(t.txn, key, dst)
}

// Update runs fn and writes what it set as one atomic transaction, which is
// durable and visible when Update returns nil. An error of fn is returned as it
// is and nothing is written. About 450 KiB or 4,900 keys fit; more is
// ErrTooLarge and nothing is written. Updates do not detect conflicts: two that
// run at the same time and read what the other writes need a lock of their own.
func (d *DB) Update(fn func(*Txn) error) error {
	if err := d.writable(); err != nil {
		return err
	}
	txn := d.db.NewTransaction(true)
	defer txn.Discard()
	if err := fn(&Txn{txn}); err != nil {
		return err
	}
	if err := writeError(txn.Commit()); err != nil {
		if errors.Is(err, ErrTooLarge) || errors.Is(err, ErrClosed) {
			return err
		}
		return d.fail(err)
	}
	// The transaction may lie in a log file that is new in the directory.
	if err := syncDir(d.dir); err != nil {
		return d.fail(err)
	}
	d.renewView()
	return nil
}

func writeError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, badger.ErrTxnTooBig):
		return fmt.Errorf("write metadata: %w", ErrTooLarge)
	case errors.Is(err, badger.ErrDBClosed), errors.Is(err, badger.ErrBlockedWrites):
		return fmt.Errorf("write metadata: %w", ErrClosed)
	}
	return fmt.Errorf("write metadata: %w", err)
}
