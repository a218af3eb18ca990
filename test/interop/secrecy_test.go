package interop_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestNoPlaintext writes a canary through a mount, in a file's content and in
// its name, and looks for it in everything the programs left on the disk. It
// looks in the exported image as well, where it must be found.
func TestNoPlaintext(t *testing.T) {
	needMount(t)
	need(t, "mkfs.ext4")
	temp := t.TempDir()
	t.Setenv("TMPDIR", temp)
	s := newStore(t, t.TempDir())
	s.create("128M")
	canary := []byte("FSX-CANARY-8d1f27c0-plaintext")

	srv := s.serve()
	a := attach(t, srv.uri)
	must(t, "mkfs.ext4", "-q", "-F", a.device)
	dir := a.mount()
	if err := os.WriteFile(filepath.Join(dir, string(canary)), bytes.Repeat(canary, 5000), 0o644); err != nil {
		t.Fatal(err)
	}
	a.unmount()
	a.detach()
	plaintextNowhere(t, s, temp, canary) // with the buffers of a running server
	srv.stop()
	plaintextNowhere(t, s, temp, canary)
	for _, secret := range []string{string(canary), passphrase} {
		if strings.Contains(srv.log.String(), secret) {
			t.Errorf("%q is in the server's log", secret)
		}
	}

	out := filepath.Join(t.TempDir(), "out.img")
	s.export(out)
	if found, err := fileContains(out, canary); !found || err != nil {
		t.Fatalf("the canary is not in the exported image: %v", err)
	}
	plaintextNowhere(t, s, temp, canary)
}

// plaintextNowhere looks through the store, the temporary and the run folder.
func plaintextNowhere(t *testing.T, s *store, temp string, canary []byte) {
	t.Helper()
	key, err := os.ReadFile(s.key)
	if err != nil {
		t.Fatal(err)
	}
	for _, root := range []string{s.path, temp, "/run/fsx"} {
		if _, err := os.Stat(root); err != nil {
			continue
		}
		for _, secret := range [][]byte{canary, []byte(passphrase), key} {
			if hits := findBytes(t, root, secret); len(hits) > 0 {
				t.Errorf("%q is in %v", secret, hits)
			}
		}
	}
}

// TestWrongPassphrase requires exit 4 of everything that needs the key, and no
// key of what does not.
func TestWrongPassphrase(t *testing.T) {
	need(t)
	s := newStore(t, t.TempDir())
	s.create("16M")
	wrong := filepath.Join(t.TempDir(), "wrong")
	if err := os.WriteFile(wrong, []byte("not it\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	out := s.fsximg(exitKey, "export", "--passphrase-file", wrong, s.path, filepath.Join(s.dir, "x"))
	if !strings.Contains(out.stderr, s.path) {
		t.Errorf("the message does not name the store: %q", out.stderr)
	}
	s.fsximg(exitKey, "check", "--passphrase-file", wrong, s.path)
	if _, err := os.Stat(filepath.Join(s.dir, "x")); err == nil {
		t.Error("a refused export left a file")
	}
	serve := execute(t, filepath.Join(programs, "fsxnbd"), "serve", "--passphrase-file", wrong,
		"--socket", filepath.Join(s.dir, "s"), s.path)
	if serve.code != exitKey {
		t.Errorf("fsxnbd: exit %d, want %d\n%s", serve.code, exitKey, serve.stderr)
	}
	s.fsximg(exitOK, "info", s.path)
	s.fsximg(exitOK, "check", s.path)
	s.fsximg(exitOK, "map", s.path)
	s.fsximg(exitOK, "check", "--passphrase-file", s.pw, s.path)
}

// TestSecondProcess requires exit 5 of a second user of a store, naming the first.
func TestSecondProcess(t *testing.T) {
	need(t)
	s := newStore(t, t.TempDir())
	s.create("16M")
	srv := s.serve()
	out := execute(t, filepath.Join(programs, "fsxnbd"), "serve", "--key-file", s.key,
		"--socket", filepath.Join(s.dir, "s"), s.path)
	if out.code != exitBusy {
		t.Errorf("fsxnbd: exit %d, want %d\n%s", out.code, exitBusy, out.stderr)
	}
	for _, word := range []string{fmt.Sprint(srv.pid()), "fsxnbd"} {
		if !strings.Contains(out.stderr, word) {
			t.Errorf("the message does not name %s: %q", word, out.stderr)
		}
	}
	srv.kill()
	s.serve().stop() // the lock went with its holder
}
