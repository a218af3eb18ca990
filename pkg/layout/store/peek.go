package store

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/fsximg/fsx/internal/vfs"
	"github.com/fsximg/fsx/pkg/layout"
	"golang.org/x/sys/unix"
)

// Peek reads a store's superblock without taking its lock. Whoever has the store
// open does not notice. Errors: ErrNotStore, layout.ErrVersion, layout.ErrCorrupt.
func Peek(path string) (*layout.Superblock, error) {
	f, err := os.OpenFile(filepath.Join(path, superblockName), os.O_RDONLY|syscall.O_NONBLOCK, 0) // it may be a FIFO
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil, fmt.Errorf("%s: %w", path, ErrNotStore)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := make([]byte, layout.SuperblockSize)
	n, err := io.ReadFull(f, b)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	super, err := layout.DecodeSuperblock(b[:n])
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return super, nil
}

// HolderOf names the process that has a store open, as far as it is known, and
// whether there is one. It does not try the lock, which could keep another process
// from taking it: the kernel's list of locks tells (proc_locks(5)).
func HolderOf(path string) (h Holder, held bool) {
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(path, superblockName), &st); err != nil {
		return h, false
	}
	f, err := os.Open("/proc/locks")
	if err != nil {
		return h, false
	}
	defer f.Close()
	file := fmt.Sprintf("%02x:%02x:%d", unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino)
	for s := bufio.NewScanner(f); s.Scan(); {
		// 1: FLOCK  ADVISORY  WRITE 4711 fe:00:123456 0 EOF
		if w := strings.Fields(s.Text()); len(w) > 5 && w[1] == "FLOCK" && w[5] == file {
			return At(vfs.OS(), path).readHolder(filepath.Join(path, holderName)), true
		}
	}
	return h, false
}
