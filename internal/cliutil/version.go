package cliutil

import (
	"fmt"
	"runtime/debug"
)

// Version is set by the linker in releases.
var Version = ""

// VersionText is what --version prints after the program's name: version,
// commit, Go version and format version.
func VersionText(format int) string {
	version, commit, goVersion := Version, "unknown", "unknown"
	if info, ok := debug.ReadBuildInfo(); ok {
		goVersion = info.GoVersion
		if version == "" {
			version = info.Main.Version
		}
		dirty := ""
		for _, s := range info.Settings {
			switch {
			case s.Key == "vcs.revision":
				commit = s.Value
			case s.Key == "vcs.modified" && s.Value == "true":
				dirty = "+changes"
			}
		}
		commit += dirty
	}
	if version == "" || version == "(devel)" {
		version = "development"
	}
	return fmt.Sprintf("%s, commit %s, %s, format version %d", version, commit, goVersion, format)
}
