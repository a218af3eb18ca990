package metadb

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"

	"github.com/dgraph-io/badger/v4"
)

// maxChecksum bounds the encoded checksum in a table's footer; Badger's is a
// protobuf message of a kind and a 64-bit sum.
const maxChecksum = 64

// checkTables refuses a database in which a table's footer leads out of the
// table: Badger follows it unchecked, and panics in a goroutine of its own. The
// index that a right footer leads to has a checksum, which Badger does check.
// Tables that the manifest does not name are leftovers, and Badger removes them.
func checkTables(dir string, o badger.Options) error {
	f, err := os.Open(filepath.Join(dir, manifestFile))
	if os.IsNotExist(err) {
		return nil // a new database
	}
	if err != nil {
		return err
	}
	defer f.Close()
	m, _, err := badger.ReplayManifestFile(f, o.ExternalMagicVersion, o)
	if err != nil {
		return err
	}
	for id := range m.Tables {
		if err := checkFooter(filepath.Join(dir, fmt.Sprintf("%06d.sst", id))); err != nil {
			return err
		}
	}
	return nil
}

// checkFooter reads a table's end: index, its length be32, checksum, its length
// be32 (Badger v4, table/builder.go).
func checkFooter(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	rest := info.Size()
	// length reads a be32 from the end of what is left, and takes it and as many
	// bytes before it away.
	length := func(limit int64) (ok bool, err error) {
		var b [4]byte
		if rest < int64(len(b)) {
			return false, nil
		}
		rest -= int64(len(b))
		if _, err := f.ReadAt(b[:], rest); err != nil {
			return false, err
		}
		n := int64(binary.BigEndian.Uint32(b[:]))
		if n == 0 || n > min(limit, rest) {
			return false, nil
		}
		rest -= n
		return true, nil
	}
	for _, limit := range []int64{maxChecksum, info.Size()} {
		ok, err := length(limit)
		if err != nil {
			return err
		}
		if !ok {
			return fmt.Errorf("table %s is cut off or altered", filepath.Base(name))
		}
	}
	return nil
}
