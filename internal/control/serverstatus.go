package control

import (
	"context"
	"time"

	"github.com/fsximg/fsx/internal/cliutil"
)

// ServerStatus is what a server does and did, of all stores that it serves.
// docs/schema/fsxnbd.status.json says what the fields mean.
type ServerStatus struct {
	PID         int            `json:"pid"`
	Version     string         `json:"server_version"`
	Started     time.Time      `json:"started"`
	At          time.Time      `json:"at"` // when this was so
	URIs        []string       `json:"uris"`
	Stores      []StoreStatus  `json:"stores"`
	Exports     []ExportStatus `json:"exports"`
	Clients     []ClientStatus `json:"clients"`
	Connections Connections    `json:"connections"`
	Memory      MemoryInFlight `json:"memory"`
	// EndsWithClients is whether the server ends when its last client has left.
	EndsWithClients bool `json:"ends_with_clients"`
}

// Connections count connections since the start.
type Connections struct {
	Accepted    uint64 `json:"accepted"`
	Negotiating int    `json:"negotiating"` // now
	TooMany     uint64 `json:"too_many"`
	Failed      uint64 `json:"failed"` // in their negotiation
}

// MemoryInFlight is payload that requests hold, in bytes.
type MemoryInFlight struct {
	InFlight int64 `json:"in_flight"`
	Limit    int64 `json:"limit"`
}

// StoreStatus is one store that a server has open.
type StoreStatus struct {
	Path    string         `json:"path"`
	UUID    string         `json:"uuid"`
	Free    int64          `json:"free"`
	Buffers int64          `json:"buffers"`
	Cache   CacheStatus    `json:"map_cache"`
	Volumes []VolumeStatus `json:"volumes"` // that are open
	Keys    []VolumeKey    `json:"keys"`
}

// CacheStatus is a cache's use. A cache without a limit in bytes has none here.
type CacheStatus struct {
	Bytes  int64  `json:"bytes"`
	Limit  int64  `json:"limit"`
	Hits   uint64 `json:"hits"`
	Misses uint64 `json:"misses"`
}

// VolumeStatus is an open volume.
type VolumeStatus struct {
	Name        string      `json:"name"`
	Size        int64       `json:"size"`
	ReadOnly    bool        `json:"read_only"`
	Failed      bool        `json:"failed"` // its log
	Lag         Lag         `json:"checkpoint_lag"`
	Checkpoints uint64      `json:"checkpoints"`
	Commits     uint64      `json:"commits"`
	Faults      BlockFaults `json:"faults"`
}

// Lag is what the map tree of a volume lacks that its log has.
type Lag struct {
	Bytes   int64     `json:"bytes"`
	Records int64     `json:"records"`
	Since   time.Time `json:"since"` // the last checkpoint
}

// BlockFaults count blocks that could not be read.
type BlockFaults struct {
	Damaged    uint64 `json:"damaged"`
	KeyMissing uint64 `json:"key_missing"`
	Other      uint64 `json:"other"`
}

// ExportStatus is an export that has clients or had some.
type ExportStatus struct {
	Name        string `json:"name"`
	Clients     int    `json:"clients"`
	Connections uint64 `json:"connections"`
	Traffic
}

// ClientStatus is a connected client.
type ClientStatus struct {
	ID       uint64    `json:"id"`
	Peer     string    `json:"peer"`
	Export   string    `json:"export"`
	Since    time.Time `json:"since"`
	ReadOnly bool      `json:"read_only"`
	Requests int       `json:"requests"` // in flight, beside those answered on the spot
	Memory   int64     `json:"memory"`
	Traffic
}

// Traffic is what clients did, since they came or since the server started.
type Traffic struct {
	Commands []CommandTraffic `json:"commands"`
	// Rate is of the time between two looks; a server tells none.
	Rate *Rate `json:"rate,omitempty"`
}

// CommandTraffic is the requests of one command that were answered.
type CommandTraffic struct {
	Command  string            `json:"command"`
	Requests uint64            `json:"requests"`
	Bytes    uint64            `json:"bytes"`
	Errors   map[string]uint64 `json:"errors"`
	Latency  Latency           `json:"latency"`
}

// Latency is how long requests took. Classes count them by their time: up to 4 µs,
// up to 8 µs, and so on; the last is all the rest.
type Latency struct {
	Seconds float64  `json:"seconds"` // all together
	P50     float64  `json:"p50"`     // seconds
	P99     float64  `json:"p99"`
	Classes []uint64 `json:"classes"`
}

// Rate is how fast something goes, per second.
type Rate struct {
	Seconds      float64 `json:"seconds"` // that it was measured for
	Reads        float64 `json:"reads"`
	ReadBytes    float64 `json:"read_bytes"`
	Writes       float64 `json:"writes"`
	WrittenBytes float64 `json:"written_bytes"`
	Others       float64 `json:"others"` // requests
	P50          float64 `json:"p50"`    // of all requests, in seconds
	P99          float64 `json:"p99"`
}

// ServerStatus asks the server what it does.
func (c *Client) ServerStatus(ctx context.Context) (s ServerStatus, err error) {
	err = c.call(ctx, "server/status", noRequest{}, &s, nil, nil)
	return s, err
}

// serverStatus carries the operation out.
func (s *Server) serverStatus(body []byte) (any, error) {
	if err := parse(body, &noRequest{}); err != nil {
		return nil, err
	}
	if s.cfg.Status == nil {
		return nil, cliutil.Errorf(ErrProtocol, "%s has no clients to tell about", s.cfg.Program)
	}
	return s.cfg.Status()
}
