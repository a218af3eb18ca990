package nbdclient_test

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/fsximg/fsx/internal/nbdclient"
)

// plain is a handshake as the kernel's client needs it.
func plain(info ...any) []byte {
	return words(greeting(), option(7, 3, words(uint16(0), uint64(1<<20), uint16(0x16d))),
		words(info...), option(7, 1, nil))
}

// TestNegotiate reads from the socket what the server sent for a request: nothing
// of it was taken, and nothing else came before it.
func TestNegotiate(t *testing.T) {
	uri := serve(t, words(plain(option(7, 3, words(uint16(3), uint32(512), uint32(4096), uint32(1<<20)))), "at once, ", turn, "the first reply"))
	s, err := nbdclient.Negotiate(context.Background(), uri)
	must(t, err)
	defer s.File.Close()
	want := nbdclient.Export{Size: 1 << 20, Flags: 0x16d, MinBlock: 512, PreferredBlock: 4096, MaxPayload: 1 << 20}
	if s.Export != want {
		t.Errorf("%+v", s.Export)
	}
	if s.ReadOnly() || !s.Flags.Has(nbdclient.SendFlush|nbdclient.CanMultiConn) {
		t.Errorf("flags %#x", s.Flags)
	}
	_, err = s.File.Write(words(uint32(0x25609513), uint32(0)))
	must(t, err)
	if b, err := io.ReadAll(s.File); err != nil || string(b) != "at once, the first reply" {
		t.Errorf("%q, %v", b, err)
	}
}

func TestNegotiateTellsDefaultSizes(t *testing.T) {
	s, err := nbdclient.Negotiate(context.Background(), serve(t, plain()))
	must(t, err)
	defer s.File.Close()
	if s.MinBlock != 1 || s.PreferredBlock != 4096 || s.MaxPayload != 32<<20 {
		t.Errorf("%+v", s.Export)
	}
}

func TestNegotiateFails(t *testing.T) {
	for name, answer := range map[string][]byte{
		"refused":   words(greeting(), option(7, 1<<31|6, []byte("no such export"))),
		"no size":   words(greeting(), option(7, 1, nil)),
		"odd sizes": plain(option(7, 3, words(uint16(3), uint32(3), uint32(3), uint32(3)))),
	} {
		if s, err := nbdclient.Negotiate(context.Background(), serve(t, answer)); !errors.Is(err, nbdclient.ErrProtocol) {
			t.Errorf("%s: %+v, %v", name, s, err)
		}
	}
	if _, err := nbdclient.Negotiate(context.Background(), "nbd+unix:///?socket=/nonexistent"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no server: %v", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	_, err := nbdclient.Negotiate(ctx, serve(t, words(greeting(), turn, strings.Repeat(turn, 20))))
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a silent server: %v", err)
	}
}
