package cliutil

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/fsximg/fsx/pkg/crypt"
	"github.com/urfave/cli/v2"
)

// Env is what a command runs in. It is made once per process by Main.
type Env struct {
	Program string // "fsximg" or "fsxnbd"
	Stdin   *os.File
	Stdout  io.Writer
	Stderr  io.Writer
	Log     *slog.Logger

	talk     *slog.Logger // with --log-format json takes all that is said; else nil
	quiet    bool
	verbose  bool
	progress string
	stdinFor string          // what reads stdin, once something does
	ctx      context.Context // ends at the first signal
	trust    trustOptions
}

// Quiet is whether -q was given.
func (e *Env) Quiet() bool { return e.quiet }

// Verbose is whether -v was given.
func (e *Env) Verbose() bool { return e.verbose }

// Say writes a line of talk to stderr, unless -q was given.
func (e *Env) Say(format string, args ...any) {
	switch {
	case e.quiet:
	case e.talk != nil:
		e.talk.Info(fmt.Sprintf(format, args...))
	default:
		fmt.Fprintf(e.Stderr, format+"\n", args...)
	}
}

// Warn writes a warning to stderr, also with -q.
func (e *Env) Warn(format string, args ...any) {
	if e.talk != nil {
		e.talk.Warn(fmt.Sprintf(format, args...))
		return
	}
	fmt.Fprintf(e.Stderr, "%s: warning: %s\n", e.Program, fmt.Sprintf(format, args...))
}

// ClaimStdin notes that what reads stdin; only one thing can.
func (e *Env) ClaimStdin(what string) error {
	if e.stdinFor != "" {
		return UsageErrorf("%s and %s cannot both read stdin ('-')", e.stdinFor, what)
	}
	e.stdinFor = what
	return nil
}

const envKey = "fsx.env"

// Run is what a command does. Its positional arguments were counted already.
type Run func(ctx context.Context, env *Env, c *cli.Context) error

// Action makes a command's action of run, after checking that there are
// between minArgs and maxArgs arguments (maxArgs < 0: any number). Errors get
// the command's name and the object it worked on: the first argument, or the
// one that object picks.
func Action(minArgs, maxArgs int, object func(*cli.Context) string, run Run) cli.ActionFunc {
	return func(c *cli.Context) error {
		env := c.App.Metadata[envKey].(*Env)
		if c.Bool("version") {
			return env.printVersion(c.App)
		}
		if err := env.Configure(c); err != nil {
			return err
		}
		name := strings.TrimPrefix(c.Command.HelpName, c.App.HelpName+" ")
		if n := c.Args().Len(); n < minArgs || (maxArgs >= 0 && n > maxArgs) {
			err := UsageErrorf("%s: expected %s, got %d argument%s", name, c.Command.ArgsUsage, n, plural(n))
			return WithHint(err, "%s %s --help", c.App.Name, name)
		}
		env.ctx = c.Context
		err := run(c.Context, env, c)
		if err == nil {
			return nil
		}
		if cause := context.Cause(c.Context); errors.Is(cause, ErrInterrupted) && errors.Is(err, context.Canceled) {
			err = cause
		}
		return named(name, object(c), err)
	}
}

func (e *Env) printVersion(app *cli.App) error {
	_, err := fmt.Fprintln(e.Stdout, app.Name, app.Version)
	return err
}

// named puts the command and its object before an error, the object only once.
func named(name, object string, err error) error {
	switch text := err.Error(); {
	case object == "" || strings.HasPrefix(text, object+" "):
		return fmt.Errorf("%s: %w", name, err)
	case strings.HasPrefix(text, object+": "):
		return fmt.Errorf("%s %w", name, err)
	}
	return fmt.Errorf("%s %s: %w", name, object, err)
}

func plural(n int) string {
	if n == 1 {
		return ""
	}
	return "s"
}

// LastArg picks the last argument, FirstArg the first, for Action.
func LastArg(c *cli.Context) string { return c.Args().Get(c.Args().Len() - 1) }

// FirstArg picks the first argument.
func FirstArg(c *cli.Context) string { return c.Args().First() }

// NoObject is for commands that work on nothing in particular.
func NoObject(*cli.Context) string { return "" }

// CommonFlags are the options of the program, accepted by every command.
func CommonFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "no talk and no progress on stderr"},
		&cli.BoolFlag{Name: "verbose", Aliases: []string{"v"}, Usage: "log what is done"},
		&cli.StringFlag{Name: "progress", Value: "auto", Usage: "`HOW`: auto, plain (a line every few seconds) or none"},
		&cli.StringFlag{Name: "log-format", Value: "text", Usage: "`FORMAT` of the log on stderr: text or json"},
	}
}

// Configure reads the common flags.
func (e *Env) Configure(c *cli.Context) error {
	e.quiet, e.verbose, e.progress = c.Bool("quiet"), c.Bool("verbose"), c.String("progress")
	switch e.progress {
	case "auto", "plain", "none":
	default:
		return UsageErrorf("--progress=%s: use auto, plain or none", e.progress)
	}
	var err error
	if e.trust, err = trustFlags(c); err != nil {
		return err
	}
	opts := &slog.HandlerOptions{Level: slog.LevelWarn}
	if e.verbose {
		opts.Level = slog.LevelDebug
	}
	switch f := c.String("log-format"); f {
	case "text":
		e.Log = slog.New(slog.NewTextHandler(e.Stderr, opts))
	case "json":
		e.Log = slog.New(slog.NewJSONHandler(e.Stderr, opts))
		e.talk = slog.New(slog.NewJSONHandler(e.Stderr, nil))
	default:
		return UsageErrorf("--log-format=%s: use text or json", f)
	}
	return nil
}

// memoryLimit is what the Go heap tries to stay under: with what is not on it,
// a program stays below 256 MiB of anonymous memory.
const memoryLimit = 176 << 20

// Main hardens the process, runs the program and returns its exit code. SIGINT and SIGTERM cancel
// the commands' context once; a second one ends the process.
func Main(app *cli.App, argv []string) int {
	hardened := crypt.HardenProcess() // before anything could read a secret
	debug.SetMemoryLimit(memoryLimit)
	debug.SetGCPercent(50)
	env := &Env{Program: app.Name, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}
	if hardened != nil {
		env.Warn("%v", hardened)
	}
	prepare(app, env)
	args, err := Arrange(app, argv)
	if err == nil {
		ctx, stop := withSignals(context.Background())
		defer stop()
		err = app.RunContext(ctx, args)
	}
	if env.Log == nil && asksJSON(argv) { // the options were not understood
		env.talk = slog.New(slog.NewJSONHandler(env.Stderr, nil))
	}
	env.printError(err)
	return ExitCode(err)
}

// asksJSON says whether the words of a command line that was not understood ask for
// a log of objects.
func asksJSON(argv []string) bool {
	for i, word := range argv {
		if word == "--log-format=json" || word == "--log-format" && i+1 < len(argv) && argv[i+1] == "json" {
			return true
		}
	}
	return false
}

// prepare sets what is the same for every app, so that cli itself prints
// nothing but help and never exits.
func prepare(app *cli.App, env *Env) {
	// cli's own --version takes -v.
	app.HideHelpCommand, app.HideVersion = true, true
	app.Flags = append(app.Flags, &cli.BoolFlag{Name: "version", Usage: "print the version and stop"})
	app.DisableSliceFlagSeparator = true
	app.Metadata = map[string]any{envKey: env}
	app.Writer, app.ErrWriter, app.Reader = env.Stdout, env.Stderr, env.Stdin
	app.ExitErrHandler = func(*cli.Context, error) {}
	app.OnUsageError = onUsageError
	app.Action = func(c *cli.Context) error {
		if c.Bool("version") {
			return env.printVersion(c.App)
		}
		return WithHint(UsageErrorf("no command given"), "%s --help", app.Name)
	}
	for _, c := range app.Commands {
		prepareCommand(c)
	}
}

func prepareCommand(c *cli.Command) {
	c.HideHelpCommand = true
	c.OnUsageError = onUsageError
	if len(c.Subcommands) > 0 {
		c.Action = func(ctx *cli.Context) error {
			return WithHint(UsageErrorf("%s: which one?", c.Name), "%s %s --help", ctx.App.Name, c.Name)
		}
	}
	for _, s := range c.Subcommands {
		prepareCommand(s)
	}
}

func onUsageError(_ *cli.Context, err error, _ bool) error {
	return Errorf(ErrUsage, "%v", err)
}

// withSignals is signal.NotifyContext with ErrInterrupted as the cause.
func withSignals(parent context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(parent)
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, syscall.SIGINT, syscall.SIGTERM)
	done := make(chan struct{})
	go func() {
		defer close(done)
		select {
		case <-ch:
			signal.Stop(ch)
			cancel(ErrInterrupted)
		case <-ctx.Done():
		}
	}()
	return ctx, func() {
		signal.Stop(ch)
		cancel(context.Canceled)
		<-done
	}
}

// printError writes "program: what: why" and, on a second line, a hint; with
// --log-format json an object.
func (e *Env) printError(err error) {
	var quiet silent
	var status ExitStatus
	if err == nil || errors.As(err, &quiet) || errors.As(err, &status) {
		return
	}
	text, hint := oneLine(err.Error()), adviceOn(err)
	if e.talk != nil {
		if hint == "" {
			e.talk.Error(text)
			return
		}
		e.talk.Error(text, "hint", hint)
		return
	}
	fmt.Fprintf(e.Stderr, "%s: %s\n", e.Program, text)
	if hint != "" {
		fmt.Fprintf(e.Stderr, "hint: %s\n", hint)
	}
}

// PrintError writes an error as Main does, for a command line that Main does not read.
func PrintError(program string, err error) {
	(&Env{Program: program, Stderr: os.Stderr}).printError(err)
}

func oneLine(s string) string {
	return strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
}
