// Package nbdclient is the client's side of NBD (doc/proto.md of
// NetworkBlockDevice/nbd, and doc/uri.md).
//
//   - Dial gives a Client: requests of many goroutines over one connection, with
//     structured replies and base:allocation where the server has them.
//   - Negotiate gives a Socket that is ready for transmission and was used for
//     nothing else, so that it can be handed to Linux's own client.
//
// TLS is not supported.
package nbdclient

import "errors"

var (
	// ErrProtocol is returned for a server that breaks the protocol, and for one
	// that refuses the export.
	ErrProtocol = errors.New("nbd protocol error")
	// ErrURI is returned for an NBD URI that is malformed or not supported.
	ErrURI = errors.New("unsupported nbd uri")
)

// Flags are the transmission flags of an export ("Transmission flags"), as they
// came from the server.
type Flags uint16

// The transmission flags that matter to a client.
const (
	ReadOnly        Flags = 1 << 1
	SendFlush       Flags = 1 << 2
	SendFUA         Flags = 1 << 3
	SendTrim        Flags = 1 << 5
	SendWriteZeroes Flags = 1 << 6
	CanMultiConn    Flags = 1 << 8
)

// Has is whether all of the given flags are set.
func (f Flags) Has(g Flags) bool { return f&g == g }

// Export is what a server tells about an export.
type Export struct {
	Size  int64 // bytes
	Flags Flags
	// Sizes of requests in bytes. A server that tells none has 1, 4096 and 32 MiB;
	// MaxPayload is never more than that, and a multiple of MinBlock.
	MinBlock, PreferredBlock, MaxPayload int64
}

// ReadOnly is whether the server refuses changes.
func (e Export) ReadOnly() bool { return e.Flags.Has(ReadOnly) }
