package control_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/fsximg/fsx/internal/cliutil"
	"github.com/fsximg/fsx/internal/control"
	"github.com/fsximg/fsx/internal/volume"
	"github.com/fsximg/fsx/pkg/crypt"
	"github.com/fsximg/fsx/pkg/crypt/ageslot"
	"github.com/fsximg/fsx/pkg/crypt/tpmslot"
)

const dialVariable = "CONTROL_TEST_DIAL"

// TestMain is also a client of another user: it dials and says what it got.
func TestMain(m *testing.M) {
	if path := os.Getenv(dialVariable); path != "" {
		c, err := control.Dial(context.Background(), path)
		fmt.Println(c != nil, err)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// newStore makes an open store with a short path.
func newStore(t *testing.T) (*volume.Store, string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "fsxctl")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return storeAt(t, filepath.Join(dir, "a.fsx")), filepath.Join(dir, "a.fsx")
}

func storeAt(t *testing.T, path string) *volume.Store {
	t.Helper()
	st, err := volume.Create(path, volume.CreateOptions{Size: 1 << 20, Secrets: []crypt.Secret{crypt.NewClear()}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	return st
}

func config(path string, o control.Operations) control.Config {
	return control.Config{Path: path, UUID: "some", Operations: o, Program: "test", Version: "1.2"}
}

func serve(t *testing.T, c control.Config) *control.Server {
	t.Helper()
	s, err := control.Serve(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func dial(t *testing.T, path string) *control.Client {
	t.Helper()
	c, err := control.Dial(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// TestSameAsLocal runs the operations both ways: the results, and the sentinels
// and texts of errors, are the same.
func TestSameAsLocal(t *testing.T) {
	st, path := newStore(t)
	v, err := st.Volume("main")
	if err != nil {
		t.Fatal(err)
	}
	if err := v.WriteAt(bytes.Repeat([]byte{1}, 8192), 4096, false); err != nil {
		t.Fatal(err)
	}
	local := control.NewLocal(st, nil)
	serve(t, config(path, local))
	client := dial(t, path)
	if h := client.Server(); h.PID != os.Getpid() || h.Program != "test" || h.Version != "1.2" || h.Store != "some" {
		t.Errorf("hello: %+v", h)
	}
	ctx := t.Context()
	if _, err := client.CreateSnapshot(ctx, "main", "one"); err != nil {
		t.Fatal(err)
	}
	for name, do := range map[string]func(o control.Operations) (any, error){
		"map": func(o control.Operations) (any, error) {
			var l []control.Run
			err := o.Map(ctx, "main", "one", func(r control.Run) error { l = append(l, r); return nil })
			if len(l) < 2 {
				t.Errorf("%d runs", len(l))
			}
			return l, err
		},
		"info":        func(o control.Operations) (any, error) { return o.Info(ctx) },
		"check":       func(o control.Operations) (any, error) { return o.Check(ctx, func(int64, int64) {}) },
		"compact":     func(o control.Operations) (any, error) { c, err := o.Compact(ctx); return c.Locked, err },
		"no snapshot": func(o control.Operations) (any, error) { return o.DeleteSnapshot(ctx, "main", "two") },
		"no volume":   func(o control.Operations) (any, error) { return o.CreateSnapshot(ctx, "other", "x") },
		"no map":      func(o control.Operations) (any, error) { return nil, o.Map(ctx, "other", "", nil) },
		"exists":      func(o control.Operations) (any, error) { return o.CreateSnapshot(ctx, "main", "one") },
		"cipher": func(o control.Operations) (any, error) {
			return nil, o.CreateVolume(ctx, control.VolumeRequest{Name: "x", Size: 4096, Cipher: "rot13"})
		},
		"secret": func(o control.Operations) (any, error) {
			bad := []cliutil.SlotSecret{{Type: "key-file", Data: []byte("printable")}}
			return nil, o.Clone(ctx, control.CloneRequest{Volume: "main", Snapshot: "one", Name: "x", Secrets: bad})
		},
	} {
		t.Run(name, func(t *testing.T) {
			want, wantErr := do(local)
			got, gotErr := do(client)
			if a, b := fmt.Sprint(wantErr), fmt.Sprint(gotErr); a != b {
				t.Errorf("error %q, want %q", b, a)
			}
			if a, b := cliutil.ExitCode(wantErr), cliutil.ExitCode(gotErr); a != b {
				t.Errorf("exit code %d, want %d", b, a)
			}
			for _, s := range []error{volume.ErrNotFound, volume.ErrNoSnapshot, volume.ErrExists, crypt.ErrMode, crypt.ErrPrintableKeyFile} {
				if errors.Is(wantErr, s) != errors.Is(gotErr, s) {
					t.Errorf("errors.Is %v: %v", s, errors.Is(gotErr, s))
				}
			}
			a, _ := json.Marshal(want)
			b, _ := json.Marshal(got)
			if wantErr == nil && !bytes.Equal(a, b) {
				t.Errorf("got %s\nwant %s", b, a)
			}
		})
	}
}

// stub is operations of which only some are asked for.
type stub struct {
	control.Operations
	check func(ctx context.Context, progress func(done, total int64)) (control.Report, error)
	runs  int
	err   error
}

func (s *stub) Check(ctx context.Context, p func(done, total int64)) (control.Report, error) {
	return s.check(ctx, p)
}

func (s *stub) Compact(context.Context) (control.Compaction, error) {
	return control.Compaction{}, s.err
}

func (s *stub) Map(_ context.Context, _, _ string, fn func(control.Run) error) error {
	for i := range s.runs {
		if err := fn(control.Run{Start: int64(i) << 12, Length: 4096, Kind: "data", Key: strings.Repeat("ab", 16)}); err != nil {
			return err
		}
	}
	return s.err
}

func TestErrorsTravel(t *testing.T) {
	_, path := newStore(t)
	o := &stub{}
	serve(t, config(path, o))
	client := dial(t, path)
	for _, sentinel := range []error{
		volume.ErrNotFound, volume.ErrNoSnapshot, volume.ErrExists, volume.ErrKeyMissing, volume.ErrWrongKey, volume.ErrDamaged,
		volume.ErrReadOnly, volume.ErrClosed, volume.ErrBusy, volume.ErrLastVolume, volume.ErrShrink, volume.ErrSharedBySnapshots, volume.ErrNewerSnapshots, volume.ErrNotStore, volume.ErrNoKey, volume.ErrNotFlushed, volume.ErrOnlyCopy,
		cliutil.ErrInUse, cliutil.ErrUsage, cliutil.ErrNotFound, cliutil.ErrNoSecret, crypt.ErrKDF, crypt.ErrMode,
		ageslot.ErrRecipient, ageslot.ErrPlugin, tpmslot.ErrPCRs, tpmslot.ErrNoTPM, tpmslot.ErrLockout, tpmslot.ErrTPM,
		syscall.ENOSPC, errors.New("anything else"),
	} {
		o.err = cliutil.WithHint(fmt.Errorf("volume main: %w", sentinel), "do %s", "this")
		_, err := client.Compact(t.Context())
		if err == nil || err.Error() != o.err.Error() || cliutil.HintOf(err) != "do this" {
			t.Errorf("%v: got %v, hint %q", sentinel, err, cliutil.HintOf(err))
		}
		if a, b := cliutil.ExitCode(o.err), cliutil.ExitCode(err); a != b {
			t.Errorf("%v: exit code %d, want %d", sentinel, b, a)
		}
		if sentinel.Error() != "anything else" && !errors.Is(err, sentinel) {
			t.Errorf("%v is lost", sentinel)
		}
	}
	// The server's name of the store is not the client's.
	o.err = fmt.Errorf("%s: volume main: %w", path, volume.ErrKeyMissing)
	other := filepath.Join(filepath.Dir(path), "b\n.fsx")
	if err := os.Symlink(path, other); err != nil {
		t.Fatal(err)
	}
	if _, err := dial(t, other).Compact(t.Context()); err == nil || err.Error() != other+": volume main: key is missing" {
		t.Errorf("got %v", err)
	}
}

// TestURI asks where a volume can be read: the answer and the error are the
// server's, and one that exports nothing says so.
func TestURI(t *testing.T) {
	_, path := newStore(t)
	c := config(path, &stub{})
	c.URI = func(volume, snapshot string) (string, error) {
		if volume != "main" {
			return "", cliutil.WithHint(cliutil.Errorf(cliutil.ErrInUse, "not exported"), "export it")
		}
		return "nbd+unix:///" + volume + "@" + snapshot, nil
	}
	s := serve(t, c)
	client := dial(t, path)
	if uri, err := client.URI(t.Context(), "main", "one"); err != nil || uri != "nbd+unix:///main@one" {
		t.Errorf("%q, %v", uri, err)
	}
	if _, err := client.URI(t.Context(), "other", ""); !errors.Is(err, cliutil.ErrInUse) || cliutil.HintOf(err) != "export it" {
		t.Errorf("got %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	serve(t, config(path, &stub{}))
	if _, err := dial(t, path).URI(t.Context(), "main", ""); !errors.Is(err, cliutil.ErrInUse) {
		t.Errorf("a server that exports nothing: %v", err)
	}
}

// TestManyItems has more than fit into memory, and a failure after all of them:
// then none is seen.
func TestManyItems(t *testing.T) {
	_, path := newStore(t)
	o := &stub{runs: 50000}
	serve(t, config(path, o))
	client := dial(t, path)
	n := int64(0)
	count := func(r control.Run) error {
		if r.Start != n<<12 {
			return fmt.Errorf("run %d starts at %d", n, r.Start)
		}
		n++
		return nil
	}
	if err := client.Map(t.Context(), "main", "", count); err != nil || n != 50000 {
		t.Errorf("%d runs, %v", n, err)
	}
	stop := errors.New("enough")
	if err := client.Map(t.Context(), "main", "", func(control.Run) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("got %v", err)
	}
	n, o.err = 0, volume.ErrDamaged
	if err := client.Map(t.Context(), "main", "", count); !errors.Is(err, volume.ErrDamaged) || n != 0 {
		t.Errorf("%d runs, %v", n, err)
	}
}

// TestLongOperation takes longer than a request may, and tells its progress.
func TestLongOperation(t *testing.T) {
	_, path := newStore(t)
	o := &stub{check: func(ctx context.Context, p func(done, total int64)) (control.Report, error) {
		for i := range int64(8) {
			p(i, 8)
			select {
			case <-time.After(100 * time.Millisecond):
			case <-ctx.Done():
				return control.Report{}, context.Cause(ctx)
			}
		}
		return control.Report{Clean: true}, nil
	}}
	serve(t, control.WithRequestTimeout(config(path, o), 200*time.Millisecond))
	told := 0
	rep, err := dial(t, path).Check(t.Context(), func(done, total int64) {
		if total == 8 {
			told++
		}
	})
	if err != nil || !rep.Clean || told < 2 {
		t.Errorf("%+v, told %d times, %v", rep, told, err)
	}
}

// waiting is an operation that waits until it is cancelled.
func waiting() (o *stub, begun chan struct{}, cause chan error) {
	begun, cause = make(chan struct{}, 1), make(chan error, 1)
	return &stub{check: func(ctx context.Context, _ func(done, total int64)) (control.Report, error) {
		begun <- struct{}{}
		<-ctx.Done()
		cause <- context.Cause(ctx)
		return control.Report{}, ctx.Err()
	}}, begun, cause
}

func TestClientGoesAway(t *testing.T) {
	_, path := newStore(t)
	o, begun, cause := waiting()
	serve(t, config(path, o))
	ctx, cancel := context.WithCancel(t.Context())
	client := dial(t, path)
	failed := make(chan error, 1)
	go func() {
		_, err := client.Check(ctx, nil)
		failed <- err
	}()
	<-begun
	cancel()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Errorf("client: %v", err)
	}
	select {
	case <-cause:
	case <-time.After(10 * time.Second):
		t.Error("the operation goes on")
	}
}

func TestServerEnds(t *testing.T) {
	_, path := newStore(t)
	o, begun, _ := waiting()
	s := serve(t, config(path, o))
	client := dial(t, path)
	failed := make(chan error, 1)
	go func() {
		_, err := client.Check(t.Context(), nil)
		failed <- err
	}()
	<-begun
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := <-failed; !errors.Is(err, volume.ErrClosed) || err.Error() != "the server ends" {
		t.Errorf("client: %v", err)
	}
	if _, err := os.Lstat(filepath.Join(path, control.SocketName)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket stays: %v", err)
	}
	if _, err := control.Dial(t.Context(), path); !control.NoServer(err) {
		t.Errorf("dial: %v", err)
	}
}

func TestStaleSocket(t *testing.T) {
	_, path := newStore(t)
	name := filepath.Join(path, control.SocketName)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: name, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	if _, err := control.Dial(t.Context(), path); !control.NoServer(err) {
		t.Errorf("dial: %v", err)
	}
	s := serve(t, config(path, &stub{}))
	dial(t, path)
	if st, err := os.Lstat(name); err != nil || st.Mode() != os.ModeSocket|0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	// Another server's socket is left alone.
	os.Remove(name)
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(name); err != nil {
		t.Error(err)
	}
	if _, err := control.Serve(config(path, &stub{})); err == nil || !strings.Contains(err.Error(), "not a socket") {
		t.Errorf("over a file: %v", err)
	}
}

func TestLongPath(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("long", 30))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "a.fsx")
	storeAt(t, path)
	s := serve(t, config(path, &stub{}))
	dial(t, path)
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(filepath.Join(path, control.SocketName)); err == nil {
		t.Error("the socket stays")
	}
}

// lockedBuffer is a log.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func TestStrangers(t *testing.T) {
	_, path := newStore(t)
	var log lockedBuffer
	cfg := config(path, &stub{})
	cfg.Log = slog.New(slog.NewTextHandler(&log, nil))
	var uid atomic.Uint32
	var unknown atomic.Bool
	uid.Store(4711)
	serve(t, control.WithCredentials(cfg, func(*net.UnixConn) (control.Peer, error) {
		if unknown.Load() {
			return control.Peer{}, errors.New("no credentials")
		}
		return control.Peer{PID: 1, UID: uid.Load()}, nil
	}))
	if _, err := control.Dial(t.Context(), path); err == nil {
		t.Error("another user is let in")
	}
	if !strings.Contains(log.String(), "refused") || !strings.Contains(log.String(), "uid=4711") {
		t.Errorf("log: %s", log.String())
	}
	uid.Store(0)
	dial(t, path)
	unknown.Store(true)
	if _, err := control.Dial(t.Context(), path); err == nil {
		t.Error("somebody unknown is let in")
	}
	// A stranger takes nobody's place.
	for range 2 * control.MaxConnections {
		_, _ = control.Dial(t.Context(), path)
	}
	unknown.Store(false)
	dial(t, path)
}

// TestOtherUser has a process of another user connect to a socket whose mode
// would let it.
func TestOtherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("NOT TESTED: needs root")
	}
	_, path := newStore(t)
	serve(t, config(path, &stub{}))
	for _, p := range []string{filepath.Dir(path), path, filepath.Join(path, control.SocketName)} {
		if err := os.Chmod(p, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	self := filepath.Join(filepath.Dir(path), "self")
	if b, err := os.ReadFile("/proc/self/exe"); err != nil {
		t.Fatal(err)
	} else if err := os.WriteFile(self, b, 0o755); err != nil {
		t.Fatal(err)
	}
	for uid, want := range map[uint32]string{0: "true", 65534: "false"} {
		cmd := exec.Command(self)
		cmd.Env = append(os.Environ(), dialVariable+"="+path)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		if out, err := cmd.CombinedOutput(); err != nil || !strings.HasPrefix(string(out), want) {
			t.Errorf("uid %d: %s (%v), want %s", uid, out, err, want)
		}
	}
}

// unixClient is curl.
func unixClient(path string) *http.Client {
	return &http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
		return net.Dial("unix", filepath.Join(path, control.SocketName))
	}}}
}

func TestRawRequests(t *testing.T) {
	_, path := newStore(t)
	serve(t, config(path, &stub{err: volume.ErrNotFound}))
	c := unixClient(path)
	for _, tt := range []struct {
		method, path, body string
		status             int
		kind               string
	}{
		{"POST", "/v1/hello", ``, 200, ""},
		{"POST", "/v1/hello", `{}`, 200, ""},
		{"POST", "/v2/hello", `{}`, 404, "protocol"},
		{"POST", "/v1/dance", `{}`, 404, "protocol"},
		{"GET", "/v1/info", ``, 400, "usage"},
		{"POST", "/v1/compact", ``, 404, "no-volume"},
		{"POST", "/v1/compact", `{"x":1}`, 400, "usage"},
		{"POST", "/v1/compact", `{}{}`, 400, "usage"},
		{"POST", "/v1/compact", `[`, 400, "usage"},
		{"POST", "/v1/compact", strings.Repeat(" ", 300<<10), 400, "usage"},
	} {
		q, _ := http.NewRequest(tt.method, "http://x"+tt.path, strings.NewReader(tt.body))
		r, err := c.Do(q)
		if err != nil {
			t.Errorf("%s %s: %v", tt.method, tt.path, err)
			continue
		}
		b, _ := io.ReadAll(r.Body)
		r.Body.Close()
		var l struct {
			Result json.RawMessage
			Error  *control.Failure
		}
		if err := json.Unmarshal(b, &l); err != nil {
			t.Errorf("%s %s: %v: %s", tt.method, tt.path, err, b)
			continue
		}
		kind := ""
		if l.Error != nil {
			kind = l.Error.Kind
		}
		if r.StatusCode != tt.status || kind != tt.kind {
			t.Errorf("%s %s %.20s: %d %s, want %d %s", tt.method, tt.path, tt.body, r.StatusCode, b, tt.status, tt.kind)
		}
	}
}

// TestOtherVersion meets servers of other versions.
func TestOtherVersion(t *testing.T) {
	for _, answer := range []string{
		`{"result":{"protocol":2,"program":"fsxnbd","version":"9"}}`,
		`{"error":{"kind":"protocol","message":"the server (fsxnbd 9) speaks version 2 of the control protocol"}}`,
	} {
		_, path := newStore(t)
		l, err := net.Listen("unix", filepath.Join(path, control.SocketName))
		if err != nil {
			t.Fatal(err)
		}
		s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, answer) })}
		go s.Serve(l)
		_, err = control.Dial(t.Context(), path)
		s.Close()
		if !errors.Is(err, control.ErrProtocol) || cliutil.ExitCode(err) != cliutil.ExitBusy || !strings.Contains(err.Error(), "fsxnbd 9") || cliutil.HintOf(err) == "" {
			t.Errorf("%s: %v", answer, err)
		}
	}
}

// TestIdleConnections has more clients than there may be that say nothing: they
// are thrown out.
func TestIdleConnections(t *testing.T) {
	_, path := newStore(t)
	serve(t, config(path, &stub{}))
	for range control.MaxConnections {
		c, err := net.Dial("unix", filepath.Join(path, control.SocketName))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	dial(t, path)
}

func TestSecretsPrintNothing(t *testing.T) {
	s := cliutil.SlotSecret{Type: "passphrase", Data: []byte("correct horse")}
	for _, f := range []string{"%v", "%+v", "%#v", "%s", "%x"} {
		if text := fmt.Sprintf(f, control.CloneRequest{Secrets: []cliutil.SlotSecret{s}}); strings.Contains(text, "horse") || strings.Contains(text, "636f7272") || strings.Contains(text, "99") {
			t.Errorf("%s: %s", f, text)
		}
	}
}
