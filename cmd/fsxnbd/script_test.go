package main

import (
	"testing"

	"github.com/fsximg/fsx/internal/cliutil/clitest"
	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"fsxnbd": main})
}

func TestScripts(t *testing.T) { clitest.Run(t, "fsximg") }
