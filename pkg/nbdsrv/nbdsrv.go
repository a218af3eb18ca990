// Package nbdsrv is a Network Block Device server over a small Device
// interface: fixed newstyle negotiation, TLS, simple and structured replies,
// extended headers, metadata contexts, and every command of the baseline and
// its extensions up to WRITE_ZEROES, BLOCK_STATUS and CACHE. docs/nbd.md says what is supported,
// how it is tested and where it deviates.
//
// # How a connection runs
//
// One goroutine owns a connection's receiving side. It takes everything the
// socket holds with one large read, decodes every complete request in it, and
// serves what the Device can answer from memory on the spot: a READ's payload
// is produced in the send buffer, behind its header; a WRITE's payload is
// handed over in the receive buffer. All replies of the batch then leave in
// one write. What has to wait (ErrWouldBlock, and always FLUSH, FUA, TRIM,
// WRITE_ZEROES, BLOCK_STATUS and CACHE) goes to the connection's workers, so
// that a cold block does not hold up the rest; replies may overtake each
// other, but their bytes never interleave.
//
// Memory is bounded: a request that leaves the receiving goroutine, or that is
// too large for its buffers, is admitted against a budget of its connection
// and one of the server. Without room the goroutine stops reading its socket.
// Its buffers are bounded for the server, too; who is served keeps them until its
// socket is empty, or until others wait for their turn.
//
// Source: "The NBD protocol", doc/proto.md of NetworkBlockDevice/nbd, revision
// 89ba7b5, and for extended headers its branch extension-ext-header, revision
// e6f3b94. Section names in comments are headings of those texts.
package nbdsrv

import (
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"time"
)

// ReadSlack is how many bytes behind a buffer given to Device.ReadAt the
// Device may overwrite.
const ReadSlack = 16

// Size constraints told to clients ("Size constraints"), in bytes.
const (
	// MinBlock is the smallest unit a client may address.
	MinBlock = 1
	// PreferredBlock is the unit clients should align to.
	PreferredBlock = 4096
	// MaxBlock is the largest payload clients are told to use.
	MaxBlock = 32 << 20
	// MaxPayload is the largest READ or WRITE that is carried out.
	MaxPayload = 64 << 20
)

var (
	// ErrWouldBlock is returned by Device.ReadAt and Device.WriteAt when
	// nowait is set and the answer has to come from a disk.
	ErrWouldBlock = errors.New("nbdsrv: operation would block")
	// ErrUnknownExport is returned by Exports.Open for a name that is not
	// exported.
	ErrUnknownExport = errors.New("nbdsrv: unknown export")
	// ErrServerClosed is returned by Serve and ServeConn after Shutdown began.
	ErrServerClosed = errors.New("nbdsrv: server closed")
)

// Device is what an export reads and writes. All methods are safe for
// concurrent use. Offsets and lengths are in bytes, need no alignment, and
// were validated: they lie inside Size, and no length is 0.
//
// An error's wire value is that of the syscall.Errno it wraps (errors.As);
// without one it is EIO. When a failed ReadAt wraps an error with a method
// Offset() int64 (an absolute byte offset inside the request), clients with
// structured replies are told the place and that error's own text, which must
// therefore hold no secret.
//
// Connections to the same device are recognised by their Device values being
// equal; hand out the same pointer each time.
type Device interface {
	// Size is the current size in bytes.
	Size() int64
	// ReadOnly reports whether the device refuses changes.
	ReadOnly() bool
	// ReadAt fills p from off or fails as a whole. With nowait it returns
	// ErrWouldBlock instead of waiting for a disk; the server then calls
	// again from a worker. It may overwrite p[len(p):len(p)+ReadSlack].
	ReadAt(p []byte, off int64, nowait bool) error
	// WriteAt stores p at off. When it returns, every later ReadAt sees it,
	// on any connection. With nowait it may return ErrWouldBlock, and has
	// then written nothing. It must not keep p.
	WriteAt(p []byte, off int64, nowait bool) error
	// ZeroAt makes the range read as zeros. It is always fast (metadata
	// only). With noHole the range must not become a hole.
	ZeroAt(off, n int64, noHole bool) error
	// TrimAt drops the range; the device may round it inwards.
	TrimAt(off, n int64) error
	// Flush makes durable whatever completed before the call, on any
	// connection. Once it has failed it has to keep failing.
	Flush() error
	// Status calls fn with consecutive runs from off on until fn returns
	// false or n bytes are covered. It is what base:allocation tells.
	Status(off, n int64, fn func(length int64, hole, zero bool) bool) error
	// Prefetch brings the range into memory if that is worth it.
	Prefetch(off, n int64) error
}

// Contexts is what a Device may offer beyond base:allocation. A Device whose
// list is empty is like one without these methods, so that a wrapper can have
// them whatever it wraps. They are safe for concurrent use.
type Contexts interface {
	// Contexts lists the names of the metadata contexts, "namespace:leaf",
	// that can be selected now, each once ("Metadata querying"). What is in
	// the namespace base, or is no valid name, is not offered. They may
	// change while the server runs; a name that a client has selected stays
	// its until the connection ends (StatusIn then may fail).
	Contexts() []string
	// StatusIn calls fn with consecutive runs in a context from off on, with
	// the context's own flags, until fn returns false or n bytes are
	// covered. It covers at least a byte or fails.
	StatusIn(context string, off, n int64, fn func(length int64, flags uint32) bool) error
}

// Export is a device under a name.
type Export struct {
	// Name is the canonical name, told to clients who ask (NBD_INFO_NAME).
	Name string
	// Description is a line for humans; it may be empty.
	Description string
	// Device is what is served.
	Device Device
	// ReadOnly refuses changes even if the device would take them.
	ReadOnly bool
}

// ExportInfo is a line of the export list.
type ExportInfo struct {
	Name        string
	Description string
}

// Exports finds what clients ask for. Both methods are called from many
// goroutines.
type Exports interface {
	// List returns the exports that are shown to a client.
	List(client *Client) []ExportInfo
	// Open returns the export called name; the empty name is the default
	// export. release is called once, after the last use of the Device.
	// ErrUnknownExport, ErrTLSRequired and ErrNotAllowed refuse the client
	// with the protocol's error for it; any other error refuses it, too, and
	// its text is sent to it.
	Open(name string, client *Client) (export Export, release func(), err error)
}

// Config configures a Server. The zero value of each field but Exports is its
// default.
type Config struct {
	Exports Exports
	// Log receives connections (debug), one line for a client that breaks the
	// protocol or whose requests are refused (warn, at most ten in a second)
	// and device errors (error, at most one in a second of a connection).
	// Default: nothing is logged.
	Log *slog.Logger

	// NoList refuses NBD_OPT_LIST.
	NoList bool
	// NoMultiConn withholds NBD_FLAG_CAN_MULTI_CONN.
	NoMultiConn bool

	// TLS is asked for the configuration of each connection that begins TLS,
	// so that certificates may change while the server runs; it is called
	// from many goroutines, and what it returns is not changed. TLS 1.2 is
	// the oldest version that is spoken, and sessions are not resumed,
	// whatever it says. Default: there is no TLS.
	TLS func() *tls.Config
	// RequireTLS says whether a connection has to negotiate TLS before
	// anything else. It needs TLS. Default: that is left to the client.
	RequireTLS func(net.Conn) bool

	// HandshakeTimeout bounds the whole negotiation, that of TLS included.
	// Default 10 s.
	HandshakeTimeout time.Duration
	// MaxHandshakes bounds connections in negotiation of each listener, and
	// those of ServeConn; further ones wait to be accepted. Default 100.
	MaxHandshakes int
	// MaxConns bounds all connections; further ones are closed. Default 4096.
	MaxConns int

	// Workers bounds device calls that may block, of all connections. Flushes
	// do not count: there is at most one per connection. Default 256.
	Workers int
	// ConnWorkers is the same of one connection. Default 32.
	ConnWorkers int
	// ConnRequests bounds the requests of one connection that are with its
	// workers or wait to be sent. Default 1024.
	ConnRequests int

	// Memory bounds the payload bytes in flight of all connections, beyond
	// ConnReserve for each of them, and their buffers: connections that are
	// being served take 512 KiB each, at most Memory and 32 MiB together;
	// further ones wait for their turn. Default 512 MiB.
	Memory int64
	// ConnMemory bounds the payload bytes in flight of one connection.
	// Default 128 MiB.
	ConnMemory int64
	// ConnReserve is the part of ConnMemory that no other connection can
	// take away. Default 1 MiB.
	ConnReserve int64
	// StallTimeout is how long a client may take no replies, or send nothing
	// of the data it has announced, while they hold Memory, or buffers, that
	// others wait for; it is cut off then. Without such need no client is ever timed out.
	// Default 30 s.
	StallTimeout time.Duration
}

// withDefaults fills what is zero and raises what could never admit the
// largest request.
func (c Config) withDefaults() Config {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	setDefault(&c.HandshakeTimeout, 10*time.Second)
	setDefault(&c.StallTimeout, 30*time.Second)
	setDefault(&c.MaxHandshakes, 100)
	setDefault(&c.MaxConns, 4096)
	setDefault(&c.Workers, 256)
	setDefault(&c.ConnWorkers, 32)
	setDefault(&c.ConnRequests, 1024)
	setDefault(&c.Memory, 512<<20)
	setDefault(&c.ConnMemory, 128<<20)
	setDefault(&c.ConnReserve, 1<<20)
	c.Memory = max(c.Memory, bufferSize(MaxPayload))
	c.ConnMemory = max(c.ConnMemory, bufferSize(MaxPayload))
	return c
}

func setDefault[T int | int64 | time.Duration](v *T, def T) {
	if *v <= 0 {
		*v = def
	}
}
