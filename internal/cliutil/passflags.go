package cliutil

import (
	"fmt"

	"github.com/urfave/cli/v2"
)

// PassKeyFlags are the options of OpenKeyFlags as they were given, for another program
// that takes them and reads the secrets itself, and those of CommonFlags.
func PassKeyFlags(c *cli.Context) []string {
	return append(passFlags(c, CommonFlags()), passFlags(c, OpenKeyFlags())...)
}

func passFlags(c *cli.Context, flags []cli.Flag) (args []string) {
	for _, f := range flags {
		name := f.Names()[0]
		if !c.IsSet(name) {
			continue
		}
		switch f.(type) {
		case *cli.BoolFlag:
			args = append(args, fmt.Sprintf("--%s=%t", name, c.Bool(name)))
		case *cli.StringSliceFlag:
			for _, value := range c.StringSlice(name) {
				args = append(args, "--"+name+"="+value)
			}
		default:
			args = append(args, "--"+name+"="+c.String(name))
		}
	}
	return args
}
