package interop_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// pamLogin is a login through real PAM that lasts until it is told to end.
type pamLogin struct {
	t    *testing.T
	cmd  *exec.Cmd
	out  *logBuffer
	goOn string // makes it log out
}

// TestPAM logs in and out by a service of PAM's with scripts/pam-fsx: the key comes
// with the password, stays as long as one session is open, and goes with the last.
func TestPAM(t *testing.T) {
	need(t, "pamtester", "flock")
	if os.Geteuid() != 0 {
		t.Skip("SKIP: only root may make a service of PAM's")
	}
	s := newStore(t, t.TempDir())
	s.create("16M")
	srv := s.serveWith("--no-keys")
	p := newPAMService(t, s.path+":main")
	state := func() string {
		for line := range strings.Lines(s.keyCommand("status", s.path)) {
			if f := strings.Fields(line); f[0] != "KEY" {
				return f[1]
			}
		}
		return "no key at all"
	}
	expect := func(step, want string) {
		t.Helper()
		if got := state(); got != want {
			t.Fatalf("%s: the key is %s, want %s", step, got, want)
		}
	}
	expect("before", "absent")
	if out, err := p.run("not it", "authenticate"); err == nil {
		t.Errorf("a wrong password logs in: %s", out)
	}
	expect("wrong password", "absent")

	first := p.login(passphrase)
	expect("first login", "present")
	c := dial(t, srv.socket, "main")
	if err := c.writeAt(bytes.Repeat([]byte{7}, 4096), 0, 0); err != nil {
		t.Fatal(err)
	}
	second := p.login(passphrase)
	first.logout()
	expect("one of two left", "present")
	second.logout()
	expect("all left, a client stays", "incompletely-removed")
	c.close()
	for end := time.Now().Add(time.Minute); state() != "absent" && time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
	}
	expect("the client left", "absent")

	// A login that is killed is no session any more.
	killed := p.login(passphrase)
	killed.kill()
	expect("killed", "present")
	p.login(passphrase).logout()
	expect("after the one that was killed", "absent")
	if out, err := p.as("somebody/else", passphrase, "authenticate"); err == nil {
		t.Errorf("a name that leads elsewhere: %s", out)
	}
	srv.stop()
	s.check()
}

type pamService struct {
	t    *testing.T
	dir  string
	name string
	user string
	n    int
}

// newPAMService makes a service whose sessions wait to be ended.
func newPAMService(t *testing.T, volume string) *pamService {
	t.Helper()
	p := &pamService{t: t, dir: t.TempDir(), name: fmt.Sprintf("fsx-test-%d", os.Getpid()), user: fmt.Sprintf("fsxtest%d", os.Getpid())}
	script, err := os.ReadFile("../../scripts/pam-fsx")
	if err != nil {
		t.Fatal(err)
	}
	pam, hold := filepath.Join(p.dir, "pam-fsx"), filepath.Join(p.dir, "hold")
	holdScript := fmt.Sprintf("#!/bin/sh\n[ $PAM_TYPE = open_session ] || exit 0\ntouch %s/in.$PPID\nuntil [ -e %s/out.$PPID ]; do sleep 0.02; done\n", p.dir, p.dir)
	service := fmt.Sprintf("auth required pam_exec.so expose_authtok log=%[1]s/log %[2]s %[3]s\n"+
		"session required pam_exec.so log=%[1]s/log %[2]s %[3]s\nsession required pam_exec.so %[4]s\naccount required pam_permit.so\n", p.dir, pam, volume, hold)
	for file, content := range map[string]string{pam: string(script), hold: holdScript} {
		if err := os.WriteFile(file, []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(filepath.Join(programs, "fsxnbd"), filepath.Join(p.dir, "fsxnbd")); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join("/etc/pam.d", p.name)
	t.Cleanup(func() {
		if log, err := os.ReadFile(filepath.Join(p.dir, "log")); err == nil && t.Failed() {
			t.Logf("log of pam_exec:\n%s", log)
		}
		os.Remove(file)
		for _, left := range []string{"", ".lock", ".new"} {
			os.Remove("/run/fsx-pam/" + p.user + left)
		}
		os.Remove("/run/fsx-pam") // if nobody else has it
	})
	if err := os.WriteFile(file, []byte(service), 0o644); err != nil {
		t.Fatal(err)
	}
	return p
}

func (p *pamService) command(user string, operations ...string) *exec.Cmd {
	return exec.Command("pamtester", append([]string{p.name, user}, operations...)...)
}

// as carries operations out as a user.
func (p *pamService) as(user, password string, operations ...string) ([]byte, error) {
	cmd := p.command(user, operations...)
	cmd.Stdin = strings.NewReader(password + "\n")
	return cmd.CombinedOutput()
}

func (p *pamService) run(password string, operations ...string) ([]byte, error) {
	return p.as(p.user, password, operations...)
}

// login opens a session, which waits for logout.
func (p *pamService) login(password string) *pamLogin {
	p.t.Helper()
	l := &pamLogin{t: p.t, out: &logBuffer{}, cmd: p.command(p.user, "authenticate", "open_session", "close_session")}
	l.cmd.Stdin = strings.NewReader(password + "\n")
	l.cmd.Stdout, l.cmd.Stderr = l.out, l.out
	l.cmd.WaitDelay = 10 * time.Second
	if err := l.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	in := filepath.Join(p.dir, fmt.Sprintf("in.%d", l.cmd.Process.Pid))
	l.goOn = filepath.Join(p.dir, fmt.Sprintf("out.%d", l.cmd.Process.Pid))
	for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(in); err == nil {
			return l
		}
		if time.Now().After(end) {
			l.cmd.Process.Kill()
			p.t.Fatalf("no session opens: %s", l.out)
		}
	}
}

func (l *pamLogin) logout() {
	l.t.Helper()
	if err := os.WriteFile(l.goOn, nil, 0o600); err != nil {
		l.t.Fatal(err)
	}
	if err := l.cmd.Wait(); err != nil {
		l.t.Fatalf("pamtester: %v\n%s", err, l.out)
	}
}

// kill ends the process of the login, as a crash would.
func (l *pamLogin) kill() {
	l.t.Helper()
	l.cmd.Process.Kill()
	if err := os.WriteFile(l.goOn, nil, 0o600); err != nil { // what it waits for
		l.t.Fatal(err)
	}
	_ = l.cmd.Wait()
}
