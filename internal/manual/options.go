package manual

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/urfave/cli/v2"
)

// options is a list of what a command takes.
func options(flags []cli.Flag) string {
	var out strings.Builder
	for _, f := range flags {
		d, ok := f.(cli.DocGenerationFlag)
		if v, hides := f.(cli.VisibleFlag); !ok || hides && !v.IsVisible() {
			continue
		}
		var names []string
		for _, n := range f.Names() {
			names = append(names, "**"+strings.Repeat("-", min(len(n), 2))+n+"**")
		}
		value, usage := placeholder(d)
		fmt.Fprintf(&out, "%s%s\n:   %s\n\n", strings.Join(names, ", "), value, usage)
	}
	return out.String()
}

var quoted = regexp.MustCompile("`([^`]+)`")

// placeholder is what stands for an option's value, and the option's text without the
// marks around it.
func placeholder(d cli.DocGenerationFlag) (value, usage string) {
	usage = d.GetUsage()
	if m := quoted.FindStringSubmatch(usage); m != nil {
		value = " *" + escaped(m[1]) + "*"
	} else if d.TakesValue() {
		value = " *VALUE*"
	}
	if text := d.GetDefaultText(); text != "" && d.TakesValue() && !strings.Contains(usage, "default") {
		usage += " (default: " + text + ")"
	}
	return value, marked(usage)
}

// marked is a text of the command tree as Markdown: what is in backquotes is a
// placeholder, everything else is meant as it is.
func marked(text string) string {
	var out strings.Builder
	for {
		before, rest, found := strings.Cut(text, "`")
		out.WriteString(escaped(before))
		if !found {
			return out.String()
		}
		inner, after, _ := strings.Cut(rest, "`")
		out.WriteString("*" + escaped(inner) + "*")
		text = after
	}
}

func escaped(text string) string {
	return strings.NewReplacer(`\`, `\\`, "*", `\*`, "_", `\_`, "[", `\[`, "]", `\]`, "<", `\<`, "|", `\|`).Replace(text)
}

// withoutTables and tables part the tables of a text from the rest.
func withoutTables(markdown string) string { return filterLines(markdown, false) }

func tables(s *section) string { return filterLines(strings.Join(s.body, "\n"), true) }

func filterLines(markdown string, rows bool) string {
	var out strings.Builder
	for line := range strings.Lines(markdown) {
		if strings.HasPrefix(line, "|") == rows {
			out.WriteString(line)
		}
	}
	return out.String()
}
