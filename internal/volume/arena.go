package volume

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mapAnonymous returns zeroed memory outside the Go heap, so that neither the
// collector's headroom nor a core dump contains it.
func mapAnonymous(size int) ([]byte, error) {
	b, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("allocate %d bytes: %w", size, err)
	}
	_ = unix.Madvise(b, unix.MADV_DONTDUMP)
	return b, nil
}

func unmap(b []byte) {
	if b != nil {
		_ = unix.Munmap(b)
	}
}

// mapEntries is mapAnonymous for n entries of a pointer-free type.
func mapEntries(n int) (raw []byte, entries []entry, err error) {
	raw, err = mapAnonymous(n * int(unsafe.Sizeof(entry{})))
	if err != nil {
		return nil, nil, err
	}
	return raw, unsafe.Slice((*entry)(unsafe.Pointer(&raw[0])), n), nil
}
