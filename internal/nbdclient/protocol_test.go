package nbdclient_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fsximg/fsx/internal/nbdclient"
)

var be = binary.BigEndian

// words concatenates numbers by their type's width, and strings.
func words(parts ...any) []byte {
	var b []byte
	for _, p := range parts {
		switch v := p.(type) {
		case uint8:
			b = append(b, v)
		case uint16:
			b = be.AppendUint16(b, v)
		case uint32:
			b = be.AppendUint32(b, v)
		case uint64:
			b = be.AppendUint64(b, v)
		case string:
			b = append(b, v...)
		case []byte:
			b = append(b, v...)
		}
	}
	return b
}

const repMagic = uint64(0x3e889045565a9)

func greeting() []byte {
	return words(uint64(0x4e42444d41474943), uint64(0x49484156454F5054), uint16(3))
}

func option(id, kind uint32, data []byte) []byte {
	return words(repMagic, id, kind, uint32(len(data)), data)
}

// negotiated is a whole handshake: structured replies, base:allocation with
// context 7, an export of 64 KiB.
func negotiated() []byte {
	return words(greeting(), option(8, 1, nil), option(10, 4, words(uint32(7), "base:allocation")), option(10, 1, nil),
		option(7, 3, words(uint16(0), uint64(64<<10), uint16(1))), option(7, 1, nil))
}

func chunk(flags, kind uint16, cookie uint64, data []byte) []byte {
	return words(uint32(0x668e33ef), flags, kind, cookie, uint32(len(data)), data)
}

// turn stands in an answer where the server waits for the next request.
const turn = "\x00<<wait for a request>>\x00"

// serve answers one connection with the given bytes, whatever is asked, and
// closes it.
func serve(t testing.TB, answer []byte) (uri string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "fsx-test-")
	must(t, err)
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	must(t, err)
	t.Cleanup(func() { l.Close(); os.RemoveAll(dir) })
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		requests := make(chan struct{}, 100)
		go countRequests(conn, requests)
		for i, part := range bytes.Split(answer, []byte(turn)) {
			if i > 0 {
				select {
				case <-requests:
				case <-time.After(100 * time.Millisecond):
				}
			}
			conn.Write(part)
		}
		time.Sleep(20 * time.Millisecond)
	}()
	return "nbd+unix:///?socket=" + filepath.Join(dir, "s")
}

// countRequests sends one token for each request, and closes at the end.
func countRequests(r io.Reader, requests chan<- struct{}) {
	defer close(requests)
	var seen []byte
	for buf := make([]byte, 4096); ; {
		n, err := r.Read(buf)
		seen = append(seen, buf[:n]...)
		for {
			_, after, found := bytes.Cut(seen, words(uint32(0x25609513)))
			if !found {
				break
			}
			seen = after
			select {
			case requests <- struct{}{}:
			default:
			}
		}
		if err != nil {
			return
		}
	}
}

// talk negotiates, asks for the first run and reads 4 KiB.
func talk(uri string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	c, err := nbdclient.Dial(ctx, uri)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.Extents(0); err != nil {
		return err
	}
	return c.ReadAt(make([]byte, 4096), 0)
}

func TestMisbehavingServers(t *testing.T) {
	status := chunk(1, 5, 1, words(uint32(7), uint32(64<<10), uint32(0)))
	data := func(off uint64, n int) []byte { return words(off, strings.Repeat("d", n)) }
	good := words(negotiated(), turn, status, turn, chunk(1, 1, 2, data(0, 4096)))
	if err := talk(serve(t, good)); err != nil {
		t.Fatalf("a good server: %v", err)
	}
	parts := words(negotiated(), turn, status, turn, chunk(0, 1, 2, data(2048, 2048)), chunk(0, 2, 2, words(uint64(0), uint32(2048))), chunk(1, 0, 2, nil))
	if err := talk(serve(t, parts)); err != nil {
		t.Fatalf("a server that answers in parts: %v", err)
	}

	for name, answer := range map[string][]byte{
		"old style":                words(uint64(0x4e42444d41474943), uint64(0x420281861253), uint16(0)),
		"not fixed":                words(uint64(0x4e42444d41474943), uint64(0x49484156454F5054), uint16(0)),
		"noise":                    []byte(strings.Repeat("HTTP/1.1 400 ", 10)),
		"wrong reply magic":        words(greeting(), uint64(1), uint32(8), uint32(1), uint32(0)),
		"reply to another option":  words(greeting(), option(10, 1, nil)),
		"huge option reply":        words(greeting(), repMagic, uint32(8), uint32(1), uint32(1<<31)),
		"information unasked":      words(greeting(), option(8, 3, nil)),
		"other metadata context":   words(greeting(), option(8, 1, nil), option(10, 4, words(uint32(7), "x:allocation"))),
		"no size":                  words(greeting(), option(8, 1, nil), option(10, 1, nil), option(7, 1, nil)),
		"short size":               words(greeting(), option(8, 1, nil), option(10, 1, nil), option(7, 3, words(uint16(0), uint32(1)))),
		"negative size":            words(greeting(), option(8, 1, nil), option(10, 1, nil), option(7, 3, words(uint16(0), uint64(1<<63), uint16(1)))),
		"block size 0":             words(greeting(), option(8, 1, nil), option(10, 1, nil), option(7, 3, words(uint16(3), uint32(0), uint32(0), uint32(0)))),
		"replies without end":      words(greeting(), option(8, 1, nil), strings.Repeat(string(option(10, 4, words(uint32(7), "base:allocation"))), 2000)),
		"unknown export":           words(greeting(), option(8, 1, nil), option(10, 1, nil), option(7, 1<<31|6, []byte("no \x1b[31m such"))),
		"wrong request magic":      words(negotiated(), turn, uint32(0x12345678), uint64(0)),
		"reply to nothing":         words(negotiated(), turn, chunk(1, 0, 99, nil)),
		"status of nothing":        words(negotiated(), turn, chunk(1, 0, 1, nil)),
		"status of no bytes":       words(negotiated(), turn, chunk(1, 5, 1, words(uint32(7), uint32(0), uint32(0)))),
		"status of other context":  words(negotiated(), turn, chunk(1, 5, 1, words(uint32(8), uint32(4096), uint32(0)))),
		"status of odd length":     words(negotiated(), turn, chunk(1, 5, 1, words(uint32(7), uint32(4096), uint16(0)))),
		"huge status":              words(negotiated(), turn, uint32(0x668e33ef), uint16(1), uint16(5), uint64(1), uint32(1<<31-4)),
		"status twice":             words(negotiated(), turn, chunk(0, 5, 1, words(uint32(7), uint32(4096), uint32(0))), chunk(1, 5, 1, words(uint32(7), uint32(4096), uint32(0)))),
		"data for a status":        words(negotiated(), turn, chunk(1, 1, 1, data(0, 4096))),
		"simple reply to a status": words(negotiated(), turn, uint32(0x67446698), uint32(0), uint64(1)),
		"half of a read":           words(negotiated(), turn, status, turn, chunk(1, 1, 2, data(0, 2048))),
		"nothing of a read":        words(negotiated(), turn, status, turn, chunk(1, 0, 2, nil)),
		"part of a read twice":     words(negotiated(), turn, status, turn, chunk(0, 1, 2, data(0, 2048)), chunk(1, 1, 2, data(0, 2048))),
		"data behind a read":       words(negotiated(), turn, status, turn, chunk(1, 1, 2, data(2048, 4096))),
		"data before a read":       words(negotiated(), turn, status, turn, chunk(1, 1, 2, data(1<<64-2048, 4096))),
		"empty data":               words(negotiated(), turn, status, turn, chunk(1, 1, 2, data(0, 0))),
		"hole behind a read":       words(negotiated(), turn, status, turn, chunk(1, 2, 2, words(uint64(0), uint32(8192)))),
		"huge hole":                words(negotiated(), turn, status, turn, chunk(1, 2, 2, words(uint64(1<<63-1), uint32(1<<32-1)))),
		"short data":               words(negotiated(), turn, status, turn, chunk(1, 1, 2, words(uint32(0)))),
		"done without an end":      words(negotiated(), turn, status, turn, chunk(0, 0, 2, nil)),
		"huge error":               words(negotiated(), turn, status, turn, uint32(0x668e33ef), uint16(1), uint16(1<<15+1), uint64(2), uint32(1<<30)),
		"error text cut off":       words(negotiated(), turn, status, turn, chunk(1, 1<<15+1, 2, words(uint32(5), uint16(100), "x"))),
		"gone":                     words(negotiated(), turn, status, turn),
		"gone in the middle":       words(negotiated(), turn, status, turn, uint32(0x668e33ef), uint16(1)),
	} {
		err := talk(serve(t, answer))
		if err == nil {
			t.Errorf("%s: accepted", name)
			continue
		}
		if errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: waited for ever", name)
		}
		if strings.ContainsRune(err.Error(), '\x1b') {
			t.Errorf("%s: control characters in %q", name, err)
		}
	}
	err := talk(serve(t, words(negotiated(), turn, status, turn, chunk(1, 1<<15+2, 2, words(uint32(5), uint16(8), "bad disk", uint64(0))))))
	if err == nil || !strings.Contains(err.Error(), "input/output error (bad disk)") {
		t.Errorf("an error reply: %v", err)
	}
}

func FuzzServer(f *testing.F) {
	status := chunk(1, 5, 1, words(uint32(7), uint32(64<<10), uint32(0)))
	f.Add(words(negotiated(), turn, status, turn, chunk(1, 1, 2, words(uint64(0), strings.Repeat("d", 4096)))))
	f.Add(words(greeting(), option(8, 1<<31|1, nil), option(7, 3, words(uint16(0), uint64(4096), uint16(1))), option(7, 1, nil)))
	f.Fuzz(func(t *testing.T, answer []byte) {
		start := time.Now()
		err := talk(serve(t, answer))
		if waited := time.Since(start); waited > 4*time.Second {
			t.Errorf("waited %v: %v", waited, err)
		}
	})
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
