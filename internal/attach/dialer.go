package attach

import (
	"context"
	"fmt"
	"sync"

	"github.com/fsximg/fsx/internal/cliutil"
	"github.com/fsximg/fsx/internal/control"
	"github.com/fsximg/fsx/internal/nbdclient"
)

// dialer finds a volume's server, again and again: by the store's control socket,
// so that it may be another server, with another NBD socket, each time.
type dialer struct {
	path string // of the store
	id   Identity

	mu   sync.Mutex
	last error
}

// uri is where the volume is served now.
func (d *dialer) uri(ctx context.Context) (uri string, err error) {
	defer func() { d.note(err) }()
	client, err := control.Dial(ctx, d.path)
	if err != nil {
		return "", err
	}
	defer client.Close()
	if is := client.Server().Store; is != d.id.Store {
		return "", fmt.Errorf("%s is another store now, %s", d.path, is)
	}
	return client.URI(ctx, d.id.Volume, d.id.Snapshot)
}

// socket is a connection to it.
func (d *dialer) socket(ctx context.Context) (*nbdclient.Socket, error) {
	uri, err := d.uri(ctx)
	if err != nil {
		return nil, err
	}
	s, err := nbdclient.Negotiate(ctx, uri)
	d.note(err)
	return s, err
}

func (d *dialer) note(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.last = err
}

// reason is why there was no connection at the last try; empty if there was one.
func (d *dialer) reason() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.last == nil {
		return ""
	}
	return d.last.Error()
}

// fits refuses an export that a device cannot be made of.
func (o *KeepOptions) fits(e nbdclient.Export) error {
	switch {
	case e.ReadOnly() && !o.ReadOnly:
		err := cliutil.Errorf(cliutil.ErrInUse, "%s can only be read", o.Identity)
		return cliutil.WithHint(err, "attach it with --read-only. Its server may have been started with --read-only, the store's disk may be so, or its key is not trusted (--expect-id)")
	case e.Size == 0:
		return fmt.Errorf("%s is empty: no device can be made of it", o.Identity)
	}
	return nil
}
