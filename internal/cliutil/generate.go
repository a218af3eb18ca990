package cliutil

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/urfave/cli/v2"
)

// GenerateCommands are the commands that print shell completions and the
// manual, both made of the command tree.
func GenerateCommands() []*cli.Command {
	return []*cli.Command{
		{
			Name: "completion", Usage: "print a shell's completion script", ArgsUsage: "bash|zsh|fish",
			Action: Action(1, 1, FirstArg, func(_ context.Context, e *Env, c *cli.Context) error {
				return completion(e.Stdout, c.App, c.Args().First())
			}),
		},
		{
			Name: "man", Usage: "print a manual page (roff): of the program, or of a command", ArgsUsage: "[COMMAND]",
			Flags: []cli.Flag{
				&cli.StringFlag{Name: "out-dir", Usage: "write all pages into the folder `DIR`"},
			},
			Action: Action(0, 1, FirstArg, writeManual),
		},
	}
}

func completion(w io.Writer, app *cli.App, shell string) error {
	var script string
	switch shell {
	case "bash":
		script = bashCompletion(app)
	case "zsh":
		script = zshCompletion(app)
	case "fish":
		s, err := app.ToFishCompletion()
		if err != nil {
			return fmt.Errorf("make completion: %w", err)
		}
		script = s
	default:
		return UsageErrorf("shell %q: use bash, zsh or fish", shell)
	}
	_, err := io.WriteString(w, script)
	return err
}

// leafCommand is a command that does something, with its whole name.
type leafCommand struct {
	name string
	*cli.Command
}

func leaves(prefix string, cmds []*cli.Command) (out []leafCommand) {
	for _, c := range cmds {
		if c.Hidden {
			continue
		}
		if len(c.Subcommands) > 0 {
			out = append(out, leaves(prefix+c.Name+" ", c.Subcommands)...)
			continue
		}
		out = append(out, leafCommand{prefix + c.Name, c})
	}
	return out
}

// longOptions are the options as they are typed.
func longOptions(flags []cli.Flag) (out []string) {
	for _, f := range flags {
		for _, n := range f.Names() {
			if len(n) > 1 {
				out = append(out, "--"+n)
			}
		}
	}
	return out
}

func bashCompletion(app *cli.App) string {
	var cases strings.Builder
	firsts, seconds := []string{}, map[string][]string{}
	for _, l := range leaves("", app.Commands) {
		first, second, nested := strings.Cut(l.name, " ")
		if len(firsts) == 0 || firsts[len(firsts)-1] != first {
			firsts = append(firsts, first)
		}
		pattern := fmt.Sprintf("%q*", first+" ")
		if nested {
			seconds[first] = append(seconds[first], second)
			pattern = fmt.Sprintf("%q", l.name)
		}
		fmt.Fprintf(&cases, "    %s) options=%q ;;\n", pattern, strings.Join(longOptions(l.Flags), " "))
	}
	for _, first := range firsts {
		names := seconds[first]
		if names == nil {
			continue
		}
		fmt.Fprintf(&cases, "    %q) words=%q ;;\n", first+" ", strings.Join(names, " "))
	}
	return fmt.Sprintf(`# bash completion of %[1]s
_%[1]s() {
  local current=${COMP_WORDS[COMP_CWORD]} first="" second="" options="" words="" i
  for ((i = 1; i < COMP_CWORD; i++)); do
    [[ ${COMP_WORDS[i]} == -* ]] && continue
    if [[ -z $first ]]; then first=${COMP_WORDS[i]}; elif [[ -z $second ]]; then second=${COMP_WORDS[i]}; fi
  done
  case "$first $second" in
    " ") words=%[2]q ;;
%[3]s  esac
  COMPREPLY=()
  if [[ $current == -* ]]; then
    COMPREPLY=($(compgen -W "$options %[4]s --help" -- "$current"))
  elif [[ -n $words ]]; then
    COMPREPLY=($(compgen -W "$words" -- "$current"))
  fi
}
complete -o default -F _%[1]s %[1]s
`, app.Name, strings.Join(firsts, " "), cases.String(), strings.Join(longOptions(app.Flags), " "))
}

func zshCompletion(app *cli.App) string {
	quote := func(s string) string {
		return strings.NewReplacer("'", "'\\''", "[", "(", "]", ")", ":", "\\:", "`", "").Replace(s)
	}
	var names, cases strings.Builder
	for _, c := range app.Commands {
		fmt.Fprintf(&names, "    '%s:%s'\n", c.Name, quote(c.Usage))
		fmt.Fprintf(&cases, "  %s) _arguments ", c.Name)
		for _, f := range append(c.Flags, app.Flags...) {
			d, ok := f.(cli.DocGenerationFlag)
			if !ok {
				continue
			}
			value := ""
			if d.TakesValue() {
				value = ":value:_files"
			}
			fmt.Fprintf(&cases, "'*--%s[%s]%s' ", f.Names()[0], quote(d.GetUsage()), value)
		}
		cases.WriteString("'*:file:_files' ;;\n")
	}
	return fmt.Sprintf(`#compdef %[1]s
_%[1]s() {
  local -a commands
  commands=(
%[2]s  )
  if (( CURRENT == 2 )); then
    _describe command commands
    return
  fi
  local command=$words[2]
  shift words
  (( CURRENT-- ))
  case $command in
%[3]s  esac
}
_%[1]s "$@"
`, app.Name, names.String(), cases.String())
}
