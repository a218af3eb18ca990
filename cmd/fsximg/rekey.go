package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/fsximg/fsx/internal/cliutil"
	"github.com/fsximg/fsx/internal/control"
	"github.com/fsximg/fsx/pkg/crypt"
	"github.com/urfave/cli/v2"
)

func rekeyCommand() *cli.Command {
	return &cli.Command{
		Name: "rekey", Usage: "from now on write under a new key", ArgsUsage: "STORE[:VOLUME]",
		Description: "The volume gets a new volume key, with the slots that --new-… name, and a new data key for\n" +
			"all that is written from now on. It takes the same time whatever the volume holds: what was\n" +
			"written before stays under its old data keys, which the new volume key opens too, until\n" +
			"fsximg reencrypt rewrites it. Who has the old key can read what there is now, and nothing later.",
		Flags: flags([]cli.Flag{
			&cli.StringFlag{Name: "cipher", Usage: "`MODE` of the new data key: aes-256-gcm, chacha20-poly1305 or aes-256-xts (default: as before)"},
			cliutil.JSONFlag(),
		}, cliutil.NewKeyFlags(), cliutil.OpenKeyFlags()),
		Action: cliutil.Action(1, 1, cliutil.FirstArg, runRekey),
	}
}

type rekeyResult struct {
	cliutil.Header
	Store  string `json:"store"`
	Volume string `json:"volume"`
	control.Rekeyed
	RecoveryKey string `json:"recovery_key,omitempty"`
}

func runRekey(ctx context.Context, env *cliutil.Env, c *cli.Context) (err error) {
	ref, err := volumeRef(c, false)
	if err != nil {
		return err
	}
	keys, err := env.SlotSecrets(c)
	if err != nil {
		return err
	}
	defer func() { keys.Done(err) }()
	if named, err := env.AskNewSlot(ctx, keys, ref.Store); err != nil {
		return err
	} else if !named {
		return cliutil.WithHint(cliutil.UsageErrorf("rekey: under which key? --new-… is missing"), "e.g. --new-passphrase-file FILE, --new-key-file FILE")
	}
	o, err := openOperations(ctx, env, c, ref.Store, forWriting, keysNeeded)
	if err != nil {
		return err
	}
	defer closeOperations(o, &err)
	r, err := o.Rekey(ctx, control.RekeyRequest{Volume: ref.VolumeOrDefault(), Secrets: keys.Secrets, Cipher: c.String("cipher")})
	if err != nil {
		return err
	}
	keys.Keep()
	tellRekeyed(env, ref, r)
	if c.Bool("json") {
		return env.PrintJSON(rekeyResult{cliutil.NewHeader("fsximg.rekey"), ref.Store, ref.VolumeOrDefault(), r, keys.Shown()})
	}
	return keys.Print(env)
}

// tellRekeyed says what became of the old key.
func tellRekeyed(env *cliutil.Env, ref cliutil.Ref, r control.Rekeyed) {
	env.Say("%s: volume %s is under volume key %s now, no longer under %s", ref.Store, ref.VolumeOrDefault(), r.NewKey, r.OldKey)
	if len(r.Shared) > 0 {
		env.Say("The old key and its slots stay for: %s", strings.Join(r.Shared, ", "))
	} else if len(r.Removed) > 0 {
		var types []string
		for _, s := range r.Removed {
			types = append(types, s.Type)
		}
		env.Say("Removed with the old key: %s (%s)", cliutil.Count(len(types), "slot"), strings.Join(types, ", "))
		if slices.Contains(types, crypt.SlotRecoveryKey.String()) {
			env.Say("The old recovery key opens nothing any more, and is not carried over: --new-recovery-key makes one")
		}
	}
	env.Say("What was written before can still be read with an old copy of the store and the old key; fsximg reencrypt rewrites it")
}

func reencryptCommand() *cli.Command {
	return &cli.Command{
		Name: "reencrypt", Usage: "rewrite what is under older data keys", ArgsUsage: "STORE[:VOLUME]",
		Description: "Rewrites what the volume has under older data keys than the one that it writes under, what\n" +
			"it shares with its parent too. Snapshots and parents stay as they are: data keys that they need\n" +
			"stay, and are listed. Interrupted, it goes on where it was when it is started again.",
		Flags: flags([]cli.Flag{
			&cli.StringFlag{Name: "rate", Usage: "rewrite at most `SIZE` per second, e.g. 100M"},
			&cli.BoolFlag{Name: "background", Usage: "have the server of a served store go on with it by itself; fsximg info shows how far it is"},
			&cli.BoolFlag{Name: "stop", Usage: "stop what runs in the background"},
			cliutil.JSONFlag(),
		}, cliutil.OpenKeyFlags()),
		Action: cliutil.Action(1, 1, cliutil.FirstArg, runReencrypt),
	}
}

type reencryptResult struct {
	cliutil.Header
	Store  string `json:"store"`
	Volume string `json:"volume"`
	control.Reencrypted
}

func runReencrypt(ctx context.Context, env *cliutil.Env, c *cli.Context) (err error) {
	ref, err := volumeRef(c, false)
	if err != nil {
		return err
	}
	q := control.ReencryptRequest{Volume: ref.VolumeOrDefault(), Background: c.Bool("background"), Stop: c.Bool("stop")}
	if q.Stop && q.Background {
		return cliutil.UsageErrorf("--background and --stop exclude each other")
	}
	if s := c.String("rate"); s != "" {
		if q.Rate, err = cliutil.ParseRate(s); err != nil {
			return fmt.Errorf("--rate: %w", err)
		}
	}
	o, err := openOperations(ctx, env, c, ref.Store, forWriting, keysNeeded)
	if err != nil {
		return err
	}
	defer closeOperations(o, &err)
	p := env.NewProgress("reencrypt", 0)
	r, err := o.Reencrypt(ctx, q, p.Set)
	p.Stop()
	if errors.Is(err, context.Canceled) {
		env.Say("%s: volume %s: paused; what was rewritten stays so, and the same command goes on", ref.Store, ref.VolumeOrDefault())
	}
	if err != nil {
		return err
	}
	tellReencrypted(env, ref, q, r)
	if c.Bool("json") {
		return env.PrintJSON(reencryptResult{cliutil.NewHeader("fsximg.reencrypt"), ref.Store, ref.VolumeOrDefault(), r})
	}
	return nil
}

func tellReencrypted(env *cliutil.Env, ref cliutil.Ref, q control.ReencryptRequest, r control.Reencrypted) {
	name := ref.VolumeOrDefault()
	switch {
	case q.Stop:
		env.Say("%s: volume %s: stopped; what was rewritten stays so", ref.Store, name)
		return
	case r.Background:
		env.Say("%s: volume %s is being reencrypted by the server; fsximg info %s shows how far it is", ref.Store, name, ref.Store)
		return
	}
	env.Say("%s: volume %s: %s rewritten, %s removed", ref.Store, name, cliutil.FormatSize(r.Bytes), cliutil.Count(len(r.Removed), "old data key"))
	for _, k := range r.Held {
		env.Say("Data key %d (%s) stays: needed by snapshot %s", k.Number, k.ID, strings.Join(k.Snapshots, ", "))
	}
	if r.Unreadable > 0 {
		env.Say("%s were left alone: their data key is not here", cliutil.FormatSize(r.Unreadable))
	}
}
