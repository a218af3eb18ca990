package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/fsximg/fsx/internal/cliutil"
	"github.com/fsximg/fsx/internal/volume"
	"github.com/urfave/cli/v2"
)

func checkCommand() *cli.Command {
	return &cli.Command{
		Name: "check", Usage: "look for damage: of the structure, and with a key of every block", ArgsUsage: "STORE",
		Description: "Without a key the structure is checked: every node of every map, every extent, all\n" +
			"accounting. With one, also the authentication tag of every block.",
		Flags:  append([]cli.Flag{cliutil.JSONFlag()}, cliutil.OpenKeyFlags()...),
		Action: cliutil.Action(1, 1, cliutil.FirstArg, runCheck),
	}
}

type checkResult struct {
	cliutil.Header
	Store       string          `json:"store"`
	Clean       bool            `json:"clean"`
	NeedsReplay bool            `json:"needs_replay"`
	Volumes     []checkedVolume `json:"volumes"`
	Problems    []problemResult `json:"problems"`
	NotListed   int             `json:"problems_not_listed"`
}

type checkedVolume struct {
	Name      string `json:"name"`
	Blocks    uint64 `json:"blocks"`
	Verified  uint64 `json:"verified"` // blocks whose tag was checked
	Leaked    uint64 `json:"leaked"`   // blocks that nothing needs and compact frees
	Authentic bool   `json:"authentic"`
}

type problemResult struct {
	Volume string `json:"volume"`
	Offset *int64 `json:"offset,omitempty"` // bytes; absent if it is no place
	Length int64  `json:"length,omitempty"`
	Text   string `json:"text"`
}

func runCheck(ctx context.Context, env *cliutil.Env, c *cli.Context) (err error) {
	path, err := cliutil.StoreOnly(c.Args().First())
	if err != nil {
		return err
	}
	st, err := openWithGivenKeys(env, c, path, forReading)
	if err != nil {
		return err
	}
	defer closeStore(st, &err)
	res := checkResult{Header: cliutil.NewHeader("fsximg.check"), Store: path, Volumes: []checkedVolume{}, Problems: []problemResult{}}
	unlockVolumes(st, &res)
	volumes, err := st.Volumes()
	if err != nil {
		return err
	}
	res.NeedsReplay = noteReplay(env, volumes)
	p := env.NewProgress("check", 0)
	rep, err := st.Check(ctx, volume.CheckOptions{Progress: p.Set})
	p.Stop()
	if err != nil {
		return err
	}
	res.add(rep)
	if c.Bool("json") {
		err = env.PrintJSON(res)
	} else {
		err = res.print(env.Stdout)
	}
	if err == nil && !res.Clean {
		n := len(res.Problems) + res.NotListed
		err = cliutil.Errorf(cliutil.ErrDamaged, "damaged: %d problem%s", n, map[bool]string{true: "", false: "s"}[n == 1])
	}
	return err
}

// unlockVolumes opens every volume whose key is there, so that its tags are
// checked. One that cannot be opened is a problem; the others go on.
func unlockVolumes(st *volume.Store, res *checkResult) {
	for _, name := range st.Names() {
		_, err := st.Volume(name)
		if err != nil && !errors.Is(err, volume.ErrKeyMissing) {
			res.Problems = append(res.Problems, problemResult{Volume: name, Text: err.Error()})
		}
	}
}

func (r *checkResult) add(rep *volume.Report) {
	for _, v := range rep.Volumes {
		r.Volumes = append(r.Volumes, checkedVolume{v.Name, v.Blocks, v.Verified, v.Leaked, v.Authentic})
	}
	for _, p := range rep.Problems {
		out := problemResult{Volume: p.Volume, Length: p.Length, Text: p.Text}
		if p.Offset >= 0 {
			out.Offset = &p.Offset
		}
		r.Problems = append(r.Problems, out)
	}
	r.NotListed = rep.More
	r.Clean = len(r.Problems) == 0
}

func (r *checkResult) print(w io.Writer) error {
	var errs error
	say := func(format string, args ...any) {
		_, err := fmt.Fprintf(w, format+"\n", args...)
		errs = errors.Join(errs, err)
	}
	for _, p := range r.Problems {
		place := ""
		if p.Offset != nil {
			place = fmt.Sprintf(" at %d, %d bytes", *p.Offset, p.Length)
		}
		say("volume %s%s: %s", p.Volume, place, p.Text)
	}
	if r.NotListed > 0 {
		say("and %d more", r.NotListed)
	}
	for _, v := range r.Volumes {
		what := fmt.Sprintf("%d of them verified", v.Verified)
		if !v.Authentic {
			what = "structure only, without the key"
		}
		say("volume %s: %d blocks, %s", v.Name, v.Blocks, what)
	}
	if r.Clean {
		say("no damage found")
	}
	return errs
}
