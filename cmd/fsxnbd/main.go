// Command fsxnbd serves the volumes of encrypted stores, decrypted, over NBD.
package main

import (
	"os"

	"github.com/fsximg/fsx/internal/cliutil"
	"github.com/fsximg/fsx/pkg/layout"
	"github.com/urfave/cli/v2"
)

func main() { os.Exit(cliutil.Main(newApp(), os.Args)) }

func newApp() *cli.App {
	return &cli.App{
		Name:     "fsxnbd",
		Usage:    "serve encrypted stores over NBD",
		Version:  cliutil.VersionText(layout.Version),
		Flags:    cliutil.CommonFlags(),
		Commands: append([]*cli.Command{serveCommand(), statusCommand(), topCommand(), keyCommand()}, cliutil.GenerateCommands()...),
	}
}
