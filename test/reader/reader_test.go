// Package reader proves that docs/format.md and docs/crypto.md are complete: what
// fsximg writes is read by fsxread.py, which was written from them alone.
package reader

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const (
	python = "/usr/bin/python3" // Debian's, which sees Debian's packages
	block  = 4096
	size   = 5<<20 + 3*512 // odd: the last block is cut short
)

// bin holds fsximg and fsxnbd; TestMain builds them.
var bin string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "fsx-reader")
		if err != nil {
			panic(err)
		}
		defer os.RemoveAll(dir)
		bin = dir
		os.Setenv("FSX_TRUST_FILE", "none") // not this user's
		build := exec.Command("go", "build", "-o", dir, "./cmd/fsximg", "./cmd/fsxnbd")
		build.Dir = filepath.Join("..", "..")
		if out, err := build.CombinedOutput(); err != nil {
			os.Stderr.Write(out)
			return 1
		}
		return m.Run()
	}())
}

func needPython(t *testing.T) {
	t.Helper()
	if out, err := exec.Command(python, "-c", "import cryptography, argon2").CombinedOutput(); err != nil {
		missing(t, "apt-get install python3-cryptography python3-argon2 (%s: %v: %s)", python, err, out)
	}
}

// missing skips the test loudly; in CI, where scripts/setup installs all, it fails.
func missing(t *testing.T, format string, args ...any) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf(format, args...)
	}
	t.Skipf("SKIPPED: "+format, args...)
}

// fixture is a store with a slot of each type, and what its volume should hold.
type fixture struct {
	dir, store string
	image      []byte
}

// secrets names, for each slot type, the reader's options that open it.
func (f *fixture) secrets() map[string][]string {
	return map[string][]string{
		"passphrase":   {"--passphrase-file", f.path("passphrase")},
		"key file":     {"--key-file", f.path("key")},
		"recovery key": {"--recovery-key-file", f.path("recovery")},
		"clear key":    {"--clear-key"},
	}
}

func (f *fixture) path(name string) string { return filepath.Join(f.dir, name) }

// key returns the option that both programs know.
func (f *fixture) key() []string { return []string{"--key-file", f.path("key")} }

// newFixture imports an image with data, written zeros and holes.
func newFixture(t *testing.T, cipher string) *fixture {
	t.Helper()
	needPython(t)
	dir := t.TempDir()
	f := &fixture{dir: dir, store: filepath.Join(dir, "s.fsx"), image: make([]byte, size)}
	rng := rand.New(rand.NewSource(1))
	fill := func(at, n int) { rng.Read(f.image[at : at+n]) }
	fill(0, 300*block+77)
	fill(2<<20+block, 70001)
	fill(size-700, 700)
	secret := make([]byte, 48)
	rng.Read(secret)
	write(t, f.path("key"), secret)
	write(t, f.path("passphrase"), []byte("correct horse battery staple"))
	write(t, f.path("image"), f.image)
	run(t, "fsximg", "-q", "import", "--cipher", cipher, "--kdf-memory", "19M", "--kdf-time", "2",
		"--passphrase-file", f.path("passphrase"), "--key-file", f.path("key"),
		"--recovery-key-out", f.path("recovery"), "--clear-key", f.path("image"), f.store)
	return f
}

// again writes over the volume in a second session: data over data, over holes,
// and zeros over data. No segment of the first session becomes empty by it.
func (f *fixture) again(t *testing.T) {
	t.Helper()
	rand.New(rand.NewSource(2)).Read(f.image[40*block : 60*block])
	copy(f.image[4<<20:], f.image[:33*block])
	clear(f.image[100*block : 140*block])
	write(t, f.path("image"), f.image)
	args := append([]string{"-q", "import", "--force"}, f.key()...)
	run(t, "fsximg", append(args, f.path("image"), f.store)...)
}

// copy returns a copy of the store, without its ballast.
func (f *fixture) copy(t *testing.T) string {
	t.Helper()
	to := t.TempDir()
	if err := os.CopyFS(to, os.DirFS(f.store)); err != nil {
		t.Fatal(err)
	}
	return to
}

func write(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func run(t *testing.T, program string, args ...string) {
	t.Helper()
	if out, err := exec.Command(filepath.Join(bin, program), args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", program, args, err, out)
	}
}

// read exports a store with the reader; it returns the content, what the reader
// said on stderr, and whether it succeeded. A reader that fails leaves no file.
func read(t *testing.T, store string, options ...string) ([]byte, string, bool) {
	t.Helper()
	out := filepath.Join(t.TempDir(), "out")
	args := append([]string{"-B", "fsxread.py", "export"}, options...)
	said, err := exec.Command(python, append(args, store, out)...).CombinedOutput()
	if err != nil {
		if strings.Contains(string(said), "Traceback") {
			t.Errorf("the reader broke:\n%s", said)
		}
		if _, err := os.Stat(out); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("a reader that failed left its output: %v", err)
		}
		return nil, string(said), false
	}
	data, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return data, string(said), true
}

func (f *fixture) mustRead(t *testing.T, store string, options ...string) {
	t.Helper()
	data, said, ok := read(t, store, options...)
	if !ok {
		t.Fatalf("%v: %s", options, said)
	}
	if !bytes.Equal(data, f.image) {
		t.Fatalf("%v: another content: %d bytes of %d", options, len(data), len(f.image))
	}
}

func mustRefuse(t *testing.T, store, want string, options ...string) {
	t.Helper()
	_, said, ok := read(t, store, options...)
	if ok || !strings.Contains(said, want) {
		t.Errorf("%v: ok %v, said %q, want a refusal with %q", options, ok, said, want)
	}
}

func TestEveryCipherAndSlot(t *testing.T) {
	for _, cipher := range []string{"aes-256-gcm", "chacha20-poly1305", "aes-256-xts"} {
		t.Run(cipher, func(t *testing.T) {
			f := newFixture(t, cipher)
			for name, secret := range f.secrets() {
				t.Run(name, func(t *testing.T) {
					f.mustRead(t, f.store, secret...)
					f.mustRead(t, f.store, append(secret, "--log-only")...)
				})
			}
			f.again(t)
			f.mustRead(t, f.store, f.key()...)
			f.mustRead(t, f.store+":main", f.key()...)
			f.mustRead(t, f.store, append(f.key(), "--log-only")...)
		})
	}
}

func TestCompacted(t *testing.T) {
	f := newFixture(t, "aes-256-gcm")
	f.again(t)
	run(t, "fsximg", append([]string{"-q", "compact"}, append(f.key(), f.store)...)...)
	f.mustRead(t, f.store, f.key()...)
}

// served writes 64 KiB of 17s, then of 34s, at the same place over NBD, and
// returns a copy of the store that was taken while it was still served.
func (f *fixture) served(t *testing.T) string {
	t.Helper()
	if _, err := exec.LookPath("qemu-io"); err != nil {
		missing(t, "apt-get install qemu-utils (qemu-io)")
	}
	copied := f.path("copy.fsx")
	write(t, f.path("work"), []byte("set -e\n"+
		"for n in 17 34; do qemu-io -f raw -c \"write -P $n 1M 64k\" -c flush \"$uri\"; done\n"+
		"cp -r --sparse=always '"+f.store+"' '"+copied+"'\n"+
		"! "+python+" -B fsxread.py info '"+f.store+"' 2>'"+f.path("said")+"'\n"))
	args := append([]string{"-q", "serve", "--socket", f.path("socket"), "--run", "sh '" + f.path("work") + "'"}, f.key()...)
	run(t, "fsxnbd", append(args, f.store)...)
	if said, err := os.ReadFile(f.path("said")); err != nil || !strings.Contains(string(said), "is in use") {
		t.Errorf("the reader took a store that is served: %q, %v", said, err)
	}
	return copied
}

// TestNotClosed reads a store as a crash leaves it: the log behind the head and
// Badger's own log count. Only the last commit may be torn.
func TestNotClosed(t *testing.T) {
	f := newFixture(t, "chacha20-poly1305")
	store := f.served(t)
	segments, err := filepath.Glob(filepath.Join(store, "vol/00000001/*.seg"))
	if err != nil || len(segments) == 0 {
		t.Fatal(segments, err)
	}
	last, records := "", []int64(nil)
	for _, path := range segments {
		if found := recordsIn(t, path); len(found) > 0 {
			last, records = path, found
		}
	}
	if len(records) != 3 {
		t.Fatalf("the session's segment has records at %v, want a continue record and two commits", records)
	}
	if _, said, _ := read(t, store, f.key()...); !strings.Contains(said, " 3 records replayed") {
		t.Errorf("said %q, want 3 records replayed", said)
	}
	log := append(f.key(), "--log-only")
	both := func(fill byte) {
		copy(f.image[1<<20:], bytes.Repeat([]byte{fill}, 64<<10))
		f.mustRead(t, store, f.key()...)
		f.mustRead(t, store, log...)
	}
	both(34)
	flip(t, last, records[2]-1, nil) // a block of the last commit: it never was
	both(17)
	flip(t, last, records[2]-1, nil)
	flip(t, last, records[1]-1, nil) // a block of the commit before: damage
	mustRefuse(t, store, "does not open", f.key()...)
	flip(t, last, records[1]-1, nil)
	flip(t, last, records[1]+70, nil) // its record: the one behind proves it was there
	mustRefuse(t, store, "does not continue", f.key()...)
	mustRefuse(t, store, "does not continue", log...)
}

// recordsIn returns where the records of a segment begin.
func recordsIn(t *testing.T, path string) (found []int64) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for at := 0; at < len(data); at += block {
		if bytes.HasPrefix(data[at:], []byte("FSXCMT00")) {
			found = append(found, int64(at))
		}
	}
	return found
}

func TestWrongSecret(t *testing.T) {
	f := newFixture(t, "aes-256-gcm")
	write(t, f.path("passphrase"), []byte("correct horse battery stable"))
	mustRefuse(t, f.store, "no passphrase slot opens", "--passphrase-file", f.path("passphrase"))
	write(t, f.path("key"), bytes.Repeat([]byte{200}, 48))
	mustRefuse(t, f.store, "no key file slot opens", f.key()...)
	write(t, f.path("key"), bytes.Repeat([]byte("a"), 48))
	mustRefuse(t, f.store, "only text", f.key()...)
	words, err := os.ReadFile(f.path("recovery"))
	if err != nil {
		t.Fatal(err)
	}
	words[0], words[1] = words[1], words[0]
	if words[0] == words[1] {
		words[0] ^= 'A' ^ 'B'
	}
	write(t, f.path("recovery"), words)
	mustRefuse(t, f.store, "recovery key:", "--recovery-key-file", f.path("recovery"))
	mustRefuse(t, f.store, "no key was given")
}

// TestTampered changes one byte, makes good the checksums that have no key, and
// expects the reader to refuse by the index and by the log where that can be.
func TestTampered(t *testing.T) {
	const segment = "vol/00000001/0000000000000001.seg"
	f := newFixture(t, "aes-256-gcm")
	f.again(t)
	for _, c := range []struct {
		name, file string
		at         int64 // of the byte that changes
		sum        func([]byte)
		want, log  string // what the reader says; log "" if the log does not tell
	}{
		{"ciphertext", segment, block + 1234, nil, "does not open", "does not open"},
		{"first record", segment, 100, nil, "", "commit 1 is missing"},
		{"superblock", "fsx", 63, superblockSum, "names another superblock", ""},
		{"compat flag", "fsx", 39, superblockSum, "unknown incompat", "unknown incompat"},
		{"checksum", "fsx", 4064, nil, "wrong checksum", "wrong checksum"},
		// in the area that counts, as somebody would who can make checksums
		{"slot's payload", "keyring", 64 + 80 + 60, keyringSum, "names another set of slots", ""},
		{"one keyring area", "keyring", 64 + 80 + 60, nil, "", ""},
		{"index", "meta/MANIFEST", 20, nil, "MANIFEST", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			store := f.copy(t)
			flip(t, filepath.Join(store, c.file), c.at, c.sum)
			if c.want == "" {
				f.mustRead(t, store, f.key()...)
			} else {
				mustRefuse(t, store, c.want, f.key()...)
			}
			log := append(f.key(), "--log-only")
			if c.log == "" {
				f.mustRead(t, store, log...)
			} else {
				mustRefuse(t, store, c.log, log...)
			}
		})
	}
}

func flip(t *testing.T, path string, at int64, sum func([]byte)) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data[at] ^= 1
	if sum != nil {
		sum(data)
	}
	write(t, path, data)
}

func superblockSum(data []byte) {
	sum := sha256.Sum256(data[:4064])
	copy(data[4064:], sum[:])
}

func keyringSum(data []byte) {
	body := data[64:][:binary.BigEndian.Uint32(data[16:])]
	sum := sha256.Sum256(append(bytes.Clone(data[:32]), body...))
	copy(data[32:64], sum[:])
}
