package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/fsximg/fsx/internal/cliutil"
	"github.com/fsximg/fsx/internal/convert"
	"github.com/fsximg/fsx/internal/nbdclient"
	"github.com/fsximg/fsx/internal/volume"
	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"
)

func importCommand() *cli.Command {
	return &cli.Command{
		Name: "import", Usage: "copy an image into a new store, or over a volume of an existing one", ArgsUsage: "SRC STORE",
		Description: "SRC is a file, a block device, - (stdin) or an NBD URI. A new store gets its exact size\n" +
			"(or --size, which may be larger). An existing volume keeps its size; only what differs is written.",
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "format", Value: string(convert.Auto), Usage: "`FORMAT` of SRC: auto, raw or qcow2"},
			&cli.BoolFlag{Name: "allow-backing", Usage: "let a qcow2 image refer to other files"},
			&cli.StringFlag{Name: "volume", Usage: "`NAME` of the volume (default main)"},
			&cli.StringFlag{Name: "size", Usage: "`SIZE` of the volume in a new store; needed when SRC is a pipe"},
			&cli.BoolFlag{Name: "force", Usage: "write over a volume that is not empty"},
			cipherFlag(), cliutil.JSONFlag(),
		}, cliutil.CreateKeyFlags()...),
		Action: cliutil.Action(2, 2, cliutil.LastArg, runImport),
	}
}

type importResult struct {
	cliutil.Header
	Store   string        `json:"store"`
	Volume  string        `json:"volume"`
	Source  int64         `json:"source"`  // length of the image
	Size    int64         `json:"size"`    // of the volume
	Written int64         `json:"written"` // differed
	Zeroed  int64         `json:"zeroed"`
	Kept    int64         `json:"kept"`
	Created *createResult `json:"created,omitempty"`
}

func runImport(ctx context.Context, env *cliutil.Env, c *cli.Context) error {
	ref, err := importTarget(c)
	if err != nil {
		return err
	}
	exists, err := pathExists(ref.Store)
	if err != nil {
		return err
	}
	if exists {
		return importOver(ctx, env, c, ref)
	}
	return importNew(ctx, env, c, ref)
}

// importTarget is the volume that the arguments name.
func importTarget(c *cli.Context) (cliutil.Ref, error) {
	ref, err := cliutil.ParseRef(c.Args().Get(1))
	if err != nil {
		return ref, err
	}
	name := c.String("volume")
	switch {
	case ref.Snapshot != "":
		return ref, cliutil.UsageErrorf("%s: a snapshot cannot be written", ref)
	case name == "":
		return ref, nil
	case ref.Volume != "" && ref.Volume != name:
		return ref, cliutil.UsageErrorf("--volume %s and %s name different volumes", name, ref)
	}
	ref.Volume = name
	return ref, cliutil.CheckName("volume", name)
}

// openSource opens SRC.
func openSource(ctx context.Context, env *cliutil.Env, c *cli.Context, name string) (convert.Source, error) {
	format, err := convert.ParseFormat(c.String("format"))
	if err != nil {
		return nil, cliutil.Errorf(cliutil.ErrUsage, "--%v", err)
	}
	if convert.IsURI(name) {
		if format == convert.Qcow2 {
			return nil, cliutil.UsageErrorf("--format qcow2: an NBD server's contents are read as they are")
		}
		client, err := convert.DialNBD(ctx, name)
		if err != nil {
			return nil, hintSource(name, err)
		}
		return convert.FromRandom(client), nil
	}
	if name == "-" {
		if err := env.ClaimStdin("SRC"); err != nil {
			return nil, err
		}
	}
	f, err := env.OpenInput(name)
	if err != nil {
		return nil, err
	}
	src, err := convert.Open(ctx, f, convert.Options{Format: format, AllowBacking: c.Bool("allow-backing")})
	if err != nil {
		return nil, hintSource(name, fmt.Errorf("%s: %w", name, err))
	}
	return src, nil
}

func hintSource(name string, err error) error {
	switch {
	case errors.Is(err, nbdclient.ErrURI):
		return cliutil.Errorf(cliutil.ErrUsage, "%v", err)
	case errors.Is(err, convert.ErrBacking):
		return cliutil.WithHint(err, "if you trust the image, --allow-backing follows the reference")
	case errors.Is(err, convert.ErrNoProgram):
		return cliutil.WithHint(err, "install QEMU's tools (Debian: apt install qemu-utils), or convert the image to raw elsewhere")
	case errors.Is(err, syscall.EISDIR):
		return cliutil.WithHint(err, "an image is a file, a block device or an NBD URI; a store is exported first, or served")
	case errors.Is(err, convert.ErrFormat):
		return cliutil.WithHint(err, "--format raw imports it byte by byte; qemu-img convert makes other formats raw")
	}
	return err
}

// copyIn runs the import with a progress bar.
func copyIn(ctx context.Context, env *cliutil.Env, src convert.Source, v *volume.Volume) (convert.Report, error) {
	p := env.NewProgress("import", src.Size())
	defer p.Stop()
	return convert.Import(ctx, src, v, p.Add)
}

// importOver writes over a volume of an existing store.
func importOver(ctx context.Context, env *cliutil.Env, c *cli.Context, ref cliutil.Ref) (err error) {
	for _, name := range []string{"size", "cipher", "recovery-key", "recovery-key-out", "clear-key", "kdf-memory", "kdf-time"} {
		if c.IsSet(name) {
			return cliutil.UsageErrorf("--%s is for a new store, and %s exists", name, ref.Store)
		}
	}
	st, err := openUnlocked(ctx, env, c, ref.Store, forWriting)
	if err != nil {
		return err
	}
	defer closeStore(st, &err)
	v, err := openVolume(st, ref)
	if err != nil {
		return err
	}
	src, err := openSource(ctx, env, c, c.Args().First())
	if err != nil {
		return err
	}
	defer src.Close()
	empty, err := convert.Empty(v)
	if err != nil {
		return err
	}
	if !empty {
		if err := env.Confirm(ctx, c.Bool("force"), "volume %s is not empty and would be overwritten", v.Name()); err != nil {
			return err
		}
	}
	rep, err := copyIn(ctx, env, src, v)
	if err != nil {
		if rep.Written+rep.Zeroed > 0 {
			env.Say("%s: volume %s has a part of the image: %s written", env.Program, v.Name(), cliutil.FormatSize(rep.Written))
		}
		return err
	}
	return reportImport(env, c, importResult{Store: ref.Store, Volume: v.Name(), Size: v.Size()}, rep)
}

func reportImport(env *cliutil.Env, c *cli.Context, res importResult, rep convert.Report) error {
	res.Header = cliutil.NewHeader("fsximg.import")
	res.Source, res.Written, res.Zeroed, res.Kept = rep.Source, rep.Written, rep.Zeroed, rep.Kept
	env.Say("%s: %s into volume %s of %s: %s written, %s zero or unchanged", res.Store, cliutil.FormatSize(res.Source), res.Volume,
		cliutil.FormatSize(res.Size), cliutil.FormatSize(res.Written), cliutil.FormatSize(res.Zeroed+res.Kept))
	if c.Bool("json") {
		return env.PrintJSON(res)
	}
	return nil
}

// importNew makes a store under a temporary name beside its own, and gives it
// that name when it is complete: an import that fails leaves nothing behind.
func importNew(ctx context.Context, env *cliutil.Env, c *cli.Context, ref cliutil.Ref) (err error) {
	if err := cliutil.NotInStore(ref.Store); err != nil {
		return err
	}
	if ref.Volume != "" && ref.Volume != cliutil.DefaultVolume {
		return cliutil.UsageErrorf("a new store's volume is called %s", cliutil.DefaultVolume)
	}
	src, err := openSource(ctx, env, c, c.Args().First())
	if err != nil {
		return err
	}
	defer src.Close()
	size, err := sizeForNew(env, c, src)
	if err != nil {
		return err
	}
	keys, err := env.NewKeys(ctx, c, ref.Store)
	if err != nil {
		return err
	}
	defer keys.Wipe()
	tmp, err := temporaryStore(ref.Store)
	if err != nil {
		keys.Abandon()
		return err
	}
	defer func() {
		if err != nil {
			keys.Abandon()
			os.RemoveAll(filepath.Dir(tmp))
		}
	}()
	st, err := newStore(env, c, tmp, size, keys)
	if err != nil {
		return err
	}
	created := describeNew(st, keys, c)
	created.Store = ref.Store
	rep, err := fill(ctx, env, st, src)
	if err != nil {
		return err
	}
	if err := settleStore(tmp, ref.Store); err != nil {
		return err
	}
	keys.Keep()
	return unshown(ref.Store, keys, reportNew(env, c, created, rep, keys))
}

// fill imports into a new store and closes it.
func fill(ctx context.Context, env *cliutil.Env, st *volume.Store, src convert.Source) (rep convert.Report, err error) {
	defer closeStore(st, &err)
	v, err := st.Volume(cliutil.DefaultVolume)
	if err != nil {
		return rep, err
	}
	return copyIn(ctx, env, src, v)
}

func reportNew(env *cliutil.Env, c *cli.Context, created createResult, rep convert.Report, keys *cliutil.NewKeys) error {
	res := importResult{Store: created.Store, Volume: created.Volume, Size: created.Size}
	if c.Bool("json") {
		res.Created = &created
	}
	if err := reportImport(env, c, res, rep); err != nil {
		return err
	}
	return printNew(env, c, created, keys)
}

// sizeForNew is the size of the volume for src: its own, or --size.
func sizeForNew(env *cliutil.Env, c *cli.Context, src convert.Source) (int64, error) {
	have := src.Size()
	if s := c.String("size"); s != "" {
		size, err := cliutil.ParseSize(s)
		if err == nil && have > size {
			err = fmt.Errorf("%w: it has %d bytes, --size is %d", convert.ErrTooLarge, have, size)
		}
		return size, err
	}
	switch {
	case have == convert.UnknownSize:
		return 0, cliutil.WithHint(cliutil.UsageErrorf("the length of a pipe is not known beforehand"),
			"--size sets the size of the volume; what the pipe does not fill is zero")
	case have == 0:
		return 0, fmt.Errorf("%s is empty", c.Args().First())
	case have > cliutil.MaxSize:
		return 0, fmt.Errorf("%w: it has %d bytes, the largest volume has %d", convert.ErrTooLarge, have, int64(cliutil.MaxSize))
	}
	size := (have + cliutil.SectorSize - 1) / cliutil.SectorSize * cliutil.SectorSize
	if size != have {
		env.Say("%s: the volume has %d bytes, the next multiple of %d after the image's %d", env.Program, size, cliutil.SectorSize, have)
	}
	return size, nil
}

// temporaryStore makes a folder beside path, which only its owner can enter,
// and names a store in it.
func temporaryStore(path string) (string, error) {
	path = filepath.Clean(path)
	dir, err := os.MkdirTemp(filepath.Dir(path), ".fsx-part-*")
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, filepath.Base(path)), nil
}

// settleStore moves a complete, closed store to its own name, where nothing
// may be, and makes that durable.
func settleStore(tmp, path string) error {
	path = filepath.Clean(path)
	err := unix.Renameat2(unix.AT_FDCWD, tmp, unix.AT_FDCWD, path, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) { // a file system without NOREPLACE
		if _, statErr := os.Lstat(path); !errors.Is(statErr, fs.ErrNotExist) {
			return fs.ErrExist
		}
		err = os.Rename(tmp, path)
	}
	if err != nil {
		return err
	}
	if err := os.Remove(filepath.Dir(tmp)); err != nil {
		return err
	}
	parent, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(parent.Sync(), parent.Close())
}
