package main

import (
	"os/exec"
	"testing"

	"github.com/fsximg/fsx/internal/cliutil/clitest"
)

// TestTLSDocument runs what docs/tls.md tells to type.
func TestTLSDocument(t *testing.T) {
	for _, tool := range []string{"bash", "openssl", "nbdinfo", "nbdcopy", "qemu-img"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("NOT TESTED: %s is not installed", tool)
		}
	}
	clitest.RunExamples(t, "docs/tls.md", clitest.Build(t, "fsximg", "fsxnbd"))
}
