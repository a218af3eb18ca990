package main

import (
	"context"
	"errors"
	"io/fs"
	"os"

	"github.com/fsximg/fsx/internal/cliutil"
	"github.com/fsximg/fsx/internal/convert"
	"github.com/urfave/cli/v2"
)

func exportCommand() *cli.Command {
	return &cli.Command{
		Name: "export", Usage: "copy a volume, decrypted, to a file, a device or stdout", ArgsUsage: "STORE[:VOLUME][@SNAPSHOT] DST",
		Description: "DST is a new file (mode 0600, sparse), - (stdout), a block device or an NBD URI.\n" +
			"What is written there is not encrypted. A served store is read through its server.",
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "format", Value: string(convert.Raw), Usage: "`FORMAT` of DST: raw or qcow2"},
			&cli.BoolFlag{Name: "force", Usage: "overwrite what exists"},
			cliutil.JSONFlag(),
		}, cliutil.OpenKeyFlags()...),
		Action: cliutil.Action(2, 2, cliutil.FirstArg, runExport),
	}
}

type exportResult struct {
	cliutil.Header
	Store       string `json:"store"`
	Volume      string `json:"volume"`
	Size        int64  `json:"size"`
	Destination string `json:"destination"`
	Format      string `json:"format"`
}

func runExport(ctx context.Context, env *cliutil.Env, c *cli.Context) (err error) {
	ref, err := cliutil.ParseRef(c.Args().First())
	if err != nil {
		return err
	}
	dst, format := c.Args().Get(1), convert.Format(c.String("format"))
	if err := checkDestination(c, dst, format); err != nil {
		return err
	}
	img, err := openImage(ctx, env, c, ref)
	if err != nil {
		return err
	}
	defer img.close(&err)
	size := img.Size()
	sink, err := openSink(ctx, env, c, dst, format, size)
	if err != nil {
		return hintSource(dst, err)
	}
	p := env.NewProgress("export", size)
	err = convert.Export(ctx, img, sink, p.Add)
	p.Stop()
	if err != nil {
		return err
	}
	if dst == "-" {
		return nil
	}
	env.Say("%s: %s of %s, not encrypted", dst, cliutil.FormatSize(size), img.describe())
	if c.Bool("json") {
		return env.PrintJSON(exportResult{cliutil.NewHeader("fsximg.export"), ref.Store, img.name(), size, dst, string(format)})
	}
	return nil
}

// checkDestination finds mistakes before a key is asked for.
func checkDestination(c *cli.Context, dst string, format convert.Format) error {
	switch {
	case format != convert.Raw && format != convert.Qcow2:
		return cliutil.UsageErrorf("--format %s: use raw or qcow2", format)
	case format == convert.Qcow2 && (dst == "-" || convert.IsURI(dst)):
		return cliutil.UsageErrorf("--format qcow2: %s must be a file", dst)
	case dst == "-" && c.Bool("json"):
		return cliutil.UsageErrorf("--json and the image cannot both go to stdout")
	}
	return nil
}

// openSink opens DST, after asking whether it may be overwritten.
func openSink(ctx context.Context, env *cliutil.Env, c *cli.Context, dst string, format convert.Format, size int64) (convert.Sink, error) {
	force := c.Bool("force")
	if dst == "-" {
		if env.StdoutIsTerminal() {
			return nil, cliutil.UsageErrorf("the image would go to the terminal; redirect stdout")
		}
		return convert.ToStream(env.Stdout), nil
	}
	if convert.IsURI(dst) {
		if err := env.Confirm(ctx, force, "%s would be overwritten", dst); err != nil {
			return nil, err
		}
		return convert.ToNBD(ctx, dst, size)
	}
	if err := cliutil.NotInStore(dst); err != nil {
		return nil, err
	}
	st, err := os.Stat(dst)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	case st.Mode()&(os.ModeNamedPipe|os.ModeCharDevice|os.ModeSocket) != 0 || st.IsDir():
		return nil, cliutil.UsageErrorf("%s is neither a file nor a block device", dst)
	default:
		if err := env.Confirm(ctx, force, "%s exists and would be overwritten", dst); err != nil {
			return nil, err
		}
		if st.Mode()&os.ModeDevice != 0 {
			if format != convert.Raw {
				return nil, cliutil.UsageErrorf("--format %s: %s must be a file", format, dst)
			}
			return convert.ToBlockDevice(dst, size)
		}
	}
	// The answer was about the file that is there now.
	if format == convert.Qcow2 {
		return convert.ToQcow2(ctx, dst, size, err == nil)
	}
	return convert.ToFile(dst, size, err == nil)
}
