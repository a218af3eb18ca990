package nbdclient

import (
	"context"
	"net"
	"os"
)

// Socket is a connection that is ready for transmission: the next byte that the
// server takes is the first of a request, and the first that it sends belongs to a
// reply. Replies are simple ones.
type Socket struct {
	Export
	// File is the connected socket, which the caller closes. Once the kernel has
	// it, the caller's descriptor may be closed at once.
	File *os.File
}

// Negotiate connects to the export that an NBD URI names, for Linux's client: with
// fixed newstyle negotiation and GO, without structured replies, extended headers
// and metadata contexts. ctx bounds the negotiation.
func Negotiate(ctx context.Context, name string) (*Socket, error) {
	u, err := parseURI(name)
	if err != nil {
		return nil, err
	}
	var s Socket
	err = connect(ctx, u, func(conn net.Conn) error {
		// Without a buffer: what lies behind the negotiation is the kernel's.
		h := &handshake{conn: conn, r: conn, export: initialExport()}
		if err := h.greet(); err != nil {
			return err
		}
		if err := h.goExport(u.export); err != nil {
			return err
		}
		s.Export = h.export
		// The file is a duplicate; the connection itself is not needed then.
		s.File, err = conn.(interface{ File() (*os.File, error) }).File()
		if err != nil {
			return err
		}
		return conn.Close()
	})
	if err != nil {
		if s.File != nil {
			s.File.Close()
		}
		return nil, err
	}
	return &s, nil
}
