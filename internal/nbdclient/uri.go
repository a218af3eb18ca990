package nbdclient

import (
	"fmt"
	"net"
	"net/url"
	"strings"
	"unicode/utf8"
)

const (
	defaultPort = "10809" // IANA's for nbd
	maxName     = 4096    // bytes of an export's name, NBD "Conventions"
)

// uri is a parsed NBD URI.
type uri struct {
	network, address string // as for net.Dial
	export           string
}

// parseURI reads nbd://HOST[:PORT]/EXPORT and nbd+unix:///EXPORT?socket=PATH
// (doc/uri.md of NetworkBlockDevice/nbd). TLS is not supported.
func parseURI(s string) (uri, error) {
	u, err := url.Parse(s)
	if err != nil {
		return uri{}, fmt.Errorf("%w: %s", ErrURI, s)
	}
	bad := func(why string) (uri, error) { return uri{}, fmt.Errorf("%w: %s: %s", ErrURI, s, why) }
	out := uri{export: strings.TrimPrefix(u.Path, "/")}
	switch {
	case u.Opaque != "":
		return bad("use // behind the scheme")
	case u.User != nil:
		return bad("user names need TLS, which is not supported")
	case len(out.export) > maxName || !utf8.ValidString(out.export) || strings.ContainsRune(out.export, 0):
		return bad("name of the export is too long or malformed")
	}
	query := u.Query()
	socket := query.Get("socket")
	for key, values := range query {
		if key != "socket" || len(values) != 1 {
			return bad(fmt.Sprintf("parameter %q is not supported", key))
		}
	}
	switch u.Scheme {
	case "nbd":
		if u.Hostname() == "" || socket != "" {
			return bad("use nbd://HOST[:PORT]/EXPORT")
		}
		port := u.Port()
		if port == "" {
			port = defaultPort
		}
		out.network, out.address = "tcp", net.JoinHostPort(u.Hostname(), port)
	case "nbd+unix":
		if socket == "" || u.Host != "" {
			return bad("use nbd+unix:///EXPORT?socket=PATH")
		}
		out.network, out.address = "unix", socket
	default:
		return bad("only nbd and nbd+unix are supported")
	}
	return out, nil
}
