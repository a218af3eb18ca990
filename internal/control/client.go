package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"syscall"

	"github.com/fsximg/fsx/internal/cliutil"
)

// errNoServer says that nobody answers on a store's control socket.
var errNoServer = errors.New("no server answers")

// NoServer says that Dial found nobody who answers, or who may.
func NoServer(err error) bool { return errors.Is(err, errNoServer) }

// Client has the server of a store carry operations out. It is safe for
// concurrent use; every operation has a connection of its own.
type Client struct {
	path  string
	hello Hello
	http  *http.Client
}

var _ Operations = (*Client)(nil)

// Dial finds the server of the store at path and asks who it is. ErrProtocol says
// that it is of another version.
func Dial(ctx context.Context, path string) (*Client, error) {
	c := &Client{path: path}
	c.http = &http.Client{Transport: &http.Transport{
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx, path) },
		DisableKeepAlives: true, DisableCompression: true,
	}}
	brief, cancel := context.WithTimeout(ctx, helloTimeout)
	defer cancel()
	err := c.call(brief, "hello", noRequest{}, &c.hello, nil, nil)
	switch {
	case err == nil && c.hello.Protocol == Protocol:
		return c, nil
	case err == nil:
		err = cliutil.Errorf(ErrProtocol, "the server (%s %s) speaks version %d of the control protocol, not %d",
			c.hello.Program, c.hello.Version, c.hello.Protocol, Protocol)
	case ctx.Err() == nil && brief.Err() != nil:
		return nil, fmt.Errorf("%s: the server does not answer: %w", path, errNoServer)
	}
	if errors.Is(err, ErrProtocol) {
		return nil, cliutil.WithHint(err, "use the fsximg that came with it, or start this version's server")
	}
	return nil, err
}

// dial connects to the control socket. Whoever listens there is given secrets, so
// it must be the store's owner, this user or root.
func dial(ctx context.Context, path string) (net.Conn, error) {
	owner, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	short, release, err := socketPath(path)
	if err != nil {
		return nil, err
	}
	defer release()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", short)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, fs.ErrPermission) {
		return nil, errNoServer
	}
	if err != nil {
		return nil, err
	}
	peer, err := peerOf(conn.(*net.UnixConn))
	if err != nil {
		conn.Close()
		return nil, err
	}
	if st, ok := owner.Sys().(*syscall.Stat_t); peer.UID != 0 && peer.UID != uint32(os.Geteuid()) && (!ok || peer.UID != st.Uid) {
		conn.Close()
		return nil, fmt.Errorf("%s: the server belongs to another user (%d) than the store", SocketName, peer.UID)
	}
	return conn, nil
}

// call carries one operation out. result, if not nil, takes the result; progress
// and item, if not nil, take what comes before.
func (c *Client) call(ctx context.Context, name string, request, result any, progress func(done, total int64), item func(json.RawMessage) error) error {
	body, err := json.Marshal(request)
	if err != nil {
		return err
	}
	defer clear(body) // it may hold secrets
	q, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://fsx"+pathPrefix+name, bytes.NewReader(body))
	if err != nil {
		return err
	}
	q.Header.Set(storeHeader, url.QueryEscape(c.path))
	r, err := c.http.Do(q)
	if err != nil {
		return c.lost(ctx, err)
	}
	defer r.Body.Close()
	for d := json.NewDecoder(r.Body); ; {
		var l line
		if err := d.Decode(&l); err != nil {
			return c.lost(ctx, err)
		}
		switch {
		case l.Error != nil:
			return l.Error.err()
		case l.Progress != nil && progress != nil:
			progress(l.Progress.Done, l.Progress.Total)
		case l.Item != nil && item != nil:
			if err := item(l.Item); err != nil {
				return err
			}
		case l.Result != nil:
			if result == nil {
				return nil
			}
			return json.Unmarshal(l.Result, result)
		}
	}
}

// lost says why there was no answer.
func (c *Client) lost(ctx context.Context, err error) error {
	var u *url.Error
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, errNoServer):
		return errNoServer
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return fmt.Errorf("%s: the server closed the connection before it had answered", c.path)
	case errors.As(err, &u):
		return u.Err
	}
	return fmt.Errorf("answer of the server: %w", err)
}

// Server describes the server.
func (c *Client) Server() Hello { return c.hello }

// URI is the NBD URI at which the server exports a volume, or with snapshot not
// empty that. The error is cliutil.ErrInUse when the server does not export it.
func (c *Client) URI(ctx context.Context, volume, snapshot string) (string, error) {
	var r uriResult
	err := c.call(ctx, "uri", deviceRequest{volume, snapshot}, &r, nil, nil)
	return r.URI, err
}

// Close implements Operations.
func (c *Client) Close() error {
	c.http.CloseIdleConnections()
	return nil
}

// Info implements Operations.
func (c *Client) Info(ctx context.Context) (i Info, err error) {
	err = c.call(ctx, "info", noRequest{}, &i, nil, nil)
	return i, err
}

// Map implements Operations.
func (c *Client) Map(ctx context.Context, volume, snapshot string, fn func(Run) error) error {
	return c.call(ctx, "map", deviceRequest{volume, snapshot}, nil, nil, each(fn))
}

// Diff implements Operations.
func (c *Client) Diff(ctx context.Context, volume, from, to string, fn func(DiffRun) error) error {
	return c.call(ctx, "diff", diffRequest{volume, from, to}, nil, nil, each(fn))
}

func each[T any](fn func(T) error) func(json.RawMessage) error {
	return func(b json.RawMessage) error {
		var v T
		if err := json.Unmarshal(b, &v); err != nil {
			return err
		}
		return fn(v)
	}
}

// Check implements Operations.
func (c *Client) Check(ctx context.Context, progress func(done, total int64)) (r Report, err error) {
	err = c.call(ctx, "check", noRequest{}, &r, progress, nil)
	return r, err
}

// Compact implements Operations.
func (c *Client) Compact(ctx context.Context) (r Compaction, err error) {
	err = c.call(ctx, "compact", noRequest{}, &r, nil, nil)
	return r, err
}

// CreateSnapshot implements Operations.
func (c *Client) CreateSnapshot(ctx context.Context, volume, name string) (s Snapshot, err error) {
	err = c.call(ctx, "snapshot/create", snapshotRequest{volume, name}, &s, nil, nil)
	return s, err
}

// DeleteSnapshot implements Operations.
func (c *Client) DeleteSnapshot(ctx context.Context, volume, name string) (s Snapshot, err error) {
	err = c.call(ctx, "snapshot/delete", snapshotRequest{volume, name}, &s, nil, nil)
	return s, err
}

// Rollback implements Operations.
func (c *Client) Rollback(ctx context.Context, volume, snapshot string, force bool) (deleted []string, err error) {
	var r rollbackResult
	err = c.call(ctx, "snapshot/rollback", rollbackRequest{volume, snapshot, force}, &r, nil, nil)
	return r.Deleted, err
}

// Clone implements Operations.
func (c *Client) Clone(ctx context.Context, r CloneRequest) error {
	return c.call(ctx, "clone", r, nil, nil, nil)
}

// Copy implements Operations.
func (c *Client) Copy(ctx context.Context, dst string, progress func(done, total int64)) error {
	return c.call(ctx, "copy", copyRequest{dst}, nil, progress, nil)
}

// Rekey implements Operations.
func (c *Client) Rekey(ctx context.Context, r RekeyRequest) (res Rekeyed, err error) {
	err = c.call(ctx, "rekey", r, &res, nil, nil)
	return res, err
}

// Reencrypt implements Operations.
func (c *Client) Reencrypt(ctx context.Context, r ReencryptRequest, progress func(done, total int64)) (res Reencrypted, err error) {
	err = c.call(ctx, "reencrypt", r, &res, progress, nil)
	return res, err
}

// CreateVolume implements Operations.
func (c *Client) CreateVolume(ctx context.Context, r VolumeRequest) error {
	return c.call(ctx, "volume/create", r, nil, nil, nil)
}

// DeleteVolume implements Operations.
func (c *Client) DeleteVolume(ctx context.Context, name string) error {
	return c.call(ctx, "volume/delete", volumeRequest{name}, nil, nil, nil)
}

// RenameVolume implements Operations.
func (c *Client) RenameVolume(ctx context.Context, name, to string) error {
	return c.call(ctx, "volume/rename", renameRequest{name, to}, nil, nil, nil)
}

// Resize implements Operations.
func (c *Client) Resize(ctx context.Context, volume string, size int64, shrink bool) error {
	return c.call(ctx, "volume/resize", resizeRequest{volume, size, shrink}, nil, nil, nil)
}

// Flatten implements Operations.
func (c *Client) Flatten(ctx context.Context, volume string, progress func(done, total int64)) error {
	return c.call(ctx, "volume/flatten", volumeRequest{volume}, nil, progress, nil)
}
