package main

import (
	"bytes"
	"context"
	"fmt"

	"github.com/fsximg/fsx/internal/cliutil"
	"github.com/fsximg/fsx/internal/convert"
	"github.com/urfave/cli/v2"
)

func measureCommand() *cli.Command {
	return &cli.Command{
		Name: "measure", Usage: "tell how much of an image would be stored", ArgsUsage: "SRC",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "format", Value: string(convert.Auto), Usage: "`FORMAT` of SRC: auto, raw or qcow2"},
			&cli.BoolFlag{Name: "allow-backing", Usage: "let a qcow2 image refer to other files"},
			cliutil.JSONFlag(),
		},
		Action: cliutil.Action(1, 1, cliutil.FirstArg, runMeasure),
	}
}

type measureResult struct {
	cliutil.Header
	Source string `json:"source"`
	Size   int64  `json:"size"` // length of the image
	Data   int64  `json:"data"` // in blocks that are not all zero
	Zero   int64  `json:"zero"`
}

const storeBlock = 4096

func runMeasure(ctx context.Context, env *cliutil.Env, c *cli.Context) error {
	name := c.Args().First()
	src, err := openSource(ctx, env, c, name)
	if err != nil {
		return err
	}
	defer src.Close()
	res := measureResult{Header: cliutil.NewHeader("fsximg.measure"), Source: name}
	p := env.NewProgress("measure", src.Size())
	err = src.Stream(ctx, func(piece convert.Piece) error {
		p.Add(piece.Len)
		res.Size = piece.Off + piece.Len
		res.Data += dataBlocks(piece) * storeBlock
		return nil
	})
	p.Stop()
	if err != nil {
		return err
	}
	res.Zero = max(0, res.Size-res.Data)
	if c.Bool("json") {
		return env.PrintJSON(res)
	}
	_, err = fmt.Fprintf(env.Stdout, "%s: %s, of which %s would be stored\n", name, cliutil.FormatSize(res.Size), cliutil.FormatSize(res.Data))
	return err
}

var zeroBlock [storeBlock]byte

// dataBlocks counts the blocks of a piece that are not all zero. A block that
// lies in two pieces may count twice.
func dataBlocks(p convert.Piece) (n int64) {
	for at := int64(0); at < int64(len(p.Bytes)); {
		end := min(int64(len(p.Bytes)), (p.Off+at)/storeBlock*storeBlock+storeBlock-p.Off)
		if !bytes.Equal(p.Bytes[at:end], zeroBlock[:end-at]) {
			n++
		}
		at = end
	}
	return n
}
