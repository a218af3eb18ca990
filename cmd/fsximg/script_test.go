package main

import (
	"testing"

	"github.com/fsximg/fsx/internal/cliutil/clitest"
	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"fsximg": main, "mount.fsx": main})
}

func TestScripts(t *testing.T) { clitest.Run(t, "fsxnbd") }

func TestExamples(t *testing.T) {
	clitest.RunExamples(t, "docs/cli.md", clitest.Build(t, "fsximg", "fsxnbd"))
}
