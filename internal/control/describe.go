package control

import (
	"slices"

	"github.com/fsximg/fsx/internal/volume"
	"github.com/fsximg/fsx/pkg/crypt"
	"github.com/fsximg/fsx/pkg/crypt/ageslot"
	"github.com/fsximg/fsx/pkg/crypt/tpmslot"
	"github.com/fsximg/fsx/pkg/layout"
)

// DescribeSlots describes the slots of a keyring.
func DescribeSlots(slots []crypt.SlotInfo) []Slot {
	out := []Slot{}
	for _, s := range slots {
		r := Slot{Slot: s.Number, Type: s.Type.String(), VolumeKey: s.VolumeKey.String()}
		if s.KDF != (crypt.KDF{}) {
			r.KDF = &KDF{"argon2id", int64(s.KDF.MemoryKiB) << 10, s.KDF.Passes, s.KDF.Lanes}
		}
		switch s.Type {
		case crypt.SlotTPM2:
			if pcrs, pin, err := tpmslot.Describe(s.Data); err == nil {
				r.TPM2 = &TPM2{pcrs.String(), pin}
			}
		case crypt.SlotAge:
			r.Age = ageslot.Describe(s.Data)
		}
		out = append(out, r)
	}
	return out
}

// describeVolumes describes volumes, and among them, who descends from whom: all are
// the volumes of the store, those too that were deleted and stay for their clones.
func describeVolumes(volumes, all []volume.VolumeInfo, slots []crypt.SlotInfo) []Volume {
	f := familyOf(all)
	out := []Volume{}
	for _, v := range volumes {
		d := Volume{
			Name: v.Name, ID: v.ID.String(), UUID: v.UUID.String(), Size: v.Size, Used: v.Live, Alone: v.Alone, Allocated: v.Allocated,
			Cipher: v.Mode.String(), VolumeKey: v.VolumeKey.String(), Created: v.Created.UTC(), Snapshots: []Snapshot{},
			Epoch: v.Epoch, Slots: []int{}, AlsoReads: f.alsoReads(v), Ephemeral: v.Ephemeral, Lost: v.Lost,
		}
		for _, s := range slots {
			if s.VolumeKey == v.VolumeKey {
				d.Slots = append(d.Slots, s.Number)
			}
		}
		if v.Parent != 0 {
			d.ParentID = v.Parent.String()
		}
		d.Parent, d.ParentSnapshot = f.parent(v)
		for _, s := range v.Snapshots {
			d.Snapshots = append(d.Snapshots, describeSnapshot(s))
		}
		out = append(out, d)
	}
	return out
}

// family is the volumes of a store by identifier. A rollback leaves what the volume
// was as a hidden volume, which goes by the name of the one that took its place.
type family struct {
	byID map[layout.VolumeID]volume.VolumeInfo
	goes map[layout.VolumeID]string
}

func familyOf(all []volume.VolumeInfo) family {
	f := family{map[layout.VolumeID]volume.VolumeInfo{}, map[layout.VolumeID]string{}}
	for _, v := range all {
		f.byID[v.ID] = v
	}
	for _, v := range all {
		for at, n := v, 0; !v.Hidden && n <= len(all); n++ {
			f.goes[at.ID] = v.Name
			if !at.RolledBack {
				break
			}
			at = f.byID[at.Parent]
		}
	}
	return f
}

// parent is the volume and the snapshot that a volume was cloned from; the volume
// is empty if it was deleted since.
func (f family) parent(v volume.VolumeInfo) (name, snapshot string) {
	for n := 0; v.RolledBack && n <= len(f.byID); n++ {
		v = f.byID[v.Parent]
	}
	if name = f.goes[v.Parent]; name != "" {
		snapshot = v.ParentSnapshot
	}
	return name, snapshot
}

// alsoReads names the volumes under another volume key that descend from v, and have
// its data keys.
func (f family) alsoReads(v volume.VolumeInfo) []string {
	names := []string{}
	for id, other := range f.byID {
		if other.Hidden || other.VolumeKey == v.VolumeKey || other.Lent {
			continue
		}
		for n := 0; other.Parent != 0 && n <= len(f.byID); n++ {
			if other.Parent == v.ID || f.goes[other.Parent] == v.Name && !v.Hidden {
				names = append(names, f.byID[id].Name)
				break
			}
			other = f.byID[other.Parent]
		}
	}
	slices.Sort(names)
	return names
}

func describeSnapshot(s volume.SnapshotInfo) Snapshot {
	return Snapshot{s.Name, uint64(s.Number), s.Size, s.Created.UTC(), s.Alone, s.Clones}
}

func needsReplay(volumes []volume.VolumeInfo) bool {
	return slices.ContainsFunc(volumes, func(v volume.VolumeInfo) bool { return v.NeedsReplay })
}

func describeRun(r volume.Run) Run {
	run := Run{Start: r.Start, Length: r.Length}
	switch r.Kind {
	case layout.Hole:
		run.Kind = "hole"
	case layout.Zero:
		run.Kind = "zero"
	case layout.Data:
		run.Kind, run.Owner, run.Key, run.Snapshot = "data", r.Owner.String(), r.KID.String(), r.Snapshot
	}
	return run
}

func describeDiffRun(r volume.DiffRun) DiffRun {
	kind := "data"
	if r.Zero {
		kind = "zero"
	}
	return DiffRun{r.Start, r.Length, kind}
}

func (r *Report) add(rep *volume.Report) {
	for _, v := range rep.Volumes {
		r.Volumes = append(r.Volumes, CheckedVolume{v.Name, v.Blocks, v.Verified, v.Leaked, v.Authentic})
	}
	for _, p := range rep.Problems {
		out := Problem{Volume: p.Volume, Length: p.Length, Text: p.Text}
		if p.Offset >= 0 {
			out.Offset = &p.Offset
		}
		r.Problems = append(r.Problems, out)
	}
	r.NotListed = rep.More
	r.Clean = len(r.Problems) == 0
}
