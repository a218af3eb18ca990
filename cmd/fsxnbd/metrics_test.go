package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fsximg/fsx/internal/cliutil"
	"github.com/fsximg/fsx/internal/volume"
	"github.com/fsximg/fsx/pkg/crypt"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// startServer serves a new store and lets a client write, flush, and read past the
// end.
func startServer(t *testing.T) *running {
	t.Helper()
	secret, err := crypt.NewKeyFile([]byte("\xffaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "a.fsx")
	st, err := volume.Create(path, volume.CreateOptions{Size: 1 << 20, Secrets: []crypt.Secret{secret}})
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	x := &exports{stores: []*served{{path: path, base: "a", st: st}}, log: log}
	l, err := listenUnix("--metrics", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	r := newRunning(&cliutil.Env{Log: log}, "1.0, commit abc", x, []net.Listener{l})
	go func() { _ = r.srv.Serve(context.Background(), l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := r.srv.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		if err := x.close(); err != nil {
			t.Error(err)
		}
	})
	client(t, l.Addr().String())
	return r
}

// client enters the default export by EXPORT_NAME and makes three requests.
func client(t *testing.T, socket string) {
	t.Helper()
	c, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	exchange := func(send []byte, reply int) {
		t.Helper()
		if _, err := c.Write(send); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, reply)); err != nil {
			t.Fatal(err)
		}
	}
	request := func(command uint16, offset uint64, length uint32) []byte {
		b := binary.BigEndian.AppendUint32(nil, 0x25609513)
		b = binary.BigEndian.AppendUint16(b, 0)
		b = binary.BigEndian.AppendUint16(b, command)
		b = binary.BigEndian.AppendUint64(b, 1)
		b = binary.BigEndian.AppendUint64(b, offset)
		return binary.BigEndian.AppendUint32(b, length)
	}
	exchange(nil, 18)
	exchange([]byte("\x00\x00\x00\x03IHAVEOPT\x00\x00\x00\x01\x00\x00\x00\x00"), 10)
	exchange(append(request(1, 0, 4096), bytes.Repeat([]byte{7}, 4096)...), 16)
	exchange(request(3, 0, 0), 16)
	exchange(request(0, 1<<20, 512), 16)
}

func scrape(t *testing.T, url string) string {
	t.Helper()
	res, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s, %v\n%s", url, res.Status, err, b)
	}
	return string(b)
}

// metricNames are what begins like a metric of ours, or of Prometheus' client.
var metricNames = regexp.MustCompile(`\b(?:fsx|process|go)_[a-z0-9_]+`)

func TestMetrics(t *testing.T) {
	r := startServer(t)
	web := httptest.NewServer(r.metricsHandler(slog.New(slog.DiscardHandler)))
	defer web.Close()
	if body := scrape(t, web.URL+"/healthz"); body != "ok\n" {
		t.Errorf("healthz says %q", body)
	}
	var text string
	for end := time.Now().Add(5 * time.Second); !strings.Contains(text, `error="EINVAL"`) && time.Now().Before(end); {
		text = scrape(t, web.URL+"/metrics") // a reply comes before it is counted
	}
	for _, want := range []string{
		`fsx_build_info{goversion="go`, `version="1.0"} 1`,
		`fsx_nbd_clients{export="main"} 1`,
		`fsx_nbd_requests_total{command="write",export="main"} 1`,
		`fsx_nbd_request_bytes_total{command="write",export="main"} 4096`,
		`fsx_nbd_request_errors_total{command="read",error="EINVAL",export="main"} 1`,
		`fsx_nbd_request_duration_seconds_count{command="flush",export="main"} 1`,
		`fsx_nbd_flush_duration_seconds_count{export="main"} 1`,
		`fsx_store_volume_keys{state="present",store="a"} 1`,
		`fsx_volume_checkpoint_lag_records{store="a",volume="main"} 1`,
		`fsx_volume_failed{store="a",volume="main"} 0`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("metrics lack %s", want)
		}
	}
	exists := map[string]bool{}
	for _, name := range metricNames.FindAllString(text, -1) {
		exists[name] = true
	}
	t.Run("dashboard", func(t *testing.T) { dashboardExists(t, exists) })
	t.Run("described", func(t *testing.T) { metricsAreDescribed(t, exists) })
}

// dashboardExists checks that the dashboard shows nothing that there is not.
func dashboardExists(t *testing.T, exists map[string]bool) {
	b, err := os.ReadFile("../../docs/grafana/fsxnbd.json")
	if err != nil {
		t.Fatal(err)
	}
	if !json.Valid(b) {
		t.Fatal("the dashboard is no JSON")
	}
	names := metricNames.FindAllString(string(b), -1)
	if len(names) < 20 {
		t.Errorf("the dashboard shows only %d metrics", len(names))
	}
	for _, name := range names {
		if !exists[name] {
			t.Errorf("the dashboard shows %s, which there is not", name)
		}
	}
}

// metricsAreDescribed checks that docs/metrics.md has each metric, and no other.
func metricsAreDescribed(t *testing.T, exists map[string]bool) {
	b, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := regexp.MustCompile("(?m)^\\| `([a-z_]+)` ").FindAllStringSubmatch(string(b), -1)
	var described []string
	for _, row := range rows {
		described = append(described, row[1])
		if !exists[row[1]] && !exists[row[1]+"_count"] {
			t.Errorf("%s is described, and does not exist", row[1])
		}
	}
	for _, d := range allMetrics {
		if !slices.ContainsFunc(described, func(name string) bool { return strings.Contains(d.String(), `"`+name+`"`) }) {
			t.Errorf("not described: %v", d)
		}
	}
}

func TestMetricsFollowTheConventions(t *testing.T) {
	problems, err := testutil.CollectAndLint(newCollector(startServer(t)))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// TestCollectorIsConsistent has the registry check each metric against its
// description.
func TestCollectorIsConsistent(t *testing.T) {
	r := startServer(t)
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(newCollector(r))
	if _, err := reg.Gather(); err != nil {
		t.Error(err)
	}
}

func TestMetricsStayOnTheMachine(t *testing.T) {
	for _, address := range []string{"0.0.0.0:0", "192.0.2.1:9809", ":9809", "9809"} {
		l, err := listenMetrics(address)
		if err == nil {
			l.Close()
		}
		if cliutil.ExitCode(err) != cliutil.ExitUsage {
			t.Errorf("--metrics %s: %v", address, err)
		}
	}
	for _, address := range []string{"127.0.0.1:0", "[::1]:0", "localhost:0", "unix:" + filepath.Join(t.TempDir(), "m")} {
		l, err := listenMetrics(address)
		if err != nil {
			if strings.Contains(address, "::1") {
				continue // a machine without IPv6
			}
			t.Fatalf("--metrics %s: %v", address, err)
		}
		l.Close()
	}
}

// TestPulse has a look that hangs, and one that comes back.
func TestPulse(t *testing.T) {
	hold := make(chan struct{})
	looks := 0
	p := &pulse{look: func() { looks++; <-hold }}
	for range 3 {
		if p.beats(context.Background(), time.Millisecond) {
			t.Fatal("what hangs has a pulse")
		}
	}
	close(hold)
	if !p.beats(context.Background(), 10*time.Second) {
		t.Error("what came back has no pulse")
	}
	if looks > 2 {
		t.Errorf("%d looks at once", looks)
	}
}
