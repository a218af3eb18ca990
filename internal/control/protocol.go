package control

import (
	"encoding/json"
	"time"
)

const (
	// SocketName is the control socket's name in a store's directory.
	SocketName = "control.sock"
	// Protocol is the version of the protocol. It grows when an operation or a
	// field is removed or changes its meaning.
	Protocol = 1

	pathPrefix = "/v1/"
	// storeHeader is what the client calls the store, query-escaped: messages of
	// the server name it so.
	storeHeader = "Fsx-Store"

	maxRequest     = 256 << 10 // a passphrase may have 64 KiB
	maxHeader      = 8 << 10
	maxConnections = 16
	headerTimeout  = 3 * time.Second
	requestTimeout = 10 * time.Second
	writeTimeout   = 30 * time.Second // of one write: a client must read
	helloTimeout   = 10 * time.Second
	progressEvery  = 200 * time.Millisecond
	shutdownGrace  = 30 * time.Second
)

// line is one line of an answer. Exactly one field is set.
type line struct {
	Progress *progressLine   `json:"progress,omitempty"`
	Item     json.RawMessage `json:"item,omitempty"`
	Result   json.RawMessage `json:"result,omitempty"`
	Error    *Failure        `json:"error,omitempty"`
}

type progressLine struct {
	Done  int64 `json:"done"`
	Total int64 `json:"total"`
}

// Hello is what a server tells about itself.
type Hello struct {
	Protocol int    `json:"protocol"`
	Program  string `json:"program"`
	Version  string `json:"version"`
	PID      int    `json:"pid"`
	Store    string `json:"store"` // UUID
}
