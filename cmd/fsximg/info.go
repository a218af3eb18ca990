package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/fsximg/fsx/internal/cliutil"
	"github.com/fsximg/fsx/internal/control"
	"github.com/fsximg/fsx/pkg/crypt"
	"github.com/urfave/cli/v2"
)

func infoCommand() *cli.Command {
	return &cli.Command{
		Name: "info", Usage: "tell what a store is: sizes, volumes, keys, ciphers", ArgsUsage: "STORE",
		Flags:  []cli.Flag{cliutil.JSONFlag()},
		Action: cliutil.Action(1, 1, cliutil.FirstArg, runInfo),
	}
}

type infoResult struct {
	cliutil.Header
	Store string `json:"store"`
	control.Info
	ServedBy *servedBy `json:"served_by,omitempty"`
}

// servedBy is the server that has a store.
type servedBy struct {
	PID     int    `json:"pid"`
	Program string `json:"program"`
	Version string `json:"version"`
}

func runInfo(ctx context.Context, env *cliutil.Env, c *cli.Context) (err error) {
	path, err := cliutil.StoreOnly(c.Args().First())
	if err != nil {
		return err
	}
	o, info, err := openInfo(ctx, env, c, path)
	if err != nil {
		return err
	}
	defer closeOperations(o, &err)
	res := infoResult{Header: cliutil.NewHeader("fsximg.info"), Store: path, Info: info}
	if client, ok := o.(*control.Client); ok {
		s := client.Server()
		res.ServedBy = &servedBy{s.PID, s.Program, s.Version}
	}
	if c.Bool("json") {
		return env.PrintJSON(res)
	}
	return printInfo(env.Stdout, res)
}

func printInfo(w io.Writer, r infoResult) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	state := "closed cleanly"
	switch {
	case r.ServedBy != nil:
		state = fmt.Sprintf("served by %s (pid %d)", r.ServedBy.Program, r.ServedBy.PID)
	case r.NeedsReplay:
		state = "needs replay"
	}
	fmt.Fprintf(t, "store\t%s\nuuid\t%s\nformat\tversion %d\ncreated\t%s\non disk\t%s\nstate\t%s\n", r.Store, r.UUID,
		r.FormatVersion, r.Created.Local().Format(time.DateTime), cliutil.FormatSize(r.Allocated), state)
	for _, s := range r.Slots {
		fmt.Fprintf(t, "slot %d\t%s\n", s.Slot, describeSlot(s))
	}
	for _, v := range r.Volumes {
		fmt.Fprintf(t, "\nvolume\t%s\n  size\t%s\n  used\t%s\n  on disk\t%s\n  cipher\t%s\n  volume key\t%s\n", v.Name,
			cliutil.FormatSize(v.Size), cliutil.FormatSize(v.Used), cliutil.FormatSize(v.Allocated), v.Cipher, v.VolumeKey)
		switch {
		case v.Lost:
			fmt.Fprintf(t, "  state\tlost: its ephemeral key is gone; it can only be deleted\n")
		case v.Ephemeral:
			fmt.Fprintf(t, "  state\tephemeral: its key goes with the server, and all that it wrote\n")
		}
		if r := v.Reencrypting; r != nil && r.Error != "" {
			fmt.Fprintf(t, "  reencrypt\tfailed: %s\n", r.Error)
		} else if r != nil {
			fmt.Fprintf(t, "  reencrypt\t%s of %s\n", cliutil.FormatSize(r.Done), cliutil.FormatSize(r.Total))
		}
		fmt.Fprintf(t, "  epoch\t%d\n  opens with\t%s\n", v.Epoch, describeSlotsOf(v, r.Slots))
		if len(v.AlsoReads) > 0 {
			fmt.Fprintf(t, "  also read by\twho opens %s; they have the data keys of what is shared, and could alter it\n", strings.Join(v.AlsoReads, ", "))
		}
		if v.Parent != "" {
			fmt.Fprintf(t, "  clone of\t%s@%s\n", v.Parent, v.ParentSnapshot)
		}
		if n := len(v.Snapshots); n > 0 {
			fmt.Fprintf(t, "  snapshots\t%d, the newest %s\n", n, v.Snapshots[n-1].Name)
		}
	}
	if n := len(r.Hidden); n > 0 {
		allocated := int64(0)
		for _, v := range r.Hidden {
			allocated += v.Allocated
		}
		fmt.Fprintf(t, "\nhidden\t%d deleted or rolled back, needed by others\n  on disk\t%s\n", n, cliutil.FormatSize(allocated))
	}
	return t.Flush()
}

// describeSlotsOf says what opens a volume: whoever can, reads and writes it.
func describeSlotsOf(v control.Volume, slots []control.Slot) string {
	var l []string
	for _, s := range slots {
		switch {
		case s.VolumeKey != v.VolumeKey:
		case s.Type == crypt.SlotClear.String():
			l = append(l, fmt.Sprintf("slot %d (clear: anyone reads and alters it)", s.Slot))
		default:
			l = append(l, fmt.Sprintf("slot %d (%s)", s.Slot, s.Type))
		}
	}
	if len(l) == 0 && v.Ephemeral {
		return noSlot
	}
	if len(l) == 0 {
		return noSlot + ": it is lost, unless a backup of the keyring has one, or a server its key"
	}
	return strings.Join(l, ", ")
}

// describeSlot describes a slot for people.
func describeSlot(s control.Slot) string {
	text := s.Type
	if s.KDF != nil {
		text += fmt.Sprintf(" (%s, %s, %d passes)", s.KDF.Algorithm, cliutil.FormatSize(s.KDF.Memory), s.KDF.Passes)
	}
	if s.Age != "" {
		text += fmt.Sprintf(" (%s)", s.Age)
	}
	if s.TPM2 != nil {
		bound := "no PCRs"
		if s.TPM2.PCRs != "" {
			bound = "PCRs " + s.TPM2.PCRs
		}
		if s.TPM2.PIN {
			bound += ", PIN"
		}
		text += fmt.Sprintf(" (%s)", bound)
	}
	if s.Type == crypt.SlotClear.String() {
		text += " (anyone can open it)"
	}
	return text
}
