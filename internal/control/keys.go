package control

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/fsximg/fsx/internal/cliutil"
	"github.com/fsximg/fsx/internal/volume"
	"github.com/fsximg/fsx/pkg/crypt"
	"github.com/fsximg/fsx/pkg/layout"
)

// KeyOperations are those on the slots of a store's keyring. Keys are named by a
// unique prefix of their identifier of at least 8 hex digits.
type KeyOperations interface {
	// Keys lists slots, volume keys, and the data keys of volumes that are unlocked.
	Keys(ctx context.Context) (Keys, error)
	// AddSlots makes a slot for each secret.
	AddSlots(ctx context.Context, a AddRequest) ([]KeySlot, error)
	ChangeSlot(ctx context.Context, c ChangeRequest) (KeySlot, error)
	// RemoveSlot removes a slot, the last one of a volume key only with force.
	RemoveSlot(ctx context.Context, number int, force bool) (KeySlot, error)
	// ShredSlots destroys all slots of a volume key, which it does not need.
	ShredSlots(ctx context.Context, key string) ([]KeySlot, error)
	// BackupKeys is a backup of the keyring (docs/format.md).
	BackupKeys(ctx context.Context) ([]byte, error)
}

// Keys is what a store's keyring tells.
type Keys struct {
	Slots   []KeySlot   `json:"slots"`
	Volumes []KeyVolume `json:"volumes"`
}

// KeySlot is a slot, and what it opens.
type KeySlot struct {
	Slot
	Volumes []string `json:"volumes"`
}

// KeyVolume is the keys of a volume.
type KeyVolume struct {
	Name      string `json:"name"`
	VolumeKey string `json:"volume_key"`
	Slots     []int  `json:"slots"` // none: nobody opens it any more, but a process that has the key
	Unlocked  bool   `json:"unlocked"`
	// DataKeys are known only of a volume that is unlocked.
	DataKeys []DataKey `json:"data_keys,omitempty"`
}

// DataKey is a data key of a volume.
type DataKey struct {
	Number   int    `json:"number"` // what the metadata context x-fsx:key says
	ID       string `json:"id"`
	Cipher   string `json:"cipher"`
	Writable bool   `json:"writable"`
	Bytes    uint64 `json:"bytes"` // encrypted under it, roughly
}

// AddRequest asks for slots of a volume key: of the one that Key names, or the
// volume, or of the only one that is unlocked.
type AddRequest struct {
	Key     string               `json:"key,omitempty"`
	Volume  string               `json:"volume,omitempty"`
	Secrets []cliutil.SlotSecret `json:"secrets"`
}

// ChangeRequest asks for another secret of a slot.
type ChangeRequest struct {
	Slot   int                `json:"slot"`
	Secret cliutil.SlotSecret `json:"secret"`
}

// Keys implements KeyOperations.
func (l *Local) Keys(context.Context) (Keys, error) {
	k := Keys{Slots: []KeySlot{}, Volumes: []KeyVolume{}}
	volumes, err := l.st.Volumes()
	if err != nil {
		return k, err
	}
	for _, s := range DescribeSlots(l.st.Keyring().Slots()) {
		k.Slots = append(k.Slots, opensVolumes(s, volumes))
	}
	for _, v := range volumes {
		d := KeyVolume{Name: v.Name, VolumeKey: v.VolumeKey.String(), Slots: []int{}}
		for _, s := range k.Slots {
			if s.VolumeKey == d.VolumeKey {
				d.Slots = append(d.Slots, s.Slot.Slot)
			}
		}
		keys, err := l.st.DataKeys(v.Name)
		switch {
		case errors.Is(err, volume.ErrKeyMissing), errors.Is(err, volume.ErrNotFound): // it went meanwhile
		case err != nil:
			return k, err
		default:
			d.Unlocked, d.DataKeys = true, describeDataKeys(keys)
		}
		k.Volumes = append(k.Volumes, d)
	}
	return k, nil
}

func opensVolumes(s Slot, volumes []volume.VolumeInfo) KeySlot {
	k := KeySlot{s, []string{}}
	for _, v := range volumes {
		if v.VolumeKey.String() == s.VolumeKey {
			k.Volumes = append(k.Volumes, v.Name)
		}
	}
	return k
}

func describeDataKey(k crypt.KeyInfo) DataKey {
	return DataKey{k.Number, k.ID.String(), k.Mode.String(), k.Writable, k.Bytes}
}

func describeDataKeys(keys []crypt.KeyInfo) (l []DataKey) {
	for _, k := range keys {
		l = append(l, describeDataKey(k))
	}
	return l
}

// AddSlots implements KeyOperations.
func (l *Local) AddSlots(ctx context.Context, a AddRequest) ([]KeySlot, error) {
	id, err := l.keyToAddTo(a)
	if err != nil {
		return nil, err
	}
	secrets, wipe, err := secretsOf(a.Secrets)
	if err != nil {
		return nil, err
	}
	defer wipe()
	var added []KeySlot
	for _, s := range secrets {
		number, err := l.st.AddSlot(ctx, id, s)
		if err == nil {
			var slot KeySlot
			if slot, err = l.keySlot(number); err == nil {
				added = append(added, slot)
			}
		}
		if err != nil {
			return added, err
		}
	}
	return added, nil
}

// keyToAddTo is the volume key that a request means. If it names none it is the only
// one that is unlocked.
func (l *Local) keyToAddTo(a AddRequest) (crypt.ID, error) {
	if a.Key != "" {
		return l.findKey(a.Key)
	}
	if a.Volume != "" {
		v, err := l.volumeNamed(a.Volume)
		return v.VolumeKey, err
	}
	ids := l.st.UnlockedKeys()
	switch len(ids) {
	case 0:
		return crypt.ID{}, fmt.Errorf("no volume key is open: %w", volume.ErrKeyMissing)
	case 1:
		return ids[0], nil
	}
	var names []string
	for _, id := range ids {
		names = append(names, id.String())
	}
	return crypt.ID{}, cliutil.WithHint(cliutil.UsageErrorf("several volume keys are open: %s", strings.Join(names, ", ")),
		"say which one by --key ID or --volume VOLUME; fsximg key list shows which volumes each opens")
}

func (l *Local) volumeNamed(name string) (volume.VolumeInfo, error) {
	volumes, err := l.st.Volumes()
	if err != nil {
		return volume.VolumeInfo{}, err
	}
	for _, v := range volumes {
		if v.Name == name {
			return v, nil
		}
	}
	return volume.VolumeInfo{}, fmt.Errorf("volume %s: %w", name, volume.ErrNotFound)
}

// findKey finds a volume key that a slot or a volume names, by a prefix of its
// identifier.
func (l *Local) findKey(prefix string) (crypt.ID, error) {
	info, err := l.st.Info()
	if err != nil {
		return crypt.ID{}, err
	}
	var ids []crypt.ID
	for _, s := range info.Slots {
		ids = append(ids, s.VolumeKey)
	}
	for _, v := range slices.Concat(info.Volumes, info.Hidden) {
		ids = append(ids, v.VolumeKey)
	}
	return findByPrefix(prefix, ids)
}

// findByPrefix finds the one key that a prefix of at least 8 hex digits names.
func findByPrefix(prefix string, ids []crypt.ID) (found crypt.ID, err error) {
	text := strings.ToLower(prefix)
	if len(text) < 8 || len(text) > 32 || strings.Trim(text, "0123456789abcdef") != "" {
		return found, cliutil.UsageErrorf("%q names no key: 8 to 32 hex digits do", prefix)
	}
	n := 0
	for i, id := range ids {
		if strings.HasPrefix(id.String(), text) && !slices.Contains(ids[:i], id) {
			found = id
			n++
		}
	}
	switch n {
	case 0:
		return found, cliutil.WithHint(cliutil.Errorf(cliutil.ErrNotFound, "no volume key %s", prefix), "fsximg key list shows them")
	case 1:
		return found, nil
	}
	return crypt.ID{}, cliutil.UsageErrorf("%s names several volume keys", prefix)
}

// keySlot describes a slot.
func (l *Local) keySlot(number int) (KeySlot, error) {
	slots := l.st.Keyring().Slots()
	i := slices.IndexFunc(slots, func(s crypt.SlotInfo) bool { return s.Number == number })
	if i < 0 {
		return KeySlot{}, cliutil.WithHint(fmt.Errorf("slot %d: %w", number, volume.ErrNoSlot), "fsximg key list shows which there are")
	}
	volumes, err := l.st.Volumes()
	return opensVolumes(DescribeSlots(slots[i : i+1])[0], volumes), err
}

// ChangeSlot implements KeyOperations.
func (l *Local) ChangeSlot(ctx context.Context, c ChangeRequest) (KeySlot, error) {
	if _, err := l.keySlot(c.Slot); err != nil {
		return KeySlot{}, err
	}
	secret, err := c.Secret.Secret()
	if err != nil {
		return KeySlot{}, err
	}
	defer secret.Wipe()
	if err := l.st.ChangeSlot(ctx, c.Slot, secret); err != nil {
		return KeySlot{}, err
	}
	return l.keySlot(c.Slot)
}

// RemoveSlot implements KeyOperations.
func (l *Local) RemoveSlot(ctx context.Context, number int, force bool) (KeySlot, error) {
	s, err := l.keySlot(number)
	if err != nil {
		return s, err
	}
	return s, l.st.RemoveSlot(ctx, number, force)
}

// ShredSlots implements KeyOperations.
func (l *Local) ShredSlots(ctx context.Context, key string) ([]KeySlot, error) {
	id, err := l.findKey(key)
	if err != nil {
		return nil, err
	}
	gone, err := l.st.ShredSlots(ctx, id)
	if err != nil {
		return nil, err
	}
	volumes, err := l.st.Volumes()
	shredded := []KeySlot{}
	for _, s := range DescribeSlots(gone) {
		shredded = append(shredded, opensVolumes(s, volumes))
	}
	return shredded, err
}

// BackupKeys implements KeyOperations.
func (l *Local) BackupKeys(context.Context) ([]byte, error) {
	b := layout.KeyringBackup{Store: l.st.UUID(), Created: time.Now().Truncate(time.Second), Body: l.st.Keyring().Encode()}
	return b.Encode(), nil
}

// Keys implements KeyOperations.
func (c *Client) Keys(ctx context.Context) (k Keys, err error) {
	err = c.call(ctx, "key/list", noRequest{}, &k, nil, nil)
	return k, err
}

// AddSlots implements KeyOperations.
func (c *Client) AddSlots(ctx context.Context, a AddRequest) (l []KeySlot, err error) {
	err = c.call(ctx, "key/add", a, &l, nil, nil)
	return l, err
}

// ChangeSlot implements KeyOperations.
func (c *Client) ChangeSlot(ctx context.Context, q ChangeRequest) (s KeySlot, err error) {
	err = c.call(ctx, "key/change", q, &s, nil, nil)
	return s, err
}

// RemoveSlot implements KeyOperations.
func (c *Client) RemoveSlot(ctx context.Context, number int, force bool) (s KeySlot, err error) {
	err = c.call(ctx, "key/remove", removeRequest{number, force}, &s, nil, nil)
	return s, err
}

// ShredSlots implements KeyOperations.
func (c *Client) ShredSlots(ctx context.Context, key string) (l []KeySlot, err error) {
	err = c.call(ctx, "key/shred", shredRequest{key}, &l, nil, nil)
	return l, err
}

// BackupKeys implements KeyOperations.
func (c *Client) BackupKeys(ctx context.Context) (b []byte, err error) {
	err = c.call(ctx, "key/backup", noRequest{}, &b, nil, nil)
	return b, err
}

type (
	removeRequest struct {
		Slot  int  `json:"slot"`
		Force bool `json:"force,omitempty"`
	}
	shredRequest struct {
		Key string `json:"key"`
	}
)

// keyOperations are the KeyOperations, by path behind /v1/.
var keyOperations = map[string]serverOperation{
	"key/list": operation(func(ctx context.Context, o Operations, _ noRequest, _ *reply) (any, error) { return o.Keys(ctx) }),
	"key/add": operation(func(ctx context.Context, o Operations, q AddRequest, _ *reply) (any, error) {
		defer wipeSecrets(q.Secrets)
		return o.AddSlots(ctx, q)
	}),
	"key/change": operation(func(ctx context.Context, o Operations, q ChangeRequest, _ *reply) (any, error) {
		defer q.Secret.Wipe()
		return o.ChangeSlot(ctx, q)
	}),
	"key/remove": operation(func(ctx context.Context, o Operations, q removeRequest, _ *reply) (any, error) {
		return o.RemoveSlot(ctx, q.Slot, q.Force)
	}),
	"key/shred": operation(func(ctx context.Context, o Operations, q shredRequest, _ *reply) (any, error) {
		return o.ShredSlots(ctx, q.Key)
	}),
	"key/backup": operation(func(ctx context.Context, o Operations, _ noRequest, _ *reply) (any, error) { return o.BackupKeys(ctx) }),
}
