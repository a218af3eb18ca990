package layout

import "time"

const (
	headMagic    = "FSXHEAD0"
	headFixed    = 412
	headFlagDone = 1 << 0
	headFlagGoOn = 1 << 1
	headFlagLent = 1 << 2

	// MaxName is the longest name of a volume or snapshot, in bytes.
	MaxName = 63
)

// RootSize is the size of an encoded Root, in bytes.
const RootSize = 48

// Root is the root pointer of a map tree.
//
//	0 kind u8 | 1 height u8 | 2 zeros, 2 | 4 owner be32 | 8 gen be64 | 16 hash 32
//
// Owner, gen and hash are zero unless kind is Data.
type Root struct {
	Kind   Kind
	Height uint8
	Owner  VolumeID
	Gen    uint64
	Hash   Hash
}

func (r *Root) append(dst []byte) []byte {
	dst = append(dst, byte(r.Kind), r.Height, 0, 0)
	dst = be.AppendUint32(dst, uint32(r.Owner))
	dst = be.AppendUint64(dst, r.Gen)
	return append(dst, r.Hash[:]...)
}

func (r *Root) decode(c *cursor) {
	r.Kind, r.Height = Kind(c.u8()), c.u8()
	c.zero(2)
	r.Owner, r.Gen, r.Hash = VolumeID(c.u32()), c.u64(), Hash(c.take(32))
	if r.Kind > Data || (r.Kind != Data && *r != (Root{Kind: r.Kind, Height: r.Height})) {
		c.ok = false
	}
}

// Position is the end of a log as far as it is known: the place of a record,
// and the block behind it. Seq 0 is the empty log.
type Position struct {
	Segment SegmentNo
	Block   uint32 // the record's first block
	End     uint32 // the block behind the record
	Seq     Seq
	MAC     MAC
}

// Head is the authenticated record of a volume, in Badger under HeadKey.
//
//	  0  magic "FSXHEAD0"
//	  8  store UUID, 16;  24 volume UUID, 16;  40 volume be32
//	 44  flags be32 (bit 0: clean, the log ends exactly at the position;
//	     bit 1: continues, the parent's history is the volume's own;
//	     bit 2: ephemeral, its volume key has no slot)
//	 48  epoch be64: grows with every head
//	 56  size be64;  64 smallest size ever, be64;  72 created be64, seconds
//	 80  log position: segment be64, block be32, end be32, seq be64, MAC 32
//	136  lowest unused segment number, be64
//	144  map root, 48
//	192  newest snapshot be64 (its commit sequence, 0 if none)
//	200  snapshots be32;  204 digest of the snapshot records, 32
//	236  parent volume be32 (0 if none);  240 parent snapshot be64
//	248  parent root's hash, 32
//	280  volume key identifier, 16
//	296  digest of the bag, 32;  328 digest of the slots, 32
//	360  digest of the superblock, 32
//	392  map epoch be64: the greatest sequence a snapshot ever had
//	400  mode for new extents, u8;  401 zeros, 2;  403 name length, u8
//	404  sealed be64: bytes under the data key for writing that its bag does not count
//	412  name
//	 -32 MAC: HMAC-SHA-256 over all before it
type Head struct {
	Store, UUID    UUID
	Volume         VolumeID
	Clean          bool
	Continues      bool // a rollback made it: snapshots of the parent up to ParentSnapshot are its own
	Ephemeral      bool // its volume key is in no slot, and goes with the process that made it
	Epoch          uint64
	Size, MinSize  uint64
	Created        time.Time
	Log            Position
	NextSegment    SegmentNo
	Root           Root
	NewestSnapshot Seq
	Snapshots      uint32
	SnapshotDigest Hash
	Parent         VolumeID
	ParentSnapshot Seq
	ParentHash     Hash
	VolumeKey      KeyID
	BagDigest      Hash
	SlotsDigest    Hash
	Superblock     Hash
	MapEpoch       Seq
	Mode           uint8
	Sealed         uint64 // bytes under the data key that is written under, on top of what the bag counts; advisory
	Name           string
}

// Encode returns the head's bytes with a fresh MAC.
func (h *Head) Encode(sign Signer) []byte {
	b := make([]byte, 0, headFixed+len(h.Name)+recordMACSize)
	b = append(b, headMagic...)
	b = append(append(b, h.Store[:]...), h.UUID[:]...)
	b = be.AppendUint32(b, uint32(h.Volume))
	flags := uint32(0)
	if h.Clean {
		flags = headFlagDone
	}
	if h.Continues {
		flags |= headFlagGoOn
	}
	if h.Ephemeral {
		flags |= headFlagLent
	}
	b = be.AppendUint32(b, flags)
	for _, v := range []uint64{h.Epoch, h.Size, h.MinSize, uint64(h.Created.Unix()), uint64(h.Log.Segment)} {
		b = be.AppendUint64(b, v)
	}
	b = be.AppendUint32(be.AppendUint32(b, h.Log.Block), h.Log.End)
	b = be.AppendUint64(b, uint64(h.Log.Seq))
	b = append(b, h.Log.MAC[:]...)
	b = be.AppendUint64(b, uint64(h.NextSegment))
	b = h.Root.append(b)
	b = be.AppendUint64(b, uint64(h.NewestSnapshot))
	b = be.AppendUint32(b, h.Snapshots)
	b = append(b, h.SnapshotDigest[:]...)
	b = be.AppendUint32(b, uint32(h.Parent))
	b = be.AppendUint64(b, uint64(h.ParentSnapshot))
	b = append(b, h.ParentHash[:]...)
	b = append(b, h.VolumeKey[:]...)
	b = append(append(append(b, h.BagDigest[:]...), h.SlotsDigest[:]...), h.Superblock[:]...)
	b = be.AppendUint64(b, uint64(h.MapEpoch))
	b = append(b, h.Mode, 0, 0, byte(len(h.Name)))
	b = be.AppendUint64(b, h.Sealed)
	b = append(b, h.Name...)
	mac := sign(b)
	return append(b, mac[:]...)
}

// DecodeHead decodes a head. With a nil signer its MAC is not checked: the
// result is then a hint for commands that work without a key.
func DecodeHead(b []byte, sign Signer) (*Head, error) {
	if len(b) < headFixed+recordMACSize || string(b[:8]) != headMagic {
		return nil, corrupt("head", "no head")
	}
	body := b[:len(b)-recordMACSize]
	if sign != nil && sign(body) != [32]byte(b[len(body):]) {
		return nil, corrupt("head", "authentication failed")
	}
	c := newCursor(body[8:])
	h := &Head{Store: UUID(c.take(16)), UUID: UUID(c.take(16)), Volume: VolumeID(c.u32())}
	flags := c.u32()
	h.Clean, h.Continues, h.Ephemeral = flags&headFlagDone != 0, flags&headFlagGoOn != 0, flags&headFlagLent != 0
	h.Epoch, h.Size, h.MinSize = c.u64(), c.u64(), c.u64()
	h.Created = time.Unix(int64(c.u64()), 0).UTC()
	h.Log = Position{Segment: SegmentNo(c.u64()), Block: c.u32(), End: c.u32(), Seq: Seq(c.u64()), MAC: MAC(c.take(32))}
	h.NextSegment = SegmentNo(c.u64())
	h.Root.decode(c)
	h.NewestSnapshot = Seq(c.u64())
	h.Snapshots, h.SnapshotDigest = c.u32(), Hash(c.take(32))
	h.Parent, h.ParentSnapshot, h.ParentHash = VolumeID(c.u32()), Seq(c.u64()), Hash(c.take(32))
	h.VolumeKey = KeyID(c.take(16))
	h.BagDigest, h.SlotsDigest, h.Superblock = Hash(c.take(32)), Hash(c.take(32)), Hash(c.take(32))
	h.MapEpoch = Seq(c.u64())
	h.Mode = c.u8()
	c.zero(2)
	n := int(c.u8())
	h.Sealed = c.u64()
	if n > len(c.b) {
		return nil, corrupt("head", "name too long")
	}
	h.Name = string(c.take(n))
	if !c.done() || flags&^(headFlagDone|headFlagGoOn|headFlagLent) != 0 || !ValidName(h.Name) || h.Size > MaxVolumeSize || h.Size%SectorSize != 0 || h.MinSize > h.Size ||
		h.NewestSnapshot > h.MapEpoch || (h.NewestSnapshot == 0) != (h.Snapshots == 0) ||
		(h.Parent == 0) != (h.ParentSnapshot == 0) || h.Continues && h.Parent == 0 {
		return nil, corrupt("head", "field out of range")
	}
	return h, nil
}

// ValidName says whether s may name a volume or a snapshot:
// [A-Za-z0-9][A-Za-z0-9._-]{0,62}.
func ValidName(s string) bool {
	if len(s) == 0 || len(s) > MaxName {
		return false
	}
	for i := range len(s) {
		c := s[i]
		alnum := c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z'
		if !alnum && (i == 0 || c != '.' && c != '_' && c != '-') {
			return false
		}
	}
	return true
}
