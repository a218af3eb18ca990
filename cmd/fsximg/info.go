package main

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/fsximg/fsx/internal/cliutil"
	"github.com/fsximg/fsx/internal/volume"
	"github.com/fsximg/fsx/pkg/crypt"
	"github.com/fsximg/fsx/pkg/layout"
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
	Store         string         `json:"store"`
	UUID          string         `json:"uuid"`
	FormatVersion int            `json:"format_version"`
	Created       time.Time      `json:"created"`
	Allocated     int64          `json:"allocated"` // on disk
	NeedsReplay   bool           `json:"needs_replay"`
	Slots         []slotResult   `json:"slots"`
	Volumes       []volumeResult `json:"volumes"`
}

type slotResult struct {
	Slot      int        `json:"slot"`
	Type      string     `json:"type"`
	VolumeKey string     `json:"volume_key"`
	KDF       *kdfResult `json:"kdf,omitempty"`
}

type kdfResult struct {
	Algorithm string `json:"algorithm"`
	Memory    int64  `json:"memory"`
	Passes    uint32 `json:"passes"`
	Lanes     uint8  `json:"lanes"`
}

type volumeResult struct {
	Name      string    `json:"name"`
	ID        string    `json:"id"`
	UUID      string    `json:"uuid"`
	Size      int64     `json:"size"`
	Used      int64     `json:"used"`      // blocks that something needs
	Allocated int64     `json:"allocated"` // on disk
	Cipher    string    `json:"cipher"`
	VolumeKey string    `json:"volume_key"`
	Parent    string    `json:"parent,omitempty"` // volume it was cloned from
	Created   time.Time `json:"created"`

	Snapshots []snapshotResult `json:"snapshots"`
}

func describeSlots(slots []crypt.SlotInfo) []slotResult {
	out := []slotResult{}
	for _, s := range slots {
		r := slotResult{Slot: s.Number, Type: s.Type.String(), VolumeKey: s.VolumeKey.String()}
		if s.KDF != (crypt.KDF{}) {
			r.KDF = &kdfResult{"argon2id", int64(s.KDF.MemoryKiB) << 10, s.KDF.Passes, s.KDF.Lanes}
		}
		out = append(out, r)
	}
	return out
}

func describeVolumes(volumes []volume.VolumeInfo) []volumeResult {
	names := map[layout.VolumeID]string{}
	for _, v := range volumes {
		names[v.ID] = v.Name
	}
	out := []volumeResult{}
	for _, v := range volumes {
		out = append(out, volumeResult{
			Name: v.Name, ID: v.ID.String(), UUID: v.UUID.String(), Size: v.Size, Used: v.Live, Allocated: v.Allocated,
			Cipher: v.Mode.String(), VolumeKey: v.VolumeKey.String(), Parent: names[v.Parent], Created: v.Created.UTC(),
			Snapshots: describeSnapshots(v.Snapshots),
		})
	}
	return out
}

func runInfo(_ context.Context, env *cliutil.Env, c *cli.Context) (err error) {
	path, err := cliutil.StoreOnly(c.Args().First())
	if err != nil {
		return err
	}
	st, err := env.OpenStore(path, forReading)
	if err != nil {
		return err
	}
	defer closeStore(st, &err)
	info, err := st.Info()
	if err != nil {
		return err
	}
	res := infoResult{
		Header: cliutil.NewHeader("fsximg.info"), Store: path, UUID: info.UUID.String(), FormatVersion: info.Version,
		Created: info.Created.UTC(), Allocated: info.Allocated, NeedsReplay: noteReplay(env, info.Volumes),
		Slots: describeSlots(info.Slots), Volumes: describeVolumes(info.Volumes),
	}
	if c.Bool("json") {
		return env.PrintJSON(res)
	}
	return printInfo(env.Stdout, res)
}

func printInfo(w io.Writer, r infoResult) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	state := "closed cleanly"
	if r.NeedsReplay {
		state = "needs replay"
	}
	fmt.Fprintf(t, "store\t%s\nuuid\t%s\nformat\tversion %d\ncreated\t%s\non disk\t%s\nstate\t%s\n", r.Store, r.UUID,
		r.FormatVersion, r.Created.Local().Format(time.DateTime), cliutil.FormatSize(r.Allocated), state)
	for _, s := range r.Slots {
		fmt.Fprintf(t, "slot %d\t%s\n", s.Slot, s)
	}
	for _, v := range r.Volumes {
		fmt.Fprintf(t, "\nvolume\t%s\n  size\t%s\n  used\t%s\n  on disk\t%s\n  cipher\t%s\n  volume key\t%s\n", v.Name,
			cliutil.FormatSize(v.Size), cliutil.FormatSize(v.Used), cliutil.FormatSize(v.Allocated), v.Cipher, v.VolumeKey)
		if v.Parent != "" {
			fmt.Fprintf(t, "  clone of\t%s\n", v.Parent)
		}
		if n := len(v.Snapshots); n > 0 {
			fmt.Fprintf(t, "  snapshots\t%d, the newest %s\n", n, v.Snapshots[n-1].Name)
		}
	}
	return t.Flush()
}

// String describes a slot for people.
func (s slotResult) String() string {
	text := s.Type
	if s.KDF != nil {
		text += fmt.Sprintf(" (%s, %s, %d passes)", s.KDF.Algorithm, cliutil.FormatSize(s.KDF.Memory), s.KDF.Passes)
	}
	if s.Type == crypt.SlotClear.String() {
		text += " (anyone can open it)"
	}
	return text
}
