package convert

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	qemuNBD       = "qemu-nbd"
	qemuImg       = "qemu-img"
	qemuStart     = 30 * time.Second // until qemu-nbd answers
	qemuStop      = 60 * time.Second // until it has written everything and gone
	qemuLastWords = time.Second      // until a server that hangs up is gone
	qemuPoll      = 10 * time.Millisecond
	maxQemuWords  = 4 << 10
)

// lookProgram finds a program of QEMU's tools.
func lookProgram(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("qcow2 needs %s: %w", name, ErrNoProgram)
	}
	return path, nil
}

// blockDevice is QEMU's description of a qcow2 image. With null as the backing
// file none is opened, whatever the header says by the time QEMU reads it.
func blockDevice(path string, device, allowBacking bool) (string, error) {
	driver := "file"
	if device {
		driver = "host_device"
	}
	d := map[string]any{
		"driver": "qcow2",
		"file":   map[string]string{"driver": driver, "filename": path},
	}
	if !allowBacking {
		d["backing"] = nil
	}
	b, err := json.Marshal(d)
	if err != nil {
		return "", err
	}
	return "json:" + string(b), nil
}

// openQcow2 makes a source of a qcow2 image, whose header was checked.
func openQcow2(ctx context.Context, f *os.File, allowBacking bool) (Source, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	path, err := filepath.Abs(f.Name())
	if err != nil {
		return nil, err
	}
	desc, err := blockDevice(path, st.Mode()&os.ModeDevice != 0, allowBacking)
	if err != nil {
		return nil, err
	}
	q, err := startQemuNBD(ctx, "--read-only", desc)
	if err != nil {
		return nil, err
	}
	f.Close()
	return FromRandom(q), nil
}

// qemu is a running qemu-nbd and the connection to it.
type qemu struct {
	*NBD
	cmd   *exec.Cmd
	dir   string
	words *boundedBuffer
	gone  chan struct{} // closed when the process has ended
}

// startQemuNBD runs qemu-nbd on a socket that only this user can reach, and
// connects. The process ends with the connection.
func startQemuNBD(ctx context.Context, args ...string) (q *qemu, err error) {
	program, err := lookProgram(qemuNBD)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "fsx-qemu-")
	if err != nil {
		return nil, err
	}
	socket := filepath.Join(dir, "s")
	q = &qemu{dir: dir, words: &boundedBuffer{}, gone: make(chan struct{})}
	q.cmd = exec.Command(program, append([]string{"--socket=" + socket}, args...)...)
	q.cmd.Stderr, q.cmd.Stdout = q.words, q.words
	// Not in our process group: Ctrl-C is ours to handle. It dies with us.
	q.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := q.cmd.Start(); err != nil {
		os.RemoveAll(dir)
		return nil, fmt.Errorf("start %s: %w", qemuNBD, err)
	}
	go func() {
		q.cmd.Wait()
		close(q.gone)
	}()
	if q.NBD, err = q.connect(ctx, socket); err != nil {
		q.kill()
		return nil, err
	}
	return q, nil
}

// connect tries until the server listens, or is gone.
func (q *qemu) connect(ctx context.Context, socket string) (*NBD, error) {
	ctx, cancel := context.WithTimeout(ctx, qemuStart)
	defer cancel()
	uri := url.URL{Scheme: "nbd+unix", Path: "/", RawQuery: url.Values{"socket": {socket}}.Encode()}
	for {
		c, err := DialNBD(ctx, uri.String())
		if err == nil {
			return c, nil
		}
		if !errors.Is(err, syscall.ENOENT) && !errors.Is(err, syscall.ECONNREFUSED) {
			return nil, q.explain(err)
		}
		select {
		case <-q.gone:
			return nil, q.explain(err)
		case <-ctx.Done():
			return nil, fmt.Errorf("%s does not answer: %w", qemuNBD, ctx.Err())
		case <-time.After(qemuPoll):
		}
	}
}

// explain prefers what qemu-nbd said to what the socket did when it went.
func (q *qemu) explain(err error) error {
	select {
	case <-q.gone:
		return fmt.Errorf("%s: %s", qemuNBD, q.words)
	case <-time.After(qemuLastWords):
		return err
	}
}

func (q *qemu) kill() {
	q.cmd.Process.Kill()
	<-q.gone
	os.RemoveAll(q.dir)
}

// Close disconnects and waits until qemu-nbd has closed the image.
func (q *qemu) Close() error {
	err := q.NBD.Client.Close()
	select {
	case <-q.gone:
	case <-time.After(qemuStop):
		q.kill()
		return errors.Join(err, fmt.Errorf("%s did not end", qemuNBD))
	}
	os.RemoveAll(q.dir)
	if !q.cmd.ProcessState.Success() {
		err = errors.Join(err, fmt.Errorf("%s: %s: %s", qemuNBD, q.cmd.ProcessState, q.words))
	}
	return err
}

// boundedBuffer keeps the first bytes of what a program says.
type boundedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *boundedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if room := maxQemuWords - b.b.Len(); room > 0 {
		b.b.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

func (b *boundedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := strings.TrimSpace(b.b.String())
	if s == "" {
		return "no message"
	}
	return strings.TrimPrefix(s, qemuNBD+": ")
}
