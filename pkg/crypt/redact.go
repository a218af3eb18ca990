package crypt

import (
	"fmt"
	"io"
)

const redacted = "[secret]"

// redact is embedded in every type that holds a secret, so that no way of
// printing or encoding it shows more than "[secret]".
type redact struct{}

func (redact) String() string               { return redacted }
func (redact) GoString() string             { return redacted }
func (redact) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// Format ignores verb and flags.
func (redact) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, redacted) }
