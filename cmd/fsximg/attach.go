package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/fsximg/fsx/internal/attach"
	"github.com/fsximg/fsx/internal/cliutil"
	"github.com/urfave/cli/v2"
)

// attachFlags are the options of whatever attaches a volume.
func attachFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "read-only", Usage: "refuse changes; snapshots are read-only in any case"},
		&cli.StringFlag{Name: "reattach-timeout", Value: "60s", Usage: "how long requests wait for a server when it is gone, `TIME`; then they fail until there is one"},
		&cli.StringFlag{Name: "device", Usage: "`KIND` of the device: nbd, loop, or the /dev/nbdN to take (default: nbd, or loop if the kernel has no nbd)"},
		&cli.IntFlag{Name: "connections", Value: 1, Usage: "`N` connections for a device of kind nbd"},
	}
}

func attachCommand() *cli.Command {
	return &cli.Command{
		Name: "attach", Usage: "make a block device of a volume", ArgsUsage: "STORE[:VOLUME][@SNAPSHOT]",
		Description: "Prints the device. The store's server is used, or else one is started in the background, which\n" +
			"ends after its last detach. After a server was killed the same command starts another, and the\n" +
			"device goes on. A volume or a snapshot has one device at a time.",
		Flags:  flags(attachFlags(), []cli.Flag{cliutil.JSONFlag()}, cliutil.OpenKeyFlags()),
		Action: cliutil.Action(1, 1, cliutil.FirstArg, runAttach),
	}
}

// attachHost is this machine, for a command.
func attachHost(env *cliutil.Env) *attach.Host {
	return &attach.Host{Run: cliutil.RunRoot(), Program: programName, Log: env.Log}
}

// attachRequest reads attachFlags and the options of keys.
func attachRequest(env *cliutil.Env, c *cli.Context) (q attach.Request, err error) {
	q = attach.Request{
		ReadOnly: c.Bool("read-only"),
		Server:   attach.ServerOptions{Arguments: cliutil.PassKeyFlags(c), Stdin: env.Stdin, Stderr: env.Stderr},
	}
	if q.Ref, err = cliutil.ParseRef(c.Args().First()); err != nil {
		return q, err
	}
	if q.Timeout, err = attach.ParseTimeout("--reattach-timeout", c.String("reattach-timeout")); err != nil {
		return q, err
	}
	if q.Choice, err = attach.ParseDevice(c.String("device")); err != nil {
		return q, err
	}
	q.Connections = c.Int("connections")
	if q.Connections < 1 || q.Connections > 16 {
		return q, cliutil.UsageErrorf("--connections %d: use 1 to 16", q.Connections)
	}
	return q, nil
}

// attachResult is what attach and mount print as JSON.
type attachResult struct {
	cliutil.Header
	attachedDevice
	Dir           string `json:"dir,omitempty"`
	ServerStarted bool   `json:"server_started"`
	Rebound       bool   `json:"rebound"`
}

// attachedDevice describes one device.
type attachedDevice struct {
	Device      string     `json:"device"`
	Kind        string     `json:"kind"`
	Store       string     `json:"store"`
	UUID        string     `json:"uuid"`
	Volume      string     `json:"volume"`
	Snapshot    string     `json:"snapshot,omitempty"`
	ReadOnly    bool       `json:"read_only"`
	Connections int        `json:"connections"`
	Timeout     float64    `json:"reattach_timeout"`
	Since       *time.Time `json:"since,omitempty"` // nil: its keeper left no word
	KeeperPID   int        `json:"keeper_pid"`
	ServerPID   int        `json:"server_pid"`
}

func describeDevice(r attach.Record, server int) attachedDevice {
	d := attachedDevice{
		Device: r.Device, Kind: string(r.Kind), Store: r.Path, UUID: r.Store, Volume: r.Volume, Snapshot: r.Snapshot,
		ReadOnly: r.ReadOnly, Connections: r.Connections, Timeout: r.Timeout.Seconds(), KeeperPID: r.Keeper, ServerPID: server,
	}
	if !r.Since.IsZero() {
		d.Since = &r.Since
	}
	return d
}

func runAttach(ctx context.Context, env *cliutil.Env, c *cli.Context) error {
	q, err := attachRequest(env, c)
	if err != nil {
		return err
	}
	a, err := attachHost(env).Attach(ctx, q)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return env.PrintJSON(attachResult{cliutil.NewHeader("fsximg.attach"), describeDevice(a.Record, a.Server), "", a.Started, a.Rebound})
	}
	_, err = fmt.Fprintln(env.Stdout, a.Device)
	return err
}

func detachCommand() *cli.Command {
	return &cli.Command{
		Name: "detach", Usage: "flush a volume's block device and end it", ArgsUsage: "DEVICE|STORE[:VOLUME][@SNAPSHOT]",
		Description: "Refused while the device is mounted or otherwise used. It waits until all is gone: the device,\n" +
			"and the server if it was started by attach and this was its last device.",
		Flags:  []cli.Flag{&cli.BoolFlag{Name: "force", Aliases: []string{"f"}, Usage: "although its server is gone: what was not flushed is lost"}},
		Action: cliutil.Action(1, 1, cliutil.FirstArg, runDetach),
	}
}

func runDetach(ctx context.Context, env *cliutil.Env, c *cli.Context) error {
	a, err := attachHost(env).Detach(ctx, c.Args().First(), c.Bool("force"))
	if err != nil {
		return err
	}
	env.Log.Info("detached", "device", a.Device, "store", a.Path, "volume", a.Export())
	return nil
}

func attachedCommand() *cli.Command {
	return &cli.Command{
		Name: "attached", Usage: "list the block devices of volumes", ArgsUsage: " ",
		Description: "STATE is attached; or that the server is gone, while requests wait for another, or fail since it\n" +
			"is gone for too long; or that the keeper is gone, the process of the device. In JSON these are\n" +
			"attached, waiting, failed and abandoned. CLIENTS are those of the volume, the device among them.",
		Flags:  []cli.Flag{cliutil.JSONFlag()},
		Action: cliutil.Action(0, 0, cliutil.NoObject, runAttached),
	}
}

type attachedResult struct {
	cliutil.Header
	Devices []listedDevice `json:"devices"`
}

type listedDevice struct {
	attachedDevice
	State   string   `json:"state"`
	Reason  string   `json:"reason,omitempty"`
	Mounts  []string `json:"mounts"`
	Clients int      `json:"clients"`
}

func runAttached(ctx context.Context, env *cliutil.Env, c *cli.Context) error {
	all, err := attachHost(env).List(ctx)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		res := attachedResult{cliutil.NewHeader("fsximg.attached"), []listedDevice{}}
		for _, a := range all {
			res.Devices = append(res.Devices, listedDevice{
				describeDevice(a.Record, a.Server), string(a.State), a.Reason, append([]string{}, a.Dirs...), a.Clients,
			})
		}
		return env.PrintJSON(res)
	}
	return printAttached(env.Stdout, all, time.Now())
}

func printAttached(w io.Writer, all []attach.Attachment, now time.Time) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "DEVICE\tSTORE\tVOLUME\tSERVER\tCLIENTS\tSINCE\tSTATE")
	for _, a := range all {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%d\t%s\t%s\n", a.Device, attachedStore(a), a.Export(), pidText(a.Server), a.Clients,
			sinceText(a.Since, now), stateText(a))
	}
	return t.Flush()
}

// attachedStore is a store's path, for a terminal, or its UUID if nobody knows that.
func attachedStore(a attach.Attachment) string {
	if a.Path == "" {
		return a.Store
	}
	return printable(a.Path)
}

// printable is a path for a terminal: quoted, if it has something that is not.
func printable(path string) string {
	if quoted := strconv.QuoteToGraphic(path); quoted[1:len(quoted)-1] != path {
		return quoted
	}
	return path
}

func pidText(pid int) string {
	if pid == 0 {
		return "-"
	}
	return strconv.Itoa(pid)
}

// sinceText is the time of day, or the day.
func sinceText(t, now time.Time) string {
	switch {
	case t.IsZero():
		return "-"
	case now.Sub(t) < 24*time.Hour:
		return t.Local().Format("15:04:05")
	}
	return t.Local().Format(time.DateOnly)
}

func stateText(a attach.Attachment) string {
	s := string(a.State)
	switch a.State {
	case attach.StateWaiting:
		s = "server gone, waiting"
	case attach.StateFailed:
		s = "server gone, failed"
	case attach.StateAbandoned:
		s = "keeper gone"
	}
	if a.ReadOnly {
		s += ", read-only"
	}
	if len(a.Dirs) > 0 {
		dirs := make([]string, len(a.Dirs))
		for i, dir := range a.Dirs {
			dirs[i] = printable(dir)
		}
		s += ", mounted on " + strings.Join(dirs, " ")
	}
	return s
}

// keepCommand is a keeper's, which attach starts.
func keepCommand() *cli.Command {
	return &cli.Command{
		Name: attach.KeepName, Hidden: true, Usage: "make a block device of a volume and keep it until it is gone", ArgsUsage: "STORE UUID EXPORT",
		Flags: append(attachFlags(),
			&cli.StringFlag{Name: "kind"}, &cli.DurationFlag{Name: "timeout"}, &cli.StringFlag{Name: "adopt"}, &cli.BoolFlag{Name: "until-unmounted"}),
		Action: cliutil.Action(3, 3, cliutil.FirstArg, runKeep),
	}
}

func runKeep(ctx context.Context, env *cliutil.Env, c *cli.Context) error {
	id, err := attach.ParseKept(c.Args().Get(1), c.Args().Get(2))
	if err != nil {
		return err
	}
	if !filepath.IsAbs(c.Args().First()) {
		return cliutil.UsageErrorf("%s: no absolute path", c.Args().First())
	}
	h := attachHost(env)
	h.Log = attach.KeeperLog(env.Stderr)
	return h.Keep(ctx, attach.KeepOptions{
		Path: c.Args().First(), Identity: id, ReadOnly: c.Bool("read-only"), Timeout: c.Duration("timeout"),
		Choice:         attach.Choice{Kind: attach.Kind(c.String("kind")), Device: c.String("device"), Connections: c.Int("connections")},
		UntilUnmounted: c.Bool("until-unmounted"), Adopt: c.String("adopt"),
	}, os.NewFile(attach.ReadyDescriptor, "ready"), env.Stdin)
}
