package main

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"

	"github.com/fsximg/fsx/internal/attach"
	"github.com/fsximg/fsx/internal/cliutil"
	"github.com/urfave/cli/v2"
)

func mountCommand() *cli.Command {
	return &cli.Command{
		Name: "mount", Usage: "attach a volume and mount the file system on it", ArgsUsage: "STORE[:VOLUME][@SNAPSHOT] DIR",
		Description: "It is detached when it is unmounted, by fsximg unmount or umount. A device that is read-only gets\n" +
			"the options that its file system needs then, so that it does not replay its journal.",
		Flags: flags([]cli.Flag{
			&cli.StringFlag{Name: "mkfs", Usage: "make a file system of the `TYPE` first, if there is nothing on the volume"},
			&cli.StringFlag{Name: "type", Aliases: []string{"t"}, Usage: "`TYPE` of the file system (default: what is there)"},
			&cli.StringSliceFlag{Name: "options", Aliases: []string{"o"}, Usage: "`OPTIONS` of mount(8), separated by commas; may be repeated"},
			cliutil.JSONFlag(),
		}, attachFlags(), cliutil.OpenKeyFlags()),
		Action: cliutil.Action(2, 2, cliutil.FirstArg, runMount),
	}
}

func runMount(ctx context.Context, env *cliutil.Env, c *cli.Context) error {
	q, err := attachRequest(env, c)
	if err != nil {
		return err
	}
	m := attach.MountRequest{
		Request: q, Dir: c.Args().Get(1), Type: c.String("type"), Mkfs: c.String("mkfs"), Talk: talk(env), Flags: c.StringSlice(mountFlag),
	}
	for _, o := range c.StringSlice("options") {
		m.Options = append(m.Options, attach.SplitOptions(o)...)
	}
	a, err := attachHost(env).Mount(ctx, m)
	if err != nil {
		return err
	}
	env.Log.Info("mounted", "device", a.Device, "dir", m.Dir)
	if c.Bool("json") {
		return env.PrintJSON(attachResult{cliutil.NewHeader("fsximg.mount"), describeDevice(a.Record, a.Server), m.Dir, a.Started, a.Rebound})
	}
	return nil
}

// talk is where programs that a command runs may talk.
func talk(env *cliutil.Env) io.Writer {
	if env.Verbose() {
		return env.Stderr
	}
	return io.Discard
}

func unmountCommand() *cli.Command {
	return &cli.Command{
		Name: "unmount", Aliases: []string{"umount"}, Usage: "unmount a volume, and detach what mount attached", ArgsUsage: "DIR",
		Description: "It waits until everything is written, and all is gone: the device, and the server if it was\n" +
			"started for it.",
		Action: cliutil.Action(1, 1, cliutil.FirstArg, runUnmount),
	}
}

func runUnmount(ctx context.Context, env *cliutil.Env, c *cli.Context) error {
	u, err := attachHost(env).Unmount(ctx, c.Args().First(), nil, talk(env))
	if err != nil {
		return err
	}
	if !u.Detached {
		env.Say("%s is still attached: fsximg detach %s", u.Device, u.Device)
	}
	return nil
}

// helperName is what mount(8) calls this program for the type fsx.
const helperName = "mount.fsx"

// mountFlag is an option that only the helper has: one for the inner mount(8).
const mountFlag = "mount-flag"

// isMountHelper is whether mount(8) has called this program.
func isMountHelper(argv []string) bool { return len(argv) > 0 && filepath.Base(argv[0]) == helperName }

// helperPath is where mount.fsx looks for programs.
const helperPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// The exit codes of mount(8).
const (
	mountUsage  = 1
	mountFailed = 32
)

// mountHelper is mount.fsx: it makes a command line of fsximg mount of its own, so
// that options mean the same. Its exit code is mount(8)'s.
func mountHelper(argv []string) int {
	if os.Getenv("PATH") == "" { // mount(8) gives its helpers no environment
		if err := os.Setenv("PATH", helperPath); err != nil {
			cliutil.PrintError(helperName, err)
			return mountFailed
		}
	}
	call, err := attach.ParseHelperCall(argv[1:])
	var args []string
	if err == nil {
		args, err = helperCommand(call)
	}
	if err != nil {
		cliutil.PrintError(helperName, err)
		return mountUsage
	}
	if call.Fake {
		return 0
	}
	app := newApp()
	app.Name = helperName
	mount := mountCommand()
	mount.Flags = append(mount.Flags, &cli.StringSliceFlag{Name: mountFlag})
	app.Commands = []*cli.Command{mount}
	switch cliutil.Main(app, args) {
	case cliutil.ExitOK:
		return 0
	case cliutil.ExitUsage:
		return mountUsage
	}
	return mountFailed
}

// helperCommand is the command line of fsximg that does what mount(8) asks for.
func helperCommand(call *attach.HelperCall) ([]string, error) {
	if _, err := cliutil.ParseRef(call.Spec); err != nil {
		return nil, err
	}
	if _, err := os.Stat(call.Dir); errors.Is(err, os.ErrNotExist) {
		return nil, cliutil.UsageErrorf("%s: there is no such folder", call.Dir)
	}
	args := append([]string{helperName, "mount"}, call.Keys...)
	if call.ReadOnly {
		args = append(args, "--read-only")
	}
	if call.Verbose {
		args = append(args, "--verbose")
	}
	for _, o := range []struct{ name, value string }{
		{"type", call.Type}, {"mkfs", call.Mkfs}, {"device", call.Device}, {"connections", call.Connections}, {"reattach-timeout", call.Timeout},
	} {
		if o.value != "" {
			args = append(args, "--"+o.name+"="+o.value)
		}
	}
	for _, o := range call.MountOptions {
		args = append(args, "--options="+o)
	}
	for _, f := range call.Flags {
		args = append(args, "--"+mountFlag+"="+f)
	}
	return append(args, "--", call.Spec, call.Dir), nil
}
