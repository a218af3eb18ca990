// Package volume is the engine of fsx: it opens stores and serves their
// volumes as block devices. It is the only place where plaintext and placement
// meet; ciphers come from crypt, byte maps and files from layout.
package volume

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fsximg/fsx/internal/vfs"
	"github.com/fsximg/fsx/pkg/crypt"
	"github.com/fsximg/fsx/pkg/layout"
	"github.com/fsximg/fsx/pkg/layout/maptree"
	"github.com/fsximg/fsx/pkg/layout/metadb"
	"github.com/fsximg/fsx/pkg/layout/seglog"
	"github.com/fsximg/fsx/pkg/layout/store"
)

var (
	// ErrNotStore says that a path is not a store.
	ErrNotStore = store.ErrNotStore
	// ErrBusy says that another process has the store open; the error is a
	// *BusyError.
	ErrBusy = store.ErrBusy
	// ErrVersion says that the store needs another version of the program.
	ErrVersion = layout.ErrVersion
	// ErrNotFound says that the store has no such volume.
	ErrNotFound = errors.New("no such volume")
	// ErrKeyMissing says that a volume's key, or a data key, is not open.
	ErrKeyMissing = errors.New("key is missing")
	// ErrLost says that a volume's key was ephemeral, and is gone: the volume can
	// only be deleted.
	ErrLost = errors.New("its ephemeral key is gone, and all that it wrote")
	// ErrWrongKey says that none of the secrets opens any slot.
	ErrWrongKey = crypt.ErrWrongKey
	// ErrDamaged says that something in the store is missing or altered.
	ErrDamaged = errors.New("damaged")
)

// BusyError names the process that has a store open.
type BusyError = store.BusyError

// Options are how a store is opened. The zero value opens for writing.
type Options struct {
	// ReadOnly refuses every write. What the log has is replayed in memory.
	ReadOnly bool
	// Program names this process to others that find the store busy.
	Program string
	// FS is the file system under the store's own files; nil is the
	// operating system's.
	FS vfs.FS
	// Memory bounds the cache of map nodes, in bytes; 0 is 32 MiB.
	Memory int64
	// Trust is what is known about stores outside of them.
	Trust Trust
	// Log takes what goes on; nil discards it.
	Log *slog.Logger

	limits limits
	spare  *crypt.Keyring // to be restored, if the store has none (OpenForRestore)
}

// CreateOptions describe a new store.
type CreateOptions struct {
	Options
	// Size of the volume main in bytes, a multiple of 512.
	Size int64
	// Mode is the cipher of the volume's data key; 0 is AES-256-GCM.
	Mode crypt.Mode
	// KDF are the Argon2id parameters of the passphrase slots.
	KDF crypt.KDF
	// Secrets become slots. There must be at least one.
	Secrets []crypt.Secret
}

const (
	defaultNodeCache = 32 << 20
	maxOpenSegments  = 256
	mainName         = "main"
)

// Store is an open store. It is safe for concurrent use.
type Store struct {
	opt     Options
	dir     *store.Dir
	fs      vfs.FS
	log     *slog.Logger
	db      *metadb.DB
	tree    *maptree.Reader
	limits  limits
	scratch string // a private copy of the index, removed on close
	descs   *seglog.Descriptors
	pool    *pool

	calls gate // Close waits for them

	keysAdded atomic.Uint64 // grows when a volume key comes in; from 1

	// ops serialises changes of what volumes there are, and of their keys.
	ops     sync.Mutex
	ringGen uint64 // generation of the keyring on disk
	// undecided is why it is not known which area of the keyring counts, if so.
	undecided error

	// opening serialises the opening of volumes; it is taken before mu.
	opening sync.Mutex

	// listing is held while the files of a volume that may not be open are looked
	// at, and while those of a deleted one are removed; it is taken before mu.
	listing sync.RWMutex

	// mu guards what follows. Nobody holds it over I/O.
	mu       sync.RWMutex
	keyring  *crypt.Keyring                  // replaced, not changed
	heads    map[layout.VolumeID]layout.Head // as found, or as last changed here
	fates    map[layout.VolumeID]layout.Fate // of deleted volumes
	greatest layout.VolumeID                 // number that a volume ever had
	keys     map[crypt.ID]*crypt.VolumeKey
	volumes  map[layout.VolumeID]*Volume // that are open
	files    map[layout.VolumeID]*seglog.Files
	users    atomic.Int64             // volumes that are open, roughly
	settled  map[layout.VolumeID]bool // that were closed since; false: with an error, so that the log is needed
	closed   bool
	headless error // a head that could not be read, if any
}

func newStore(o Options) *Store {
	s := &Store{
		calls: newGate(), opt: o, limits: o.limits, fs: o.FS, log: o.Log, descs: seglog.NewDescriptors(maxOpenSegments), pool: newPool(),
		heads: map[layout.VolumeID]layout.Head{}, fates: map[layout.VolumeID]layout.Fate{}, keys: map[crypt.ID]*crypt.VolumeKey{},
		volumes: map[layout.VolumeID]*Volume{}, settled: map[layout.VolumeID]bool{}, files: map[layout.VolumeID]*seglog.Files{},
	}
	s.keysAdded.Store(1)
	return s
}

func (o *Options) defaults() {
	if o.FS == nil {
		o.FS = vfs.OS()
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Memory == 0 {
		o.Memory = defaultNodeCache
	}
	if o.limits == (limits{}) {
		o.limits = defaultLimits()
	}
	if o.Program == "" {
		o.Program = filepath.Base(os.Args[0])
	}
}

// Create makes a store with one empty volume, main. The path must not exist
// (fs.ErrExist); after an error nothing is left there. The store is returned
// open, unlocked and writable.
func Create(path string, o CreateOptions) (_ *Store, err error) {
	o.defaults()
	if o.Size <= 0 || o.Size%layout.SectorSize != 0 || o.Size > layout.MaxVolumeSize {
		return nil, fmt.Errorf("create %s: size %d is not a multiple of 512 up to 8 EiB - 4 KiB", path, o.Size)
	}
	if len(o.Secrets) == 0 {
		return nil, fmt.Errorf("create %s: no secret for a slot", path)
	}
	if o.Mode == 0 {
		o.Mode = crypt.AES256GCM
	}
	super := &layout.Superblock{UUID: newUUID(), Created: time.Now().Truncate(time.Second)}
	s := newStore(o.Options)
	s.dir, err = store.Create(o.FS, path, o.Program, super)
	if err != nil {
		if !errors.Is(err, fs.ErrExist) {
			_ = os.RemoveAll(path)
		}
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = s.Close()
			_ = os.RemoveAll(path)
		}
	}()
	head, err := s.makeKeys(&o)
	if err != nil {
		return nil, fmt.Errorf("create %s: %w", path, err)
	}
	if err := s.openIndex(s.dir.Meta(), true); err != nil {
		return nil, err
	}
	if err := s.writeFirstHead(head); err != nil {
		return nil, err
	}
	if err := s.makeBallast(); err != nil {
		return nil, err
	}
	if err := s.dir.Finish(); err != nil {
		return nil, err
	}
	s.heads[head.Volume] = *head
	s.greatest = head.Volume
	s.sawKeys(s.keys[crypt.ID(head.VolumeKey)])
	return s, nil
}

// makeKeys makes the volume key with its slots, the data key and the bag, and
// writes the keyring.
func (s *Store) makeKeys(o *CreateOptions) (*layout.Head, error) {
	ring, err := crypt.NewKeyring(crypt.UUID(s.dir.Super.UUID), o.KDF)
	if err != nil {
		return nil, err
	}
	s.keyring = ring
	vk, err := crypt.NewVolumeKey()
	if err != nil {
		return nil, err
	}
	s.keys[vk.ID()] = vk
	for _, secret := range o.Secrets {
		if _, err := ring.AddSlot(vk, secret); err != nil {
			return nil, err
		}
	}
	h := &layout.Head{
		Store: s.dir.Super.UUID, UUID: newUUID(), Volume: 1, Clean: true, Epoch: 1,
		Size: uint64(o.Size), MinSize: uint64(o.Size), Created: s.dir.Super.Created, NextSegment: 1,
		Root:      layout.Root{Height: maptree.HeightFor(blocksOf(uint64(o.Size)))},
		VolumeKey: layout.KeyID(vk.ID()), Superblock: s.dir.Super.Digest(), Mode: uint8(o.Mode), Name: mainName,
		SnapshotDigest: sha256.Sum256(nil),
	}
	dk, err := crypt.NewDataKey(o.Mode)
	if err != nil {
		return nil, err
	}
	defer dk.Wipe()
	bag := crypt.NewBag()
	defer bag.Wipe()
	if err := bag.Add(dk, true); err != nil {
		return nil, err
	}
	if err := ring.SetBag(crypt.UUID(h.UUID), vk, bag); err != nil {
		return nil, err
	}
	h.SlotsDigest = ring.SlotsDigest(vk.ID())
	digest, _ := ring.BagDigest(crypt.UUID(h.UUID))
	h.BagDigest = digest
	// Both areas, so that one byte that goes bad takes no key away.
	body := ring.Encode()
	s.ringGen = 2
	return h, errors.Join(s.dir.WriteKeyring(body, 1), s.dir.WriteKeyring(body, 2))
}

func (s *Store) writeFirstHead(h *layout.Head) error {
	auth, err := crypt.NewAuthority(s.keys[crypt.ID(h.VolumeKey)], crypt.UUID(h.Store), crypt.UUID(h.UUID))
	if err != nil {
		return err
	}
	defer auth.Wipe()
	return s.db.Update(func(tx *metadb.Txn) error {
		return tx.Set(layout.HeadKey(h.Volume), h.Encode(func(parts ...[]byte) [32]byte { return auth.MAC(crypt.PurposeHead, parts...) }))
	})
}

func newUUID() (u layout.UUID) {
	_, _ = rand.Read(u[:]) // never fails
	u[6], u[8] = u[6]&0x0f|0x40, u[8]&0x3f|0x80
	return u
}

// Open opens a store and takes its lock. No key is needed yet.
func Open(path string, o Options) (_ *Store, err error) {
	o.defaults()
	dir, err := store.Open(o.FS, path, o.Program, o.ReadOnly)
	if err != nil {
		return nil, mapCorrupt(err)
	}
	s := newStore(o)
	s.dir = dir
	s.opt.ReadOnly = o.ReadOnly || dir.Super.ReadOnly()
	defer func() {
		if err != nil {
			s.closeFiles(false)
		}
	}()
	rings, torn, err := s.readKeyring()
	if err != nil && !s.useSpare(err) {
		return nil, err
	}
	if !s.opt.ReadOnly {
		if err := s.checkBallast(); err != nil {
			return nil, err
		}
	}
	meta, err := s.indexPath()
	if err != nil {
		return nil, err
	}
	if err := s.needIndexSpace(meta); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if err := s.openIndex(meta, false); err != nil {
		return nil, fmt.Errorf("%s: index: %w: %w", path, ErrDamaged, err)
	}
	if err = s.loadHeads(); err != nil {
		return nil, err
	}
	if s.keyring == nil {
		err = s.settleKeyring(rings, torn)
	}
	if err != nil {
		return nil, err
	}
	if !s.opt.ReadOnly {
		s.removeGoing()
	}
	return s, nil
}

// IsStore says whether a folder looks like a store, without opening it.
func IsStore(path string) bool { return store.Is(path) }

// Identify reads a store's identifier, without opening it.
func Identify(path string) (layout.UUID, error) {
	super, err := store.Peek(path)
	if err != nil {
		return layout.UUID{}, mapCorrupt(err)
	}
	return super.UUID, nil
}

// Holder names a process that has a store open.
type Holder = store.Holder

// HolderOf names the process that has a store open, as far as it is known, and
// whether there is one, without trying to open it.
func HolderOf(path string) (Holder, bool) { return store.HolderOf(path) }

// mapCorrupt makes a decoder's error an ErrDamaged.
func mapCorrupt(err error) error {
	if errors.Is(err, layout.ErrCorrupt) && !errors.Is(err, ErrNotStore) {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return err
}

func (s *Store) openIndex(dir string, create bool) (err error) {
	s.db, err = metadb.Open(dir, metadb.Options{Create: create, Log: s.log, Free: s.freeForIndex, MinFree: s.limits.indexReserve})
	if err != nil {
		return err
	}
	s.tree = maptree.NewReader(s.db, maptree.ReaderOptions{CacheBytes: s.opt.Memory})
	return nil
}

// indexPath is where the index is opened: in the store, or for a reader of a
// store that was not closed or may not be written, in a private copy, since
// Badger replays its logs when it opens.
func (s *Store) indexPath() (string, error) {
	if !s.dir.Immutable && (!s.opt.ReadOnly || !s.dir.Unclean) {
		return s.dir.Meta(), nil
	}
	tmp, err := os.MkdirTemp("", "fsx-index-")
	if err != nil {
		return "", err
	}
	s.scratch = tmp
	return tmp, copyIndex(tmp, s.dir.Meta())
}

// loadHeads learns what volumes there are.
func (s *Store) loadHeads() error {
	err := s.db.Scan(layout.HeadPrefix(), func(key, val []byte) error {
		h, err := layout.DecodeHead(val, nil)
		if err != nil {
			s.log.Error("head is damaged", "err", err)
			s.headless = err
			return nil
		}
		s.heads[h.Volume] = *h
		s.greatest = max(s.greatest, h.Volume)
		return nil
	})
	if err != nil {
		return err
	}
	err = s.db.Scan(layout.FatePrefix(), func(key, val []byte) error {
		id, fate, err := layout.DecodeFate(key, val)
		if err != nil {
			return nil // a hint that is wrong: the volume is shown again
		}
		s.fates[id] = fate
		s.greatest = max(s.greatest, id)
		return nil
	})
	if err != nil {
		return err
	}
	err = s.db.Get(layout.VolumesKey(), func(val []byte) error {
		if len(val) == 4 {
			s.greatest = max(s.greatest, layout.VolumeID(binary.BigEndian.Uint32(val)))
		}
		return nil
	})
	if errors.Is(err, metadb.ErrNotFound) {
		err = nil
	}
	return err
}

// UUID is the store's identifier.
func (s *Store) UUID() layout.UUID { return s.dir.Super.UUID }

// Path is the store's directory.
func (s *Store) Path() string { return s.dir.Path }

// Close commits and checkpoints every volume, and releases the store. After an
// error the store needs recovery when it is next opened, and has everything
// that was flushed. It waits for calls that are under way; later ones fail with
// ErrClosed. Closing again does nothing.
func (s *Store) Close() error {
	first, err := s.stop()
	if !first {
		return nil
	}
	return errors.Join(err, s.closeFiles(err == nil))
}

// stop closes all volumes, the first time it is called.
func (s *Store) stop() (first bool, err error) {
	s.calls.close()
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return false, nil
	}
	s.closed = true
	open := slices.Collect(maps.Values(s.volumes))
	s.mu.Unlock()
	for _, v := range open {
		err = errors.Join(err, v.close())
	}
	s.sawHeads(open) // while the lock is held
	return true, err
}

func (s *Store) closeFiles(clean bool) error {
	for _, k := range s.keys {
		k.Wipe()
	}
	clean = clean && (!s.dir.Unclean || s.recovered())
	for _, well := range s.settled {
		clean = clean && well
	}
	var errs error
	s.pool.free()
	for _, f := range s.files {
		errs = errors.Join(errs, f.Close())
	}
	if s.db != nil {
		errs = errors.Join(errs, s.db.Close())
	}
	if s.scratch != "" {
		errs = errors.Join(errs, os.RemoveAll(s.scratch))
		clean = false // the store itself is as it was
	}
	return errors.Join(errs, s.dir.Close(clean && errs == nil))
}

// recovered says that every volume that has a log has been opened, and so
// recovered.
func (s *Store) recovered() bool {
	if s.opt.ReadOnly {
		return false
	}
	for id, h := range s.heads {
		v := s.volumes[id]
		if (v != nil && v.ro || v == nil && !s.settled[id] && !h.Ephemeral) && s.hasLog(id) {
			return false // of one whose key went, nothing is ever recovered
		}
	}
	return true
}

// hasLog says whether anything was ever written to a volume.
func (s *Store) hasLog(id layout.VolumeID) bool {
	names, err := s.fs.ReadDir(s.dir.Volume(id))
	return err != nil && !errors.Is(err, fs.ErrNotExist) || len(names) > 0
}
