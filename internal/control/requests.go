package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"

	"github.com/fsximg/fsx/internal/cliutil"
)

// The parameters of the operations; CloneRequest and VolumeRequest are others.
type (
	noRequest struct{}
	// deviceRequest names a volume, or a snapshot of it.
	deviceRequest struct {
		Volume   string `json:"volume"`
		Snapshot string `json:"snapshot,omitempty"`
	}
	diffRequest struct {
		Volume string `json:"volume"`
		From   string `json:"from"`
		To     string `json:"to,omitempty"` // empty: the present state
	}
	snapshotRequest struct {
		Volume   string `json:"volume"`
		Snapshot string `json:"snapshot"`
	}
	rollbackRequest struct {
		Volume   string `json:"volume"`
		Snapshot string `json:"snapshot"`
		Force    bool   `json:"force,omitempty"`
	}
	volumeRequest struct {
		Volume string `json:"volume"`
	}
	copyRequest struct {
		Destination string `json:"destination"` // an absolute path
	}
	renameRequest struct {
		Volume string `json:"volume"`
		To     string `json:"to"`
	}
	resizeRequest struct {
		Volume string `json:"volume"`
		Size   int64  `json:"size"`
		Shrink bool   `json:"shrink,omitempty"`
	}
	rollbackResult struct {
		Deleted []string `json:"deleted"`
	}
	uriResult struct {
		URI string `json:"uri"`
	}
	empty struct{}
)

// serverOperation carries out one operation: it reads the parameters and returns
// the result.
type serverOperation func(ctx context.Context, o Operations, body []byte, r *reply) (any, error)

// operation is a serverOperation of a function with its parameters. The result
// of one that returns nil is {}.
func operation[Request any](do func(ctx context.Context, o Operations, q Request, r *reply) (any, error)) serverOperation {
	return func(ctx context.Context, o Operations, body []byte, r *reply) (any, error) {
		var q Request
		if err := parse(body, &q); err != nil {
			return nil, err
		}
		res, err := do(ctx, o, q, r)
		if res == nil {
			res = empty{}
		}
		return res, err
	}
}

// operations are all of them, by path behind /v1/.
var operations = map[string]serverOperation{
	"info": operation(func(ctx context.Context, o Operations, _ noRequest, _ *reply) (any, error) { return o.Info(ctx) }),
	"map": operation(func(ctx context.Context, o Operations, q deviceRequest, r *reply) (any, error) {
		return nil, o.Map(ctx, q.Volume, q.Snapshot, func(run Run) error { return r.item(run) })
	}),
	"diff": operation(func(ctx context.Context, o Operations, q diffRequest, r *reply) (any, error) {
		return nil, o.Diff(ctx, q.Volume, q.From, q.To, func(run DiffRun) error { return r.item(run) })
	}),
	"check": operation(func(ctx context.Context, o Operations, _ noRequest, r *reply) (any, error) {
		return o.Check(ctx, r.progress)
	}),
	"compact": operation(func(ctx context.Context, o Operations, _ noRequest, _ *reply) (any, error) { return o.Compact(ctx) }),
	"snapshot/create": operation(func(ctx context.Context, o Operations, q snapshotRequest, _ *reply) (any, error) {
		return o.CreateSnapshot(ctx, q.Volume, q.Snapshot)
	}),
	"snapshot/delete": operation(func(ctx context.Context, o Operations, q snapshotRequest, _ *reply) (any, error) {
		return o.DeleteSnapshot(ctx, q.Volume, q.Snapshot)
	}),
	"snapshot/rollback": operation(func(ctx context.Context, o Operations, q rollbackRequest, _ *reply) (any, error) {
		deleted, err := o.Rollback(ctx, q.Volume, q.Snapshot, q.Force)
		return rollbackResult{deleted}, err
	}),
	"clone": operation(func(ctx context.Context, o Operations, q CloneRequest, _ *reply) (any, error) {
		defer wipeSecrets(q.Secrets)
		return nil, o.Clone(ctx, q)
	}),
	"rekey": operation(func(ctx context.Context, o Operations, q RekeyRequest, _ *reply) (any, error) {
		defer wipeSecrets(q.Secrets)
		return o.Rekey(ctx, q)
	}),
	"reencrypt": operation(func(ctx context.Context, o Operations, q ReencryptRequest, r *reply) (any, error) {
		return o.Reencrypt(ctx, q, r.progress)
	}),
	"copy": operation(func(ctx context.Context, o Operations, q copyRequest, r *reply) (any, error) {
		return nil, o.Copy(ctx, q.Destination, r.progress)
	}),
	"volume/create": operation(func(ctx context.Context, o Operations, q VolumeRequest, _ *reply) (any, error) {
		defer wipeSecrets(q.Secrets)
		return nil, o.CreateVolume(ctx, q)
	}),
	"volume/delete": operation(func(ctx context.Context, o Operations, q volumeRequest, _ *reply) (any, error) {
		return nil, o.DeleteVolume(ctx, q.Volume)
	}),
	"volume/rename": operation(func(ctx context.Context, o Operations, q renameRequest, _ *reply) (any, error) {
		return nil, o.RenameVolume(ctx, q.Volume, q.To)
	}),
	"volume/resize": operation(func(ctx context.Context, o Operations, q resizeRequest, _ *reply) (any, error) {
		return nil, o.Resize(ctx, q.Volume, q.Size, q.Shrink)
	}),
	"volume/flatten": operation(func(ctx context.Context, o Operations, q volumeRequest, r *reply) (any, error) {
		return nil, o.Flatten(ctx, q.Volume, r.progress)
	}),
}

func wipeSecrets(l []cliutil.SlotSecret) {
	for i := range l {
		l[i].Wipe()
	}
}

// parse reads a request's body strictly: what it does not know it refuses, rather
// than do something else than what was meant. No body is {}.
func parse(body []byte, q any) error {
	if len(body) == 0 {
		return nil
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(q); err != nil {
		return cliutil.UsageErrorf("request: %s", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return cliutil.UsageErrorf("request: more than one JSON value")
	}
	return nil
}
