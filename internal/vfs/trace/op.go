// Package trace records what a program did to a directory tree, in order, and
// makes from the record the trees that a power cut may have left behind.
//
// The model is POSIX with ext4's sanity, chosen to be no kinder than a real
// file system:
//
//   - fsync and fdatasync of a file make its data, size and mode durable, and
//     not the directory entry that names it;
//   - fsync of a directory makes its entries durable, and nothing else;
//   - of everything else an arbitrary part survives: data in sectors of 512
//     bytes in any order, sizes and holes of one file in their order, entries
//     of one directory in their order (or, on demand, in none);
//   - a rename happens wholly or not at all; what is in a file past its
//     durable data but within its surviving size reads as zeros.
//
// It is a tool of tests: no product code imports it.
package trace

import "syscall"

// ID names a file, directory or socket for the whole life of a trace, through
// every rename. IDs are never reused.
type ID uint64

// Root is the ID of the recorded directory itself.
const Root ID = 1

// SectorSize is the unit that a disk writes wholly or not at all, in bytes.
const SectorSize = 512

// Kind is what an operation does.
type Kind uint8

// The kinds of operations. Changes of directories carry Dir and Name (Rename
// also Dir2, Name2 and Over); changes of files carry File.
const (
	Create      Kind = iota + 1 // a new file, directory or socket (see Mode) at Dir/Name
	Link                        // another name Dir/Name for File
	Unlink                      // File loses the name Dir/Name (also a directory)
	Rename                      // File moves to Dir2/Name2, replacing Over
	Write                       // Len bytes at Off
	Truncate                    // the size becomes Off
	Allocate                    // the size becomes at least Off+Len
	Punch                       // [Off, Off+Len) reads as zeros; the size stays
	Chmod                       // permissions become Mode
	Sync                        // fsync of a file returned, or of directory File
	Datasync                    // fdatasync of a file returned
	SyncLost                    // a sync failed: the data it covered is never written again
	SyncIgnored                 // a sync returned success and did nothing (injected)
	Mark                        // the test's note in Text
)

var kindNames = [...]string{Create: "create", Link: "link", Unlink: "unlink", Rename: "rename",
	Write: "write", Truncate: "truncate", Allocate: "allocate", Punch: "punch", Chmod: "chmod",
	Sync: "sync", Datasync: "datasync", SyncLost: "sync-lost", SyncIgnored: "sync-ignored", Mark: "mark"}

func (k Kind) String() string {
	if int(k) < len(kindNames) && kindNames[k] != "" {
		return kindNames[k]
	}
	return "kind?"
}

// Op is one recorded operation. An operation with Err set was refused and
// changed nothing; it is recorded so that a test can see it.
type Op struct {
	Kind        Kind
	File        ID
	Dir, Dir2   ID
	Name, Name2 string
	Over        ID // what a Rename replaced; 0 if nothing
	Off, Len    int64
	Data        int64  // where a Write's bytes lie in the trace's data file
	Mode        uint32 // st_mode with the type bits (Create), permissions (Chmod)
	Err         syscall.Errno
	Text        string
}

// changesNames reports whether op changes directory entries.
func (op *Op) changesNames() bool { return op.Kind >= Create && op.Kind <= Rename }

// changesFile reports whether op changes what is in a file or its size.
func (op *Op) changesFile() bool { return op.Kind >= Write && op.Kind <= Chmod }

// IsSync reports whether op made something durable, or was asked to.
func (op *Op) IsSync() bool { return op.Kind >= Sync && op.Kind <= SyncIgnored }
