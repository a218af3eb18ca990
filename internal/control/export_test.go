package control

import (
	"net"
	"time"
)

const MaxConnections = maxConnections

// WithCredentials makes the server see peers as fn says.
func WithCredentials(c Config, fn func(*net.UnixConn) (Peer, error)) Config {
	c.credentials = fn
	return c
}

// WithRequestTimeout bounds the time that a request may take to arrive.
func WithRequestTimeout(c Config, d time.Duration) Config {
	c.requestTimeout = d
	return c
}
