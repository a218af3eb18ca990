package trace

import (
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// CopyTree makes dst, which must not exist or be empty, a copy of the directory
// src, with holes, hard links and sockets. The nodes have the same IDs in
// both.
func CopyTree(dst, src string) error {
	tree, paths, err := ReadTree(src)
	if err != nil {
		return err
	}
	if err := os.Mkdir(dst, 0o755); err != nil && !os.IsExist(err) {
		return err
	}
	return tree.Walk(func(path string, n *Node) error {
		to, perm := filepath.Join(dst, path), os.FileMode(n.Mode&0o777)
		switch {
		case n.IsDir():
			return os.Mkdir(to, perm)
		case paths[n.ID] != path:
			return os.Link(filepath.Join(dst, paths[n.ID]), to)
		case !n.IsFile():
			return unix.Mknod(to, n.Mode&(syscall.S_IFMT|0o777), 0)
		}
		f, err := copySparse(to, filepath.Join(src, path))
		if err != nil {
			return err
		}
		if err := f.Chmod(perm); err != nil {
			f.Close()
			return err
		}
		return f.Close()
	})
}

// CopyFile makes dst, which must not exist, a copy of the file src with its
// holes.
func CopyFile(dst, src string) error {
	f, err := copySparse(dst, src)
	if err != nil {
		return err
	}
	return f.Close()
}
