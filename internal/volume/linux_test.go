package volume_test

import (
	"os"
	"syscall"
	"testing"
)

// allocatedOf is the space a file takes on disk, in bytes.
func allocatedOf(t testing.TB, name string) int64 {
	t.Helper()
	info, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Blocks * 512
}
