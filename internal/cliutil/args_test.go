package cliutil_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/fsximg/fsx/internal/cliutil"
	"github.com/urfave/cli/v2"
)

func testApp() *cli.App {
	return &cli.App{
		Name:  "prog",
		Flags: cliutil.CommonFlags(),
		Commands: []*cli.Command{
			{Name: "create", Flags: append(cliutil.CreateKeyFlags(),
				&cli.StringFlag{Name: "size", Aliases: []string{"s"}}, cliutil.JSONFlag())},
			{Name: "snapshot", Subcommands: []*cli.Command{
				{Name: "create", Flags: []cli.Flag{&cli.StringFlag{Name: "freeze"}}},
				{Name: "list", Aliases: []string{"ls"}},
			}},
		},
	}
}

func TestArrange(t *testing.T) {
	for _, row := range []struct{ in, out string }{
		{"create a --size 5G", "create --size 5G -- a"},
		{"create a --size=5G", "create --size=5G -- a"},
		{"create --size 5G a", "create --size 5G -- a"},
		{"create a -s 5G b", "create -s 5G -- a b"},
		{"create a -q", "-q create -- a"},
		{"-q create a --json", "-q create --json -- a"},
		{"create a -qv", "-q -v create -- a"},
		{"create --passphrase-file - a", "create --passphrase-file - -- a"},
		{"create --passphrase-file=- - a", "create --passphrase-file=- -- - a"},
		{"create a --key-file k --key-file l b", "create --key-file k --key-file l -- a b"},
		{"create a --clear-key b", "create --clear-key -- a b"},
		{"create a --clear-key=true b", "create --clear-key=true -- a b"},
		{"create -- --size 5G", "create -- --size 5G"},
		{"create a -- -q --nonsense", "create -- a -q --nonsense"},
		{"create --size -- a", "create --size -- -- a"},
		{"create --size -q a", "create --size -q -- a"},
		{"create", "create"},
		{"create a --help", "create --help -- a"},
		{"create a -h", "create -h -- a"},
		{"help", "--help"},
		{"help snapshot create", "snapshot create --help"},
		{"create help", "create -- help"},
		{"snapshot create a --freeze m", "snapshot create --freeze m -- a"},
		{"snapshot ls a --progress plain", "--progress plain snapshot ls -- a"},
		{"snapshot", "snapshot"},
		{"create create", "create -- create"},
	} {
		got, err := cliutil.Arrange(testApp(), append([]string{"prog"}, strings.Fields(row.in)...))
		if err != nil {
			t.Errorf("%s: %v", row.in, err)
			continue
		}
		if want := append([]string{"prog"}, strings.Fields(row.out)...); !slices.Equal(got, want) {
			t.Errorf("%s:\n got %q\nwant %q", row.in, got, want)
		}
	}
}

func TestArrangeRefuses(t *testing.T) {
	for _, row := range []struct{ in, message string }{
		{"craete a", `unknown command "craete"; did you mean "create"?`},
		{"zzzzzzzz", `unknown command "zzzzzzzz"`},
		{"create a --sise 5G", `unknown option --sise of create; did you mean "size"?`},
		{"create a --sise=5G", `unknown option --sise of create; did you mean "size"?`},
		{"create a --zzzzzzzz", `unknown option --zzzzzzzz of create`},
		{"create a --size", `option --size needs a value`},
		{"create a -qx", `unknown option -qx of create`},
		{"create a -qs 5G", `unknown option -qs of create`},
		{"create a -size 5G", `unknown option -size of create; did you mean "size"?`},
		{"--size 5G create a", `unknown option --size`},
		{"snapshot make a", `unknown command "snapshot make"`},
		{"snapshot list --freeze m a", `unknown option --freeze of snapshot list`},
	} {
		_, err := cliutil.Arrange(testApp(), append([]string{"prog"}, strings.Fields(row.in)...))
		if !errors.Is(err, cliutil.ErrUsage) || err.Error() != row.message {
			t.Errorf("%s:\n got %v\nwant %s", row.in, err, row.message)
		}
	}
}
