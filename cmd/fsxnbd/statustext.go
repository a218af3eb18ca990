package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/fsximg/fsx/internal/cliutil"
	"github.com/fsximg/fsx/internal/control"
)

// printServers prints what servers do, as tables.
func printServers(w io.Writer, servers []control.ServerStatus, now time.Time) error {
	for i, s := range servers {
		if i > 0 {
			fmt.Fprintln(w)
		}
		version, _, _ := strings.Cut(s.Version, ",")
		fmt.Fprintf(w, "fsxnbd %s, pid %d, up %s: %s\n", version, s.PID, age(now, s.Started), strings.Join(s.URIs, " "))
		fmt.Fprintf(w, "%s; %s in flight\n", cliutil.Count(len(s.Clients), "client"), cliutil.FormatSize(s.Memory.InFlight))
		if n := s.Connections.TooMany + s.Connections.Failed; n > 0 {
			fmt.Fprintf(w, "connections refused: %d were too many, %d broke the protocol\n", s.Connections.TooMany, s.Connections.Failed)
		}
		t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
		printVolumes(t, s.Stores, now)
		printExports(t, s.Exports)
		printClients(t, s.Clients, now)
		if err := t.Flush(); err != nil {
			return fmt.Errorf("write result: %w", err)
		}
	}
	return nil
}

// printVolumes prints the open volumes and the keys of all.
func printVolumes(t *tabwriter.Writer, stores []control.StoreStatus, now time.Time) {
	fmt.Fprintln(t, "\nVOLUME\tSIZE\tSTATE\tNOT CHECKPOINTED\tLAST CHECKPOINT\tUNREADABLE")
	for _, s := range stores {
		for _, v := range s.Volumes {
			fmt.Fprintf(t, "%s:%s\t%s\t%s\t%s\t%s ago\t%d\n", shortPath(s.Path), v.Name, cliutil.FormatSize(v.Size), volumeState(v),
				cliutil.FormatSize(v.Lag.Bytes), age(now, v.Lag.Since), v.Faults.Damaged+v.Faults.KeyMissing+v.Faults.Other)
		}
	}
	fmt.Fprintln(t, "\nKEY\tSTATE\tCLIENTS\tVOLUMES")
	for _, s := range stores {
		for _, k := range s.Keys {
			fmt.Fprintf(t, "%s\t%s\t%d\t%s\n", k.ID[:8], k.State, k.Clients, volumesText(k.Volumes))
		}
	}
}

func volumeState(v control.VolumeStatus) string {
	switch {
	case v.Failed:
		return "failed"
	case v.ReadOnly:
		return "read-only"
	}
	return "ok"
}

const rateColumns = "READ/S\tREAD\tWRITE/S\tWRITTEN\tOTHER/S\tMEDIAN\tP99"

func printExports(t *tabwriter.Writer, exports []control.ExportStatus) {
	if len(exports) == 0 {
		return
	}
	fmt.Fprintln(t, "\nEXPORT\tCLIENTS\tERRORS\t"+rateColumns)
	for _, e := range exports {
		fmt.Fprintf(t, "%s\t%d\t%d\t%s\n", e.Name, e.Clients, errorsOf(e.Traffic), rateText(e.Rate))
	}
}

func printClients(t *tabwriter.Writer, clients []control.ClientStatus, now time.Time) {
	if len(clients) == 0 {
		return
	}
	fmt.Fprintln(t, "\nCLIENT\tEXPORT\tSINCE\t"+rateColumns)
	for _, k := range clients {
		fmt.Fprintf(t, "%s\t%s\t%s ago\t%s\n", k.Peer, k.Export, age(now, k.Since), rateText(k.Rate))
	}
}

func errorsOf(t control.Traffic) (n uint64) {
	for _, c := range t.Commands {
		for _, k := range c.Errors {
			n += k
		}
	}
	return n
}

// rateText fills rateColumns.
func rateText(r *control.Rate) string {
	if r == nil {
		return strings.Repeat("-\t", 6) + "-"
	}
	number := func(x float64) string { return strconv.FormatFloat(x, 'f', 0, 64) }
	size := func(x float64) string { return cliutil.FormatSize(int64(x)) + "/s" }
	return strings.Join([]string{number(r.Reads), size(r.ReadBytes), number(r.Writes), size(r.WrittenBytes), number(r.Others),
		latencyText(r.P50), latencyText(r.P99)}, "\t")
}

// latencyText shows a latency in seconds; there is none without requests.
func latencyText(seconds float64) string {
	if seconds == 0 {
		return "-"
	}
	d := time.Duration(seconds * float64(time.Second))
	switch {
	case d < time.Millisecond:
		return d.Round(time.Microsecond).String()
	case d < time.Second:
		return d.Round(100 * time.Microsecond).String()
	}
	return d.Round(10 * time.Millisecond).String()
}

// age is how long ago something was.
func age(now, then time.Time) string {
	d := max(now.Sub(then), 0)
	if d < 10*time.Second {
		return d.Round(100 * time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}
