package main

import (
	"github.com/fsximg/fsx/internal/control"
	"github.com/fsximg/fsx/pkg/nbdsrv"
)

// addRates measures what clients did between two looks at one server.
func addRates(now, before *control.ServerStatus) {
	seconds := now.At.Sub(before.At).Seconds()
	if seconds <= 0 {
		return
	}
	exports := map[string]control.Traffic{}
	for _, e := range before.Exports {
		exports[e.Name] = e.Traffic
	}
	for i := range now.Exports {
		e := &now.Exports[i]
		e.Rate = rateOf(e.Traffic, exports[e.Name], seconds)
	}
	clients := map[uint64]control.Traffic{}
	for _, k := range before.Clients {
		clients[k.ID] = k.Traffic
	}
	for i := range now.Clients {
		k := &now.Clients[i]
		k.Rate = rateOf(k.Traffic, clients[k.ID], seconds)
	}
}

// rateOf is the difference between two counts of the same, by the seconds between.
func rateOf(now, before control.Traffic, seconds float64) *control.Rate {
	earlier := map[string]control.CommandTraffic{}
	for _, c := range before.Commands {
		earlier[c.Command] = c
	}
	r := &control.Rate{Seconds: seconds}
	var all nbdsrv.Latency
	for _, c := range now.Commands {
		old := earlier[c.Command]
		if c.Requests < old.Requests || c.Bytes < old.Bytes {
			old = control.CommandTraffic{} // the export was forgotten meanwhile
		}
		requests, bytes := float64(c.Requests-old.Requests)/seconds, float64(c.Bytes-old.Bytes)/seconds
		switch c.Command {
		case "read":
			r.Reads, r.ReadBytes = requests, bytes
		case "write":
			r.Writes, r.WrittenBytes = requests, bytes
		default:
			r.Others += requests
		}
		for i, n := range c.Latency.Classes {
			if i < len(all.Classes) {
				all.Classes[i] += n
				if i < len(old.Latency.Classes) {
					all.Classes[i] -= old.Latency.Classes[i]
				}
			}
		}
	}
	r.P50, r.P99 = all.Quantile(0.5).Seconds(), all.Quantile(0.99).Seconds()
	return r
}
