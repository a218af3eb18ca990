package main

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"os"
	"testing"

	"github.com/fsximg/fsx/pkg/nbdsrv"
)

// with is a client whose verified certificate has the common name.
func with(name string) *nbdsrv.Client {
	leaf := &x509.Certificate{Subject: pkix.Name{CommonName: name}}
	return &nbdsrv.Client{UID: -1, TLS: &tls.ConnectionState{
		PeerCertificates: []*x509.Certificate{leaf}, VerifiedChains: [][]*x509.Certificate{{leaf}},
	}}
}

func TestAllowList(t *testing.T) {
	list, err := parseAllow([]string{"main=alice,ann", "vm-*=bob", "vm-1@day=dora", "a:main=zoe", "main=carl"})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		export string
		names  []string
	}{
		{"main", []string{"alice", "ann", "carl"}},
		{"main@monday", []string{"alice", "ann", "carl"}},
		{"vm-1", []string{"bob"}},
		{"vm-1@day", []string{"bob", "dora"}},
		{"vm-1@night", []string{"bob"}},
		{"a:main", []string{"zoe"}},
		{"a:main@x", []string{"zoe"}},
	} {
		allowed := map[string]bool{}
		for _, name := range tt.names {
			allowed[name] = true
		}
		for _, name := range []string{"alice", "ann", "bob", "carl", "dora", "zoe", "ALICE", "alic", "alice,ann", "main", "*", ""} {
			err := list.check(tt.export, with(name))
			if want := nbdsrv.ErrNotAllowed; allowed[name] != (err == nil) || (err != nil && !errors.Is(err, want)) {
				t.Errorf("%s for %q: %v", tt.export, name, err)
			}
		}
		for uid, may := range map[int]bool{os.Geteuid(): true, 0: true, -1: false, os.Geteuid() + 1: false} {
			err := list.check(tt.export, &nbdsrv.Client{UID: uid})
			if may != (err == nil) || (err != nil && !errors.Is(err, nbdsrv.ErrTLSRequired)) {
				t.Errorf("%s for user %d: %v", tt.export, uid, err)
			}
		}
	}
	odd, err := parseAllow([]string{"w@h:main=bob", "e[1]:main=bob", "w@h:day@x=bob"})
	if err != nil {
		t.Fatal(err)
	}
	for _, export := range []string{"w@h:main", "w@h:main@snap", "e[1]:main", "e[1]:main@snap", "w@h:day@x"} {
		if odd.check(export, with("alice")) == nil || odd.check(export, with("bob")) != nil {
			t.Errorf("%s is not bob's alone", export)
		}
	}
	if odd.check("w@h:day", with("alice")) != nil {
		t.Error("a rule for a snapshot is for its volume")
	}
	for _, export := range []string{"other", "mains", "vm", "b:main", "main2@vm-1"} {
		for _, client := range []*nbdsrv.Client{with("nobody"), {UID: -1}} {
			if err := list.check(export, client); err != nil {
				t.Errorf("%s is on no list: %v", export, err)
			}
		}
	}
}
