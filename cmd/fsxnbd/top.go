package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/fsximg/fsx/internal/cliutil"
	"github.com/urfave/cli/v2"
	"golang.org/x/term"
)

func topCommand() *cli.Command {
	return &cli.Command{
		Name: "top", Usage: "show what running servers do, again and again", ArgsUsage: "[STORE]",
		Description: "As status does, until q is pressed. Where stdout is no terminal it prints one after the\n" +
			"other, without an end unless --count is given.",
		Flags: []cli.Flag{
			controlFlag(),
			&cli.DurationFlag{Name: "interval", Value: time.Second, Usage: "`TIME` between two looks"},
			&cli.IntFlag{Name: "count", Aliases: []string{"n"}, Usage: "end after `COUNT` looks"},
		},
		Action: cliutil.Action(0, 1, cliutil.FirstArg, runTop),
	}
}

// minInterval keeps looking from being what the server mostly does.
const minInterval = 100 * time.Millisecond

func runTop(ctx context.Context, env *cliutil.Env, c *cli.Context) error {
	interval, count := c.Duration("interval"), c.Int("count")
	if interval < minInterval {
		return cliutil.UsageErrorf("--interval %v: %v or more", interval, minInterval)
	}
	if count < 0 {
		return cliutil.UsageErrorf("--count %d: 1 or more", count)
	}
	w, err := watch(ctx, c)
	if err != nil {
		return err
	}
	s, err := newScreen(env)
	if err != nil {
		return err
	}
	defer s.close()
	for n := 1; ; n++ {
		select {
		case <-s.quit:
			return nil
		case <-ctx.Done():
			return nil // that is how it ends
		case <-time.After(interval):
		}
		if err := w.look(ctx); err != nil {
			if errors.Is(err, cliutil.ErrInterrupted) {
				return nil
			}
			return err
		}
		var text bytes.Buffer
		if len(w.servers) == 0 {
			fmt.Fprintln(&text, "no server of yours runs")
		} else if err := printServers(&text, w.servers, time.Now()); err != nil {
			return err
		}
		if err := s.show(text.String()); err != nil {
			return fmt.Errorf("write result: %w", err)
		}
		if n == count {
			return nil
		}
	}
}

// screen is where top shows its tables: the whole terminal, or one after the other
// on what is none.
type screen struct {
	out   io.Writer
	tty   *os.File // nil: none
	quit  chan struct{}
	shown bool
	close func()
}

// newScreen takes over the terminal, if stdout is one, until close.
func newScreen(env *cliutil.Env) (*screen, error) {
	s := &screen{out: env.Stdout, quit: make(chan struct{}), close: func() {}}
	tty, ok := env.Stdout.(*os.File)
	if !ok || !env.StdoutIsTerminal() {
		return s, nil
	}
	s.tty = tty
	restore := func() {}
	if in := int(env.Stdin.Fd()); term.IsTerminal(in) {
		old, err := term.MakeRaw(in)
		if err != nil {
			return nil, fmt.Errorf("terminal: %w", err)
		}
		restore = func() { _ = term.Restore(in, old) }
		go s.keys(env.Stdin)
	}
	fmt.Fprint(s.out, "\x1b[?1049h\x1b[?25l") // the other screen, no cursor
	s.close = func() {
		fmt.Fprint(s.out, "\x1b[?25h\x1b[?1049l")
		restore()
	}
	return s, nil
}

// keys waits for q, or Ctrl-C, which is no signal while the terminal is raw. It
// ends with the process at the latest.
func (s *screen) keys(in io.Reader) {
	var b [1]byte
	for {
		if _, err := in.Read(b[:]); err != nil {
			return
		}
		if b[0] == 'q' || b[0] == 'Q' || b[0] == 3 {
			close(s.quit)
			return
		}
	}
}

// show replaces what is on a terminal, as much as fits; elsewhere it adds the text,
// with an empty line between.
func (s *screen) show(text string) error {
	if s.tty == nil {
		if s.shown {
			text = "\n" + text
		}
		s.shown = true
		_, err := io.WriteString(s.out, text)
		return err
	}
	width, height, err := term.GetSize(int(s.tty.Fd()))
	if err != nil || width <= 0 || height <= 0 {
		width, height = 80, 24
	}
	_, err = io.WriteString(s.out, frame(text, width, height))
	return err
}

// frame is text as it replaces a terminal's content.
func frame(text string, width, height int) string {
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	if len(lines) > height {
		lines = lines[:height]
	}
	var b strings.Builder
	b.WriteString("\x1b[H") // top left
	for i, line := range lines {
		if i > 0 {
			b.WriteString("\r\n")
		}
		for utf8.RuneCountInString(line) > width {
			_, size := utf8.DecodeLastRuneInString(line)
			line = line[:len(line)-size]
		}
		b.WriteString(line + "\x1b[K") // and nothing behind
	}
	return b.String() + "\x1b[J" // and nothing below
}
