package layout

import (
	"crypto/sha256"
	"time"
)

const (
	snapshotPrefix = 'p' // | volume be32 | sequence be64
	snapshotFixed  = 80
)

// SnapshotsPrefix is the prefix of the keys of all snapshot records.
func SnapshotsPrefix() []byte { return []byte{snapshotPrefix} }

// SnapshotOwner takes the volume from a snapshot record's key.
func SnapshotOwner(key []byte) (VolumeID, bool) {
	if len(key) != 13 || key[0] != snapshotPrefix {
		return 0, false
	}
	return VolumeID(be.Uint32(key[1:])), true
}

// SnapshotPrefix is the prefix of the keys of a volume's snapshot records.
func SnapshotPrefix(v VolumeID) []byte { return be.AppendUint32([]byte{snapshotPrefix}, uint32(v)) }

// SnapshotKey is the key of a snapshot record.
func SnapshotKey(v VolumeID, n Seq) []byte {
	return be.AppendUint64(SnapshotPrefix(v), uint64(n))
}

// Snapshot is a named state of a volume that is kept. The record is
// authenticated by the digest of all of them in the volume's head.
//
//	0 sequence be64 | 8 keys be32 | 12 flags u8 (bit 0: hidden) | 13 zeros, 2
//	15 name length u8 | 16 created be64, seconds
//	24 size be64, bytes | 32 map root, 48 | 80 name
type Snapshot struct {
	Seq Seq
	// Keys is the number that the next data key of the bag would have got: what
	// the snapshot needs are keys with lower numbers.
	Keys uint32
	// Hidden says that the snapshot was deleted and stays because of its clones.
	// Its name may be another's by now.
	Hidden  bool
	Name    string
	Created time.Time
	Size    uint64
	Root    Root
}

const snapshotHidden = 1 << 0

// Encode returns the record's bytes.
func (s *Snapshot) Encode() []byte {
	b := be.AppendUint64(make([]byte, 0, snapshotFixed+len(s.Name)), uint64(s.Seq))
	flags := byte(0)
	if s.Hidden {
		flags = snapshotHidden
	}
	b = append(be.AppendUint32(b, s.Keys), flags, 0, 0, byte(len(s.Name)))
	b = be.AppendUint64(be.AppendUint64(b, uint64(s.Created.Unix())), s.Size)
	return append(s.Root.append(b), s.Name...)
}

// DecodeSnapshot reads a snapshot record.
func DecodeSnapshot(b []byte) (*Snapshot, error) {
	if len(b) < snapshotFixed {
		return nil, corrupt("snapshot", "too short")
	}
	c := newCursor(b)
	s := &Snapshot{Seq: Seq(c.u64()), Keys: c.u32()}
	flags := c.u8()
	s.Hidden = flags == snapshotHidden
	c.zero(2)
	n := int(c.u8())
	s.Created, s.Size = time.Unix(int64(c.u64()), 0).UTC(), c.u64()
	s.Root.decode(c)
	if !c.ok || n != len(c.b) || flags > snapshotHidden {
		return nil, corrupt("snapshot", "field out of range")
	}
	if s.Name = string(c.take(n)); !ValidName(s.Name) || s.Seq == 0 || s.Size > MaxVolumeSize || s.Size%SectorSize != 0 {
		return nil, corrupt("snapshot", "field out of range")
	}
	return s, nil
}

// SnapshotDigest is the digest of a volume's snapshot records, in ascending
// order of their sequences.
func SnapshotDigest(l []Snapshot) (sum Hash) {
	h := sha256.New()
	for i := range l {
		h.Write(l[i].Encode())
	}
	h.Sum(sum[:0])
	return sum
}
