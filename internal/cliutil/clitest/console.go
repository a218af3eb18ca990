package clitest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// example is one command of a document, with what the document says about it.
type example struct {
	line    int
	command string
	exit    string // "0" unless the command ends in "# exit N"
	output  []string
}

// RunExamples runs the ```console blocks of a document, one after the other in
// one empty folder. Lines that begin with "$ " are commands, which must exit
// with 0, or with N if they end in "# exit N". What follows must be the
// command's output, line by line, where "..." stands for anything: inside a
// line, or alone for any number of lines. path is put before PATH.
func RunExamples(t *testing.T, document, path string) {
	text, err := os.ReadFile(filepath.Join(root(), document))
	if err != nil {
		t.Fatal(err)
	}
	examples := parseExamples(string(text))
	if len(examples) == 0 {
		t.Fatalf("%s has no examples", document)
	}
	// A short path: sockets are made below it.
	dir, err := os.MkdirTemp("", "fsxdoc")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	for _, e := range examples {
		cmd := exec.Command("bash", "-c", e.command)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "PATH="+path+":"+os.Getenv("PATH"), "XDG_RUNTIME_DIR="+dir, "FSX_TRUST_FILE="+filepath.Join(dir, ".trust.json"), "LC_ALL=C")
		out, err := cmd.CombinedOutput()
		if code := fmt.Sprint(cmd.ProcessState.ExitCode()); code != e.exit {
			t.Fatalf("%s:%d: %s\nexit %s, the document says %s (%v)\n%s", document, e.line, e.command, code, e.exit, err, out)
		}
		if want := pattern(e.output); !want.MatchString(strings.TrimRight(string(out), "\n") + "\n") {
			t.Errorf("%s:%d: %s\nprints:\n%s\nthe document says:\n%s", document, e.line, e.command, out, strings.Join(e.output, "\n"))
		}
	}
}

func parseExamples(text string) (out []example) {
	inside := false
	for i, line := range strings.Split(text, "\n") {
		switch {
		case strings.HasPrefix(line, "```"):
			inside = line == "```console"
		case !inside:
		case strings.HasPrefix(line, "$ "):
			e := example{line: i + 1, command: line[2:], exit: "0"}
			if command, code, found := strings.Cut(e.command, "# exit "); found {
				e.command, e.exit = command, strings.TrimSpace(code)
			}
			out = append(out, e)
		case len(out) > 0:
			out[len(out)-1].output = append(out[len(out)-1].output, line)
		}
	}
	return out
}

// pattern makes an expression of the documented output. Without any it takes
// everything: the document does not show it.
func pattern(lines []string) *regexp.Regexp {
	if len(lines) == 0 {
		return regexp.MustCompile(``)
	}
	var b strings.Builder
	b.WriteString(`\A`)
	for _, line := range lines {
		line = strings.TrimRight(line, " ")
		if strings.TrimSpace(line) == "..." {
			b.WriteString(`(?:[^\n]*\n)*?`)
			continue
		}
		b.WriteString(strings.ReplaceAll(regexp.QuoteMeta(line), `\.\.\.`, `[^\n]*`) + ` *\n`)
	}
	b.WriteString(`\z`)
	return regexp.MustCompile(b.String())
}
