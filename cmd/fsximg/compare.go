package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/fsximg/fsx/internal/cliutil"
	"github.com/fsximg/fsx/internal/convert"
	"github.com/fsximg/fsx/internal/volume"
	"github.com/urfave/cli/v2"
)

func compareCommand() *cli.Command {
	return &cli.Command{
		Name: "compare", Usage: "say whether two images have the same contents", ArgsUsage: "A B",
		Description: "A and B are each STORE[:VOLUME][@SNAPSHOT], a file, a block device, - (stdin) or an NBD URI.\n" +
			"Where one is longer the rest must be zero. Keys that are given are tried on both.\n" +
			"Exit code 0: equal, 1: different, 8: could not be compared.",
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "format", Value: string(convert.Auto), Usage: "`FORMAT` of images that are files: auto, raw or qcow2"},
			&cli.BoolFlag{Name: "allow-backing", Usage: "let a qcow2 image refer to other files"},
			&cli.BoolFlag{Name: "strict", Usage: "different sizes are a difference"},
			cliutil.JSONFlag(),
		}, cliutil.OpenKeyFlags()...),
		Action: cliutil.Action(2, 2, cliutil.NoObject, runCompare),
	}
}

type compareResult struct {
	cliutil.Header
	A     string `json:"a"`
	B     string `json:"b"`
	Equal bool   `json:"equal"`
	At    *int64 `json:"at,omitempty"` // first byte that differs
}

// runCompare keeps exit code 1 for images that differ.
func runCompare(ctx context.Context, env *cliutil.Env, c *cli.Context) error {
	equal, err := compare(ctx, env, c)
	switch {
	case err == nil && !equal:
		return cliutil.Silent(cliutil.ErrDifferent)
	case err == nil || ctx.Err() != nil || errors.Is(err, cliutil.ErrUsage):
		return err
	}
	return cliutil.NotCompared(err)
}

func compare(ctx context.Context, env *cliutil.Env, c *cli.Context) (equal bool, err error) {
	set := &comparands{env: env, c: c, stores: map[string]*volume.Store{}}
	defer set.close(&err)
	if err := claimStdinOnce(c); err != nil {
		return false, err
	}
	var src [2]convert.Source
	for i := range src {
		name := c.Args().Get(i)
		s, err := set.open(ctx, name)
		if err != nil && strings.HasPrefix(err.Error(), name+": ") {
			return false, err
		} else if err != nil {
			return false, fmt.Errorf("%s: %w", name, err)
		}
		defer s.Close()
		src[i] = s
	}
	p := env.NewProgress("compare", max(src[0].Size(), src[1].Size()))
	d, err := convert.Compare(ctx, src[0], src[1], c.Bool("strict"), p.Add)
	p.Stop()
	if err != nil {
		return false, err
	}
	return d.Equal, reportCompare(env, c, d)
}

// claimStdinOnce refuses stdin in two places, before either reads it.
func claimStdinOnce(c *cli.Context) error {
	words := append(c.Args().Slice(), c.StringSlice("passphrase-file")...)
	words = append(append(words, c.StringSlice("key-file")...), c.StringSlice("recovery-key-file")...)
	if n := len(slices.DeleteFunc(words, func(w string) bool { return w != "-" })); n > 1 {
		return cliutil.UsageErrorf("- is stdin, and can be given once only")
	}
	return nil
}

func reportCompare(env *cliutil.Env, c *cli.Context, d convert.Difference) error {
	res := compareResult{Header: cliutil.NewHeader("fsximg.compare"), A: c.Args().Get(0), B: c.Args().Get(1), Equal: d.Equal}
	if d.Equal && d.Sizes[0] != d.Sizes[1] {
		env.Say("%s: the sizes differ, %d and %d bytes; the rest is zero", env.Program, d.Sizes[0], d.Sizes[1])
	}
	if !d.Equal {
		res.At = &d.At
	}
	if c.Bool("json") {
		return env.PrintJSON(res)
	}
	text := "equal"
	if !d.Equal {
		text = fmt.Sprintf("different from offset %d on", d.At)
	}
	_, err := fmt.Fprintln(env.Stdout, text)
	return err
}

// comparands are the images of one comparison: the stores that it opened, each
// once, and the keys that were given.
type comparands struct {
	env    *cliutil.Env
	c      *cli.Context
	stores map[string]*volume.Store
	given  []cliutil.Secret // by options; they are good for both
}

func (s *comparands) close(err *error) {
	for _, st := range s.stores {
		closeStore(st, err)
	}
	cliutil.WipeSecrets(s.given)
}

// open opens an image or a volume.
func (s *comparands) open(ctx context.Context, name string) (convert.Source, error) {
	if name == "-" || convert.IsURI(name) {
		return openSource(ctx, s.env, s.c, name)
	}
	if st, err := os.Stat(name); err == nil && !st.IsDir() {
		return openSource(ctx, s.env, s.c, name)
	}
	ref, err := cliutil.ParseRef(name)
	if err != nil {
		return nil, err
	}
	if exists, err := pathExists(ref.Store); err == nil && !exists {
		return nil, cliutil.Errorf(cliutil.ErrNotFound, "no such file or store")
	}
	st, err := s.store(ctx, ref.Store)
	if err != nil {
		return dialImage(ctx, s.env, s.c, ref, err)
	}
	return sourceIn(st, ref)
}

func (s *comparands) store(ctx context.Context, path string) (*volume.Store, error) {
	name, err := filepath.EvalSymlinks(path)
	if err != nil {
		name = path
	}
	if name, err = filepath.Abs(name); err != nil {
		return nil, err
	}
	if st := s.stores[name]; st != nil {
		return st, nil
	}
	st, err := s.env.OpenStore(path, forReading)
	if err != nil {
		return nil, err
	}
	s.stores[name] = st
	return st, s.unlock(ctx, st, path)
}

// unlock tries the keys that are named by options, which are read once, or
// those that there are for this store.
func (s *comparands) unlock(ctx context.Context, st *volume.Store, path string) error {
	if len(s.given) > 0 {
		return cliutil.Unlock(st, s.given)
	}
	secrets, err := s.env.OpenKeys(ctx, s.c, path, st.Keyring().HasClearSlot())
	if err != nil {
		return err
	}
	if cliutil.NamesKeys(s.c) {
		s.given = secrets
	} else {
		defer cliutil.WipeSecrets(secrets)
	}
	return cliutil.Unlock(st, secrets)
}
