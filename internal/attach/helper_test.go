package attach_test

import (
	"errors"
	"reflect"
	"testing"
	"time"

	"github.com/fsximg/fsx/internal/attach"
	"github.com/fsximg/fsx/internal/cliutil"
)

func TestHelperCall(t *testing.T) {
	for _, tt := range []struct {
		args []string
		want attach.HelperCall
	}{
		{[]string{"base.fsx", "/mnt"}, attach.HelperCall{Spec: "base.fsx", Dir: "/mnt"}},
		{[]string{"base.fsx:c1@s", "/mnt", "-o", "rw"}, attach.HelperCall{Spec: "base.fsx:c1@s", Dir: "/mnt"}},
		{[]string{"/b.fsx", "/mnt", "-o", "ro,_netdev,noauto,nofail,user,x-systemd.automount,x-mount.mkdir,key-file=/k,noatime,data=ordered"},
			attach.HelperCall{Spec: "/b.fsx", Dir: "/mnt", ReadOnly: true, Keys: []string{"--key-file=/k"}, MountOptions: []string{"noatime", "data=ordered"}}},
		{[]string{"-o", "passphrase-file=/p,tpm2,tpm2-device=/dev/tpmrm1,fstype=xfs,device=loop,connections=2,reattach-timeout=5m,mkfs=xfs", "/b.fsx", "/mnt", "-t", "fsx.sub"},
			attach.HelperCall{Spec: "/b.fsx", Dir: "/mnt", Keys: []string{"--passphrase-file=/p", "--tpm2", "--tpm2-device=/dev/tpmrm1"},
				Type: "xfs", Device: "loop", Connections: "2", Timeout: "5m", Mkfs: "xfs"}},
		{[]string{"/b.fsx", "/mnt", "-sfnv", "-N", "/proc/1/ns/mnt"},
			attach.HelperCall{Spec: "/b.fsx", Dir: "/mnt", Fake: true, Verbose: true, Flags: []string{"-s", "-n", "-N", "/proc/1/ns/mnt"}}},
		{[]string{"/b.fsx", "/mnt", "-vo", "ro,rw"}, attach.HelperCall{Spec: "/b.fsx", Dir: "/mnt", Verbose: true}},
		{[]string{"/b.fsx", "/mnt", "-o", `context="system_u:object_r:tmp_t:s0:c1,c2",sync`},
			attach.HelperCall{Spec: "/b.fsx", Dir: "/mnt", MountOptions: []string{`context="system_u:object_r:tmp_t:s0:c1,c2"`, "sync"}}},
	} {
		got, err := attach.ParseHelperCall(tt.args)
		if err != nil || !reflect.DeepEqual(*got, tt.want) {
			t.Errorf("%q:\ngot  %+v, %v\nwant %+v", tt.args, got, err, tt.want)
		}
	}
}

func TestHelperCallRefuses(t *testing.T) {
	for _, args := range [][]string{
		{}, {"base.fsx"}, {"a", "b", "c"}, {"a", "b", "-x"}, {"a", "b", "-o"}, {"a", "b", "-ov", "ro"},
		{"a", "b", "-o", "key-file"}, {"a", "b", "-o", "key-file="}, {"a", "b", "-o", "tpm2=yes"}, {"a", "b", "-o", "passphrase-file=-"},
	} {
		if c, err := attach.ParseHelperCall(args); !errors.Is(err, cliutil.ErrUsage) {
			t.Errorf("%q: %+v, %v", args, c, err)
		}
	}
}

func TestValues(t *testing.T) {
	for text, want := range map[string]time.Duration{"60s": time.Minute, "90": 90 * time.Second, "2m": 2 * time.Minute, "0": 0} {
		if got, err := attach.ParseTimeout("--x", text); err != nil || got != want {
			t.Errorf("%s is %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "-1s", "x", "1y"} {
		if d, err := attach.ParseTimeout("--x", text); !errors.Is(err, cliutil.ErrUsage) {
			t.Errorf("%q is %v, %v", text, d, err)
		}
	}
	for text, want := range map[string]attach.Choice{
		"": {}, "nbd": {Kind: attach.NBD}, "loop": {Kind: attach.Loop}, "/dev/nbd3": {Kind: attach.NBD, Device: "/dev/nbd3"},
	} {
		if got, err := attach.ParseDevice(text); err != nil || got != want {
			t.Errorf("%q is %+v, %v", text, got, err)
		}
	}
	if _, err := attach.ParseDevice("/dev/loop3"); !errors.Is(err, cliutil.ErrUsage) {
		t.Errorf("a loop device by its path: %v", err)
	}
}
