package metadb

import (
	"bytes"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/dgraph-io/badger/v4"
)

// view is a read transaction that many readers share. It holds back the
// removal of versions newer than itself, so it lives only until the next write
// completes.
type view struct {
	txn  *badger.Txn
	refs atomic.Int64 // readers, and one for being current
}

func (v *view) release() {
	if v.refs.Add(-1) == 0 {
		v.txn.Discard()
	}
}

// renewView makes every write that completed before the call visible to later
// readers.
func (d *DB) renewView() {
	v := &view{txn: d.db.NewTransaction(false)}
	v.refs.Store(1)
	d.view.Lock()
	old := d.view.current
	if d.view.closed || old != nil && old.txn.ReadTs() > v.txn.ReadTs() {
		old = v // closed, or another writer was quicker
	} else {
		d.view.current = v
	}
	d.view.Unlock()
	if old != nil {
		old.release()
	}
}

func (d *DB) acquire() (*view, error) {
	d.view.Lock()
	defer d.view.Unlock()
	if d.view.closed {
		return nil, ErrClosed
	}
	v := d.view.current
	v.refs.Add(1)
	return v, nil
}

// Get calls fn with the value of key, which is valid during the call only, and
// returns fn's error as it is. It sees what every Flush and Update that
// returned before the call has written. The error for a key without a value is
// ErrNotFound itself.
func (d *DB) Get(key []byte, fn func(val []byte) error) error {
	v, err := d.acquire()
	if err != nil {
		return err
	}
	defer v.release()
	item, err := v.txn.Get(key)
	if err != nil {
		return readError(err)
	}
	return item.Value(fn)
}

// GetAppend is Get, but appends the value to dst and returns that.
func (d *DB) GetAppend(key, dst []byte) ([]byte, error) {
	v, err := d.acquire()
	if err != nil {
		return dst, err
	}
	defer v.release()
	return getAppend(v.txn, key, dst)
}

func getAppend(txn *badger.Txn, key, dst []byte) ([]byte, error) {
	item, err := txn.Get(key)
	if err != nil {
		return dst, readError(err)
	}
	err = item.Value(func(val []byte) error {
		dst = append(dst, val...)
		return nil
	})
	return dst, readError(err)
}

func readError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, badger.ErrKeyNotFound):
		return ErrNotFound
	case errors.Is(err, badger.ErrDBClosed):
		return ErrClosed
	}
	return fmt.Errorf("read metadata: %w", err)
}

// Scan calls fn with every key that starts with prefix and its value, in
// ascending order, until fn returns an error; that error is returned. Key and
// value are valid during the call only. The scan sees the database as it was
// at its start.
func (d *DB) Scan(prefix []byte, fn func(key, val []byte) error) error {
	return d.scan(prefix, prefix, func(item *badger.Item) error {
		return item.Value(func(val []byte) error { return fn(item.Key(), val) })
	})
}

// ScanKeys is Scan without values, from the key start on, which has the prefix
// or lies before all keys that have it.
func (d *DB) ScanKeys(prefix, start []byte, fn func(key []byte) error) error {
	return d.scan(prefix, start, func(item *badger.Item) error { return fn(item.Key()) })
}

func (d *DB) scan(prefix, start []byte, fn func(*badger.Item) error) error {
	v, err := d.acquire()
	if err != nil {
		return err
	}
	defer v.release()
	o := badger.DefaultIteratorOptions
	o.PrefetchValues = false
	o.Prefix = prefix
	it := v.txn.NewIterator(o)
	defer it.Close()
	if bytes.Compare(start, prefix) < 0 {
		start = prefix
	}
	for it.Seek(start); it.Valid(); it.Next() {
		if err := fn(it.Item()); err != nil {
			return err
		}
	}
	return nil
}
