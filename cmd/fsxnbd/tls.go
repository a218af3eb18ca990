package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/fsximg/fsx/internal/cliutil"
	"github.com/urfave/cli/v2"
)

// tlsFlags are the options of serve that concern TLS.
func tlsFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "tls-cert", Usage: "offer TLS with the server's certificate chain in `FILE` (PEM); TCP then requires it"},
		&cli.StringFlag{Name: "tls-key", Usage: "the certificate's private key is in `FILE` (PEM)"},
		&cli.StringFlag{Name: "tls-ca", Usage: "clients need a certificate that an authority in `FILE` (PEM) signed"},
		&cli.BoolFlag{Name: "tls-required", Usage: "unix sockets require TLS, too"},
		&cli.StringSliceFlag{Name: "tls-allow", Usage: "only clients with one of these names may have EXPORT; `EXPORT=NAME[,NAME...]`, may be repeated"},
	}
}

// tlsFiles are where certificates are read from; ca may be empty.
type tlsFiles struct{ cert, key, ca string }

// tlsServing is how a server speaks TLS. A nil one does not. Its methods are
// safe for concurrent use.
type tlsServing struct {
	files    tlsFiles
	required bool     // on unix sockets, too
	shared   []string // unix sockets that others can connect to; not changed once there are clients
	log      *slog.Logger
	config   atomic.Pointer[tls.Config] // never nil, and what it points to is not changed
}

// tlsOf reads the options and the files they name. It is nil without TLS.
func tlsOf(env *cliutil.Env, c *cli.Context) (*tlsServing, error) {
	files := tlsFiles{c.String("tls-cert"), c.String("tls-key"), c.String("tls-ca")}
	switch {
	case files.cert == "" && files.key == "":
		for _, name := range []string{"tls-ca", "tls-required", "tls-allow"} {
			if c.IsSet(name) {
				return nil, cliutil.UsageErrorf("--%s needs --tls-cert and --tls-key", name)
			}
		}
		return nil, nil
	case files.cert == "" || files.key == "":
		return nil, cliutil.UsageErrorf("--tls-cert and --tls-key need each other")
	case files.ca == "" && c.IsSet("tls-allow"):
		return nil, cliutil.UsageErrorf("--tls-allow needs --tls-ca: without it clients have no names")
	}
	t := &tlsServing{files: files, required: c.Bool("tls-required"), log: env.Log}
	if err := t.load(); err != nil {
		return nil, err
	}
	if files.ca == "" && c.String("listen") != "" {
		env.Warn("without --tls-ca everyone who reaches %s may read what is served", c.String("listen"))
	}
	return t, nil
}

// requires says whether clients that came to a must use TLS: all but those of unix
// sockets that only this user can connect to.
func (t *tlsServing) requires(a net.Addr) bool {
	return t != nil && (t.required || a.Network() != "unix" || slices.Contains(t.shared, a.String()))
}

// requiresOf is requires for a connection.
func (t *tlsServing) requiresOf(nc net.Conn) bool { return t.requires(nc.LocalAddr()) }

// load reads the files. If it fails what was loaded before stays.
func (t *tlsServing) load() error {
	cert, err := t.files.certificate()
	if err != nil {
		return err
	}
	cfg := &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	if t.files.ca != "" {
		if cfg.ClientCAs, err = authorities(t.files.ca); err != nil {
			return err
		}
		cfg.ClientAuth = tls.RequireAndVerifyClientCert
	}
	if now := time.Now(); now.After(cert.Leaf.NotAfter) || now.Before(cert.Leaf.NotBefore) {
		t.log.Warn("certificate is not valid now", "file", t.files.cert, "from", cert.Leaf.NotBefore, "to", cert.Leaf.NotAfter)
	}
	t.config.Store(cfg)
	return nil
}

// certificate reads the server's certificate and its key.
func (f tlsFiles) certificate() (tls.Certificate, error) {
	certPEM, err := readPEM(f.cert, 0)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("--tls-cert %s: %w", f.cert, err)
	}
	keyPEM, err := readPrivate(f.key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("--tls-key %s: %w", f.key, err)
	}
	defer clear(keyPEM)
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("--tls-cert %s, --tls-key %s: %w", f.cert, f.key, err)
	}
	return cert, nil
}

// readPrivate reads a private key's file. Nobody else may read it, except that a
// file of root's may be for a group, as distributions have them.
func readPrivate(path string) ([]byte, error) { return readPEM(path, 0o077) }

// longestPEM is longer than any file with certificates.
const longestPEM = 4 << 20

// readPEM reads an ordinary file, of which forbidden are the bits of its mode that
// must not be set. Anything else than a file could keep a server waiting that has
// clients.
func readPEM(path string, forbidden fs.FileMode) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, bare(err)
	}
	defer f.Close()
	st, err := f.Stat()
	switch {
	case err != nil:
		return nil, bare(err)
	case !st.Mode().IsRegular():
		return nil, errors.New("it is no ordinary file")
	case st.Size() > longestPEM:
		return nil, fmt.Errorf("more than %d bytes", longestPEM)
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok && sys.Uid == 0 {
		forbidden &^= 0o040
	}
	if st.Mode().Perm()&forbidden != 0 {
		return nil, cliutil.WithHint(fmt.Errorf("others may read it (mode %04o)", st.Mode().Perm()), "chmod 600 %s", path)
	}
	p, err := io.ReadAll(io.LimitReader(f, longestPEM))
	return p, bare(err)
}

// authorities reads the certificates of those who sign clients' certificates.
func authorities(path string) (*x509.CertPool, error) {
	pem, err := readPEM(path, 0)
	if err != nil {
		return nil, fmt.Errorf("--tls-ca %s: %w", path, err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("--tls-ca %s: no certificate in it", path)
	}
	return pool, nil
}

// bare drops the operation and path of a file error: the message has them.
func bare(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}
