package manual_test

import (
	"bytes"
	"errors"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/fsximg/fsx/internal/manual"
	"github.com/urfave/cli/v2"
)

const text = "# The commands\n\n`fsximg` makes things.\n\n```console\n$ head -c 1 x > y\n## no heading\n```\n\n" +
	"## Names, sizes, output\n\nSizes take `K`.\n\n| exit code | |\n| --- | --- |\n| 0 | done |\n| 2 | a | \n\n" +
	"## Served stores\n\n.dots and a [link](#keys) to it.\n\n## Keys\n\nA key.\n\n### Trust\n\nSome trust.\n\n" +
	"## fsximg import, make\n\nOf import and make, `--force`.\n\n```console\n$ fsximg import a-b 'c'\n.dot\n```\n\n" +
	"### fsximg make deep\n\nNot of import.\n\n### Notes\n\nA note on import.\n\n" +
	"## Environment\n\n| variable | |\n| --- | --- |\n| `HOME` | home |\n\n## Files\n\nNone.\n"

func sample() manual.Manual {
	commands := []*cli.Command{
		{Name: "import", Usage: "take in", ArgsUsage: "SRC [STORE]", Flags: []cli.Flag{
			&cli.StringFlag{Name: "size", Aliases: []string{"s"}, Usage: "the new `SIZE`, not *NONE*", Value: "1M"},
			&cli.BoolFlag{Name: "secret", Hidden: true},
		}},
		{Name: "make", Usage: "make one", Subcommands: []*cli.Command{{Name: "deep", Usage: "make it deep", ArgsUsage: "X"}}},
		{Name: "keep", Usage: "for ourselves", Hidden: true},
		{Name: "man", Usage: "print this"},
	}
	return manual.Manual{App: &cli.App{Name: "fsximg", Usage: "make images", Commands: commands}, Text: text, Edition: "fsx 1", Date: "2026-01-02"}
}

func program(t *testing.T) string {
	t.Helper()
	var page bytes.Buffer
	if err := sample().WriteProgram(&page); err != nil {
		t.Fatal(err)
	}
	return page.String()
}

func command(t *testing.T, name string) string {
	t.Helper()
	var page bytes.Buffer
	if err := sample().WriteCommand(&page, name); err != nil {
		t.Fatal(err)
	}
	return page.String()
}

func TestCommandsHavePages(t *testing.T) {
	if got := sample().Commands(); !slices.Equal(got, []string{"import", "make"}) {
		t.Errorf("pages of %v", got)
	}
	for _, name := range []string{"keep", "man", "nothing"} {
		if err := sample().WriteCommand(&bytes.Buffer{}, name); !errors.Is(err, manual.ErrNoPage) {
			t.Errorf("page of %s: %v", name, err)
		}
	}
}

func TestProgramPage(t *testing.T) {
	page := program(t)
	for _, want := range []string{
		".TH FSXIMG 1 \"2026-01-02\" \"fsx 1\" \"fsx\"\n.SH NAME\nfsximg \\- make images\n",
		".SH SERVED STORES\n\\&.dots and a link to it.\n",
		".SH KEYS\nA key.\n.SS Trust\nSome trust.\n",
		".SH EXIT STATUS\n.TP\n0\ndone\n.TP\n2\na\n",
		".SH ENVIRONMENT\n.TP\n\\fBHOME\\fR\nhome\n",
		".SH FILES\nNone.\n",
		"$ head \\-c 1 x > y\n## no heading\n",
		"\\fBfsximg-import\\fP(1)\ntake in\n",
	} {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %q:\n%s", want, page)
		}
	}
	for _, not := range []string{"keep", "#keys", "exit code", "|"} {
		if strings.Contains(page, not) {
			t.Errorf("the page has %q", not)
		}
	}
}

func TestCommandPage(t *testing.T) {
	page := command(t, "import")
	for _, want := range []string{
		".SH SYNOPSIS\n\\fBfsximg import\\fP [\\fIOPTION\\fP]... SRC [STORE]\n",
		".SH DESCRIPTION\nOf import and make, \\fB\\-\\-force\\fR\\&.\n.SS Notes\nA note on import.\n",
		"\\fB--size\\fP, \\fB-s\\fP \\fISIZE\\fP\nthe new \\fISIZE\\fP, not *NONE* (default: \"1M\")\n",
		"$ fsximg import a\\-b \\(aqc\\(aq\n\\&.dot\n",
		"\\fBfsximg-make\\fP(1)", "\\fBfsxnbd\\fP(1)",
	} {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %q:\n%s", want, page)
		}
	}
	for _, not := range []string{"secret", "Not of import", "fsximg-import\\fP(1)"} {
		if strings.Contains(page, not) {
			t.Errorf("the page has %q", not)
		}
	}
	if page := command(t, "make"); !strings.Contains(page, "\\fBfsximg make deep\\fP [\\fIOPTION\\fP]... X\n") || !strings.Contains(page, ".SS make deep\n") {
		t.Errorf("the page lacks its subcommand:\n%s", page)
	}
}

func TestLinesAreWrapped(t *testing.T) {
	m := sample()
	m.Text = strings.Replace(text, "A note on import.", strings.Repeat("wörd .dot 'quote ", 200), 1)
	var page bytes.Buffer
	if err := m.WriteCommand(&page, "import"); err != nil {
		t.Fatal(err)
	}
	words := 0
	for line := range strings.Lines(page.String()) {
		words += strings.Count(line, "wörd")
		if len(line) > 81 || strings.HasPrefix(line, ".dot") || strings.HasPrefix(line, "'quote") {
			t.Errorf("line %q", line)
		}
	}
	if words != 200 {
		t.Errorf("%d of 200 words are left", words)
	}
}

func TestPagesPassMandoc(t *testing.T) {
	if _, err := exec.LookPath("mandoc"); err != nil {
		t.Skip("SKIP: mandoc is missing (scripts/setup test)")
	}
	for name, page := range map[string]string{"program": program(t), "import": command(t, "import"), "make": command(t, "make")} {
		lint := exec.Command("mandoc", "-T", "lint", "-W", "style")
		lint.Stdin = strings.NewReader(page)
		if out, err := lint.CombinedOutput(); err != nil {
			t.Errorf("%s: %s", name, out)
		}
	}
}
