package main

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/fsximg/fsx/internal/cliutil"
	"github.com/fsximg/fsx/internal/control"
	"github.com/urfave/cli/v2"
)

func statusCommand() *cli.Command {
	return &cli.Command{
		Name: "status", Usage: "show what running servers do", ArgsUsage: "[STORE]",
		Description: "Clients, exports, rates, keys and how far checkpoints are behind, of the server that has\n" +
			"STORE open, or without an argument of all servers of this user. Rates are those of one\n" +
			"second, for which it looks on; --interval sets another time, and 0 leaves them out.",
		Flags: []cli.Flag{
			controlFlag(), cliutil.JSONFlag(),
			&cli.DurationFlag{Name: "interval", Value: time.Second, Usage: "`TIME` for which rates are measured"},
		},
		Action: cliutil.Action(0, 1, cliutil.FirstArg, runStatus),
	}
}

// statusResult is what status prints as JSON.
type statusResult struct {
	cliutil.Header
	Servers []control.ServerStatus `json:"servers"`
}

func runStatus(ctx context.Context, env *cliutil.Env, c *cli.Context) error {
	w, err := watch(ctx, c)
	if err != nil {
		return err
	}
	if interval := c.Duration("interval"); interval > 0 && len(w.servers) > 0 {
		if err := pause(ctx, interval); err != nil {
			return err
		}
		if err := w.look(ctx); err != nil {
			return err
		}
	}
	if c.Bool("json") {
		return env.PrintJSON(statusResult{cliutil.NewHeader("fsxnbd.status"), w.servers})
	}
	if len(w.servers) == 0 {
		env.Say("no server of yours runs")
	}
	return printServers(env.Stdout, w.servers, time.Now())
}

// pause waits, unless it is interrupted.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// watcher looks at servers again and again.
type watcher struct {
	find    func(context.Context) ([]*control.Client, error)
	servers []control.ServerStatus // as seen last, with rates from the second time on
}

// watch finds the servers that a command line means, and looks at them once. That
// there is none is an error only if one was named.
func watch(ctx context.Context, c *cli.Context) (*watcher, error) {
	w := &watcher{find: func(ctx context.Context) ([]*control.Client, error) { return registeredServers(ctx) }}
	if c.Args().Len() > 0 || c.String("control") != "" {
		w.find = func(ctx context.Context) ([]*control.Client, error) {
			s, err := dialKeyServer(ctx, c)
			if err != nil {
				return nil, err
			}
			if err := s.storeAlone(); err != nil {
				s.Close()
				return nil, err
			}
			return []*control.Client{s.Client}, nil
		}
	}
	return w, w.look(ctx)
}

// registeredServers reaches all servers that have registered and answer, each
// perhaps by several stores.
func registeredServers(ctx context.Context) (l []*control.Client, err error) {
	for _, store := range registered() {
		client, err := control.Dial(ctx, store)
		switch {
		case ctx.Err() != nil:
			return l, context.Cause(ctx)
		case err == nil:
			l = append(l, client)
		}
		// Otherwise it is gone, is ending, or is another version's; its store says so.
	}
	return l, nil
}

// look asks all servers what they do. One that has gone is left out.
func (w *watcher) look(ctx context.Context) error {
	clients, err := w.find(ctx)
	if err != nil {
		return err
	}
	before := w.servers
	w.servers = []control.ServerStatus{}
	var failed error
	for _, client := range clients {
		s, err := client.ServerStatus(ctx)
		client.Close()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			failed = errors.Join(failed, err)
			continue
		}
		same := func(o control.ServerStatus) bool { return o.PID == s.PID && o.Started.Equal(s.Started) }
		if slices.ContainsFunc(w.servers, same) {
			continue // it has several stores
		}
		if i := slices.IndexFunc(before, same); i >= 0 {
			addRates(&s, &before[i])
		}
		w.servers = append(w.servers, s)
	}
	if len(w.servers) == 0 {
		return failed
	}
	return nil
}

// shortPath is a store's name where its path would be too long.
func shortPath(path string) string {
	name := filepath.Base(path)
	if quoted := strconv.QuoteToGraphic(name); quoted[1:len(quoted)-1] != name {
		return quoted // it is for a terminal
	}
	return name
}
