// Package docs holds the documentation that the programs print parts of.
package docs

import _ "embed"

// CLI is cli.md: what the commands do, with examples that a test runs. The manual
// pages are made of it.
//
//go:embed cli.md
var CLI string
