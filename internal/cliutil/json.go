package cliutil

import (
	"encoding/json"
	"fmt"

	"github.com/urfave/cli/v2"
)

// SchemaVersion is the version of every object that --json prints. It grows
// when a field is removed or changes its meaning, not when one is added.
const SchemaVersion = 1

// Header begins every object that --json prints; embed it.
type Header struct {
	Schema  string `json:"schema"`  // which schema, e.g. "fsximg.info"
	Version int    `json:"version"` // SchemaVersion
}

// NewHeader is the header of the given command's object.
func NewHeader(schema string) Header { return Header{schema, SchemaVersion} }

// JSONFlag is --json, for every command that reports something.
func JSONFlag() cli.Flag {
	return &cli.BoolFlag{Name: "json", Usage: "print one JSON object; sizes in bytes"}
}

// PrintJSON writes v as one indented JSON object.
func (e *Env) PrintJSON(v any) error {
	enc := json.NewEncoder(e.Stdout)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("write result: %w", err)
	}
	return nil
}
