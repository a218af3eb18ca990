package control

import (
	"context"
	"slices"
	"strings"

	"github.com/fsximg/fsx/internal/cliutil"
	"github.com/fsximg/fsx/internal/volume"
	"github.com/fsximg/fsx/pkg/crypt"
)

// ServerKeys are what can be done with the volume keys in the memory of a
// store's server. Methods may be called concurrently.
type ServerKeys interface {
	// KeyStatus describes the volume keys of the store's volumes.
	KeyStatus(ctx context.Context) ([]VolumeKey, error)
	// AddKey opens the slots that the secrets open, and describes their volume keys.
	// The error is volume.ErrWrongKey if they open none.
	AddKey(ctx context.Context, secrets []cliutil.SlotSecret) ([]VolumeKey, error)
	// RemoveKey takes the volume key with an identifier, or a unique prefix of it of
	// 8 or more hex digits, out of memory, as volume.Store.RemoveKey does.
	RemoveKey(ctx context.Context, key string, force bool) (RemovedKey, error)
}

var (
	_ ServerKeys = (*Local)(nil)
	_ ServerKeys = (*Client)(nil)
)

// VolumeKey describes a volume key. docs/schema/fsxnbd.key.status.json says what
// the fields mean.
type VolumeKey struct {
	ID        string   `json:"id"`
	State     string   `json:"state"` // present, incompletely-removed or absent
	Ephemeral bool     `json:"ephemeral"`
	Volumes   []string `json:"volumes"` // under it
	Clients   int      `json:"clients"` // that use them
}

// RemovedKey is what a removal did.
type RemovedKey struct {
	VolumeKey
	// Lost says of which volumes the last writes may be lost, and why; empty unless
	// it was forced.
	Lost []string `json:"may_be_lost"`
}

// minKeyPrefix is how many hex digits of an identifier will do.
const minKeyPrefix = 8

func describeKey(k volume.KeyStatus) VolumeKey {
	d := VolumeKey{ID: k.ID.String(), State: k.State.String(), Ephemeral: k.Ephemeral, Volumes: k.Volumes, Clients: k.Clients}
	if d.Volumes == nil {
		d.Volumes = []string{}
	}
	return d
}

// DescribeKeys describes volume keys.
func DescribeKeys(states []volume.KeyStatus) []VolumeKey {
	keys := []VolumeKey{}
	for _, k := range states {
		keys = append(keys, describeKey(k))
	}
	return keys
}

// KeyStatus implements ServerKeys.
func (l *Local) KeyStatus(context.Context) ([]VolumeKey, error) {
	return DescribeKeys(l.st.KeyStates()), nil
}

// AddKey implements ServerKeys.
func (l *Local) AddKey(_ context.Context, secrets []cliutil.SlotSecret) ([]VolumeKey, error) {
	opened, wipe, err := secretsOf(secrets)
	if err != nil {
		return nil, err
	}
	defer wipe()
	ids, err := l.st.AddKeys(opened)
	if err != nil {
		return nil, cliutil.WithHint(err, "fsximg info %s shows what kinds of keys open it", l.st.Path())
	}
	keys := []VolumeKey{}
	for _, k := range l.st.KeyStates() {
		if slices.Contains(ids, k.ID) {
			keys = append(keys, describeKey(k))
		}
	}
	return keys, nil
}

// RemoveKey implements ServerKeys.
func (l *Local) RemoveKey(ctx context.Context, key string, force bool) (RemovedKey, error) {
	id, err := l.findServerKey(key)
	if err != nil {
		return RemovedKey{}, err
	}
	r, err := l.st.RemoveKey(ctx, id, force)
	if err != nil {
		return RemovedKey{}, err
	}
	removed := RemovedKey{VolumeKey: describeKey(r.KeyStatus), Lost: []string{}}
	for _, err := range r.Lost {
		removed.Lost = append(removed.Lost, err.Error())
	}
	return removed, nil
}

// findServerKey finds the volume key that an identifier, or a prefix of one, means.
func (l *Local) findServerKey(prefix string) (id crypt.ID, err error) {
	if len(prefix) < minKeyPrefix || strings.Trim(prefix, "0123456789abcdef") != "" {
		return id, cliutil.WithHint(cliutil.UsageErrorf("%q is no key identifier", prefix), "8 or more of its hex digits, as fsxnbd key status shows them")
	}
	found := 0
	for _, k := range l.st.KeyStates() {
		if strings.HasPrefix(k.ID.String(), prefix) {
			id = k.ID
			found++
		}
	}
	switch found {
	case 0:
		return id, cliutil.Errorf(volume.ErrNoKey, "volume key %s: %v", prefix, volume.ErrNoKey)
	case 1:
		return id, nil
	}
	return id, cliutil.UsageErrorf("%d volume keys begin with %s", found, prefix)
}

// KeyStatus implements ServerKeys.
func (c *Client) KeyStatus(ctx context.Context) (keys []VolumeKey, err error) {
	var r keysResult
	err = c.call(ctx, "server-key/status", noRequest{}, &r, nil, nil)
	return r.Keys, err
}

// AddKey implements ServerKeys.
func (c *Client) AddKey(ctx context.Context, secrets []cliutil.SlotSecret) ([]VolumeKey, error) {
	var r keysResult
	err := c.call(ctx, "server-key/add", addKeyRequest{secrets}, &r, nil, nil)
	return r.Keys, err
}

// RemoveKey implements ServerKeys.
func (c *Client) RemoveKey(ctx context.Context, key string, force bool) (r RemovedKey, err error) {
	err = c.call(ctx, "server-key/remove", removeKeyRequest{key, force}, &r, nil, nil)
	return r, err
}

type (
	addKeyRequest struct {
		Secrets []cliutil.SlotSecret `json:"secrets"`
	}
	removeKeyRequest struct {
		Key   string `json:"key"`
		Force bool   `json:"force,omitempty"`
	}
	keysResult struct {
		Keys []VolumeKey `json:"keys"`
	}
)

// serverKeyOperation is operation for what only a server with keys can do.
func serverKeyOperation[Request any](do func(ctx context.Context, k ServerKeys, q Request) (any, error)) serverOperation {
	return operation(func(ctx context.Context, o Operations, q Request, _ *reply) (any, error) {
		k, ok := o.(ServerKeys)
		if !ok {
			return nil, cliutil.Errorf(ErrProtocol, "this server has no keys to add or to remove")
		}
		return do(ctx, k, q)
	})
}

var serverKeyOperations = map[string]serverOperation{
	"server-key/status": serverKeyOperation(func(ctx context.Context, k ServerKeys, _ noRequest) (any, error) {
		keys, err := k.KeyStatus(ctx)
		return keysResult{keys}, err
	}),
	"server-key/add": serverKeyOperation(func(ctx context.Context, k ServerKeys, q addKeyRequest) (any, error) {
		defer wipeSecrets(q.Secrets)
		keys, err := k.AddKey(ctx, q.Secrets)
		return keysResult{keys}, err
	}),
	"server-key/remove": serverKeyOperation(func(ctx context.Context, k ServerKeys, q removeKeyRequest) (any, error) {
		return k.RemoveKey(ctx, q.Key, q.Force)
	}),
}
