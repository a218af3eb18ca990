package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/fsximg/fsx/internal/vfs"
	"github.com/fsximg/fsx/pkg/layout/store"
)

// CopyOptions say how a store is copied.
type CopyOptions struct {
	// Progress, if not nil, is told the bytes copied so far and in all.
	Progress func(done, total int64)
}

// CopyTo copies the store to dst, which must not exist, and closes it. The copy
// is the same store, with the same UUID and keys; it is durable when CopyTo
// returns. After an error nothing is left at dst. No key is needed.
func (s *Store) CopyTo(ctx context.Context, dst string, o CopyOptions) (err error) {
	if _, err := os.Lstat(dst); err == nil {
		return fmt.Errorf("copy to %s: %w", dst, fs.ErrExist)
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
		err = copyStore(ctx, dst, s.dir.Path, s.dir.Unclean, o)
	}
	return errors.Join(err, s.closeFiles(clean))
}

// copyStore copies a store's files. The superblock comes last: until then the
// copy is no store.
func copyStore(ctx context.Context, dst, src string, unclean bool, o CopyOptions) (err error) {
	names, total, err := store.Content(src, unclean)
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
		if err := copySparse(to, from); err != nil {
			return err
		}
		if err := syncFile(to); err != nil {
			return err
		}
		done += allocatedBytes(info)
		if o.Progress != nil {
			o.Progress(min(done, total), total)
		}
	}
	for i := len(dirs) - 1; i >= 0; i-- {
		if err := vfs.OS().SyncDir(dirs[i]); err != nil {
			return err
		}
	}
	return vfs.OS().SyncDir(filepath.Dir(filepath.Clean(dst)))
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
