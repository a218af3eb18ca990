package attach

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/fsximg/fsx/internal/attach/bridge"
	"github.com/fsximg/fsx/internal/attach/loopdev"
	"github.com/fsximg/fsx/internal/nbdclient/reconnect"
)

// bridgeEnds is how long a FUSE file system may take to end when its device is gone.
const bridgeEnds = 10 * time.Second

// loopDevice is a loop device over a FUSE file, which this process serves. It fails
// when this process dies.
type loopDevice struct {
	host   *Host
	opt    *KeepOptions
	dial   *dialer
	client *reconnect.Client
	bridge *bridge.Bridge
	dev    loopdev.Device
}

var _ device = (*loopDevice)(nil)

// openLoop connects to the server, shows the volume as a file, and makes a loop device
// of that.
func (h *Host) openLoop(ctx context.Context, o *KeepOptions) (_ device, err error) {
	d := &loopDevice{host: h, opt: o, dial: &dialer{path: o.Path, id: o.Identity}}
	timeout := o.Timeout
	if timeout == 0 {
		timeout = -1 // not at all
	}
	if d.client, err = reconnect.Dial(ctx, reconnect.Options{Redial: d.dial.uri, Timeout: timeout, Log: h.log()}); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.close())
		}
	}()
	if err := o.fits(d.client.Export()); err != nil {
		return nil, err
	}
	dir := h.mountpoint(o.Identity)
	if err := bridge.Unmount(dir); err != nil { // of a keeper that was killed
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("run directory: %w", err)
	}
	if d.bridge, err = bridge.Mount(dir, d.client, h.log()); err != nil {
		return nil, err
	}
	if d.dev, err = loopdev.Attach(ctx, d.bridge.File(), o.ReadOnly); err != nil {
		return nil, err
	}
	return d, nil
}

func (d *loopDevice) path() string { return d.dev.Path }

func (d *loopDevice) kind() Kind { return Loop }

func (d *loopDevice) there() bool {
	now, err := loopdev.Find(d.dev.Number)
	return err == nil && now.Backing == d.dev.Backing
}

func (d *loopDevice) link() (Link, string) {
	switch state, _ := d.client.State(); state {
	case reconnect.Waiting:
		return Waiting, d.dial.reason()
	case reconnect.Failed:
		return Failed, d.dial.reason()
	}
	return Connected, ""
}

func (d *loopDevice) detach(ctx context.Context) error {
	return d.host.endLoop(ctx, &Attachment{Record: Record{Identity: d.opt.Identity, Device: d.dev.Path}}, false)
}

// close unmounts the file and leaves the server.
func (d *loopDevice) close() error {
	var err error
	if d.bridge != nil {
		ctx, cancel := context.WithTimeout(context.Background(), bridgeEnds)
		defer cancel()
		if err = d.bridge.Close(ctx); errors.Is(err, bridge.ErrBusy) {
			// Somebody looks at the file. It fails from now on, as nothing is behind it.
			err = bridge.Unmount(d.host.mountpoint(d.opt.Identity))
		}
	}
	return errors.Join(err, d.client.Close())
}
