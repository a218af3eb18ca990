package crypt_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/fsximg/fsx/pkg/crypt"
)

func TestSecretsDoNotPrint(t *testing.T) {
	raw := counted("redact-", 64)
	vk := crypt.VolumeKeyFrom(raw[:32])
	dk := crypt.DataKeyFrom(raw, crypt.AES256GCM)
	bag := crypt.NewBag()
	if err := bag.Add(dk, true); err != nil {
		t.Fatal(err)
	}
	recovery, text, _ := crypt.NewRecoveryKey()
	secrets := map[string]any{
		"volume key": vk, "data key": dk, "bag": bag,
		"authority":  must(crypt.NewAuthority(vk, testStore, testVolume)),
		"extent":     must(dk.Extent(crypt.Nonce{}, 1)),
		"passphrase": must(crypt.NewPassphrase(raw)), "key file": must(crypt.NewKeyFile(raw)),
		"recovery key": recovery, "clear": crypt.NewClear(),
	}
	for name, s := range secrets {
		var b bytes.Buffer
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%20s"} {
			if got := fmt.Sprintf(verb, s); got != "[secret]" {
				t.Errorf("%s by %s prints %q", name, verb, got)
			}
			fmt.Fprintf(&b, verb, struct{ In, Of any }{s, []any{s}})
		}
		if got := string(must(json.Marshal(s))); got != `"[secret]"` {
			t.Errorf("%s as JSON is %s", name, got)
		}
		log := slog.New(slog.NewTextHandler(&b, nil))
		log.Info("x", "key", s)
		slog.New(slog.NewJSONHandler(&b, nil)).Info("x", "key", s)
		fmt.Fprint(&b, s, fmt.Sprint([]any{&s}))
		for _, leak := range []string{string(raw[:8]), hex.EncodeToString(raw[:8]), fmt.Sprint(raw[:4]), text[:11]} {
			if strings.Contains(b.String(), strings.Trim(leak, "[]")) {
				t.Errorf("%s leaks %q in %q", name, leak, b.String())
			}
		}
	}
}
