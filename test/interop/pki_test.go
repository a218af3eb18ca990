package interop_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// pki is an authority of this test and the folder for what it issues.
type pki struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// newPKI makes an authority; its certificate is ca-cert.pem in the folder.
func newPKI(t *testing.T) *pki {
	t.Helper()
	p := &pki{t: t, dir: t.TempDir()}
	p.cert, p.key = p.sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: "authority of " + t.Name()}, KeyUsage: x509.KeyUsageCertSign,
		IsCA: true, BasicConstraintsValid: true,
	})
	p.write(p.dir, "ca-cert.pem", "CERTIFICATE", p.cert.Raw)
	return p
}

// sign makes a certificate that is valid now; the first one signs itself.
func (p *pki) sign(template *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	p.t.Helper()
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		p.t.Fatal(err)
	}
	parent, signer := p.cert, p.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		p.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		p.t.Fatal(err)
	}
	return cert, key
}

func (p *pki) write(dir, name, kind string, der []byte) {
	p.t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		p.t.Fatal(err)
	}
}

// issue writes NAME-cert.pem and NAME-key.pem to dir.
func (p *pki) issue(dir, name string, usage x509.ExtKeyUsage, commonName string, dns ...string) {
	p.t.Helper()
	cert, key := p.sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: commonName}, DNSNames: dns, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{usage},
	})
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		p.t.Fatal(err)
	}
	p.write(dir, name+"-cert.pem", "CERTIFICATE", cert.Raw)
	p.write(dir, name+"-key.pem", "PRIVATE KEY", der)
}

// server issues a certificate for localhost and returns the options of serve.
func (p *pki) server() []string {
	p.t.Helper()
	p.issue(p.dir, "server", x509.ExtKeyUsageServerAuth, "fsxnbd", "localhost")
	return []string{
		"--tls-cert", filepath.Join(p.dir, "server-cert.pem"), "--tls-key", filepath.Join(p.dir, "server-key.pem"),
		"--tls-ca", filepath.Join(p.dir, "ca-cert.pem"),
	}
}

// client returns a folder as libnbd and QEMU want it, which trusts p. With an issuer
// there is a certificate in it.
func (p *pki) client(issuer *pki, commonName string, dns ...string) string {
	p.t.Helper()
	dir := p.t.TempDir()
	p.write(dir, "ca-cert.pem", "CERTIFICATE", p.cert.Raw)
	if issuer != nil {
		issuer.issue(dir, "client", x509.ExtKeyUsageClientAuth, commonName, dns...)
	}
	return dir
}
