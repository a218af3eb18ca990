package interop_test

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// secureServer is a server whose TCP port wants TLS.
type secureServer struct {
	*server
	port string
}

// serveTLS serves on the unix socket and, with TLS, on a TCP port.
func (s *store) serveTLS(p *pki, options ...string) *secureServer {
	s.t.Helper()
	srv := s.serve(append(append(p.server(), "--listen", "localhost:0"), options...)...)
	told := regexp.MustCompile(`(?m)^nbds://localhost:(\d+)/`)
	srv.await("the URI of the TCP port", func() bool { return told.MatchString(srv.log.String()) })
	return &secureServer{srv, told.FindStringSubmatch(srv.log.String())[1]}
}

// await waits until something about the server has come true.
func (srv *server) await(what string, cond func() bool) {
	srv.t.Helper()
	for end := time.Now().Add(time.Minute); !cond(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			srv.t.Fatalf("waited in vain for %s\n%s", what, srv.log)
		}
	}
}

// tcp is the URI of an export for libnbd, with a client's folder.
func (srv *secureServer) tcp(export, dir string) string {
	return fmt.Sprintf("nbds://localhost:%s/%s?tls-certificates=%s", srv.port, export, dir)
}

// local is the same on the unix socket.
func (srv *secureServer) local(export, dir string) string {
	return fmt.Sprintf("nbds+unix://localhost/%s?socket=%s&tls-certificates=%s", export, srv.socket, dir)
}

// qemu are the options with which QEMU's programs open an export.
func (srv *secureServer) qemu(export, dir string) []string {
	return []string{
		"--object", "tls-creds-x509,id=tls0,endpoint=client,dir=" + dir,
		"--image-opts", fmt.Sprintf("driver=nbd,host=localhost,port=%s,export=%s,tls-creds=tls0", srv.port, export),
	}
}

// refused requires that a program fails, and that it says why.
func refused(t *testing.T, name string, args ...string) string {
	t.Helper()
	out := execute(t, name, args...)
	if out.code == 0 {
		t.Errorf("%s %s succeeded:\n%s", name, strings.Join(args, " "), out.stdout)
	}
	return out.stderr
}

// TestTLSClients copies in and out with certificates, over TCP and the socket.
func TestTLSClients(t *testing.T) {
	need(t, "nbdinfo", "nbdcopy", "qemu-img", "qemu-io", "cmp")
	rng := random(t)
	s := newStore(t, t.TempDir())
	s.create("64M")
	p := newPKI(t)
	dir := p.client(p, "alice")
	srv := s.serveTLS(p)
	raw, back := filepath.Join(s.dir, "in.raw"), filepath.Join(s.dir, "back.raw")
	sparseFile(t, raw, 64<<20, rng)

	for _, uri := range []string{srv.tcp("", dir), srv.local("main", dir)} {
		if out := must(t, "nbdinfo", uri); !strings.Contains(out, "newstyle-fixed with TLS") || !strings.Contains(out, "export-size: 67108864") {
			t.Errorf("nbdinfo: %s", out)
		}
		if out := must(t, "nbdinfo", "--list", uri); !strings.Contains(out, `export="main"`) {
			t.Errorf("nbdinfo --list: %s", out)
		}
	}
	must(t, "nbdcopy", "--connections=4", raw, srv.tcp("", dir))
	must(t, "nbdcopy", "--connections=4", srv.tcp("main", dir), back)
	sameFile(t, raw, back)
	must(t, "nbdcopy", srv.local("main", dir), back)
	sameFile(t, raw, back)

	must(t, "qemu-img", append([]string{"info"}, srv.qemu("main", dir)...)...)
	os.Remove(back)
	must(t, "qemu-img", append(append([]string{"convert", "-O", "raw"}, srv.qemu("main", dir)...), back)...)
	sameFile(t, raw, back)
	commands := srv.qemu("main", dir)
	for _, c := range qemuIO {
		commands = append(commands, "-c", c)
	}
	if out := must(t, "qemu-io", commands...); strings.Contains(out, "failed") {
		t.Errorf("qemu-io: %s", out)
	}

	// The socket is for this user, who may go without; TCP may not.
	must(t, "nbdinfo", "--size", srv.uri)
	plain := strings.Split(strings.Replace(srv.tcp("main", dir), "nbds:", "nbd:", 1), "?")[0]
	if why := refused(t, "nbdinfo", "--size", plain); !strings.Contains(why, "TLS") {
		t.Errorf("nbdinfo in plaintext: %s", why)
	}
	refused(t, "qemu-img", "info", plain)
	srv.stop()
	s.check()
}

// TestTLSStrangers: no certificate, one of another authority, and one whose name is
// not on the list, which hides the export and its snapshots.
func TestTLSStrangers(t *testing.T) {
	need(t, "nbdinfo", "qemu-img")
	s := newStore(t, t.TempDir())
	s.create("8M")
	s.fsximg(exitOK, "snapshot", "create", "--key-file", s.key, s.path+"@golden")
	s.fsximg(exitOK, "clone", "--key-file", s.key, s.path+"@golden", "open")
	p, other := newPKI(t), newPKI(t)
	srv := s.serveTLS(p, "--tls-allow", "main=alice,host.example")
	for name, tt := range map[string]struct {
		dir  string
		main bool // may have it
		open bool
	}{
		"no certificate":    {p.client(nil, ""), false, false},
		"another authority": {p.client(other, "alice"), false, false},
		"not on the list":   {p.client(p, "bob", "alice.example"), false, true},
		"common name":       {p.client(p, "alice"), true, true},
		"DNS name":          {p.client(p, "someone", "host.example"), true, true},
	} {
		t.Run(name, func(t *testing.T) {
			for export, may := range map[string]bool{"main": tt.main, "": tt.main, "main@golden": tt.main, "open": tt.open} {
				for program, args := range map[string][]string{
					"nbdinfo":  {"--size", srv.tcp(export, tt.dir)},
					"qemu-img": append([]string{"info"}, srv.qemu(export, tt.dir)...),
				} {
					if out := execute(t, program, args...); (out.code == 0) != may {
						t.Errorf("%s of %q: exit %d\n%s", program, export, out.code, out.stderr)
					}
				}
			}
			out := execute(t, "nbdinfo", "--list", srv.tcp("", tt.dir))
			// It leaves out what is listed and cannot be opened, but says so.
			if tt.open && (out.code != 0 || out.stderr != "") {
				t.Errorf("nbdinfo --list: exit %d\n%s", out.code, out.stderr)
			}
			for export, may := range map[string]bool{"main": tt.main, "main@golden": tt.main, "open": tt.open} {
				if strings.Contains(out.stdout, fmt.Sprintf("export=%q:", export)) != may {
					t.Errorf("nbdinfo --list, of %q:\n%s%s", export, out.stdout, out.stderr)
				}
			}
		})
	}
	// This user could read the store itself.
	must(t, "nbdinfo", "--size", srv.uri)
	s.fsximg(exitOK, "export", s.path, filepath.Join(s.dir, "out.raw"))
	log := srv.log.String()
	for _, want := range []string{"didn't provide a certificate", "unknown authority", "export is not for this client", "[bob alice.example]"} {
		if !strings.Contains(log, want) {
			t.Errorf("the log does not say %q:\n%s", want, log)
		}
	}
	srv.stop()
}

// TestTLSRequired: the unix socket, too, when it is asked for.
func TestTLSRequired(t *testing.T) {
	need(t, "nbdinfo")
	s := newStore(t, t.TempDir())
	s.create("8M")
	p := newPKI(t)
	srv := s.serveTLS(p, "--tls-required")
	if !strings.HasPrefix(srv.uri, "nbds+unix://") {
		t.Errorf("URI %s", srv.uri)
	}
	refused(t, "nbdinfo", "--size", strings.Replace(srv.uri, "nbds+", "nbd+", 1))
	must(t, "nbdinfo", "--size", srv.local("", p.client(p, "alice")))
	out := s.fsximg(exitBusy, "export", s.path, filepath.Join(s.dir, "out.raw"))
	if !strings.Contains(out.stderr, "served with TLS only") || !strings.Contains(out.stderr, "hint: start the server with --socket") {
		t.Errorf("fsximg export: %s", out.stderr)
	}
	srv.stop()
}

// TestTLSReload: after SIGHUP new connections meet the new files, old ones go on,
// and files that are broken change nothing.
func TestTLSReload(t *testing.T) {
	need(t, "nbdinfo", "qemu-io")
	s := newStore(t, t.TempDir())
	s.create("8M")
	old, next := newPKI(t), newPKI(t)
	srv := s.serveTLS(old)
	before, after := old.client(old, "alice"), next.client(next, "alice")
	must(t, "nbdinfo", "--size", srv.tcp("", before))
	refused(t, "nbdinfo", "--size", srv.tcp("", after))
	session := openQemuIO(t, srv.qemu("", before))
	session.do("write -P 0x5a 0 64k", "wrote 65536/65536")

	next.server()
	for _, name := range []string{"ca-cert.pem", "server-cert.pem", "server-key.pem"} {
		if err := os.Rename(filepath.Join(next.dir, name), filepath.Join(old.dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	srv.hangup()
	srv.await("the new certificate", func() bool { return execute(t, "nbdinfo", "--size", srv.tcp("", after)).code == 0 })
	refused(t, "nbdinfo", "--size", srv.tcp("", before))
	session.do("read -P 0x5a 0 64k", "read 65536/65536")

	if err := os.WriteFile(filepath.Join(old.dir, "server-key.pem"), []byte("no key\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	srv.hangup()
	srv.await("the complaint", func() bool { return strings.Contains(srv.log.String(), "reload failed") })
	must(t, "nbdinfo", "--size", srv.tcp("", after))
	session.do("read -P 0x5a 4k 4k", "read 4096/4096")
	session.end()
	srv.stop()
}

func (srv *server) hangup() {
	srv.t.Helper()
	if err := srv.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		srv.t.Fatal(err)
	}
}

// qemuSession is a qemu-io that stays connected.
type qemuSession struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func openQemuIO(t *testing.T, options []string) *qemuSession {
	t.Helper()
	q := &qemuSession{t: t, cmd: exec.Command("qemu-io", options...)}
	var err error
	if q.in, err = q.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := q.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	q.out = bufio.NewReader(out)
	if err := q.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { q.cmd.Process.Kill() })
	return q
}

// do runs a command and requires a line that begins like want.
func (q *qemuSession) do(command, want string) {
	q.t.Helper()
	if _, err := fmt.Fprintln(q.in, command); err != nil {
		q.t.Fatal(err)
	}
	for {
		line, err := q.out.ReadString('\n')
		if strings.Contains(line, want) {
			return
		}
		if err != nil || strings.Contains(line, "failed") {
			q.t.Fatalf("qemu-io: %s: %q, %v", command, line, err)
		}
	}
}

func (q *qemuSession) end() {
	q.t.Helper()
	q.in.Close()
	io.Copy(io.Discard, q.out)
	if err := q.cmd.Wait(); err != nil {
		q.t.Errorf("qemu-io: %v", err)
	}
}
