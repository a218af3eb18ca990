package main

import (
	"strings"
	"testing"
	"time"

	"github.com/fsximg/fsx/internal/control"
)

// seen is a server that a client has made a number of 4 KiB reads of, each in the
// class of up to 8 µs, and as many flushes.
func seen(at time.Time, requests uint64) control.ServerStatus {
	l := control.Latency{Classes: []uint64{0, requests, 0}}
	t := control.Traffic{Commands: []control.CommandTraffic{
		{Command: "read", Requests: requests, Bytes: requests * 4096, Latency: l},
		{Command: "flush", Requests: requests, Latency: l},
	}}
	return control.ServerStatus{At: at,
		Exports: []control.ExportStatus{{Name: "main", Traffic: t}},
		Clients: []control.ClientStatus{{ID: 7, Export: "main", Traffic: t}}}
}

func TestRates(t *testing.T) {
	begin := time.Unix(1000, 0)
	before, now := seen(begin, 100), seen(begin.Add(2*time.Second), 300)
	addRates(&now, &before)
	want := control.Rate{Seconds: 2, Reads: 100, ReadBytes: 409600, Others: 100, P50: 6e-6, P99: 7.96e-6}
	for _, r := range []*control.Rate{now.Exports[0].Rate, now.Clients[0].Rate} {
		if r == nil || *r != want {
			t.Errorf("rate %+v, want %+v", r, want)
		}
	}
	// Nobody knows what a new client did before.
	now.Clients[0].ID = 8
	addRates(&now, &before)
	if r := now.Clients[0].Rate; r.Reads != 150 {
		t.Errorf("a new client reads %v a second", r.Reads)
	}
	// An export that the server had forgotten begins again.
	before, now = seen(begin, 300), seen(begin.Add(time.Second), 20)
	addRates(&now, &before)
	if r := now.Exports[0].Rate; r.Reads != 20 {
		t.Errorf("an export that began again is read %v times a second", r.Reads)
	}
	addRates(&before, &before) // no time has passed
	if before.Exports[0].Rate != nil {
		t.Error("a rate of no time")
	}
}

func TestFrameFitsTheTerminal(t *testing.T) {
	f := frame("µµµµµµ\nab\ncd\nef\n", 4, 3)
	if strings.Contains(f, "ef") || strings.Contains(f, "µµµµµ") || !strings.Contains(f, "µµµµ\x1b[K\r\nab") {
		t.Errorf("%q", f)
	}
	if !strings.HasPrefix(f, "\x1b[H") || !strings.HasSuffix(f, "\x1b[J") {
		t.Errorf("the screen is not replaced by %q", f)
	}
}
