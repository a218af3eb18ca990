package ageslot_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"filippo.io/age/armor"
	"filippo.io/age/plugin"
	"github.com/fsximg/fsx/pkg/crypt"
	"github.com/fsximg/fsx/pkg/crypt/ageslot"
	"golang.org/x/crypto/ssh"
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// pair is a recipient and the identity file that opens its slots.
type pair struct{ recipient, identity string }

func x25519() pair {
	id := must(age.GenerateX25519Identity())
	return pair{id.Recipient().String(), "# a comment\n\n" + id.String() + "\n"}
}

func sshPair(key any, public any, passphrase string) pair {
	pub := must(ssh.NewPublicKey(public))
	block := must(ssh.MarshalPrivateKey(key, ""))
	if passphrase != "" {
		block = must(ssh.MarshalPrivateKeyWithPassphrase(key, "", []byte(passphrase)))
	}
	return pair{string(ssh.MarshalAuthorizedKey(pub)), string(pem.EncodeToMemory(block))}
}

// TestMain is also a plugin, when it is called by the name of one: age-plugin-echo,
// whose recipients and identities hold those of X25519.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) != "age-plugin-echo" {
		os.Exit(m.Run())
	}
	p := must(plugin.New("echo"))
	p.HandleRecipient(func(data []byte) (age.Recipient, error) { return age.ParseX25519Recipient(string(data)) })
	p.HandleIdentity(func(data []byte) (age.Identity, error) { return age.ParseX25519Identity(string(data)) })
	os.Exit(p.Main())
}

func TestPlugin(t *testing.T) {
	dir := t.TempDir()
	if err := os.Symlink(must(os.Executable()), filepath.Join(dir, "age-plugin-echo")); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	mine, other := must(age.GenerateX25519Identity()), must(age.GenerateX25519Identity())
	k, _ := newKeyring(t, plugin.EncodeRecipient("echo", []byte(mine.Recipient().String())))
	if _, err := unlock(k, plugin.EncodeIdentity("echo", []byte(mine.String()))); err != nil {
		t.Error(err)
	}
	if _, err := unlock(k, plugin.EncodeIdentity("echo", []byte(other.String()))); !errors.Is(err, crypt.ErrWrongKey) {
		t.Errorf("another's identity: %v, want ErrWrongKey", err)
	}
}

func newKeyring(t *testing.T, recipients ...string) (*crypt.Keyring, *crypt.VolumeKey) {
	t.Helper()
	store := crypt.UUID{1}
	k := must(crypt.NewKeyring(store, crypt.KDF{}))
	vk := must(crypt.NewVolumeKey())
	for _, r := range recipients {
		if _, err := k.AddSlot(vk, must(ageslot.NewRecipient(r, ageslot.Plugins{}))); err != nil {
			t.Fatal(err)
		}
	}
	return must(crypt.ParseKeyring(k.Encode(), store)), vk
}

func unlock(k *crypt.Keyring, identity string) ([]*crypt.VolumeKey, error) {
	s, err := ageslot.NewIdentity([]byte(identity), ageslot.Plugins{})
	if err != nil {
		return nil, err
	}
	defer s.Wipe()
	return k.Unlock(s)
}

func TestEveryKindOfRecipient(t *testing.T) {
	hybrid := must(age.GenerateHybridIdentity())
	edPublic, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey := must(rsa.GenerateKey(rand.Reader, 2048))
	pairs := map[string]pair{
		"x25519":      x25519(),
		"hybrid":      {hybrid.Recipient().String(), hybrid.String()},
		"ssh-ed25519": sshPair(ed, edPublic, ""),
		"ssh-rsa":     sshPair(rsaKey, &rsaKey.PublicKey, ""),
	}
	var all []string
	for name, p := range pairs {
		k, vk := newKeyring(t, p.recipient)
		keys, err := unlock(k, p.identity)
		if err != nil || len(keys) != 1 || keys[0].ID() != vk.ID() || keys[0].Proven() {
			t.Errorf("%s: keys %v, %v; want the volume key, not proven", name, keys, err)
		}
		if _, err := unlock(k, x25519().identity); !errors.Is(err, crypt.ErrWrongKey) {
			t.Errorf("%s: another's identity: %v, want ErrWrongKey", name, err)
		}
		all = append(all, p.recipient)
	}
	k, _ := newKeyring(t, all...)
	for name, p := range pairs {
		if _, err := unlock(k, p.identity); err != nil {
			t.Errorf("%s, one slot of several: %v", name, err)
		}
	}
	if _, err := unlock(k, x25519().identity+pairs["hybrid"].identity); err != nil {
		t.Errorf("the second identity of a file: %v", err)
	}
}

func TestRefusedRecipients(t *testing.T) {
	secret := x25519().identity
	secret = secret[strings.Index(secret, "AGE-"):]
	for _, s := range []string{"", "age1", "age1xyz", "github:me", "ssh-dss AAAA", secret, "age1" + strings.Repeat("q", 9000)} {
		_, err := ageslot.NewRecipient(s, ageslot.Plugins{})
		if !errors.Is(err, ageslot.ErrRecipient) {
			t.Errorf("%.20q: %v, want ErrRecipient", s, err)
		}
		if err != nil && strings.Contains(err.Error(), "AGE-SECRET") {
			t.Errorf("the message repeats a secret: %v", err)
		}
	}
	for _, s := range []string{"", "# nothing\n", "AGE-SECRET-KEY-1XXX", "-----BEGIN OPENSSH PRIVATE KEY-----\n"} {
		if _, err := ageslot.NewIdentity([]byte(s), ageslot.Plugins{}); !errors.Is(err, ageslot.ErrIdentity) {
			t.Errorf("identity %.20q: %v, want ErrIdentity", s, err)
		}
	}
}

// TestRolesAreApart: who knows a recipient opens nothing, who has an identity
// makes no slot.
func TestRolesAreApart(t *testing.T) {
	p := x25519()
	k, vk := newKeyring(t, p.recipient)
	_, err := k.Unlock(must(ageslot.NewRecipient(p.recipient, ageslot.Plugins{})))
	if !errors.Is(err, crypt.ErrWrongKey) {
		t.Errorf("a recipient opens: %v", err)
	}
	_, err = k.AddSlot(vk, must(ageslot.NewIdentity([]byte(p.identity), ageslot.Plugins{})))
	if !errors.Is(err, ageslot.ErrRecipient) {
		t.Errorf("an identity makes a slot: %v", err)
	}
}

func TestProtectedIdentities(t *testing.T) {
	p := x25519()
	var plain, armored bytes.Buffer
	r := must(age.NewScryptRecipient("pw"))
	r.SetWorkFactor(10)
	w := must(age.Encrypt(&plain, r))
	w.Write([]byte(p.identity))
	w.Close()
	a := armor.NewWriter(&armored)
	a.Write(plain.Bytes())
	a.Close()
	edPublic, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key := sshPair(ed, edPublic, "pw")
	for name, c := range map[string]struct{ recipient, file string }{
		"age": {p.recipient, plain.String()}, "armored": {p.recipient, armored.String()}, "ssh": {key.recipient, key.identity},
	} {
		if _, err := ageslot.NewIdentity([]byte(c.file), ageslot.Plugins{}); !errors.Is(err, ageslot.ErrProtected) {
			t.Errorf("%s: %v, want ErrProtected", name, err)
		}
		if _, err := ageslot.Unprotect([]byte(c.file), []byte("wrong")); !errors.Is(err, crypt.ErrWrongKey) {
			t.Errorf("%s, wrong passphrase: %v, want ErrWrongKey", name, err)
		}
		content, err := ageslot.Unprotect([]byte(c.file), []byte("pw"))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		k, _ := newKeyring(t, c.recipient)
		if _, err := unlock(k, string(content)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestPluginTimeout: a plugin that never answers is killed, and is not waited
// for once per slot.
func TestPluginTimeout(t *testing.T) {
	dir := t.TempDir()
	script := "#!/bin/sh\necho $$ > " + dir + "/pid\nwhile read -r line; do :; done\nexec sleep 1000\n"
	if err := os.WriteFile(filepath.Join(dir, "age-plugin-slow"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	fast := ageslot.Plugins{Timeout: 300 * time.Millisecond}
	p := x25519()
	k, vk := newKeyring(t, p.recipient, p.recipient)
	recipient := must(ageslot.NewRecipient(plugin.EncodeRecipient("slow", []byte{1}), fast))
	if _, err := k.AddSlot(vk, recipient); !errors.Is(err, ageslot.ErrPlugin) {
		t.Fatalf("add slot: %v, want ErrPlugin", err)
	}
	pid := strings.TrimSpace(string(must(os.ReadFile(dir + "/pid"))))
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat("/proc/" + pid); errors.Is(err, os.ErrNotExist) {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the plugin goes on")
		}
	}
	start := time.Now()
	_, err := k.Unlock(must(ageslot.NewIdentity([]byte(plugin.EncodeIdentity("slow", []byte{1})), fast)))
	if !errors.Is(err, ageslot.ErrPlugin) || !errors.Is(err, crypt.ErrWrongKey) {
		t.Errorf("unlock: %v, want ErrPlugin and ErrWrongKey", err)
	}
	if d := time.Since(start); d > 550*time.Millisecond {
		t.Errorf("two slots took %v with a time-out of %v", d, fast.Timeout)
	}
	missing := must(ageslot.NewRecipient(plugin.EncodeRecipient("missing", []byte{1}), fast))
	if _, err := k.AddSlot(vk, missing); !errors.Is(err, ageslot.ErrPlugin) {
		t.Errorf("a plugin that is not there: %v, want ErrPlugin", err)
	}
}
