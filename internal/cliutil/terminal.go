package cliutil

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/term"
)

// isTerminal is whether f is a terminal.
func isTerminal(f any) bool {
	file, ok := f.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}

// StdoutIsTerminal is whether someone would see what goes to stdout.
func (e *Env) StdoutIsTerminal() bool { return isTerminal(e.Stdout) }

// OutputWidth is how wide a picture on stdout may be, in columns, and whether it
// may have colours: on a terminal, unless NO_COLOR is set (no-color.org).
func (e *Env) OutputWidth() (columns int, colour bool) {
	f, ok := e.Stdout.(*os.File)
	if !ok || !isTerminal(f) {
		return 80, false
	}
	columns, _, err := term.GetSize(int(f.Fd()))
	if err != nil || columns < 20 {
		columns = 80
	}
	return columns, os.Getenv("NO_COLOR") == ""
}

// openTerminal is the terminal to ask questions on: stdin when it is one, or
// the controlling terminal when stdin carries data. ok is false without one.
func (e *Env) openTerminal() (tty *os.File, release func(), ok bool) {
	if isTerminal(e.Stdin) {
		return e.Stdin, func() {}, true
	}
	if e.stdinFor == "" {
		return nil, nil, false
	}
	f, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return nil, nil, false
	}
	return f, func() { f.Close() }, true
}

// Confirm asks a yes-or-no question on the terminal; force answers it. Without
// a terminal the answer is ErrRefused, with a hint at --force.
func (e *Env) Confirm(ctx context.Context, force bool, format string, args ...any) error {
	if force {
		return nil
	}
	what := fmt.Sprintf(format, args...)
	tty, release, ok := e.openTerminal()
	if !ok {
		return WithHint(Errorf(ErrRefused, "%s: refused", what), "--force does it without asking")
	}
	defer release()
	fmt.Fprintf(e.Stderr, "%s. Go on? [y/N] ", what)
	line, err := readTerminal(ctx, tty, func() ([]byte, error) {
		b, err := bufio.NewReader(io.LimitReader(tty, 1024)).ReadBytes('\n')
		if err == io.EOF {
			err = nil
		}
		return b, err
	})
	if err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	switch strings.ToLower(strings.TrimSpace(string(line))) {
	case "y", "yes":
		return nil
	}
	return Errorf(ErrRefused, "%s: refused", what)
}

// askSecret reads one line from the terminal without echo.
func (e *Env) askSecret(ctx context.Context, tty *os.File, prompt string) ([]byte, error) {
	fmt.Fprint(e.Stderr, prompt)
	secret, err := readTerminal(ctx, tty, func() ([]byte, error) { return term.ReadPassword(int(tty.Fd())) })
	fmt.Fprintln(e.Stderr)
	if err != nil {
		return nil, fmt.Errorf("read passphrase: %w", err)
	}
	return secret, nil
}

// readTerminal runs read until the context is cancelled; then the terminal
// gets its echo back and the reader is left waiting, for the process is about
// to end.
func readTerminal(ctx context.Context, tty *os.File, read func() ([]byte, error)) ([]byte, error) {
	state, err := term.GetState(int(tty.Fd()))
	if err != nil {
		return nil, err
	}
	type answer struct {
		line []byte
		err  error
	}
	ch := make(chan answer, 1)
	go func() {
		line, err := read()
		ch <- answer{line, err}
	}()
	select {
	case a := <-ch:
		return a.line, a.err
	case <-ctx.Done():
		term.Restore(int(tty.Fd()), state)
		return nil, context.Cause(ctx)
	}
}
