package manual

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/urfave/cli/v2"
)

// typical are the commands whose examples are the program's, too.
var typical = map[string]bool{"import": true, "snapshot": true, "mount": true, "serve": true}

// ErrNoPage is the error for a command that has no page.
var ErrNoPage = errors.New("there is no such manual page")

// Manual is where pages come from.
type Manual struct {
	App     *cli.App
	Text    string // docs/cli.md
	Edition string // of the program, for the page's foot
	Date    string // of the edition, as 2006-01-02; may be empty
}

// Commands are those that have a page of their own: all that a user may give, unless
// they only print something about the program.
func (m Manual) Commands() (names []string) {
	for _, c := range m.App.Commands {
		if m.hasPage(c) {
			names = append(names, c.Name)
		}
	}
	return names
}

func (m Manual) hasPage(c *cli.Command) bool {
	return !c.Hidden && c.Name != "help" && parse(m.Text).ofCommand(m.App.Name, c.Name) != nil
}

// WriteProgram writes the page of the program, PROGRAM(1).
func (m Manual) WriteProgram(w io.Writer) error {
	text := parse(m.Text)
	p := page{name: m.App.Name}
	p.part("NAME", m.App.Name+" - "+m.App.Usage)
	p.part("SYNOPSIS", fmt.Sprintf("**%s** *COMMAND* [*OPTION*]... [*ARGUMENT*]...", m.App.Name))
	p.part("DESCRIPTION", text.ownProse())
	p.part("COMMANDS", m.commandList())
	for _, title := range []string{"Names, sizes, output", "Served stores", "Keys"} {
		s := text.titled(title)
		prose := s.prose()
		if title == "Names, sizes, output" { // its table is EXIT STATUS
			prose = withoutTables(prose)
		}
		p.part(strings.ToUpper(title), prose)
	}
	p.part("OPTIONS", "Of all commands:\n\n"+options(m.App.Flags))
	p.part("EXIT STATUS", tables(text.titled("Names, sizes, output")))
	p.part("ENVIRONMENT", text.titled("Environment").prose())
	p.part("FILES", text.titled("Files").prose())
	examples := text.ownExamples()
	for _, command := range m.Commands() {
		if typical[command] {
			examples += text.ofCommand(m.App.Name, command).examples()
		}
	}
	p.part("EXAMPLES", examples)
	p.part("SEE ALSO", m.seeAlso(""))
	return p.write(w, m)
}

// WriteCommand writes the page of a command, PROGRAM-COMMAND(1).
func (m Manual) WriteCommand(w io.Writer, command string) error {
	c := m.App.Command(command)
	if c == nil || !m.hasPage(c) {
		return fmt.Errorf("%s %s: %w", m.App.Name, command, ErrNoPage)
	}
	s := parse(m.Text).ofCommand(m.App.Name, command)
	p := page{name: m.App.Name + "-" + command}
	p.part("NAME", p.name+" - "+c.Usage)
	p.part("SYNOPSIS", m.synopsis(c))
	p.part("DESCRIPTION", s.prose())
	p.part("OPTIONS", commandOptions(c)+"\n\nOptions of all commands, exit codes, the environment and files are in "+reference(m.App.Name)+".")
	if examples := s.examples(); examples != "" {
		p.part("EXAMPLES", examples)
	}
	p.part("EXIT STATUS", "0 when it is done; the others are in "+reference(m.App.Name)+".")
	p.part("SEE ALSO", m.seeAlso(command))
	return p.write(w, m)
}

// page is a page on its way: Markdown.
type page struct {
	name string
	text strings.Builder
}

func (p *page) part(title, text string) {
	fmt.Fprintf(&p.text, "# %s\n\n%s\n\n", title, strings.TrimSpace(text))
}

func (p *page) write(w io.Writer, m Manual) error {
	title := fmt.Sprintf("# %s 1 %q %q %q\n\n", strings.ToUpper(p.name), m.Date, m.Edition, "fsx") // the first heading is .TH
	_, err := w.Write(render(title + p.text.String()))
	return err
}

func reference(page string) string { return "**" + page + "**(1)" }

func (m Manual) seeAlso(but string) string {
	all := []string{m.App.Name}
	for _, name := range m.Commands() {
		if name != but {
			all = append(all, m.App.Name+"-"+name)
		}
	}
	if but == "" {
		all = all[1:]
	}
	other := map[string]string{"fsximg": "fsxnbd", "fsxnbd": "fsximg"}[m.App.Name]
	all = append(all, other)
	for i, name := range all {
		all[i] = reference(name)
	}
	return strings.Join(all, ", ") + ".\n\nMore is in /usr/share/doc/fsx."
}

func (m Manual) commandList() string {
	var out strings.Builder
	for _, c := range m.App.Commands {
		switch {
		case m.hasPage(c):
			fmt.Fprintf(&out, "%s\n:   %s\n\n", reference(m.App.Name+"-"+c.Name), marked(c.Usage))
		case !c.Hidden && c.Name != "help":
			fmt.Fprintf(&out, "**%s %s** %s\n:   %s\n\n", m.App.Name, c.Name, marked(c.ArgsUsage), marked(c.Usage))
		}
	}
	return out.String()
}

// synopsis has a line for the command, or for each of its own commands.
func (m Manual) synopsis(c *cli.Command) string {
	var lines []string
	for _, l := range leaves(m.App.Name+" "+c.Name, c) {
		lines = append(lines, strings.TrimSpace(fmt.Sprintf("**%s** [*OPTION*]... %s", l.name, marked(l.ArgsUsage))))
	}
	return strings.Join(lines, "\n\n")
}

// leaf is a command that does something, with its whole name.
type leaf struct {
	name string
	*cli.Command
}

func leaves(name string, c *cli.Command) (out []leaf) {
	if len(c.Subcommands) == 0 {
		return []leaf{{name, c}}
	}
	for _, s := range c.Subcommands {
		if !s.Hidden && s.Name != "help" {
			out = append(out, leaves(name+" "+s.Name, s)...)
		}
	}
	return out
}

func commandOptions(c *cli.Command) string {
	if len(c.Subcommands) == 0 {
		return options(c.Flags)
	}
	var out strings.Builder
	for _, l := range leaves(c.Name, c) {
		fmt.Fprintf(&out, "\n### %s\n\n%s.\n\n%s", l.name, marked(l.Usage), options(l.Flags))
	}
	return out.String()
}
