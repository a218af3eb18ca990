package cliutil_test

import (
	"bytes"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fsximg/fsx/internal/cliutil"
	"github.com/urfave/cli/v2"
)

// progressOf does ten seconds of work at 1 MiB a second with the given options.
func progressOf(t *testing.T, options ...string) string {
	t.Helper()
	var out bytes.Buffer
	synctest.Test(t, func(t *testing.T) {
		env := &cliutil.Env{Stdout: &bytes.Buffer{}, Stderr: &out}
		app := &cli.App{Name: "prog", Flags: cliutil.CommonFlags(), Action: func(c *cli.Context) error {
			if err := env.Configure(c); err != nil {
				return err
			}
			p := env.NewProgress("work", 20<<20)
			defer p.Stop()
			time.Sleep(500 * time.Millisecond) // so that work and lines never come together
			for range 10 {
				time.Sleep(time.Second)
				p.Add(1 << 20)
			}
			return nil
		}}
		if err := app.Run(append([]string{"prog"}, options...)); err != nil {
			t.Error(err)
		}
	})
	return out.String()
}

func TestProgress(t *testing.T) {
	for _, row := range []struct {
		options []string
		want    string
	}{
		{[]string{"--progress=plain"}, "work: 4 MiB of 20 MiB (20%), 819.2 KiB/s, 20s left\nwork: 9 MiB of 20 MiB (45%), 921.6 KiB/s, 12s left\n"},
		{[]string{"--progress=plain", "-q"}, ""},
		{[]string{"--progress=none"}, ""},
		{nil, ""}, // stderr is no terminal
	} {
		if got := progressOf(t, row.options...); got != row.want {
			t.Errorf("%v: got %q, want %q", row.options, got, row.want)
		}
	}
}
