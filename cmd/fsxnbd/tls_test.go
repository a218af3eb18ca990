package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fsximg/fsx/internal/cliutil"
)

// writeCertificate writes a certificate that signs itself, valid until end, and its key.
func writeCertificate(t *testing.T, files tlsFiles, end time.Time) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: end.Add(-time.Hour), NotAfter: end}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for path, block := range map[string]*pem.Block{
		files.cert: {Type: "CERTIFICATE", Bytes: cert}, files.key: {Type: "PRIVATE KEY", Bytes: private},
	} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func newTLSFiles(t *testing.T) tlsFiles {
	dir := t.TempDir()
	return tlsFiles{cert: filepath.Join(dir, "cert.pem"), key: filepath.Join(dir, "key.pem")}
}

// TestTLSLoad: what cannot be loaded leaves what was; a certificate that is over is
// loaded, with a warning.
func TestTLSLoad(t *testing.T) {
	var log bytes.Buffer
	s := &tlsServing{files: newTLSFiles(t), log: slog.New(slog.NewTextHandler(&log, nil))}
	if err := s.load(); err == nil || s.config.Load() != nil {
		t.Fatalf("without files: %v", err)
	}
	writeCertificate(t, s.files, time.Now().Add(time.Minute))
	if err := s.load(); err != nil || log.Len() != 0 {
		t.Fatalf("%v, log %s", err, &log)
	}
	loaded := s.config.Load()
	if err := os.WriteFile(s.files.cert, []byte("broken"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.load(); err == nil || s.config.Load() != loaded {
		t.Errorf("with a broken file: %v, and another configuration: %v", err, s.config.Load() != loaded)
	}
	writeCertificate(t, s.files, time.Now().Add(-time.Minute))
	if err := s.load(); err != nil || s.config.Load() == loaded || !strings.Contains(log.String(), "certificate is not valid now") {
		t.Errorf("with one that is over: %v, log %s", err, &log)
	}
}

// TestPrivateKeyMode: a key is its owner's, or root's and a group's.
func TestPrivateKeyMode(t *testing.T) {
	files := newTLSFiles(t)
	writeCertificate(t, files, time.Now())
	root := os.Geteuid() == 0
	owners := []int{os.Geteuid()}
	if root {
		owners = append(owners, 12345)
	}
	for _, owner := range owners {
		if root {
			if err := os.Chown(files.key, owner, -1); err != nil {
				t.Fatal(err)
			}
		}
		for mode, ok := range map[os.FileMode]bool{
			0o600: true, 0o400: true, 0o640: owner == 0, 0o440: owner == 0, 0o660: false, 0o644: false, 0o604: false, 0o602: false,
		} {
			if err := os.Chmod(files.key, mode); err != nil {
				t.Fatal(err)
			}
			p, err := readPrivate(files.key)
			if ok != (err == nil) || ok != (len(p) > 0) {
				t.Errorf("mode %o of user %d: %v", mode, owner, err)
			}
			if !ok && cliutil.HintOf(err) != "chmod 600 "+files.key {
				t.Errorf("mode %o: hint %q", mode, cliutil.HintOf(err))
			}
		}
	}
}

// TestTLSRequiredWhere: TCP always, unix sockets when it is asked for.
func TestTLSRequiredWhere(t *testing.T) {
	tcp, unix := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}, &net.UnixAddr{Name: "s", Net: "unix"}
	for _, tt := range []struct {
		s         *tlsServing
		tcp, unix bool
	}{{nil, false, false}, {&tlsServing{}, true, false}, {&tlsServing{required: true}, true, true}} {
		if tt.s.requires(tcp) != tt.tcp || tt.s.requires(unix) != tt.unix {
			t.Errorf("%+v", tt)
		}
	}
}
