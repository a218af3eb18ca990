package cliutil

import (
	"os"
	"regexp"
	"strings"
)

// DefaultVolume is the volume that is meant when none is named.
const DefaultVolume = "main"

// Ref names a store, or a volume or snapshot in it.
type Ref struct {
	Store    string // path of the store's directory
	Volume   string // empty when not given
	Snapshot string // empty when not given
}

// VolumeOrDefault is the named volume, or DefaultVolume.
func (r Ref) VolumeOrDefault() string {
	if r.Volume == "" {
		return DefaultVolume
	}
	return r.Volume
}

// String is the form that ParseRef reads.
func (r Ref) String() string {
	s := r.Store
	if r.Volume != "" {
		s += ":" + r.Volume
	}
	if r.Snapshot != "" {
		s += "@" + r.Snapshot
	}
	return s
}

var nameRE = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)

// CheckName says whether a volume or snapshot may have this name; what says
// which of the two, for the message.
func CheckName(what, name string) error {
	if nameRE.MatchString(name) {
		return nil
	}
	return UsageErrorf("%s name %q: use 1 to 63 letters, digits, '.', '_' or '-', the first a letter or digit", what, name)
}

// ParseRef reads STORE[:VOLUME][@SNAPSHOT]. An existing path is the store;
// otherwise the text after the last '/' is split at the first ':' or '@'.
func ParseRef(s string) (Ref, error) { return parseRef(s, pathExists) }

func pathExists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func parseRef(s string, exists func(string) bool) (Ref, error) {
	if s == "" {
		return Ref{}, UsageErrorf("the name of the store is empty")
	}
	if exists(s) {
		return Ref{Store: s}, nil
	}
	base := strings.LastIndexByte(s, '/') + 1
	at := strings.IndexAny(s[base:], ":@")
	if at < 0 {
		return Ref{Store: s}, nil
	}
	at += base
	ref, rest := Ref{Store: s[:at]}, s[at:]
	if at == base {
		return Ref{}, UsageErrorf("%q: no store before %q", s, rest)
	}
	if rest[0] == ':' {
		vol, snap, found := strings.Cut(rest[1:], "@")
		if err := CheckName("volume", vol); err != nil {
			return Ref{}, err
		}
		ref.Volume = vol
		if !found {
			return ref, nil
		}
		rest = "@" + snap
	}
	if err := CheckName("snapshot", rest[1:]); err != nil {
		return Ref{}, err
	}
	ref.Snapshot = rest[1:]
	return ref, nil
}

// StoreOnly is ParseRef for commands that take a whole store.
func StoreOnly(s string) (string, error) {
	ref, err := ParseRef(s)
	if err != nil {
		return "", err
	}
	if ref.Volume != "" || ref.Snapshot != "" {
		return "", WithHint(UsageErrorf("%q: this command takes a store, not a volume or snapshot", s),
			"if the path itself contains ':' or '@', rename it")
	}
	return ref.Store, nil
}

// StoreBase is the store's last path element without ".fsx": how it is called
// in exports and credentials.
func StoreBase(path string) string {
	path = strings.TrimRight(path, "/")
	return strings.TrimSuffix(path[strings.LastIndexByte(path, '/')+1:], ".fsx")
}
