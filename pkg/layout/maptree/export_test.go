package maptree

import (
	"crypto/sha256"

	"github.com/fsximg/fsx/pkg/layout"
)

// HashOf is a node's hash.
func HashOf(b []byte) layout.Hash { return sha256.Sum256(b) }

// Recode decodes a node of the level and encodes it again. ok is false if it
// is not canonical.
func Recode(b []byte, level uint8) (out []byte, ok bool) {
	if !checkNode(b, level) {
		return nil, false
	}
	if level == 0 {
		var l leaf
		l.decode(b)
		return l.append(nil), l.kind() == layout.Data
	}
	var n interior
	n.decode(b)
	return n.append(nil, level), n.kind() == layout.Data
}
