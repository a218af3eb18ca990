package cliutil

import (
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// optionSet is the options one level of the command tree understands.
type optionSet map[string]bool // name without dashes -> takes a value

func newOptionSet(flags []cli.Flag) optionSet {
	s := optionSet{"help": false, "h": false}
	for _, f := range flags {
		takes := true
		if d, ok := f.(cli.DocGenerationFlag); ok {
			takes = d.TakesValue()
		}
		for _, n := range f.Names() {
			s[n] = takes
		}
	}
	return s
}

// arranger sorts one command line into the order that urfave/cli understands.
type arranger struct {
	app      *cli.App
	commands []*cli.Command
	command  *cli.Command // the innermost command found so far
	path     []string
	global   optionSet
	local    optionSet
	help     bool // "help COMMAND" stands for "COMMAND --help"

	globalFlags, localFlags, args []string
}

// Arrange returns argv with every option in front of the arguments of the
// command it belongs to: urfave/cli, like Go's flag package, stops looking for
// options at the first argument, but people may write them anywhere. Options
// of the program itself (-v, -q) are accepted behind the command too. "--"
// ends the options. An unknown option, an option without its value and an
// unknown command are usage errors here, so that cli never prints its own.
func Arrange(app *cli.App, argv []string) ([]string, error) {
	a := &arranger{app: app, commands: app.Commands, global: newOptionSet(app.Flags)}
	rest := argv[1:]
	for len(rest) > 0 {
		tok := rest[0]
		rest = rest[1:]
		switch {
		case tok == "--" && a.leaf():
			a.args = append(a.args, rest...)
			rest = nil
		case len(tok) > 1 && tok[0] == '-':
			n, err := a.option(tok, rest)
			if err != nil {
				return nil, err
			}
			rest = rest[n:]
		default:
			if err := a.word(tok); err != nil {
				return nil, err
			}
		}
	}
	return a.result(argv[0]), nil
}

func (a *arranger) leaf() bool { return a.command != nil && len(a.commands) == 0 }

// word takes an argument or the name of a command.
func (a *arranger) word(tok string) error {
	if a.leaf() {
		a.args = append(a.args, tok)
		return nil
	}
	if tok == "help" && a.command == nil {
		a.help = true
		return nil
	}
	for _, c := range a.commands {
		if c.HasName(tok) {
			a.command, a.commands = c, c.Subcommands
			a.path = append(a.path, tok)
			a.local = newOptionSet(c.Flags)
			return nil
		}
	}
	return UsageErrorf("unknown command %q%s", strings.Join(append(slices.Clone(a.path), tok), " "),
		didYouMean(tok, commandNames(a.commands)))
}

// option files one option and says how many of the following words it took.
func (a *arranger) option(tok string, rest []string) (taken int, err error) {
	name, _, hasValue := strings.Cut(strings.TrimLeft(tok, "-"), "=")
	if tok[1] != '-' && len(name) > 1 {
		return 0, a.letters(tok)
	}
	set, out := a.lookup(name)
	if set == nil {
		return 0, a.unknown(tok, name)
	}
	*out = append(*out, tok)
	if !set[name] || hasValue {
		return 0, nil
	}
	if len(rest) == 0 {
		return 0, UsageErrorf("option %s needs a value", tok)
	}
	*out = append(*out, rest[0])
	return 1, nil
}

// letters takes several one-letter options in one word, as in -qv.
func (a *arranger) letters(tok string) error {
	for _, r := range tok[1:] {
		set, out := a.lookup(string(r))
		if set == nil || set[string(r)] {
			return a.unknown(tok, strings.TrimLeft(tok, "-"))
		}
		*out = append(*out, "-"+string(r))
	}
	return nil
}

func (a *arranger) lookup(name string) (optionSet, *[]string) {
	if _, ok := a.local[name]; ok {
		return a.local, &a.localFlags
	}
	if _, ok := a.global[name]; ok {
		return a.global, &a.globalFlags
	}
	return nil, nil
}

func (a *arranger) unknown(tok, name string) error {
	var known []string
	for n := range a.local {
		known = append(known, n)
	}
	for n := range a.global {
		known = append(known, n)
	}
	shown, _, _ := strings.Cut(tok, "=")
	where := ""
	if len(a.path) > 0 {
		where = fmt.Sprintf(" of %s", strings.Join(a.path, " "))
	}
	return UsageErrorf("unknown option %s%s%s", shown, where, didYouMean(name, known))
}

func (a *arranger) result(program string) []string {
	out := append([]string{program}, a.globalFlags...)
	out = append(out, a.path...)
	if a.help {
		out = append(out, "--help")
	}
	out = append(out, a.localFlags...)
	if len(a.args) > 0 {
		out = append(append(out, "--"), a.args...)
	}
	return out
}

func commandNames(cmds []*cli.Command) (names []string) {
	for _, c := range cmds {
		if !c.Hidden {
			names = append(names, c.Names()...)
		}
	}
	return names
}

// didYouMean is the nearest of the known words, as the end of a message.
func didYouMean(word string, known []string) string {
	best, bestDist := "", 3
	slices.Sort(known)
	for _, k := range known {
		if len(k) < 3 {
			continue
		}
		if d := editDistance(word, k); d < bestDist || (len(word) > 3 && strings.HasPrefix(k, word) && bestDist > 1) {
			best, bestDist = k, min(d, 1)
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf("; did you mean %q?", best)
}

// editDistance is Levenshtein's.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diag := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diag, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, diag+cost)
		}
	}
	return row[len(b)]
}
