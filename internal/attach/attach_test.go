package attach_test

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fsximg/fsx/internal/attach"
	"github.com/fsximg/fsx/internal/cliutil"
)

const uuid = "0869f2cd-365f-4f7b-abf4-6b8759332c8e"

var (
	main1 = attach.Identity{Store: uuid, Volume: "main"}
	snap1 = attach.Identity{Store: uuid, Volume: "c1", Snapshot: "a.b-c_d"}
)

func TestIdentity(t *testing.T) {
	h := &attach.Host{Run: "/run/fsx"}
	for _, tt := range []struct {
		id                    attach.Identity
		export, backend, disk string
	}{
		{main1, "main", "fsx:" + uuid + ":main", "/run/fsx/" + uuid + "/attach/main/disk"},
		{snap1, "c1@a.b-c_d", "fsx:" + uuid + ":c1@a.b-c_d", "/run/fsx/" + uuid + "/attach/c1@a.b-c_d/disk"},
	} {
		if got := tt.id.Export(); got != tt.export {
			t.Errorf("export %s, want %s", got, tt.export)
		}
		if got := tt.id.Backend(); got != tt.backend {
			t.Errorf("backend %s, want %s", got, tt.backend)
		}
		if got := h.Disk(tt.id); got != tt.disk {
			t.Errorf("disk %s, want %s", got, tt.disk)
		}
		if got, ok := attach.ParseBackend(tt.backend); !ok || got != tt.id {
			t.Errorf("%s is %v, %v", tt.backend, got, ok)
		}
		if got, ok := h.ParseDisk(tt.disk); !ok || got != tt.id {
			t.Errorf("%s is %v, %v", tt.disk, got, ok)
		}
	}
}

// What others made is not taken for ours.
func TestStrangers(t *testing.T) {
	h := &attach.Host{Run: "/run/fsx"}
	for _, s := range []string{
		"", "fsx:", "fsx:" + uuid, "fsx:" + uuid + ":", "fsx:" + uuid + ":../x", "fsx:" + uuid + ":main@", "fsx:x:main",
		"other:" + uuid + ":main", "fsx:" + uuid + ":main@a@b", "fsx:" + strings.ToUpper(uuid) + ":main", "fsx:" + uuid + ":ma:in",
	} {
		if id, ok := attach.ParseBackend(s); ok {
			t.Errorf("backend %q is %v", s, id)
		}
	}
	for _, s := range []string{
		"", "/run/fsx", "/run/fsx/" + uuid + "/attach/main", "/run/fsx/" + uuid + "/attach/main/disk/x", "/tmp/" + uuid + "/attach/main/disk",
		"/run/fsx/" + uuid + "/attach/main/disk (deleted)", "/run/fsx/" + uuid + "/keeper/main/disk", "/run/fsx/x/attach/main/disk",
		"/run/fsxx/" + uuid + "/attach/main/disk",
	} {
		if id, ok := h.ParseDisk(s); ok {
			t.Errorf("file %q is %v", s, id)
		}
	}
}

func TestMountInfo(t *testing.T) {
	const text = `22 26 0:20 / /proc rw,nosuid - proc proc rw
36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 shared:7 - ext3 /dev/root rw,errors=continue
40 35 7:3 / /mnt/with\040space\134and\011tab rw - ext4 /dev/loop3 rw
torn line
41 35 7:3 / /x rw - ext4
42 35 0:55 / /b rw - btrfs /dev/nbd0p1 rw`
	want := [][4]string{
		{"0:20", "/proc", "proc", "proc"},
		{"98:0", "/mnt2", "ext3", "/dev/root"},
		{"7:3", "/mnt/with space\\and\ttab", "ext4", "/dev/loop3"},
		{"0:55", "/b", "btrfs", "/dev/nbd0p1"},
	}
	var got [][4]string
	for _, m := range attach.ParseMounts(strings.NewReader(text)) {
		got = append(got, m.Fields())
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestReadOnlyOptions(t *testing.T) {
	for _, tt := range []struct {
		fstype string
		have   []string
		want   string
	}{
		{"ext4", nil, "ro,noload"},
		{"ext4", []string{"noatime", "rw"}, "noatime,ro,noload"},
		{"xfs", []string{"nouuid"}, "nouuid,ro,norecovery"},
		{"btrfs", nil, "ro,rescue=nologreplay"},
		{"ext2", nil, "ro"},
		{"", []string{"ro"}, "ro"},
	} {
		if got := strings.Join(attach.AddOptions(tt.have, attach.ReadOnlyOptions(tt.fstype)), ","); got != tt.want {
			t.Errorf("%s with %v: %s, want %s", tt.fstype, tt.have, got, tt.want)
		}
	}
}

// Of each identity there is one keeper, whoever looks meanwhile, and a keeper that
// removes its folder at the end disturbs no other.
func TestKeeperLock(t *testing.T) {
	h := &attach.Host{Run: t.TempDir()}
	if h.IsKept(main1) {
		t.Error("kept, without a keeper")
	}
	f, err := h.LockKeeper(main1)
	if err != nil {
		t.Fatal(err)
	}
	if !h.IsKept(main1) || h.IsKept(snap1) {
		t.Errorf("kept: %v, and what has no keeper: %v", h.IsKept(main1), h.IsKept(snap1))
	}
	if _, err := h.LockKeeper(main1); !errors.Is(err, attach.ErrKept) {
		t.Errorf("a second keeper: %v", err)
	}
	other, err := h.LockKeeper(snap1)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.RemoveFolder(main1); err != nil {
		t.Error(err)
	}
	f.Close()
	if h.IsKept(main1) || !h.IsKept(snap1) {
		t.Errorf("after the end of one: %v, and the other %v", h.IsKept(main1), h.IsKept(snap1))
	}
	if err := h.RemoveFolder(snap1); err != nil {
		t.Error(err)
	}
	other.Close()
	if left, err := os.ReadDir(h.Run); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// Many keepers come and go: two are never there at once.
func TestKeeperLockRace(t *testing.T) {
	h := &attach.Host{Run: t.TempDir()}
	held := make(chan struct{}, 1)
	done := make(chan error)
	for range 4 {
		go func() {
			var failed error
			for range 200 {
				f, err := h.LockKeeper(main1)
				if errors.Is(err, attach.ErrKept) {
					continue
				}
				if err != nil {
					failed = err
					break
				}
				select {
				case held <- struct{}{}:
					<-held
				default:
					failed = errors.New("two keepers at once")
				}
				failed = errors.Join(failed, h.RemoveFolder(main1), f.Close())
			}
			done <- failed
		}()
	}
	for range 4 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func TestStoreLock(t *testing.T) {
	dir := t.TempDir()
	release, err := attach.LockStore(context.Background(), dir)
	if err != nil {
		t.Fatal(err)
	}
	brief, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if _, err := attach.LockStore(brief, dir); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("locked twice: %v", err)
	}
	release()
	release, err = attach.LockStore(context.Background(), dir)
	if err != nil {
		t.Fatal(err)
	}
	release()
}

func TestRecord(t *testing.T) {
	dir := t.TempDir()
	if _, ok := attach.ReadRecord(dir); ok {
		t.Error("there is a record")
	}
	want := attach.Record{Identity: snap1, Path: "/a/b.fsx", Device: "/dev/nbd3", Kind: attach.NBD, ReadOnly: true, Connections: 2,
		Timeout: time.Minute, Since: time.Unix(1_800_000_000, 0).UTC(), Keeper: 17, Link: attach.Waiting, Reason: "gone"}
	if err := attach.WriteRecord(dir, &want); err != nil {
		t.Fatal(err)
	}
	if got, ok := attach.ReadRecord(dir); !ok || got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if err := os.WriteFile(filepath.Join(dir, "state"), []byte(`{"device":`), 0o600); err != nil {
		t.Fatal(err)
	}
	if r, ok := attach.ReadRecord(dir); ok {
		t.Errorf("half a record is %+v", r)
	}
}

// A keeper's error is, for whoever started it, the same error.
func TestTellAndHear(t *testing.T) {
	for _, sentinel := range []error{nil, cliutil.ErrInUse, cliutil.ErrNotFound, cliutil.ErrUsage, errors.New("any")} {
		r, w := io.Pipe()
		var told error
		if sentinel != nil {
			told = cliutil.WithHint(cliutil.Errorf(sentinel, "what happened"), "do that")
		}
		go attach.Tell(w, "/dev/loop7", told)
		device, err := attach.Hear(r)
		switch {
		case sentinel == nil && (device != "/dev/loop7" || err != nil):
			t.Errorf("heard %s, %v", device, err)
		case sentinel != nil && (err == nil || err.Error() != "what happened" || cliutil.HintOf(err) != "do that"):
			t.Errorf("heard %v, hint %q", err, cliutil.HintOf(err))
		case cliutil.ExitCode(err) != cliutil.ExitCode(told):
			t.Errorf("exit code %d, want %d", cliutil.ExitCode(err), cliutil.ExitCode(told))
		}
	}
	if _, err := attach.Hear(strings.NewReader("")); err == nil {
		t.Error("a keeper that said nothing is fine")
	}
}
