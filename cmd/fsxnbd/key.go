package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/fsximg/fsx/internal/cliutil"
	"github.com/fsximg/fsx/internal/control"
	"github.com/fsximg/fsx/internal/volume"
	"github.com/fsximg/fsx/pkg/crypt"
	"github.com/urfave/cli/v2"
)

func keyCommand() *cli.Command {
	return &cli.Command{
		Name: "key", Usage: "add, remove or show the volume keys of a running server",
		Subcommands: []*cli.Command{keyAddCommand(), keyRemoveCommand(), keyStatusCommand()},
	}
}

func controlFlag() cli.Flag {
	return &cli.StringFlag{Name: "control", Usage: "`PATH` of the server's control socket, instead of STORE"}
}

func keyAddCommand() *cli.Command {
	return &cli.Command{
		Name: "add", Usage: "give a running server keys", ArgsUsage: "STORE",
		Description: "Volumes under the keys that are opened can be used from now on, those too whose key was removed.",
		Flags:       append([]cli.Flag{controlFlag(), cliutil.JSONFlag()}, cliutil.OpenKeyFlags()...),
		Action:      cliutil.Action(0, 1, cliutil.FirstArg, runKeyAdd),
	}
}

func keyRemoveCommand() *cli.Command {
	return &cli.Command{
		Name: "remove", Aliases: []string{"rm"}, Usage: "take a key out of a running server's memory", ArgsUsage: "STORE[:VOLUME]",
		Description: "Flushes first. No volume under the key is opened any more; those that clients use work on\n" +
			"until the last client leaves, and then all that was derived from the key is wiped. The key\n" +
			"is that of --key, or that of VOLUME. The slots stay: fsxnbd key add brings it back.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "key", Usage: "`ID` of the volume key, or its first 8 or more hex digits"},
			&cli.BoolFlag{Name: "force", Aliases: []string{"f"}, Usage: "now, though clients use it: after the flush all their requests fail"},
			controlFlag(), cliutil.JSONFlag(),
		},
		Action: cliutil.Action(0, 1, cliutil.FirstArg, runKeyRemove),
	}
}

func keyStatusCommand() *cli.Command {
	return &cli.Command{
		Name: "status", Usage: "show a running server's keys and who uses them", ArgsUsage: "STORE",
		Description: "States: present; incompletely-removed (only what clients use already can be used); absent.",
		Flags:       []cli.Flag{controlFlag(), cliutil.JSONFlag()},
		Action:      cliutil.Action(0, 1, cliutil.FirstArg, runKeyStatus),
	}
}

// keysResult is what key add and key status print as JSON.
type keysResult struct {
	cliutil.Header
	Store string              `json:"store"`
	Keys  []control.VolumeKey `json:"keys"`
}

type keyRemoveResult struct {
	cliutil.Header
	Store string `json:"store"`
	control.RemovedKey
}

// keyServer is the server of a store, reached by the store or by its socket.
type keyServer struct {
	*control.Client
	store  string // its path
	volume string // that was named; empty if none was
}

// dialKeyServer finds the server that a command line names.
func dialKeyServer(ctx context.Context, c *cli.Context) (*keyServer, error) {
	s := &keyServer{}
	switch socket := c.String("control"); {
	case (socket == "") == (c.Args().Len() == 0):
		return nil, cliutil.UsageErrorf("name either the store or --control")
	case socket != "" && filepath.Base(socket) != control.SocketName:
		return nil, cliutil.UsageErrorf("--control %s: the control socket is %s in the store's folder", socket, control.SocketName)
	case socket != "":
		s.store = filepath.Dir(socket)
	default:
		ref, err := cliutil.ParseRef(c.Args().First())
		if err != nil {
			return nil, err
		}
		s.store, s.volume = ref.Store, ref.Volume
		if ref.Snapshot != "" {
			return nil, cliutil.UsageErrorf("%s: a snapshot has no key of its own", c.Args().First())
		}
	}
	client, err := control.Dial(ctx, s.store)
	switch {
	case control.NoServer(err) && !volume.IsStore(s.store), errors.Is(err, fs.ErrNotExist):
		return nil, cliutil.Errorf(cliutil.ErrNotFound, "no such store")
	case control.NoServer(err):
		return nil, cliutil.WithHint(errors.New("no server serves this store, or none that is yours"), "fsxnbd serve %s", s.store)
	case err != nil:
		return nil, err
	}
	s.Client = client
	return s, nil
}

// storeAlone refuses the name of a volume.
func (s *keyServer) storeAlone() error {
	if s.volume != "" {
		return cliutil.UsageErrorf("%s:%s: this command takes a store, not a volume", s.store, s.volume)
	}
	return nil
}

func runKeyAdd(ctx context.Context, env *cliutil.Env, c *cli.Context) (err error) {
	s, err := dialKeyServer(ctx, c)
	if err != nil {
		return err
	}
	defer s.Close()
	if err := s.storeAlone(); err != nil {
		return err
	}
	info, err := s.Info(ctx)
	if err != nil {
		return err
	}
	hasClear := slices.ContainsFunc(info.Slots, func(slot control.Slot) bool { return slot.Type == crypt.SlotClear.String() })
	secrets, err := env.OpenSlotSecrets(ctx, c, s.store, hasClear)
	if err != nil {
		return err
	}
	defer func() { secrets.Done(err) }()
	keys, err := s.AddKey(ctx, secrets.Secrets)
	if err != nil {
		return err
	}
	for _, k := range keys {
		env.Say("%s: volume key %s is present (%s)", s.store, k.ID[:8], volumesText(k.Volumes))
	}
	if c.Bool("json") {
		return env.PrintJSON(keysResult{cliutil.NewHeader("fsxnbd.key.add"), s.store, keys})
	}
	return nil
}

func runKeyRemove(ctx context.Context, env *cliutil.Env, c *cli.Context) error {
	s, err := dialKeyServer(ctx, c)
	if err != nil {
		return err
	}
	defer s.Close()
	id, err := s.keyToRemove(ctx, c.String("key"))
	if err != nil {
		return err
	}
	r, err := s.RemoveKey(ctx, id, c.Bool("force"))
	if err != nil {
		return err
	}
	for _, lost := range r.Lost {
		env.Warn("what was written last may be lost: %s", lost)
	}
	if r.Clients > 0 {
		env.Say("%s: volume key %s is removed, but in use: %s can be used by %s until they leave", s.store, r.ID[:8], volumesText(r.Volumes), clientsText(r.Clients))
	} else {
		env.Say("%s: volume key %s is removed", s.store, r.ID[:8])
	}
	if c.Bool("json") {
		return env.PrintJSON(keyRemoveResult{cliutil.NewHeader("fsxnbd.key.remove"), s.store, r})
	}
	return nil
}

// keyToRemove is the key that --key names, or that of the volume that is named.
func (s *keyServer) keyToRemove(ctx context.Context, key string) (string, error) {
	switch {
	case key != "" && s.volume != "":
		return "", cliutil.UsageErrorf("--key and a volume exclude each other")
	case key != "":
		return strings.ToLower(key), nil
	case s.volume == "":
		return "", cliutil.WithHint(cliutil.UsageErrorf("remove which key? --key is missing"), "or name a volume under it, as in %s:main", s.store)
	}
	keys, err := s.KeyStatus(ctx)
	if err != nil {
		return "", err
	}
	for _, k := range keys {
		if slices.Contains(k.Volumes, s.volume) {
			return k.ID, nil
		}
	}
	return "", fmt.Errorf("volume %s: %w", s.volume, volume.ErrNotFound)
}

func runKeyStatus(ctx context.Context, env *cliutil.Env, c *cli.Context) error {
	s, err := dialKeyServer(ctx, c)
	if err != nil {
		return err
	}
	defer s.Close()
	if err := s.storeAlone(); err != nil {
		return err
	}
	keys, err := s.KeyStatus(ctx)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return env.PrintJSON(keysResult{cliutil.NewHeader("fsxnbd.key.status"), s.store, keys})
	}
	return printKeys(env.Stdout, keys)
}

func printKeys(w io.Writer, keys []control.VolumeKey) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "KEY\tSTATE\tCLIENTS\tVOLUMES")
	for _, k := range keys {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", k.ID, k.State, strconv.Itoa(k.Clients), volumesText(k.Volumes))
	}
	return t.Flush()
}

// volumesText names volumes; a key may have only some that were deleted, which their
// clones need.
func volumesText(names []string) string {
	if len(names) == 0 {
		return "no volume that is not deleted"
	}
	return strings.Join(names, ", ")
}
