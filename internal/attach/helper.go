package attach

import (
	"slices"
	"strings"
	"time"

	"github.com/fsximg/fsx/internal/cliutil"
)

// HelperCall is how mount(8) calls its helper for the type fsx:
//
//	mount.fsx SPEC DIR [-sfnv] [-N NAMESPACE] [-o OPTIONS] [-t fsx[.SUBTYPE]]
type HelperCall struct {
	Spec, Dir string
	Fake      bool     // nothing is done but checks
	Verbose   bool     //
	Flags     []string // that go on to mount(8)
	// Of the options:
	Keys         []string // of the server, --key-file=F and the like
	ReadOnly     bool
	Type         string   // fstype=
	Mkfs         string   // mkfs=, if there is nothing on the volume
	Device       string   // device=
	Connections  string   // connections=
	Timeout      string   // reattach-timeout=
	MountOptions []string // all others, for the mount itself
}

// helperKeys are the options of -o that are options of the server. Their values are
// names of files: a secret would be seen in fstab, mountinfo and the process list.
var helperKeys = map[string]bool{ // whether they take a value
	"passphrase-file": true, "key-file": true, "recovery-key-file": true, "age-identity": true,
	"tpm2": false, "tpm2-device": true, "tpm2-pin-file": true,
	"trust-file": true, "expect-id": true, "expect-epoch": true, "accept-rollback": false,
}

// dropped are options that are for whoever reads fstab: mount(8), systemd, users.
var dropped = []string{
	"_netdev", "auto", "noauto", "nofail", "user", "nouser", "users", "nousers", "owner", "noowner", "group", "nogroup", "defaults",
}

// ParseHelperCall reads the arguments of mount.fsx, without the program's name. A
// mistake is cliutil.ErrUsage.
func ParseHelperCall(args []string) (*HelperCall, error) {
	c := &HelperCall{}
	var words []string
	for len(args) > 0 {
		arg := args[0]
		args = args[1:]
		if len(arg) < 2 || arg[0] != '-' {
			words = append(words, arg)
			continue
		}
		value, taken, err := c.letters(arg, args)
		if err != nil {
			return nil, err
		}
		if taken {
			args = args[1:]
		}
		switch arg[len(arg)-1] {
		case 'o':
			if err := c.options(value); err != nil {
				return nil, err
			}
		case 'N':
			c.Flags = append(c.Flags, "-N", value)
		}
	}
	if len(words) != 2 {
		return nil, cliutil.UsageErrorf("mount.fsx: expected STORE[:VOLUME][@SNAPSHOT] and a folder, got %d words", len(words))
	}
	c.Spec, c.Dir = words[0], words[1]
	return c, nil
}

// letters takes a word of one-letter options, of which the last may have a value.
func (c *HelperCall) letters(arg string, rest []string) (value string, taken bool, err error) {
	for i, letter := range arg[1:] {
		switch letter {
		case 's', 'n':
			c.Flags = append(c.Flags, "-"+string(letter))
		case 'f':
			c.Fake = true
		case 'v':
			c.Verbose = true
		case 'r':
			c.ReadOnly = true
		case 'w':
		case 'o', 'N', 't':
			if i != len(arg)-2 || len(rest) == 0 {
				return "", false, cliutil.UsageErrorf("mount.fsx: -%c needs a value, in the next word", letter)
			}
			return rest[0], true, nil
		default:
			return "", false, cliutil.UsageErrorf("mount.fsx: unknown option -%c", letter)
		}
	}
	return "", false, nil
}

// options takes the value of -o.
func (c *HelperCall) options(text string) error {
	for _, o := range SplitOptions(text) {
		name, value, hasValue := strings.Cut(o, "=")
		takes, isKey := helperKeys[name]
		switch {
		case o == "" || slices.Contains(dropped, o) || strings.HasPrefix(o, "x-") || strings.HasPrefix(o, "X-") || name == "comment":
		case isKey && takes != (hasValue && value != ""):
			return cliutil.UsageErrorf("mount.fsx: option %s: %s", name, map[bool]string{true: "it needs a value", false: "it takes no value"}[takes])
		case isKey && value == "-":
			return cliutil.UsageErrorf("mount.fsx: option %s: - (stdin) cannot be used here", name)
		case isKey:
			c.Keys = append(c.Keys, "--"+o)
		case o == "ro":
			c.ReadOnly = true
		case o == "rw":
			c.ReadOnly = false
		case !c.own(name, value):
			c.MountOptions = append(c.MountOptions, o)
		}
	}
	return nil
}

// own takes an option of attaching.
func (c *HelperCall) own(name, value string) bool {
	for own, to := range map[string]*string{
		"fstype": &c.Type, "mkfs": &c.Mkfs, "device": &c.Device, "connections": &c.Connections, "reattach-timeout": &c.Timeout,
	} {
		if name == own {
			*to = value
			return true
		}
	}
	return false
}

// SplitOptions splits the value of -o at commas, but for those in quotes, which an SELinux context
// may have: mount(8).
func SplitOptions(text string) (out []string) {
	quoted, begin := false, 0
	for i := range len(text) {
		switch {
		case text[i] == '"':
			quoted = !quoted
		case text[i] == ',' && !quoted:
			out = append(out, text[begin:i])
			begin = i + 1
		}
	}
	return append(out, text[begin:])
}

// ParseTimeout reads a time like 90s or 2m, or a number of seconds.
func ParseTimeout(option, text string) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if err != nil {
		d, err = time.ParseDuration(text + "s")
	}
	if err != nil || d < 0 {
		return 0, cliutil.UsageErrorf("%s %s: use a time like 60s or 2m; 0: do not wait", option, text)
	}
	return d, nil
}

// ParseDevice reads the value of --device: nbd, loop, or the path of a network block
// device.
func ParseDevice(text string) (Choice, error) {
	switch {
	case text == "":
		return Choice{}, nil
	case text == string(NBD) || text == string(Loop):
		return Choice{Kind: Kind(text)}, nil
	case strings.HasPrefix(text, "/dev/nbd"):
		return Choice{Kind: NBD, Device: text}, nil
	}
	return Choice{}, cliutil.UsageErrorf("--device %s: use nbd, loop or /dev/nbdN", text)
}
