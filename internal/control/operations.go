package control

import (
	"context"
	"time"

	"github.com/fsximg/fsx/internal/cliutil"
)

// Operations are what can be done with a store, whoever has it open: Local does
// it in this process, a Client has the store's server do it. Both return the same
// results and errors that are the same sentinels. Methods may be called
// concurrently. Progress functions are told bytes done and in all.
type Operations interface {
	// Info describes the store and its volumes. Of a served volume what is used
	// is as of its last checkpoint.
	Info(ctx context.Context) (Info, error)
	// Map calls fn with the runs of a volume's map, or of a snapshot's.
	Map(ctx context.Context, volume, snapshot string, fn func(Run) error) error
	// Diff calls fn with what differs between a snapshot and another of the same
	// volume, or, with to empty, its present state.
	Diff(ctx context.Context, volume, from, to string, fn func(DiffRun) error) error
	// Check verifies the store, and every tag of volumes whose key is there.
	Check(ctx context.Context, progress func(done, total int64)) (Report, error)
	// Compact gives back space that nothing needs.
	Compact(ctx context.Context) (Compaction, error)

	CreateSnapshot(ctx context.Context, volume, name string) (Snapshot, error)
	DeleteSnapshot(ctx context.Context, volume, name string) (Snapshot, error)
	// Rollback makes a volume what a snapshot holds. With force newer snapshots
	// are deleted; their names are returned.
	Rollback(ctx context.Context, volume, snapshot string, force bool) (deleted []string, err error)

	Clone(ctx context.Context, c CloneRequest) error
	CreateVolume(ctx context.Context, v VolumeRequest) error
	DeleteVolume(ctx context.Context, name string) error
	RenameVolume(ctx context.Context, name, to string) error
	Resize(ctx context.Context, volume string, size int64, shrink bool) error
	// Flatten copies what a clone shares into itself.
	Flatten(ctx context.Context, volume string, progress func(done, total int64)) error

	// Rekey gives a volume a new volume key and a new data key.
	Rekey(ctx context.Context, r RekeyRequest) (Rekeyed, error)
	// Reencrypt rewrites what a volume has under older data keys.
	Reencrypt(ctx context.Context, r ReencryptRequest, progress func(done, total int64)) (Reencrypted, error)
	KeyOperations

	// Copy copies the store to the folder dst, an absolute path, as it is at one
	// moment.
	Copy(ctx context.Context, dst string, progress func(done, total int64)) error

	// Close releases the store, or the connection to its server.
	Close() error
}

// Info describes a store. docs/schema/fsximg.info.json says what the fields mean;
// it and its parts are printed as they are by --json.
type Info struct {
	UUID          string    `json:"uuid"`
	FormatVersion int       `json:"format_version"`
	Created       time.Time `json:"created"`
	Allocated     int64     `json:"allocated"` // on disk
	NeedsReplay   bool      `json:"needs_replay"`
	Slots         []Slot    `json:"slots"`
	Volumes       []Volume  `json:"volumes"`
	Hidden        []Volume  `json:"hidden"` // deleted, or what a rollback left; clones need them
}

// Slot is a slot of the keyring.
type Slot struct {
	Slot      int    `json:"slot"`
	Type      string `json:"type"`
	VolumeKey string `json:"volume_key"`
	KDF       *KDF   `json:"kdf,omitempty"` // of a passphrase
	TPM2      *TPM2  `json:"tpm2,omitempty"`
	Age       string `json:"age,omitempty"` // kind of its recipient, as age files name it
}

// TPM2 is what a TPM slot is bound to, beside the TPM.
type TPM2 struct {
	PCRs string `json:"pcrs"` // "7+11"
	PIN  bool   `json:"pin"`
}

// KDF is what a passphrase costs.
type KDF struct {
	Algorithm string `json:"algorithm"`
	Memory    int64  `json:"memory"`
	Passes    uint32 `json:"passes"`
	Lanes     uint8  `json:"lanes"`
}

// Volume is a volume of a store.
type Volume struct {
	Name      string    `json:"name"`
	ID        string    `json:"id"`
	UUID      string    `json:"uuid"`
	Size      int64     `json:"size"`
	Used      int64     `json:"used"`      // blocks that something needs
	Alone     int64     `json:"alone"`     // of these, what only its present state has
	Allocated int64     `json:"allocated"` // on disk
	Cipher    string    `json:"cipher"`
	VolumeKey string    `json:"volume_key"`
	Created   time.Time `json:"created"`
	Epoch     uint64    `json:"epoch"` // number of its head, which only grows
	// Slots open it. Without any nobody does, but a process that has its key.
	Slots []int `json:"slots"`
	// AlsoReads are volumes under another volume key that share blocks with it, or may:
	// who opens one of them has the data keys of what is shared, unless it was cloned
	// without them.
	AlsoReads []string `json:"also_reads"`

	// What it was cloned from, unless that was deleted since.
	Parent         string `json:"parent,omitempty"`
	ParentSnapshot string `json:"parent_snapshot,omitempty"`
	// ParentID is the volume that it starts from: that one, or what it was itself
	// before a rollback, or one that is hidden.
	ParentID string `json:"parent_id,omitempty"`

	Snapshots []Snapshot `json:"snapshots"` // oldest first

	// Ephemeral says that its volume key is in no slot; Lost, that it is gone.
	Ephemeral bool `json:"ephemeral"`
	Lost      bool `json:"lost"`
	// Reencrypting is what its server does in the background.
	Reencrypting *Reencrypting `json:"reencrypting,omitempty"`
}

// Reencrypting is how far a rewriting in the background is.
type Reencrypting struct {
	Done  int64  `json:"done"` // bytes
	Total int64  `json:"total"`
	Error string `json:"error,omitempty"` // why it ended
}

// Snapshot is a snapshot of a volume.
type Snapshot struct {
	Name    string    `json:"name"`
	Number  uint64    `json:"number"` // never used again in the volume
	Size    int64     `json:"size"`
	Created time.Time `json:"created"`
	Alone   int64     `json:"alone"`  // what only it has: deleting it frees that, unless it has clones
	Clones  int       `json:"clones"` // volumes that start from it
}

// Run is a run of a volume's map.
type Run struct {
	Start  int64  `json:"start"`
	Length int64  `json:"length"`
	Kind   string `json:"kind"`            // data, zero or hole
	Owner  string `json:"owner,omitempty"` // ID of the volume that wrote the data
	Key    string `json:"key,omitempty"`   // data key of data
	// Snapshot is the oldest, of the volume that wrote the data, that has it.
	Snapshot string `json:"snapshot,omitempty"`
}

// DiffRun is a run of blocks that differ.
type DiffRun struct {
	Start  int64  `json:"start"`
	Length int64  `json:"length"`
	Kind   string `json:"kind"` // data, or zero where the later state is zero
}

// Compaction is what a compaction did.
type Compaction struct {
	Before int64    `json:"before"` // bytes on disk
	After  int64    `json:"after"`
	Locked []string `json:"locked"` // volumes whose log was left alone
}

// Report is what a check found.
type Report struct {
	Clean       bool            `json:"clean"`
	NeedsReplay bool            `json:"needs_replay"`
	Volumes     []CheckedVolume `json:"volumes"`
	Problems    []Problem       `json:"problems"`
	NotListed   int             `json:"problems_not_listed"`
}

// CheckedVolume says what was checked of a volume.
type CheckedVolume struct {
	Name      string `json:"name"`
	Blocks    uint64 `json:"blocks"`
	Verified  uint64 `json:"verified"` // blocks whose tag was checked
	Leaked    uint64 `json:"leaked"`   // blocks that nothing needs and compact frees
	Authentic bool   `json:"authentic"`
}

// Problem is one thing that is wrong.
type Problem struct {
	Volume string `json:"volume"`
	Offset *int64 `json:"offset,omitempty"` // bytes; absent if it is no place
	Length int64  `json:"length,omitempty"`
	Text   string `json:"text"`
}

// CloneRequest asks for a writable volume made of a snapshot.
type CloneRequest struct {
	Volume   string               `json:"volume"`
	Snapshot string               `json:"snapshot"`
	Name     string               `json:"name"`
	Secrets  []cliutil.SlotSecret `json:"secrets,omitempty"` // slots of a volume key of its own; empty: its parent's
	NoChain  bool                 `json:"no_chain,omitempty"`
	// Ephemeral: under a volume key of its own that only the server has, in memory.
	Ephemeral bool   `json:"ephemeral,omitempty"`
	Cipher    string `json:"cipher,omitempty"` // empty: as its parent's
}

// RekeyRequest asks for a new volume key.
type RekeyRequest struct {
	Volume  string               `json:"volume"`
	Secrets []cliutil.SlotSecret `json:"secrets"` // slots of the new volume key
	Cipher  string               `json:"cipher,omitempty"`
}

// Rekeyed is what a rekeying did.
type Rekeyed struct {
	OldKey  string   `json:"old_volume_key"`
	NewKey  string   `json:"new_volume_key"`
	Removed []Slot   `json:"slots_removed"` // of the old key, if no other volume is under it
	Shared  []string `json:"still_under_old_key"`
}

// ReencryptRequest asks for what is under older data keys to be rewritten.
type ReencryptRequest struct {
	Volume string `json:"volume"`
	Rate   int64  `json:"rate,omitempty"` // bytes per second; 0: as fast as can be
	// Background: the server goes on with it by itself, and the result is empty.
	Background bool `json:"background,omitempty"`
	// Stop ends what runs in the background; what was rewritten stays so.
	Stop bool `json:"stop,omitempty"`
}

// Reencrypted is what a rewriting did.
type Reencrypted struct {
	Bytes      int64     `json:"bytes"` // rewritten
	Removed    []DataKey `json:"keys_removed"`
	Held       []HeldKey `json:"keys_held"`
	Unreadable int64     `json:"unreadable"` // bytes whose data key is missing
	Background bool      `json:"background"` // it goes on, or was stopped, in the server
}

// HeldKey is an older data key that something needs.
type HeldKey struct {
	DataKey
	Snapshots []string `json:"held_by"`
}

// VolumeRequest asks for an empty volume.
type VolumeRequest struct {
	Name    string               `json:"name"`
	Size    int64                `json:"size"`
	Secrets []cliutil.SlotSecret `json:"secrets,omitempty"` // slots of a volume key of its own
	Like    string               `json:"like,omitempty"`    // without: the volume whose key it shares; empty: main
	Cipher  string               `json:"cipher,omitempty"`
}

// Device is a volume, or a snapshot of it, that clients use.
type Device struct{ Volume, Snapshot string }

// AllSnapshots stands for every snapshot of a volume.
const AllSnapshots = "*"

func (d Device) String() string {
	switch d.Snapshot {
	case "":
		return "volume " + d.Volume
	case AllSnapshots:
		return "every snapshot of volume " + d.Volume
	}
	return "snapshot " + d.Volume + "@" + d.Snapshot
}

// Covers says whether d is o, or stands for it among others.
func (d Device) Covers(o Device) bool {
	return d == o || d.Volume == o.Volume && d.Snapshot == AllSnapshots && o.Snapshot != ""
}

// Claim keeps clients away from devices until release is called. The error is
// cliutil.ErrInUse when one has clients, and says how many.
type Claim func(devices ...Device) (release func(), err error)
