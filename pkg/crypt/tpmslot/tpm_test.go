package tpmslot_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/fsximg/fsx/pkg/crypt"
	"github.com/fsximg/fsx/pkg/crypt/tpmslot"
	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// startTPM runs an emulator with fresh state and returns its socket.
func startTPM(t *testing.T) string {
	t.Helper()
	if _, err := exec.LookPath("swtpm"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("swtpm is missing; scripts/setup test installs it")
		}
		t.Skip("SKIP: swtpm is missing; scripts/setup test installs it")
	}
	dir := must(os.MkdirTemp("", "swtpm")) // short: it is a socket's path
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "tpm")
	cmd := exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+dir, "--server", "type=unixio,path="+socket,
		"--ctrl", "type=unixio,path="+socket+".ctrl", "--flags", "not-need-init,startup-clear")
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if c, err := net.Dial("unix", socket); err == nil {
			c.Close()
			return socket
		}
		if time.Now().After(end) {
			t.Fatalf("swtpm does not listen: %s", said.String())
		}
	}
}

func extend(t *testing.T, socket string, pcr tpm2.TPMHandle) {
	t.Helper()
	d, err := linuxudstpm.Open(socket)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	sum := sha256.Sum256([]byte("another kernel"))
	_, err = tpm2.PCRExtend{
		PCRHandle: tpm2.AuthHandle{Handle: pcr, Auth: tpm2.PasswordAuth(nil)},
		Digests:   tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA256, Digest: sum[:]}}},
	}.Execute(d)
	if err != nil {
		t.Fatal(err)
	}
}

func secret(t *testing.T, socket, pcrs, pin string) crypt.Secret {
	t.Helper()
	s := must(tpmslot.New(tpmslot.Options{Device: socket, PCRs: must(tpmslot.ParsePCRs(pcrs))}, []byte(pin)))
	t.Cleanup(s.Wipe)
	return s
}

func newKeyring(t *testing.T, secrets ...crypt.Secret) (*crypt.Keyring, *crypt.VolumeKey) {
	t.Helper()
	store := crypt.UUID{1}
	k, vk := must(crypt.NewKeyring(store, crypt.KDF{})), must(crypt.NewVolumeKey())
	for _, s := range secrets {
		if _, err := k.AddSlot(vk, s); err != nil {
			t.Fatal(err)
		}
	}
	return must(crypt.ParseKeyring(k.Encode(), store)), vk
}

// refuses requires that s does not open k, for that reason.
func refuses(t *testing.T, what string, k *crypt.Keyring, s crypt.Secret, want error) {
	t.Helper()
	keys, err := k.Unlock(s)
	if len(keys) > 0 || !errors.Is(err, want) || !errors.Is(err, crypt.ErrWrongKey) {
		t.Errorf("%s: %d keys, %v; want none, %v and ErrWrongKey", what, len(keys), err, want)
	}
}

func opens(t *testing.T, what string, k *crypt.Keyring, s crypt.Secret, vk *crypt.VolumeKey) {
	t.Helper()
	keys, err := k.Unlock(s)
	if err != nil || len(keys) != 1 || keys[0].ID() != vk.ID() || keys[0].Proven() {
		t.Errorf("%s: %v, %v; want the volume key, not proven", what, keys, err)
	}
}

func TestRoundTrip(t *testing.T) {
	socket, other := startTPM(t), startTPM(t)
	for _, c := range []struct{ pcrs, pin string }{{"7", ""}, {"7+11", "1234"}, {"", "0"}, {"", ""}} {
		k, vk := newKeyring(t, secret(t, socket, c.pcrs, c.pin))
		what := "pcrs " + c.pcrs + ", pin " + c.pin
		opens(t, what, k, secret(t, socket, "", c.pin), vk)
		refuses(t, what+": another tpm", k, secret(t, other, "", c.pin), tpmslot.ErrOtherTPM)
	}
}

func TestManySlotsLeaveNothingInTheTPM(t *testing.T) {
	socket := startTPM(t)
	var secrets []crypt.Secret
	for range 8 { // a TPM has three places for objects and as many for sessions
		secrets = append(secrets, secret(t, socket, "23", ""))
	}
	k, vk := newKeyring(t, secrets...)
	opens(t, "the first of eight", k, secrets[0], vk)
	extend(t, socket, 23)
	refuses(t, "eight with other pcrs", k, secrets[0], tpmslot.ErrPolicy)
}

func TestPIN(t *testing.T) {
	socket := startTPM(t)
	k, vk := newKeyring(t, secret(t, socket, "7", "1234"))
	refuses(t, "wrong pin", k, secret(t, socket, "", "1235"), tpmslot.ErrPIN)
	refuses(t, "no pin", k, secret(t, socket, "", ""), tpmslot.ErrNeedsPIN)
	opens(t, "right pin", k, secret(t, socket, "", "1234"), vk)
	plain, _ := newKeyring(t, secret(t, socket, "7", ""))
	refuses(t, "a pin for a slot without", plain, secret(t, socket, "", "1234"), tpmslot.ErrNoPIN)
}

// TestEveryPINOpens: with a salt at random, one authorization value in nine has
// a zero byte, after which the library would cut it.
func TestEveryPINOpens(t *testing.T) {
	socket := startTPM(t)
	for range 60 {
		k, vk := newKeyring(t, secret(t, socket, "", "1234"))
		opens(t, "right pin", k, secret(t, socket, "", "1234"), vk)
		if t.Failed() {
			return
		}
	}
}

func TestChangedPCR(t *testing.T) {
	socket := startTPM(t)
	s := secret(t, socket, "7+23", "1234")
	k, vk := newKeyring(t, s)
	extend(t, socket, 16)
	opens(t, "another pcr changed", k, secret(t, socket, "", "1234"), vk)
	extend(t, socket, 23)
	// More often than a TPM takes wrong pins: none of these may count as one.
	for range 40 {
		refuses(t, "pcr 23 changed", k, secret(t, socket, "", "wrong"), tpmslot.ErrPolicy)
		if t.Failed() {
			return
		}
	}
	again, vk := newKeyring(t, s)
	opens(t, "a new slot", again, secret(t, socket, "", "1234"), vk)
}

// TestLockout: wrong pins lead to a lockout, one secret makes no more than two
// of them, and slots without a pin open all the same.
func TestLockout(t *testing.T) {
	socket := startTPM(t)
	pin := secret(t, socket, "7", "1234")
	k, _ := newKeyring(t, pin, pin, pin, pin, pin, pin, pin, pin)
	plain, vk := newKeyring(t, secret(t, socket, "7", ""))
	refuses(t, "a wrong pin on eight slots", k, secret(t, socket, "", "0"), tpmslot.ErrPIN)
	one, oneKey := newKeyring(t, pin)
	opens(t, "the right pin after it", one, secret(t, socket, "", "1234"), oneKey)
	for n := 0; ; n++ {
		_, err := one.Unlock(secret(t, socket, "", "0"))
		if errors.Is(err, tpmslot.ErrLockout) {
			break
		}
		if n == 50 || !errors.Is(err, tpmslot.ErrPIN) {
			t.Fatalf("wrong pin %d: %v, want a lockout at last", n, err)
		}
	}
	refuses(t, "the right pin in a lockout", one, secret(t, socket, "", "1234"), tpmslot.ErrLockout)
	opens(t, "no pin in a lockout", plain, secret(t, socket, "", ""), vk)
}

func TestNoTPM(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	k := must(crypt.NewKeyring(crypt.UUID{1}, crypt.KDF{}))
	for _, path := range []string{dir + "/none", file, dir} {
		if _, err := k.AddSlot(must(crypt.NewVolumeKey()), secret(t, path, "", "")); !errors.Is(err, tpmslot.ErrNoTPM) {
			t.Errorf("%s: %v, want ErrNoTPM", path, err)
		}
	}
	socket := startTPM(t)
	sealed, _ := newKeyring(t, secret(t, socket, "7", ""))
	refuses(t, "a missing device", sealed, secret(t, dir+"/none", "", ""), tpmslot.ErrNoTPM)
}

// TestTamperedSlot: no changed byte of the slot's data lets it open to
// another key, or panics.
func TestTamperedSlot(t *testing.T) {
	socket := startTPM(t)
	k, _ := newKeyring(t, secret(t, socket, "7", ""))
	body := k.Encode()
	for at := 80 + 40 + 80; at < len(body); at += 3 {
		bad := bytes.Clone(body)
		bad[at] ^= 1
		refuses(t, "byte "+string(rune('0'+at%10)), must(crypt.ParseKeyring(bad, k.Store())), secret(t, socket, "", ""), crypt.ErrWrongKey)
	}
}
