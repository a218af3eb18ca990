package nbdsrv_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fsximg/fsx/pkg/nbdsrv"
)

// Real clients against the server. A program that is not installed skips its
// test, and says so.

// program returns a runner of a client program, or skips the test.
func program(t *testing.T, name string) func(args ...string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("NOT TESTED: %s is not installed", name)
	}
	return func(args ...string) string {
		t.Helper()
		cmd := exec.Command(path, args...)
		cmd.Dir = t.TempDir()
		// The system's interpreter is the one that has the system's modules.
		cmd.Env = append(os.Environ(), "PATH=/usr/bin:/bin:"+os.Getenv("PATH"))
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s %q: %v\n%s", name, args, err, out)
		}
		return string(out)
	}
}

// uri names an export of s for clients.
func (s *server) uri(name string) string {
	if s.addr.Network() == "tcp" {
		return fmt.Sprintf("nbd://%s/%s", s.addr, name)
	}
	return fmt.Sprintf("nbd+unix:///%s?socket=%s", name, s.addr)
}

// scattered is an image with data, zeros and holes.
func scattered(n int) []byte {
	p := make([]byte, n)
	for off := 0; off+200_000 < n; off += 500_000 {
		copy(p[off:], pattern(150_000+off%7*4096, byte(off>>10)+1))
	}
	return p
}

func TestClientNbdinfo(t *testing.T) {
	run := program(t, "nbdinfo")
	ro := newRAM(1 << 20)
	exports := newExports().
		add(nbdsrv.Export{Name: "main", Description: "the disk", Device: newRAM(8 << 20)}).
		add(nbdsrv.Export{Name: "ro", ReadOnly: true, Device: ro})
	s := serve(t, nbdsrv.Config{}, exports)
	var got struct {
		Exports []struct {
			Name      string `json:"export-name"`
			Desc      string `json:"description"`
			Size      int64  `json:"export-size"`
			ReadOnly  bool   `json:"is_read_only"`
			Multi     bool   `json:"can_multi_conn"`
			FUA       bool   `json:"can_fua"`
			FastZero  bool   `json:"can_fast_zero"`
			DF        bool   `json:"can_df"`
			Preferred int    `json:"block_size_preferred"`
			Contexts  []string
		}
	}
	if err := json.Unmarshal([]byte(run("--json", "--list", s.uri(""))), &got); err != nil {
		t.Fatal(err)
	}
	if len(got.Exports) != 2 {
		t.Fatalf("%+v", got)
	}
	m, r := got.Exports[0], got.Exports[1]
	if m.Name != "main" || m.Desc != "the disk" || m.Size != 8<<20 || m.ReadOnly || !m.Multi || !m.FUA ||
		!m.FastZero || !m.DF || m.Preferred != 4096 || len(m.Contexts) != 1 {
		t.Errorf("main: %+v", m)
	}
	if r.Name != "ro" || !r.ReadOnly || r.FastZero {
		t.Errorf("ro: %+v", r)
	}
}

func TestClientNbdinfoMap(t *testing.T) {
	run := program(t, "nbdinfo")
	s, _ := serveRAM(t, nbdsrv.Config{}, 8<<20)
	c := s.connect(t, "main", true)
	c.must(cWrite, 0, 1<<20, 1<<20, pattern(1<<20, 1))
	c.must(cZero, fNoHole, 3<<20, 1<<20, nil)
	var got []struct{ Offset, Length, Type int64 }
	if err := json.Unmarshal([]byte(run("--json", "--map", s.uri("main"))), &got); err != nil {
		t.Fatal(err)
	}
	want := "[{0 1048576 3} {1048576 1048576 0} {2097152 1048576 3} {3145728 1048576 2} {4194304 4194304 3}]"
	if fmt.Sprint(got) != want {
		t.Errorf("map %v\nwant %s", got, want)
	}
}

func TestClientNbdinfoContexts(t *testing.T) {
	run := program(t, "nbdinfo")
	s, _ := serveContexts(t, 3*ramBlock)
	var list struct {
		Exports []struct{ Contexts []string }
	}
	if err := json.Unmarshal([]byte(run("--json", s.uri("main"))), &list); err != nil {
		t.Fatal(err)
	}
	if want := []string{"base:allocation", depth, key, dirtyA, dirtyB}; fmt.Sprint(list.Exports) != fmt.Sprintf("[{%v}]", want) {
		t.Errorf("contexts %v, want %v", list.Exports, want)
	}
	for context, flags := range map[string]int{depth: 2, dirtyB: 5} {
		var got []struct{ Offset, Length, Type int64 }
		if err := json.Unmarshal([]byte(run("--json", "--map="+context, s.uri("main"))), &got); err != nil {
			t.Fatal(err)
		}
		want := fmt.Sprintf("[{0 4096 %d} {4096 8192 0}]", flags)
		if context == depth {
			want = "[{0 4096 2} {4096 4096 0} {8192 4096 2}]"
		}
		if fmt.Sprint(got) != want {
			t.Errorf("%s: map %v\nwant %s", context, got, want)
		}
	}
}

func TestClientNbdcopy(t *testing.T) {
	run := program(t, "nbdcopy")
	for _, cold := range []bool{false, true} {
		image := scattered(24 << 20)
		s, d := serveRAM(t, nbdsrv.Config{}, int64(len(image)))
		d.cold.Store(cold)
		dir := t.TempDir()
		in, out := filepath.Join(dir, "in"), filepath.Join(dir, "out")
		if err := os.WriteFile(in, image, 0o600); err != nil {
			t.Fatal(err)
		}
		run("--flush", in, s.uri("main"))
		run("--connections=4", s.uri("main"), out)
		expectFile(t, out, image)
		if d.flushes.Load() == 0 {
			t.Error("nbdcopy --flush flushed nothing")
		}
	}
}

func expectFile(t *testing.T, path string, want []byte) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("%s: %d bytes differ from the image's %d", path, len(got), len(want))
	}
}

func TestClientQemuImg(t *testing.T) {
	run := program(t, "qemu-img")
	image := scattered(24 << 20)
	s, d := serveRAM(t, nbdsrv.Config{}, int64(len(image)))
	dir := t.TempDir()
	in, out := filepath.Join(dir, "in"), filepath.Join(dir, "out.qcow2")
	if err := os.WriteFile(in, image, 0o600); err != nil {
		t.Fatal(err)
	}
	run("convert", "-n", "-f", "raw", "-O", "raw", in, s.uri("main"))
	expectBytes(t, d.snapshot(), image)
	run("convert", "-f", "raw", "-O", "qcow2", s.uri("main"), out)
	run("compare", "-F", "qcow2", s.uri("main"), out)
	var info struct {
		Size int64 `json:"virtual-size"`
	}
	if err := json.Unmarshal([]byte(run("info", "--output=json", s.uri("main"))), &info); err != nil {
		t.Fatal(err)
	}
	if info.Size != int64(len(image)) {
		t.Errorf("size %d", info.Size)
	}
}

func TestClientQemuIO(t *testing.T) {
	run := program(t, "qemu-io")
	for _, cold := range []bool{false, true} {
		s, d := serveRAM(t, nbdsrv.Config{}, 64<<20)
		d.cold.Store(cold)
		var args []string
		for _, cmd := range []string{
			"write -P 7 1M 40M", "read -P 7 1M 40M", "write -P 1 512 1024", "read -P 0 0 512", "read -P 1 512 1024",
			"write -f -P 2 4k 8k", "write -z 2M 1M", "read -P 0 2M 1M", "write -z -u 4M 64k", "read -P 0 4M 64k",
			"discard 8M 4M", "aio_write -P 3 16M 1M", "aio_write -P 4 17M 1M", "aio_flush",
			"read -P 3 16M 1M", "read -P 4 17M 1M", "flush", "map",
		} {
			args = append(args, "-c", cmd)
		}
		out := run(append(append([]string{"-f", "raw"}, args...), s.uri("main"))...)
		if strings.Contains(out, "failed") || strings.Contains(out, "rror") {
			t.Errorf("cold %v:\n%s", cold, out)
		}
		if d.flushes.Load() == 0 || d.zeroes.Load() == 0 {
			t.Error("no flush or no zeroes arrived")
		}
	}
}

func TestClientNbdsh(t *testing.T) {
	run := program(t, "nbdsh")
	if out, err := exec.Command("/usr/bin/python3", "-c", "import nbd").CombinedOutput(); err != nil {
		t.Skipf("NOT TESTED: python3-libnbd is not installed: %s", out)
	}
	s, _ := serveContexts(t, 8<<20)
	run("-c", `
import errno
h.add_meta_context("`+key+`")
h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
h.add_meta_context("`+dirtyA+`")
h.add_meta_context("x-fsx:dirty:none")
h.set_strict_mode(0)
h.connect_uri("`+s.uri("main")+`")
assert h.can_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
assert h.can_meta_context("`+key+`") and h.can_meta_context("`+dirtyA+`")
assert not h.can_meta_context("x-fsx:dirty:none") and not h.can_meta_context("`+depth+`")
assert h.get_structured_replies_negotiated()
size = h.get_size()

def refused(want, call):
    try:
        call()
    except nbd.Error as e:
        assert e.errnum == want, (e.errnum, e.string)
        return
    raise Exception("accepted")

buf = bytes(range(256)) * 512
h.pwrite(buf, 12345, nbd.CMD_FLAG_FUA)
assert h.pread(len(buf), 12345, nbd.CMD_FLAG_DF) == buf
seen = []
def chunk(data, off, status, err):
    seen.append((len(data), off, status))
h.pread_structured(100, 0, chunk)
assert seen == [(100, 0, nbd.READ_DATA)], seen

refused(errno.EINVAL, lambda: h.pread(512, size))
refused(errno.ENOSPC, lambda: h.pwrite(buf, size))
refused(errno.ENOSPC, lambda: h.zero(512, 2**64 - 512))
refused(errno.EINVAL, lambda: h.trim(512, 2**63 - 512))
refused(errno.EINVAL, lambda: h.pwrite(buf, 0, nbd.CMD_FLAG_NO_HOLE))
refused(errno.EINVAL, lambda: h.cache(512, 0, nbd.CMD_FLAG_REQ_ONE))

h.zero(65536, 0, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_NO_HOLE)
h.trim(65536, 1 << 20, nbd.CMD_FLAG_FUA)
h.cache(1 << 20, 0)
h.flush()
entries = {}
h.block_status(size, 0, lambda ctx, off, e, err: entries.__setitem__(ctx, list(e)))
assert sorted(entries) == ["base:allocation", "`+dirtyA+`", "`+key+`"], entries
for e in entries.values():
    assert sum(e[0::2]) == size, entries
assert entries["`+key+`"][:4] == [4096, 3, 8192, 0], entries
assert entries["`+dirtyA+`"][:4] == [4096, 4, 12288, 0], entries

done = [h.aio_pread(nbd.Buffer(4096), i * 4096) for i in range(64)]
while h.aio_in_flight():
    h.poll(-1)
for cookie in done:
    assert h.aio_command_completed(cookie)
assert h.pread(512, 0) == bytes(512)
h.shutdown()
`)
}

func TestClientNbdClientList(t *testing.T) {
	run := program(t, "nbd-client")
	exports := newExports().
		add(nbdsrv.Export{Name: "one", Description: "first", Device: newRAM(1 << 20)}).
		add(nbdsrv.Export{Name: "two", Device: newRAM(1 << 20)})
	s := serveOn(t, nbdsrv.Config{}, exports, "tcp", "127.0.0.1:0")
	host, port, err := net.SplitHostPort(s.addr.String())
	if err != nil {
		t.Fatal(err)
	}
	out := run("-l", host, port)
	if !strings.Contains(out, "one") || !strings.Contains(out, "two") {
		t.Errorf("list:\n%s", out)
	}
}

func TestClientFio(t *testing.T) {
	run := program(t, "fio")
	if out := run("--enghelp"); !strings.Contains(out, "nbd") {
		t.Skip("NOT TESTED: fio has no nbd engine")
	}
	for _, cold := range []bool{false, true} {
		s, d := serveRAM(t, nbdsrv.Config{}, 32<<20)
		d.cold.Store(cold)
		for _, bs := range []string{"4k-4k", "512-128k"} {
			run("--name=verify", "--ioengine=nbd", "--uri="+s.uri("main"), "--rw=randwrite", "--bsrange="+bs,
				"--size=32m", "--iodepth=32", "--verify=crc32c", "--verify_fatal=1", "--do_verify=1",
				"--fsync=64", "--randrepeat=0")
		}
	}
}

// TestClientQemuListsMany: qemu-nbd asks twice about each export, on one
// connection.
func TestClientQemuListsMany(t *testing.T) {
	run := program(t, "qemu-nbd")
	exports := newExports()
	for i := range 100 {
		exports.add(nbdsrv.Export{Name: fmt.Sprintf("disk%d", i), Device: newRAM(1 << 20)})
	}
	s := serve(t, nbdsrv.Config{}, exports)
	out := run("-L", "-k", s.addr.String())
	if n := strings.Count(out, "export: 'disk"); n != 100 || !strings.Contains(out, "exports available: 100") {
		t.Errorf("%d exports are listed:\n%s", n, out)
	}
}
