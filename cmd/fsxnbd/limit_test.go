package main

import (
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestLimitConns: the third of two waits until one leaves.
func TestLimitConns(t *testing.T) {
	inner, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	l := limitConns(inner, 2)
	accepted := make(chan net.Conn, 3)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				close(accepted)
				return
			}
			accepted <- c
		}
	}()
	for range 3 {
		c, err := net.Dial("unix", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	first := <-accepted
	<-accepted
	select {
	case <-accepted:
		t.Fatal("a third was accepted")
	case <-time.After(50 * time.Millisecond):
	}
	first.Close()
	first.Close() // gives one place back
	<-accepted
	l.Close()
	if _, open := <-accepted; open {
		t.Error("a fourth was accepted")
	}
}

func TestSharing(t *testing.T) {
	dir := t.TempDir()
	for mode, want := range map[os.FileMode]sharedBy{0o600: nobody, 0o755: nobody, 0o660: aGroup, 0o666: everybody} {
		l, err := net.Listen("unix", filepath.Join(dir, mode.String()))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(l.Addr().String(), mode); err != nil {
			t.Fatal(err)
		}
		if got := sharing(l); got != want {
			t.Errorf("mode %v: %d, want %d", mode, got, want)
		}
		l.Close()
	}
	l, err := net.Listen("unix", "@fsx-test-"+filepath.Base(dir))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if sharing(l) != everybody {
		t.Error("an abstract socket is taken for private")
	}
}

// TestListenerOf takes what listens, and nothing else.
func TestListenerOf(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f, err := l.(*net.UnixListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if again, err := listenerOf(f); err != nil {
		t.Error(err)
	} else {
		again.Close()
	}
	for _, kind := range []int{unix.SOCK_STREAM, unix.SOCK_DGRAM} {
		fd, err := unix.Socket(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		f := os.NewFile(uintptr(fd), "socket")
		if _, err := listenerOf(f); err == nil {
			t.Errorf("a socket of kind %d that does not listen is taken", kind)
		}
		f.Close()
	}
}

// TestReadPEM waits for nothing and reads no more than a file of certificates has.
func TestReadPEM(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	big := filepath.Join(t.TempDir(), "big")
	if f, err := os.Create(big); err != nil || f.Truncate(longestPEM+1) != nil || f.Close() != nil {
		t.Fatal(err)
	}
	for _, path := range []string{fifo, "/dev/zero", big, t.TempDir()} {
		if _, err := readPEM(path, 0); err == nil {
			t.Errorf("%s is read", path)
		}
	}
}

func TestLogLimit(t *testing.T) {
	l := logLimit{most: 3}
	n := 0
	for range 100 {
		if l.admit() {
			n++
		}
	}
	if n < 3 || n > 6 { // a second may have begun meanwhile
		t.Errorf("%d of 100 lines, want 3", n)
	}
}
