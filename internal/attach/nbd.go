package attach

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/fsximg/fsx/internal/attach/nbddev"
	"github.com/fsximg/fsx/internal/attach/relay"
	"github.com/fsximg/fsx/internal/cliutil"
)

// nbdDevice is a network block device of the kernel. Its sockets end in this process,
// in a relay, which outlives servers; the device outlives this process.
type nbdDevice struct {
	host   *Host
	opt    *KeepOptions
	dial   *dialer
	relay  *relay.Relay
	ended  chan error // of the relay
	cancel context.CancelFunc

	index int
	dev   string
	conn  *nbddev.Connection // nil: adopted
}

var _ device = (*nbdDevice)(nil)

// openNBD connects to the server and makes a network block device, or gives one that
// is there new sockets.
func (h *Host) openNBD(ctx context.Context, o *KeepOptions, way nbddev.Way) (device, error) {
	if err := nbddev.This().Load(ctx); err != nil {
		return nil, err
	}
	d := &nbdDevice{host: h, opt: o, dial: &dialer{path: o.Path, id: o.Identity}, ended: make(chan error, 1)}
	first, err := d.dial.socket(ctx)
	if err != nil {
		return nil, err
	}
	if err := o.fits(first.Export); err != nil {
		first.File.Close()
		return nil, err
	}
	r, sockets, err := relay.New(first, max(o.Connections, 1), relay.Config{Dial: d.dial.socket, Timeout: o.Timeout, Log: h.log()})
	if err != nil {
		first.File.Close()
		return nil, err
	}
	d.relay = r
	var inner context.Context
	inner, d.cancel = context.WithCancel(context.WithoutCancel(ctx))
	go func() { d.ended <- r.Run(inner) }()
	if o.Adopt != "" {
		err = d.adopt(sockets, first.Size)
	} else {
		err = d.connect(ctx, sockets, nbddev.Options{
			Path: o.Device, Size: uint64(first.Size), Flags: uint16(first.Flags), ReadOnly: o.ReadOnly,
			Backend: o.Identity.Backend(), DeadTimeout: o.Timeout, Way: way,
		})
	}
	for _, s := range sockets {
		err = errors.Join(err, s.Close())
	}
	if err != nil {
		d.cancel()
		<-d.ended
		return nil, deviceError(err)
	}
	return d, nil
}

// deviceError gives an error the exit code that it has for users.
func deviceError(err error) error {
	switch {
	case errors.Is(err, nbddev.ErrInUse):
		return cliutil.Errorf(cliutil.ErrInUse, "%v", err)
	case errors.Is(err, nbddev.ErrNoDevice):
		return cliutil.WithHint(err, "--device loop works without; or load the module with more: modprobe nbd nbds_max=64")
	}
	return err
}

// adopt gives the device of a keeper that was killed sockets of ours.
func (d *nbdDevice) adopt(sockets []*os.File, size int64) error {
	index, ok := nbddev.IndexOf(d.opt.Adopt)
	if !ok {
		return fmt.Errorf("%s is no network block device", d.opt.Adopt)
	}
	now, err := nbddev.This().Get(index)
	if err != nil {
		return err
	}
	if now.Size > uint64(size) { // it may have grown: the device keeps its size
		return fmt.Errorf("%s has %d bytes, and %s has %d now", d.opt.Adopt, now.Size, d.opt.Identity, size)
	}
	for _, s := range sockets {
		if err := nbddev.This().Reconnect(index, s, d.opt.Identity.Backend()); err != nil {
			return err
		}
	}
	d.index, d.dev = index, now.Path
	return nil
}

func (d *nbdDevice) connect(ctx context.Context, sockets []*os.File, o nbddev.Options) (err error) {
	if d.conn, err = nbddev.This().Connect(ctx, sockets, o); err != nil {
		return err
	}
	d.index, d.dev = d.conn.Index, d.conn.Path
	return nil
}

func (d *nbdDevice) path() string { return d.dev }

func (d *nbdDevice) kind() Kind { return NBD }

func (d *nbdDevice) there() bool {
	if d.conn != nil {
		select {
		case <-d.conn.Done():
			return false
		default:
		}
	}
	now, err := nbddev.This().Get(d.index)
	return err == nil && now.Connected && (now.Backend == "" || now.Backend == d.opt.Identity.Backend())
}

func (d *nbdDevice) link() (Link, string) {
	switch d.relay.State() {
	case relay.Waiting:
		return Waiting, d.dial.reason()
	case relay.Failed:
		return Failed, d.dial.reason()
	}
	return Connected, ""
}

func (d *nbdDevice) detach(ctx context.Context) error {
	return d.host.endNBD(ctx, &Attachment{Record: Record{Identity: d.opt.Identity, Device: d.dev}}, false)
}

func (d *nbdDevice) close() error {
	d.cancel()
	if err := <-d.ended; err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}
