package interop_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestQemuImg copies in and out with qemu-img and compares its view of holes.
func TestQemuImg(t *testing.T) {
	need(t, "qemu-img", "cmp")
	rng := random(t)
	s := newStore(t, t.TempDir())
	s.create("64M")
	srv := s.serve()
	raw, back := filepath.Join(s.dir, "in.raw"), filepath.Join(s.dir, "back.raw")
	sparseFile(t, raw, 64<<20, rng)

	must(t, "qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", raw, srv.uri)
	must(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", raw, srv.uri)
	must(t, "qemu-img", "convert", "-f", "raw", "-O", "raw", srv.uri, back)
	sameFile(t, raw, back)

	var info struct {
		Size int64 `json:"virtual-size"`
	}
	decode(t, must(t, "qemu-img", "info", "--output=json", srv.uri), &info)
	if info.Size != 64<<20 {
		t.Errorf("qemu-img info: size %d", info.Size)
	}
	mapAgrees(t, srv.uri, raw)
	srv.stop()
	s.check()
	s.export(back, "--force")
	sameFile(t, raw, back)
}

func decode(t *testing.T, text string, into any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), into); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
}

// mapAgrees requires that what the server calls zero is zero in the file, and
// that some of it is called zero.
func mapAgrees(t *testing.T, uri, file string) {
	t.Helper()
	var runs []struct {
		Start, Length int64
		Zero          bool
	}
	decode(t, must(t, "qemu-img", "map", "-f", "raw", "--output=json", uri), &runs)
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var end, zeros int64
	for _, run := range runs {
		if run.Start != end {
			t.Fatalf("qemu-img map: a run starts at %d, the one before ends at %d", run.Start, end)
		}
		end = run.Start + run.Length
		if !run.Zero {
			continue
		}
		zeros += run.Length
		for i, b := range content[run.Start:end] {
			if b != 0 {
				t.Fatalf("byte %d is data, the map calls it zero", run.Start+int64(i))
			}
		}
	}
	if end != int64(len(content)) {
		t.Errorf("qemu-img map ends at %d", end)
	}
	if zeros < int64(len(content))/2 {
		t.Errorf("only %d bytes are called zero", zeros)
	}
}

// qemuIO are commands for qemu-io; each read verifies its pattern.
var qemuIO = []string{
	"write -P 0xaa 0 256k", "read -P 0xaa 0 256k",
	"write -f -P 0xbb 4k 4k", "read -P 0xaa 0 4k", "read -P 0xbb 4k 4k", "read -P 0xaa 8k 248k",
	"write -P 0xcc 513 1023", "read -P 0xaa 0 513", "read -P 0xcc 513 1023", "read -P 0xaa 1536 2560",
	"write -z 64k 64k", "read -P 0 64k 64k", "read -P 0xaa 128k 4k",
	"write -z -u 16k 16k", "read -P 0 16k 16k",
	"write -z -f 5000 3000", "read -P 0 5000 3000", "read -P 0xbb 4096 904",
	"discard 128k 64k", "read -P 0 128k 64k", "read -P 0xaa 192k 64k",
	"write -P 0xdd 1M 32M", "read -P 0xdd 1M 32M", "flush",
	"aio_write -P 0x11 40M 64k", "aio_write -P 0x22 41M 64k", "aio_flush",
	"read -P 0x11 40M 64k", "read -P 0x22 41M 64k",
	"write -P 0xee 67104768 4k", "read -P 0xee 67104768 4k",
}

// TestQemuIO runs reads and writes with every flag, and repeats the reads of
// what is left after a restart of the server.
func TestQemuIO(t *testing.T) {
	need(t, "qemu-io")
	s := newStore(t, t.TempDir())
	s.create("64M")
	srv := s.serve()
	qemuIORun(t, srv.uri, qemuIO)
	srv.stop()
	srv = s.serve()
	qemuIORun(t, srv.uri, []string{
		"read -P 0xcc 513 1023", "read -P 0 64k 64k", "read -P 0 128k 64k", "read -P 0xaa 192k 64k",
		"read -P 0xdd 1M 32M", "read -P 0x11 40M 64k", "read -P 0xee 67104768 4k", "read -P 0 50M 1M",
	})
	srv.stop()
	s.check()
}

func qemuIORun(t *testing.T, uri string, commands []string) {
	t.Helper()
	args := []string{"-f", "raw", "-d", "unmap"}
	for _, c := range commands {
		args = append(args, "-c", c)
	}
	// qemu-io ends with 0 in some versions although a pattern did not verify
	out := must(t, "qemu-io", append(args, uri)...)
	for _, word := range []string{"failed", "error"} {
		if strings.Contains(strings.ToLower(out), word) {
			t.Errorf("qemu-io: %s", out)
		}
	}
}

// TestFioVerify lets fio write blocks with checksums, many in flight and in
// sizes that are no multiple of the block, and read all of them back.
func TestFioVerify(t *testing.T) {
	need(t, "fio")
	s := newStore(t, t.TempDir())
	s.create("256M")
	srv := s.serve()
	size := choose("64m", "256m")
	for name, options := range map[string][]string{
		"random 4K":        {"--rw=randwrite", "--bs=4k", "--iodepth=32"},
		"mixed sizes":      {"--rw=randwrite", "--bsrange=512-128k", "--bs_unaligned=0", "--blockalign=512", "--iodepth=16"},
		"sequential":       {"--rw=write", "--bs=1m", "--iodepth=8"},
		"read while write": {"--rw=randrw", "--bs=16k", "--iodepth=32", "--verify_backlog=256"},
		"flushes":          {"--rw=randwrite", "--bs=8k", "--iodepth=8", "--fsync=64"},
	} {
		t.Run(name, func(t *testing.T) {
			must(t, "fio", append([]string{"--name=verify", "--ioengine=nbd", "--uri=" + srv.uri, "--size=" + size,
				"--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--randrepeat=0", "--output-format=terse"}, options...)...)
		})
	}
	srv.stop()
	s.check()
}

// nbdshScript is run by libnbd's shell with h connected and u the URI.
const nbdshScript = `
import os
assert h.get_size() == 64 * 1024 * 1024
assert h.can_flush() and h.can_fua() and h.can_trim() and h.can_zero() and h.can_multi_conn() and h.can_cache()
assert not h.is_read_only()
assert h.get_structured_replies_negotiated()
data = os.urandom(32 * 1024 * 1024)                 # the largest advertised request
h.pwrite(data, 4097)
assert h.pread(len(data), 4097) == data
assert h.pread(1, 4097 + 777) == data[777:778]
h.pwrite(b"x", 60 * 1024 * 1024 + 1, nbd.CMD_FLAG_FUA)
assert h.pread(3, 60 * 1024 * 1024) == b"\0x\0"
h.zero(10000, 5001, nbd.CMD_FLAG_NO_HOLE)
assert h.pread(10002, 5000) == data[903:904] + bytes(10000) + data[10904:10905]
h.trim(1024 * 1024, 8 * 1024 * 1024)
assert h.pread(1024 * 1024, 8 * 1024 * 1024) == bytes(1024 * 1024)
h.zero(65536, 20 * 1024 * 1024, nbd.CMD_FLAG_FAST_ZERO)
h.cache(4096, 0)
h.flush()
runs = []
def extent(context, offset, entries, error):
    assert context == "base:allocation"
    runs.extend(zip(entries[0::2], entries[1::2]))
while (covered := sum(r[0] for r in runs)) < 64 * 1024 * 1024:
    h.block_status(64 * 1024 * 1024 - covered, covered, extent)
    assert sum(r[0] for r in runs) > covered
assert covered == 64 * 1024 * 1024
assert any(r[1] & 2 for r in runs) and any(not r[1] & 2 for r in runs)
def refused(f, *args):
    try:
        f(*args)
    except nbd.Error as e:
        return e.errno
    return None
assert refused(h.pread, 4096, 64 * 1024 * 1024 - 1) in ("EINVAL", "ENOSPC")
h.set_strict_mode(0)
assert refused(h.pwrite, b"12", 64 * 1024 * 1024 - 1) == "ENOSPC"
assert refused(h.pread, 2, 64 * 1024 * 1024 - 1) == "EINVAL"
assert refused(h.trim, 0x20000, 64 * 1024 * 1024 - 1) in ("EINVAL", "ENOSPC")
# what one connection flushed, another sees; and what one wrote, another flushes
g = nbd.NBD()
g.connect_uri(u)
h.pwrite(b"over there", 123)
assert g.pread(10, 123) == b"over there"
g.flush()
g.shutdown()
# many in flight
cookies = [h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray([i]) * 4096), 4096 * (9000 + i)) for i in range(128)]
while h.aio_in_flight() > 0:
    h.poll(-1)
for i in range(128):
    assert h.pread(4096, 4096 * (9000 + i)) == bytes([i]) * 4096
h.shutdown()
print("all good")
`

// TestNbdsh drives the server with libnbd.
func TestNbdsh(t *testing.T) {
	need(t, "nbdsh")
	s := newStore(t, t.TempDir())
	s.create("64M")
	srv := s.serve()
	script := filepath.Join(s.dir, "script.py")
	if err := os.WriteFile(script, []byte(nbdshScript), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("nbdsh", "-c", fmt.Sprintf("u = %q", srv.uri), "-c", "h.add_meta_context('base:allocation')",
		"-c", "h.connect_uri(u)", "-c", fmt.Sprintf("exec(open(%q).read())", script))
	// the module belongs to the system's Python, which may be shadowed
	cmd.Env = append(os.Environ(), "PATH=/usr/bin:"+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "all good") {
		t.Fatalf("nbdsh: %v\n%s", err, out)
	}
	srv.stop()
	s.check()
}

// TestReadOnly serves read-only; the client sees it and a write is refused.
func TestReadOnly(t *testing.T) {
	need(t, "qemu-io", "nbdinfo")
	s := newStore(t, t.TempDir())
	s.create("16M")
	srv := s.serve("--read-only")
	if out := execute(t, "nbdinfo", "--is", "read-only", srv.uri); out.code != 0 {
		t.Errorf("nbdinfo: not read-only: %s", out.stderr)
	}
	c := dial(t, srv.socket, "main")
	if err := c.writeAt(make([]byte, 4096), 0, 0); err == nil {
		t.Error("a write to a read-only export succeeded")
	}
	if _, err := c.readAll(0, c.size); err != nil {
		t.Errorf("read after the refused write: %v", err)
	}
}
