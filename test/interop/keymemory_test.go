package interop_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// python is Debian's, which has the libraries of test/reader.
const python = "/usr/bin/python3"

// keysScript prints, by the independent reader in test/reader, the volume keys that a
// key file opens and the data keys of all bags.
const keysScript = `
import sys
sys.path.insert(0, "../reader")
sys.dont_write_bytecode = True
import keys, layout
def telling(kind, at):
    init = kind.__init__
    def tell(self, *args):
        print(kind.__name__, args[at].hex())
        init(self, *args)
    kind.__init__ = tell
telling(keys.VolumeKey, 0)
telling(keys.DataKey, 1)
ring = keys.keyring(layout.keyring_body(sys.argv[1])[1])
opened = keys.open_slots(ring, keys.KEYFILE, keys.key_file(open(sys.argv[2], "rb").read()))
for key in opened.values():
    for bag in ring.bags:
        keys.open_bag(ring, bag, key)
`

// TestRemovedKeyIsWiped looks through the whole memory of a server: its keys are there
// while they are present, and neither they nor the secrets when the key is absent; of
// what clients read and wrote there are traces at most.
func TestRemovedKeyIsWiped(t *testing.T) {
	need(t, python)
	if out, err := exec.Command(python, "-c", "import cryptography, argon2").CombinedOutput(); err != nil {
		t.Skipf("SKIP: apt-get install python3-cryptography python3-argon2: %v\n%s", err, out)
	}
	s := newStore(t, t.TempDir())
	s.create("64M")
	srv := s.serve()
	if _, err := countInMemory(srv.pid(), [][]byte{{1, 2, 3, 4}}); errors.Is(err, fs.ErrPermission) {
		t.Skipf("SKIP: the memory of another process cannot be read here: %v", err)
	}
	needles := s.needles()
	first := needles[0]
	c := dial(t, srv.socket, "main")
	canary := []byte("FSX-CANARY-5b0d77e1-in-memory")
	page := bytes.Repeat(canary, 1<<20/len(canary)+1)[:1<<20]
	for i := range int64(8) {
		for _, n := range []int64{4096, 64 << 10, 1 << 20} {
			if err := errors.Join(c.writeAt(page[:n], i<<21, 0), c.readAt(make([]byte, n), i<<21)); err != nil {
				t.Fatal(err)
			}
		}
	}
	needles = append(needles, needle{content, canary})
	count := s.countNeedles(srv, needles)
	if count[0] == 0 || count[1] == 0 || count[len(count)-1] == 0 {
		t.Fatalf("not found while present: %v of %v", count, needles)
	}

	// The key comes again by passphrase, over the control socket; and is removed while
	// a client is there.
	s.keyCommand("add", "--passphrase-file", s.pw, s.path)
	s.keyCommand("remove", s.path+":main")
	if err := c.writeAt(page, 0, 0); err != nil {
		t.Fatal(err)
	}
	if n := s.countNeedles(srv, []needle{first}); n[0] != 0 {
		t.Errorf("incompletely removed, the %s is in memory %d times", first.what, n[0])
	}
	c.close()
	for end := time.Now().Add(time.Minute); !strings.Contains(s.keyCommand("status", s.path), " absent "); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the key does not become absent")
		}
	}
	for i, n := range s.countNeedles(srv, needles) {
		if n > needles[i].traces(count[i]) {
			t.Errorf("after its removal, the %s is in memory %d times", needles[i].what, n)
		}
		result(t, "%s: %d times in memory before, %d after", needles[i].what, count[i], n)
	}
	srv.stop()
	s.check()
}

const (
	content   = "content that was written and read"
	inRequest = "passphrase in a request"
)

// needle is something secret.
type needle struct {
	what  string
	bytes []byte
}

// traces is how often it may be found after a removal, of so often before: never, but
// for what passes through the collected heap, which nobody can wipe
// (docs/threat-model.md). That is requests of commands, in buffers of the HTTP and JSON
// libraries, and single requests of NBD clients; of content most was in the engine's
// buffers and the connections', which are wiped.
func (n needle) traces(before int) int {
	switch n.what {
	case inRequest:
		return 4
	case content:
		return before / 4 // one large request is an eighth
	}
	return 0
}

// String prints nothing of it.
func (n needle) String() string { return n.what }

// needles are the store's secrets: volume key, data keys, and what opens the slots.
func (s *store) needles() (l []needle) {
	s.t.Helper()
	for line := range strings.Lines(must(s.t, python, "-c", keysScript, filepath.Join(s.path, "keyring"), s.key)) {
		what, text, _ := strings.Cut(strings.TrimSpace(line), " ")
		b, err := hex.DecodeString(text)
		if err != nil {
			s.t.Fatal(err)
		}
		l = append(l, needle{what, b})
	}
	if len(l) != 2 || l[0].what != "VolumeKey" || l[1].what != "DataKey" {
		s.t.Fatalf("the reader finds %v", l)
	}
	key, err := os.ReadFile(s.key)
	if err != nil {
		s.t.Fatal(err)
	}
	return append(l, needle{"key file", key}, needle{"passphrase", []byte(passphrase)},
		needle{inRequest, []byte(base64.StdEncoding.EncodeToString([]byte(passphrase)))})
}

// keyCommand runs fsxnbd key.
func (s *store) keyCommand(args ...string) string {
	s.t.Helper()
	return must(s.t, filepath.Join(programs, "fsxnbd"), append([]string{"key"}, args...)...)
}

func (s *store) countNeedles(srv *server, needles []needle) []int {
	s.t.Helper()
	var l [][]byte
	for _, n := range needles {
		l = append(l, n.bytes)
	}
	count, err := countInMemory(srv.pid(), l)
	if err != nil {
		s.t.Fatal(err)
	}
	return count
}

// countInMemory counts how often texts are in what a process has mapped and may
// write.
func countInMemory(pid int, texts [][]byte) ([]int, error) {
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return nil, err
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		return nil, err
	}
	defer mem.Close()
	count := make([]int, len(texts))
	const piece, overlap = 1 << 20, 4096
	buf := make([]byte, piece+overlap)
	for line := range strings.Lines(string(maps)) {
		var from, to int64
		var mode string
		if _, err := fmt.Sscanf(line, "%x-%x %s", &from, &to, &mode); err != nil || !strings.HasPrefix(mode, "rw") {
			continue
		}
		for at := from; at < to; at += piece {
			n, err := mem.ReadAt(buf[:min(piece+overlap, to-at)], at)
			if n == 0 && err != nil && !errors.Is(err, io.EOF) {
				continue // unmapped since, or a device's
			}
			for i, text := range texts {
				for p := buf[:n]; ; {
					found := bytes.Index(p, text)
					if found < 0 || len(buf[:n])-len(p)+found >= piece {
						break
					}
					count[i]++
					p = p[found+1:]
				}
			}
		}
	}
	return count, nil
}
