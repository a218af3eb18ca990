package nbdsrv_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"testing"
	"time"

	"github.com/fsximg/fsx/pkg/nbdsrv"
)

// authority issues the certificates of a test.
type authority struct {
	t    testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	ca := &authority{t: t, pool: x509.NewCertPool()}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	ca.cert, ca.key = ca.sign(template)
	ca.pool.AddCert(ca.cert)
	return ca
}

// sign makes a certificate and its key; the first one signs itself.
func (ca *authority) sign(template *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	ca.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		ca.t.Fatal(err)
	}
	parent, signer := ca.cert, ca.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		ca.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		ca.t.Fatal(err)
	}
	return cert, key
}

// issue makes the certificate of an end: commonName and DNS names.
func (ca *authority) issue(usage x509.ExtKeyUsage, commonName string, names ...string) tls.Certificate {
	ca.t.Helper()
	cert, key := ca.sign(&x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: commonName}, DNSNames: names,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{usage},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	})
	return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key}
}

// config makes a server offer TLS. Clients may have a certificate, which is
// verified then.
func (ca *authority) config() nbdsrv.Config {
	cfg := &tls.Config{
		Certificates: []tls.Certificate{ca.issue(x509.ExtKeyUsageServerAuth, "", "server")},
		ClientCAs:    ca.pool, ClientAuth: tls.VerifyClientCertIfGiven,
	}
	return nbdsrv.Config{TLS: func() *tls.Config { return cfg }}
}

// forced is config for a server that insists on TLS.
func (ca *authority) forced() nbdsrv.Config {
	cfg := ca.config()
	cfg.RequireTLS = func(net.Conn) bool { return true }
	return cfg
}

// client is what a client needs; with a common name it has a certificate.
func (ca *authority) client(commonName string, names ...string) *tls.Config {
	cfg := &tls.Config{RootCAs: ca.pool, ServerName: "server"}
	if commonName != "" {
		cfg.Certificates = []tls.Certificate{ca.issue(x509.ExtKeyUsageClientAuth, commonName, names...)}
	}
	return cfg
}

// beginTLS sends STARTTLS and waits for its acknowledgement.
func (c *client) beginTLS() {
	c.t.Helper()
	c.option(oStartTLS, nil)
	c.expectReply(oStartTLS, rAck, nil)
}

// startTLS negotiates TLS; everything goes through it from then on.
func (c *client) startTLS(cfg *tls.Config) {
	c.t.Helper()
	c.beginTLS()
	over := tls.Client(c.Conn, cfg)
	if err := over.Handshake(); err != nil {
		c.t.Fatalf("TLS: %v", err)
	}
	c.Conn = over
}
