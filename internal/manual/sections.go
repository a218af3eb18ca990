// Package manual makes the manual pages of fsximg and fsxnbd, for man(1): of the command
// tree, so that no option is missing, and of docs/cli.md, so that what is said there is
// said once.
package manual

import (
	"regexp"
	"strings"
)

// section is a part of a Markdown text: what is below a heading, up to the next one
// of its level or above.
type section struct {
	level int
	title string
	body  []string // lines, without the headings below and what they head
	below []*section
}

var heading = regexp.MustCompile(`^(##+) (.+)$`)

// parse cuts a text into its sections. What is before the first heading of level 2 is
// the body of the result.
func parse(text string) *section {
	root := &section{level: 1}
	open := []*section{root} // the last is the innermost
	fenced := false
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if strings.HasPrefix(line, "```") {
			fenced = !fenced
		}
		m := heading.FindStringSubmatch(line)
		if m == nil || fenced {
			if innermost := open[len(open)-1]; !strings.HasPrefix(line, "# ") || fenced {
				innermost.body = append(innermost.body, line)
			}
			continue
		}
		s := &section{level: len(m[1]), title: m[2]}
		for open[len(open)-1].level >= s.level {
			open = open[:len(open)-1]
		}
		parent := open[len(open)-1]
		parent.below = append(parent.below, s)
		open = append(open, s)
	}
	return root
}

// find is the section with a title, at any depth, or nil.
func (s *section) find(matches func(title string) bool) *section {
	for _, b := range s.below {
		if matches(b.title) {
			return b
		}
		if found := b.find(matches); found != nil {
			return found
		}
	}
	return nil
}

func (s *section) titled(title string) *section {
	return s.find(func(t string) bool { return t == title })
}

// commandsOf are the commands that a heading is for: "fsximg info, list, map", or
// "fsxnbd status, fsxnbd top".
func commandsOf(title string) (program string, commands []string) {
	program, rest, found := strings.Cut(title, " ")
	if !found || program != "fsximg" && program != "fsxnbd" {
		return "", nil
	}
	for name := range strings.SplitSeq(rest, ", ") {
		commands = append(commands, strings.TrimPrefix(name, program+" "))
	}
	return program, commands
}

// ofCommand is the section about a command, or nil.
func (s *section) ofCommand(program, command string) *section {
	return s.find(func(title string) bool {
		p, commands := commandsOf(title)
		for _, c := range commands {
			if p == program && c == command {
				return true
			}
		}
		return false
	})
}

// prose is what a section says, as Markdown whose headings are of level 3, without the
// examples and without sections about commands.
func (s *section) prose() string {
	var out strings.Builder
	out.WriteString(s.ownProse())
	for _, b := range s.below {
		if program, _ := commandsOf(b.title); program == "" {
			out.WriteString("\n### " + b.title + "\n\n" + b.prose())
		}
	}
	return out.String()
}

// ownProse is the prose before the first section below.
func (s *section) ownProse() string {
	text, _ := s.split()
	return text
}

// examples are the console sessions of a section and of what is below it.
func (s *section) examples() string {
	sessions := s.ownExamples()
	for _, b := range s.below {
		if program, _ := commandsOf(b.title); program == "" {
			sessions += b.examples()
		}
	}
	return sessions
}

// ownExamples are those that stand before the first section below.
func (s *section) ownExamples() string {
	_, sessions := s.split()
	return sessions
}

// split parts a section's own console sessions from the rest.
func (s *section) split() (text, sessions string) {
	var prose, console strings.Builder
	out := &prose
	for _, line := range s.body {
		if line == "```console" {
			out = &console
		}
		out.WriteString(line + "\n")
		if line == "```" && out == &console {
			out.WriteString("\n")
			out = &prose
		}
	}
	return prose.String(), console.String()
}
