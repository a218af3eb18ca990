// Package cliutil is what fsx's commands have in common: the order of flags,
// sizes, names of volumes and snapshots, key options, exit codes, messages,
// JSON, progress and prompts. docs/cli.md tells users the same.
//
// It is the only package that prints, and the only one that maps errors to
// exit codes.
package cliutil
