package main

import (
	"bufio"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/fsximg/fsx/internal/cliutil"
	"github.com/urfave/cli/v2"
)

// checkPicture finds mistakes in --picture before anything is opened.
func checkPicture(c *cli.Context) error {
	name := c.String("picture")
	switch {
	case !c.IsSet("picture"):
		return nil
	case name == "-" && (c.Bool("json") || c.Bool("tree") || c.Bool("blocks")):
		return cliutil.UsageErrorf("--picture -: the picture and something else cannot both go to stdout")
	case name != "-" && !strings.EqualFold(filepath.Ext(name), ".svg") && !strings.HasPrefix(name, "/dev/"):
		return cliutil.WithHint(cliutil.UsageErrorf("--picture %s: pictures are SVG", name), "name it %s.svg", strings.TrimSuffix(name, filepath.Ext(name)))
	}
	return nil
}

// drawInto draws what into a new file, or to stdout, and says so.
func drawInto(env *cliutil.Env, what, name string, force bool, draw func(io.Writer) error) error {
	if name == "-" {
		w := bufio.NewWriter(env.Stdout)
		return errors.Join(draw(w), w.Flush())
	}
	if err := cliutil.NotInStore(name); err != nil {
		return err
	}
	flags := os.O_WRONLY | os.O_CREATE | os.O_EXCL
	if force {
		flags = os.O_WRONLY | os.O_CREATE | os.O_TRUNC
	}
	f, err := os.OpenFile(name, flags, 0o666)
	if errors.Is(err, fs.ErrExist) {
		return cliutil.WithHint(err, "--force replaces it")
	}
	if err != nil {
		return err
	}
	w := bufio.NewWriter(f)
	if err := errors.Join(draw(w), w.Flush(), f.Close()); err != nil {
		return err
	}
	env.Say("%s: drawn into %s", what, name)
	return nil
}
