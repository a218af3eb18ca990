// Command fsximg makes and manages encrypted copy-on-write block images.
package main

import (
	"os"

	"github.com/fsximg/fsx/internal/cliutil"
	"github.com/fsximg/fsx/pkg/layout"
	"github.com/urfave/cli/v2"
)

// programName is what this program calls itself when it starts itself again.
const programName = "fsximg"

func main() {
	if isMountHelper(os.Args) {
		os.Exit(mountHelper(os.Args))
	}
	os.Exit(cliutil.Main(newApp(), os.Args))
}

func newApp() *cli.App {
	return &cli.App{
		Name:    programName,
		Usage:   "make and manage encrypted copy-on-write block images",
		Version: cliutil.VersionText(layout.Version),
		Flags:   cliutil.CommonFlags(),
		Commands: append([]*cli.Command{
			createCommand(),
			importCommand(),
			exportCommand(),
			infoCommand(),
			listCommand(),
			mapCommand(),
			snapshotCommand(),
			cloneCommand(),
			keyCommand(),
			volumeCommand(),
			resizeCommand(),
			flattenCommand(),
			rekeyCommand(),
			reencryptCommand(),
			diffCommand(),
			copyCommand(),
			checkCommand(),
			compactCommand(),
			measureCommand(),
			compareCommand(),
			attachCommand(),
			detachCommand(),
			attachedCommand(),
			mountCommand(),
			unmountCommand(),
			thawCommand(),
			keepCommand(),
		}, cliutil.GenerateCommands()...),
	}
}
