package nbdclient_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/fsximg/fsx/internal/nbdclient"
)

func TestURIs(t *testing.T) {
	for _, uri := range []string{
		"nbds://host/x", "nbd://", "nbd:///x", "nbd+unix:///x", "nbd+unix://host/x?socket=/s", "nbd:host:1",
		"nbd://user@host/x", "nbd://host/?socket=/s", "nbd://host/?tls-certificates=x", "nbd+unix:///?socket=/a&socket=/b",
		"nbd://host/%ff", "nbd://host/%zz", "nbd://host/a%00b", "nbd://host:99999999/", "nbd+vsock://1",
		"nbd://host/" + strings.Repeat("x", 4097),
	} {
		if _, err := nbdclient.Dial(context.Background(), uri); err == nil {
			t.Errorf("%.60s was accepted", uri)
		} else if !errors.Is(err, nbdclient.ErrURI) && !strings.Contains(uri, ":9999") {
			t.Errorf("%.60s: %v", uri, err)
		}
	}
}
