package cliutil

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"

	"github.com/fsximg/fsx/docs"
	"github.com/fsximg/fsx/internal/manual"
	"github.com/urfave/cli/v2"
)

// writeManual prints a page, or writes all of them.
func writeManual(_ context.Context, e *Env, c *cli.Context) error {
	m := manual.Manual{App: c.App, Text: docs.CLI, Edition: edition(c.App.Version), Date: commitDate()}
	if dir := c.String("out-dir"); dir != "" {
		if c.Args().Present() {
			return UsageErrorf("--out-dir writes all pages")
		}
		return writePages(m, dir)
	}
	write := m.WriteProgram
	if command := c.Args().First(); command != "" {
		write = func(w io.Writer) error { return m.WriteCommand(w, command) }
	}
	err := write(e.Stdout)
	if errors.Is(err, manual.ErrNoPage) {
		return WithHint(UsageErrorf("%v", err), "%s --help lists the commands", c.App.Name)
	}
	return err
}

func writePages(m manual.Manual, dir string) error {
	pages := map[string]func(io.Writer) error{m.App.Name: m.WriteProgram}
	for _, command := range m.Commands() {
		pages[m.App.Name+"-"+command] = func(w io.Writer) error { return m.WriteCommand(w, command) }
	}
	for name, write := range pages {
		var page bytes.Buffer
		if err := write(&page); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, name+".1"), page.Bytes(), 0o644); err != nil {
			return fmt.Errorf("write manual page: %w", err)
		}
	}
	return nil
}

// edition is the part of --version's text that a page is signed with.
func edition(version string) string {
	number, _, _ := strings.Cut(version, ",")
	return "fsx " + strings.TrimPrefix(number, "v")
}

// commitDate is the day of the commit that the program was built from, if it knows.
func commitDate() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.time" && len(s.Value) >= len("2006-01-02") {
			return s.Value[:len("2006-01-02")]
		}
	}
	return ""
}
