package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/fsximg/fsx/internal/vfs"
	"github.com/fsximg/fsx/pkg/crypt"
	"github.com/fsximg/fsx/pkg/layout"
	"github.com/fsximg/fsx/pkg/layout/metadb"
	"github.com/fsximg/fsx/pkg/layout/seglog"
	"github.com/fsximg/fsx/pkg/layout/store"
)

// CopyOptions say how a store is copied.
type CopyOptions struct {
	// NewUUID gives the copy an identity of its own. All volumes must have been
	// unlocked in a store that may be written; the copy has slots for Secrets
	// alone.
	NewUUID bool
	Secrets []crypt.Secret
	// Progress, if not nil, is told the bytes copied so far and in all.
	Progress func(done, total int64)
}

// CopyTo copies the store to dst, which must not exist, and closes it. The copy
// has the same volumes under the same keys; it is durable when CopyTo returns.
// After an error nothing is left at dst. But for a new UUID no key is needed.
func (s *Store) CopyTo(ctx context.Context, dst string, o CopyOptions) (err error) {
	if _, err := os.Lstat(dst); err == nil {
		return fmt.Errorf("copy to %s: %w", dst, fs.ErrExist)
	}
	if o.NewUUID {
		if err := s.openAll(); err != nil {
			return err
		}
	}
	// The index is whole on disk only when it is closed. The lock stays.
	first, err := s.stop()
	if !first {
		return ErrClosed
	}
	clean := err == nil
	if s.scratch == "" {
		err = errors.Join(err, s.db.Close())
		s.db = nil
	}
	if err == nil {
		err = s.copyFiles(ctx, dst, o)
	}
	return errors.Join(err, s.closeFiles(clean))
}

// openAll opens every volume, so that closing them leaves no log to replay.
func (s *Store) openAll() error {
	if s.opt.ReadOnly {
		return ErrReadOnly
	}
	s.mu.RLock()
	heads := slices.Collect(maps.Values(s.heads))
	s.mu.RUnlock()
	for _, h := range heads {
		v, err := s.volumeByID(h.Volume)
		if err == nil && v.untrusted {
			err = untrustedError(crypt.ID(h.VolumeKey))
		}
		if err != nil {
			return fmt.Errorf("volume %s: %w", h.Name, err)
		}
	}
	return nil
}

// copyFiles copies a store's files. The superblock comes last: until then the
// copy is no store.
func (s *Store) copyFiles(ctx context.Context, dst string, o CopyOptions) (err error) {
	src := s.dir.Path
	names, total, err := store.Content(src, s.dir.Unclean && !o.NewUUID)
	if err != nil {
		return err
	}
	if err := os.Mkdir(dst, 0o700); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.RemoveAll(dst)
		}
	}()
	done := int64(0)
	dirs := []string{dst}
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return err
		}
		from, to := filepath.Join(src, name), filepath.Join(dst, name)
		info, err := os.Lstat(from)
		if err != nil {
			return err
		}
		if info.IsDir() {
			if err := os.Mkdir(to, 0o700); err != nil {
				return err
			}
			dirs = append(dirs, to)
			continue
		}
		if err := errors.Join(copySparse(to, from), syncFile(to)); err != nil {
			return err
		}
		done += allocatedBytes(info)
		if o.Progress != nil {
			o.Progress(min(done, total), total)
		}
	}
	for _, dir := range slices.Backward(dirs) {
		if err := vfs.OS().SyncDir(dir); err != nil {
			return err
		}
	}
	super := *s.dir.Super
	if o.NewUUID {
		super.UUID, super.Created = newUUID(), time.Now().Truncate(time.Second)
		if err := s.rename(dst, &super, o.Secrets); err != nil {
			return fmt.Errorf("new UUID: %w", err)
		}
		s.sawCopy(super.UUID) // before it is a store that somebody opens
	}
	if err := store.At(vfs.OS(), dst).WriteSuperblock(&super); err != nil {
		return err
	}
	return vfs.OS().SyncDir(filepath.Dir(filepath.Clean(dst)))
}

// rename gives a copy, of a store that was closed cleanly, another UUID: what is
// authenticated or sealed under a key that the UUID goes into is made anew. Those
// are slots and bags, heads, and the record that each head names; no block is.
func (s *Store) rename(dst string, super *layout.Superblock, secrets []crypt.Secret) error {
	ring, err := crypt.NewKeyring(crypt.UUID(super.UUID), s.keyring.KDF())
	if err != nil {
		return err
	}
	for _, secret := range secrets {
		keys, err := s.keyring.Unlock(secret)
		if errors.Is(err, ErrWrongKey) {
			continue
		}
		for _, vk := range keys {
			if err == nil {
				_, err = ring.AddSlot(vk, secret)
			}
			vk.Wipe()
		}
		if err != nil {
			return err
		}
	}
	db, err := metadb.Open(filepath.Join(dst, "meta"), metadb.Options{
		Log: s.log, Free: func() (int64, error) { return s.fs.Free(dst) }, MinFree: s.limits.indexReserve,
	})
	if err != nil {
		return err
	}
	err = s.renameVolumes(db, dst, super, ring)
	if err = errors.Join(err, db.Close()); err != nil {
		return err
	}
	dir, body := store.At(vfs.OS(), dst), ring.Encode()
	if err := os.Remove(filepath.Join(dst, "keyring")); err != nil {
		return err
	}
	return errors.Join(dir.WriteKeyring(body, 1), dir.WriteKeyring(body, 2))
}

func (s *Store) renameVolumes(db *metadb.DB, dst string, super *layout.Superblock, ring *crypt.Keyring) error {
	type renamed struct {
		layout.Head
		auth *crypt.Authority
	}
	var heads []renamed
	defer func() {
		for _, h := range heads {
			h.auth.Wipe()
		}
	}()
	err := db.Scan(layout.HeadPrefix(), func(_, val []byte) error {
		hint, err := layout.DecodeHead(val, nil)
		if err != nil {
			return err
		}
		vk := s.keys[crypt.ID(hint.VolumeKey)]
		old, err := crypt.NewAuthority(vk, crypt.UUID(hint.Store), crypt.UUID(hint.UUID))
		if err != nil {
			return err
		}
		defer old.Wipe()
		h, err := layout.DecodeHead(val, func(parts ...[]byte) [32]byte { return old.MAC(crypt.PurposeHead, parts...) })
		if err != nil {
			return err
		}
		bag, err := s.keyring.OpenBag(crypt.UUID(h.UUID), vk)
		if err != nil {
			return err
		}
		defer bag.Wipe()
		if err := ring.SetBag(crypt.UUID(h.UUID), vk, bag); err != nil {
			return err
		}
		for _, name := range baseNames(h.UUID, h.VolumeKey) {
			if err := s.renameLoan(ring, name); err != nil {
				return err
			}
		}
		auth, err := crypt.NewAuthority(vk, crypt.UUID(super.UUID), crypt.UUID(h.UUID))
		if err != nil {
			return err
		}
		h.Store, h.Superblock = super.UUID, super.Digest()
		heads = append(heads, renamed{*h, auth})
		return signAgain(filepath.Join(dst, "vol", h.Volume.String()), &heads[len(heads)-1].Log, h.Volume, old, auth)
	})
	if err != nil {
		return err
	}
	return db.Update(func(tx *metadb.Txn) error {
		for _, h := range heads {
			bag, _ := ring.BagDigest(crypt.UUID(h.UUID))
			h.BagDigest, h.SlotsDigest = bag, ring.SlotsDigest(crypt.ID(h.VolumeKey))
			if err := tx.Set(layout.HeadKey(h.Volume), h.Encode(func(parts ...[]byte) [32]byte { return h.auth.MAC(crypt.PurposeHead, parts...) })); err != nil {
				return err
			}
		}
		return nil
	})
}

// renameLoan takes over what is lent to a clone. All keys are open.
func (s *Store) renameLoan(ring *crypt.Keyring, uuid crypt.UUID) error {
	id, found := s.keyring.BagVolumeKey(uuid)
	if !found {
		return nil
	}
	base, err := s.keyring.OpenBag(uuid, s.keys[id])
	if err != nil {
		return err
	}
	defer base.Wipe()
	return ring.SetBag(uuid, s.keys[id], base)
}

// signAgain gives the last record of a log, at a position, another MAC.
func signAgain(dir string, at *layout.Position, id layout.VolumeID, old, auth *crypt.Authority) error {
	if at.Seq == 0 {
		return nil
	}
	f, err := os.OpenFile(filepath.Join(dir, seglog.FileName(at.Segment)), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	off := int64(at.Block) * blockSize
	b := make([]byte, int64(at.End-at.Block)*blockSize)
	if _, err := f.ReadAt(b, off); err != nil {
		return err
	}
	n, ok := layout.PeekRecord(b, id, at.Segment, at.Block)
	if !ok || n > len(b) {
		return fmt.Errorf("%w: the log's last record is missing", ErrDamaged)
	}
	r, err := layout.DecodeRecord(b[:n], func(parts ...[]byte) [32]byte { return old.MAC(crypt.PurposeRecord, parts...) })
	if err != nil {
		return mapCorrupt(err)
	}
	b = layout.AppendRecord(b[:0], r, func(parts ...[]byte) [32]byte { return auth.MAC(crypt.PurposeRecord, parts...) })
	at.MAC = r.MAC
	if _, err := f.WriteAt(b, off); err != nil {
		return err
	}
	return f.Sync()
}

func syncFile(name string) error {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Chmod(0o600), f.Sync(), f.Close())
}

func allocatedBytes(info os.FileInfo) int64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Blocks * 512
	}
	return info.Size()
}
