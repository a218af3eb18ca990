package cliutil

import (
	"os"
	"path/filepath"
)

// RunRoot is the folder of this user in which each store has a run directory, called
// as its UUID; empty if this user has no such place.
func RunRoot() string {
	base := "/run"
	if os.Geteuid() != 0 {
		if base = os.Getenv("XDG_RUNTIME_DIR"); base == "" {
			return ""
		}
	}
	return filepath.Join(base, "fsx")
}
